"""The published evaluation's networks: found by name, loaded safely, and in agreement with the notebook's own cells."""

import importlib.util
import json

import open_clip
import pytest
import torch
from paths import ROOT
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from mindtuner.errors import UserError
from mindtuner.evaluation.scores import networks
from mindtuner.evaluation.scores.catalogue import of_part
from mindtuner.evaluation.scores.networks import find_networks, not_scored

_SPEC = importlib.util.spec_from_file_location("parity_scores", ROOT / "benchmarks" / "parity" / "scores.py")
parity = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(parity)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    parity.write_networks(folder)
    return folder


@pytest.fixture(autouse=True)
def small_clip(monkeypatch):
    monkeypatch.setattr(networks, "CLIP_L14", parity.SMALL_CLIP)


@pytest.mark.slow
@pytest.mark.parametrize("way, only", [("published", ()), ("today", ("alexnet", "efficientnet_b1", "clip_vit_l14"))])
def test_scores_are_those_of_the_published_notebook(folder, way, only):
    """Same pictures, same weights; "today" is its code under the antialiasing default of later torchvisions."""
    seen, painted, about = parity.read_fixture()
    found = parity.ours(folder, seen, painted, way, only)
    assert len(found) == (8 if not only else 6) and len(about["commit"]) == 40
    assert found == pytest.approx({score: about[way][score] for score in found}, abs=1e-4)
    # the two ways differ by more than that, so the test would see the wrong one
    other = about["today" if way == "published" else "published"]
    assert sum(abs(found[score] - other[score]) > 3e-4 for score in found) >= 2


def test_a_missing_network_is_named_with_its_scores(folder, tmp_path):
    found, missing = find_networks(folder)
    assert {score for network in found for score in network.layers} == {
        name for name, score in of_part("reconstruction").items() if score.network
    } and not missing
    (tmp_path / "efficientnet_b1-c27df63c.pth").write_bytes((folder / "efficientnet_b1-c27df63c.pth").read_bytes())
    found, missing = find_networks(tmp_path)
    assert [network.name for network in found] == ["efficientnet_b1"] and len(found[0].identity.split()[1]) == 16
    assert f"not scored: alexnet2, alexnet5 (no alexnet file in {tmp_path})" in not_scored(missing)
    assert "efficientnet_b1" not in missing
    nothing, every = find_networks(None)
    assert nothing == [] and not_scored(every) == (
        "not scored: alexnet2, alexnet5, inception, clip, efficientnet_b1, swav (needs mindtuner evaluate --networks DIR)"
    )


def test_files_that_are_not_the_network_are_refused(folder, tmp_path):
    with pytest.raises(UserError, match="is no folder; expected one with some of torchvision's alexnet"):
        find_networks(tmp_path / "nowhere")
    path = tmp_path / "alexnet.pth"
    torch.save(parity.networks()["EfficientNet_B1"], path)
    with pytest.raises(UserError, match=r"alexnet.pth: .* tensors do not fit .*; expected torchvision's AlexNet"):
        find_networks(tmp_path)[0][0].load()
    torch.save({"features.0.weight": pytest.approx}, path)
    with pytest.raises(UserError, match="alexnet.pth: holds Python code .*, which is never run"):
        find_networks(tmp_path)[0][0].load()
    (tmp_path / "alexnet-2.pth").touch()
    with pytest.raises(UserError, match="alexnet-2.pth and alexnet.pth could both be AlexNet; expected one"):
        find_networks(tmp_path)


def test_another_clip_is_refused(folder, tmp_path, monkeypatch):
    clip = tmp_path / "clip-vit-large-patch14"
    clip.mkdir()
    with pytest.raises(UserError, match="model.safetensors: not found; expected the folder clip-vit-large-patch14"):
        find_networks(tmp_path)
    for name in ("config.json", "model.safetensors"):
        (clip / name).write_bytes((folder / clip.name / name).read_bytes())
    monkeypatch.undo()
    with pytest.raises(UserError, match="vision_config.hidden_size is 64; expected 1024, CLIP ViT-L/14"):
        find_networks(tmp_path)[0][0].load()
    (clip / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(UserError, match="clip-vit-large-patch14"):
        find_networks(tmp_path)[0][0].load()


def test_the_form_that_is_asked_of_clip_is_openai_s_vit_l_14(monkeypatch):
    monkeypatch.undo()
    with torch.device("meta"):
        ours = CLIPVisionModelWithProjection(CLIPVisionConfig(**networks.CLIP_L14))
        theirs = open_clip.create_model("ViT-L-14-quickgelu", load_weights=False, device="meta").visual

    def sizes(module):
        return sum(tensor.numel() for tensor in module.parameters())

    assert sizes(ours) == sizes(theirs) == 303_966_208
    assert ours.config.hidden_act == "quick_gelu" and ours.config.layer_norm_eps == theirs.ln_post.eps
