"""The open_clip towers against open_clip's own loader, forward and transforms, on small random models saved to disk."""

import json
import sys
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

from mindtuner.data import Stimuli
from mindtuner.errors import UserError
from mindtuner.towers.openclip import OpenClipImageEncoder, OpenClipTextEncoder, openclip_towers, resized, token_forward

SIDE, PATCHES, WIDTH, JOINT = 32, 16, 32, 24
VISION = {"image_size": SIDE, "layers": 2, "width": WIDTH, "head_width": 16, "patch_size": 8}
TEXT = {"context_length": 12, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
POOLER = {"attn_pooler_queries": 7, "attn_pooler_heads": 2}
SENTENCES = [
    "a red ball on the beach",
    "a cat",
    "a red ball on the beach",
    "two boats at night and a long list of words that no context of twelve tokens will ever hold",
]


def save_model(folder: Path, seed: int = 0, preprocess: dict | None = None, **changes) -> str:
    """A random model as a folder that open_clip itself can load; its name."""
    config = {"embed_dim": JOINT, "vision_cfg": VISION, "text_cfg": TEXT, **changes}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess or {}}))
    torch.manual_seed(seed)
    model = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
    with torch.no_grad():
        for parameter in model.parameters():  # norms start as the identity and biases at 0, which would hide mistakes
            parameter.add_(torch.randn_like(parameter) * 0.2)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return f"local-dir:{folder}"


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> str:
    return save_model(tmp_path_factory.mktemp("models") / "plain")


@pytest.fixture(scope="module")
def plain_encoder(plain) -> OpenClipImageEncoder:
    return OpenClipImageEncoder(plain)


def pictures(count: int = 2, side: int = SIDE, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 3, side, side)).astype(np.uint8)


def their_input(name: str, images: np.ndarray) -> tuple[torch.nn.Module, torch.Tensor]:
    """open_clip's own model, by its own loader, and images through its own transform of PIL images."""
    model, _, transform = open_clip.create_model_and_transforms(name)
    return model.eval(), torch.stack([transform(Image.fromarray(image.transpose(1, 2, 0))) for image in images])


def through_hook(model, norm, batch) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes into the final norm and what comes out of it while the model encodes images."""
    seen = []
    handle = norm.register_forward_hook(lambda _, given, output: seen.extend((given[0], output)))
    with torch.no_grad():
        model.encode_image(batch)
    handle.remove()
    return seen[0], seen[1]


VISION_FORMS = {
    "tok": ({}, PATCHES, WIDTH),
    "avg": ({"pool_type": "avg", "no_ln_pre": True, "pos_embed_type": "sin_cos_2d"}, PATCHES, WIDTH),
    "none": ({"pool_type": "none"}, PATCHES, WIDTH),
    "custom blocks": ({"ls_init_value": 0.1, "qk_norm": True, "patch_dropout": 0.5}, PATCHES, WIDTH),
    "attention, tok": ({"attentional_pool": True, **POOLER}, 6, JOINT),
    "attention, avg": ({"attentional_pool": True, "pool_type": "avg", **POOLER}, 6, JOINT),
    "attention, none": ({"attentional_pool": True, "pool_type": "none", **POOLER}, 7, JOINT),
}


@pytest.mark.parametrize("form", VISION_FORMS)
def test_tokens_are_those_of_open_clips_own_forward(form, tmp_path):
    change, count, width = VISION_FORMS[form]
    name = save_model(tmp_path / "m", vision_cfg={**VISION, **change})
    images = pictures()
    model, batch = their_input(name, images)
    inside, outside = through_hook(model, model.visual.ln_post, batch)
    model.visual.output_tokens = True
    with torch.no_grad():
        their_tokens = model.visual(batch)[1]
    if form == "none":
        their_tokens = their_tokens[:, 1:]  # there the class token is among them
    skip = inside.shape[1] - count
    for token_norm, norm_side in (("after", outside), ("before", inside)):
        encoder = OpenClipImageEncoder(name, token_norm=token_norm)
        tokens = encoder.tokens(images)
        assert tokens.shape == (2, count, width) == (2, *encoder.shape) and tokens.dtype == np.float32
        np.testing.assert_allclose(tokens, norm_side[:, skip:], atol=2e-5)
        if token_norm == "after":
            np.testing.assert_allclose(tokens, their_tokens, atol=2e-5)
    assert (inside - outside).abs().max() > 0.1  # else the two would not be told apart


@pytest.mark.parametrize("pool_type", ["tok", "avg"])
def test_a_final_norm_after_pooling_leaves_tokens_without_norm(pool_type, tmp_path):
    name = save_model(tmp_path / "late", vision_cfg={**VISION, "pool_type": pool_type, "final_ln_after_pool": True})
    images = pictures()
    model, batch = their_input(name, images)
    model.visual.output_tokens = True
    last_block = model.visual.transformer.resblocks[-1]
    seen = []
    handle = last_block.register_forward_hook(lambda _, given, output: seen.append(output))
    with torch.no_grad():
        their_tokens = model.visual(batch)[1]
    handle.remove()
    tokens = OpenClipImageEncoder(name, token_norm="before").tokens(images)
    np.testing.assert_allclose(tokens, their_tokens, atol=2e-5)
    np.testing.assert_allclose(tokens, seen[0][:, 1:], atol=2e-5)
    with pytest.raises(UserError, match="late: token_norm is after.*expected token_norm before"):
        OpenClipImageEncoder(name)


@pytest.mark.parametrize("form", ["parallel", "cascade"])
def test_queries_behind_the_norm_have_no_before(form, tmp_path):
    name = save_model(tmp_path / form, embed_dim=WIDTH, vision_cfg={**VISION, "attentional_pool": form, **POOLER})
    images = pictures()
    model, batch = their_input(name, images)
    model.visual.output_tokens = True
    with torch.no_grad():
        their_tokens = model.visual(batch)[1]
    np.testing.assert_allclose(OpenClipImageEncoder(name).tokens(images), their_tokens, atol=2e-5)
    with pytest.raises(UserError, match=f"{form}: token_norm is before.*expected token_norm after"):
        OpenClipImageEncoder(name, token_norm="before")


TIMM = {"test_vit": True, "test_vit3": True}  # does the trunk normalise its tokens? the first has a class token, see below


@pytest.mark.parametrize("trunk", TIMM)
def test_tokens_of_timms_vision_transformers(trunk, tmp_path):
    vision = {"image_size": 160, "timm_model_name": trunk, "timm_pool": "", "timm_proj": "linear"}
    name = save_model(tmp_path / "timm", vision_cfg=vision, custom_text=True)
    images = pictures(side=160)
    model, batch = their_input(name, images)
    with torch.no_grad():
        theirs = {
            norm: model.visual.forward_intermediates(
                batch,
                indices=1,
                normalize_intermediates=norm,
                intermediates_only=True,
                output_fmt="NLC",
                output_extra_tokens=True,
            )
            for norm in (True, False)
        }
    for token_norm, own in (("after", theirs[True]), ("before", theirs[False])):
        encoder = OpenClipImageEncoder(name, token_norm=token_norm)
        tokens = encoder.tokens(images)
        assert tokens.shape[:2] == (2, 100)
        np.testing.assert_allclose(tokens, own["image_intermediates"][0], atol=2e-4)
    assert (theirs[True]["image_intermediates"][0] - theirs[False]["image_intermediates"][0]).abs().max() > 0.1


def test_timms_trunks_here_are_with_and_without_class_token(tmp_path):
    import timm

    assert timm.create_model("test_vit").cls_token is not None
    assert timm.create_model("test_vit3").cls_token is None


@pytest.mark.parametrize(
    "vision",
    [
        {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16},
        {"image_size": 64, "timm_model_name": "test_convnext", "timm_pool": "avg", "timm_proj": "linear"},
    ],
)
def test_towers_without_tokens_are_refused(vision, tmp_path):
    name = save_model(tmp_path / "grids", vision_cfg=vision, custom_text=True)
    with pytest.raises(UserError, match="grids: its image tower, a .* has no tokens; expected ") as error:
        OpenClipImageEncoder(name)
    assert "\n" not in str(error.value)
    assert OpenClipTextEncoder(name).width == JOINT


@pytest.mark.slow
def test_the_papers_model_has_256_tokens_of_width_1664():
    """Built without memory, on the meta device, from open_clip's own description."""
    with torch.device("meta"):
        model = open_clip.CLIP(**open_clip.get_model_config("ViT-bigG-14")).eval()
        tokens = token_forward(model.visual, "after", "bigG")(torch.zeros(1, 3, 224, 224))
        texts = model.encode_text(torch.zeros(1, 77, dtype=torch.long))
    assert tokens.shape == (1, 256, 1664) and texts.shape == (1, 1280)


def test_images_are_prepared_as_the_model_does_it_itself(plain, plain_encoder):
    """At the tower's size nothing is resampled, so bytes, floats and PIL pictures agree to rounding."""
    images = pictures(3)
    _, batch = their_input(plain, images)
    for given_as in (torch.from_numpy(images), torch.from_numpy(images).float() / 255):
        torch.testing.assert_close(plain_encoder.prepare(given_as), batch, atol=1e-6, rtol=1e-6)
    half = torch.from_numpy(images).half() / 255
    torch.testing.assert_close(plain_encoder.prepare(half), batch, atol=3e-3, rtol=0)


@pytest.mark.parametrize("mode, interpolation", [("shortest", "bicubic"), ("squash", "bilinear"), ("longest", "bicubic")])
def test_other_sizes_are_resized_as_pil_does(mode, interpolation, tmp_path):
    preprocess = {
        "resize_mode": mode,
        "interpolation": interpolation,
        "mean": [0.5, 0.4, 0.3],
        "std": [0.2, 0.3, 0.4],
        "fill_color": 40,
    }
    name = save_model(tmp_path / "m", preprocess=preprocess)
    encoder = OpenClipImageEncoder(name)
    assert encoder.identity["preprocess"] == {**preprocess, "size": [SIDE, SIDE]}
    level = 1 / 255 / 0.2  # of one grey level, at most
    for shape in ((70, 100), (101, 64), (20, 27)):
        images = np.random.default_rng(1).integers(0, 256, (2, 3, *shape)).astype(np.uint8)
        _, batch = their_input(name, images)
        from_bytes = encoder.prepare(torch.from_numpy(images))
        assert from_bytes.shape == batch.shape
        assert (from_bytes - batch).abs().max() <= 1.01 * level
        from_floats = encoder.prepare(torch.from_numpy(images).float() / 255)
        assert (from_floats - batch).abs().max() <= 1.6 * level


@settings(max_examples=25, deadline=None)
@given(
    st.integers(5, 60),
    st.integers(5, 60),
    st.integers(8, 40),
    st.integers(8, 40),
    st.sampled_from(["shortest", "longest", "squash"]),
)
def test_any_size_becomes_the_towers(height, width, to_height, to_width, mode):
    preprocess = {"size": [to_height, to_width], "resize_mode": mode, "interpolation": "bicubic"}
    flat = resized(torch.full((1, 3, height, width), 0.25), preprocess, 0.25)
    torch.testing.assert_close(flat, torch.full((1, 3, to_height, to_width), 0.25))


def test_an_edge_stays_within_black_and_white(plain_encoder):
    """Bicubic interpolation overshoots at a hard edge; like PIL's, our result does not."""
    edge = torch.zeros(1, 3, 50, 50)
    edge[..., 25:] = 1
    prepared = plain_encoder.prepare(edge)
    ends = plain_encoder.prepare(torch.stack([torch.zeros(3, SIDE, SIDE), torch.ones(3, SIDE, SIDE)]))
    assert (prepared[0] >= ends[0] - 1e-6).all() and (prepared[0] <= ends[1] + 1e-6).all()


def test_tokens_depend_on_neither_batches_nor_the_images_type(plain):
    images = pictures(5)
    small, large = OpenClipImageEncoder(plain, batch=2), OpenClipImageEncoder(plain)
    tokens = large.tokens(images)
    np.testing.assert_allclose(small.tokens(images), tokens, atol=2e-5)
    np.testing.assert_allclose(large.tokens(images[3:4]), tokens[3:4], atol=2e-5)
    np.testing.assert_allclose(large.tokens(torch.from_numpy(images).double() / 255), tokens, atol=2e-5)
    assert large.tokens(images[:0]).shape == (0, PATCHES, WIDTH)
    assert small.identity == large.identity


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((3, 32, 32)),
        np.zeros((1, 1, 32, 32)),
        np.zeros((1, 3, 32, 32), np.int64),
        np.full((1, 3, 32, 32), 255.0),
        np.full((1, 3, 32, 32), -1.0),
        np.full((1, 3, 32, 32), np.nan),
    ],
)
def test_what_is_no_image_is_refused(images, plain_encoder):
    with pytest.raises(ValueError, match="expected"):
        plain_encoder.tokens(images)


def test_mindeye2s_image_range_shows_washed_out_images(plain, plain_encoder):
    washed = OpenClipImageEncoder(plain, image_range="mindeye2")
    images = pictures().astype(np.float32) / 255
    model, _ = their_input(plain, pictures())
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    _, outside = through_hook(model, model.visual.ln_post, ((torch.from_numpy(images) + 1) / 2 - mean) / std)
    tokens = washed.tokens(images)
    np.testing.assert_allclose(tokens, outside[:, 1:], atol=2e-5)
    np.testing.assert_allclose(tokens, plain_encoder.tokens((images + 1) / 2), atol=2e-5)
    assert np.abs(tokens - plain_encoder.tokens(images)).max() > 0.05


def test_bfloat16_is_float32_to_its_digits(plain, plain_encoder):
    coarse = OpenClipImageEncoder(plain, dtype=torch.bfloat16)
    exact, rounded = plain_encoder.tokens(pictures()), coarse.tokens(pictures())
    assert rounded.dtype == np.float32 and 0 < np.abs(rounded - exact).max()
    assert np.linalg.norm(rounded - exact) < 0.03 * np.linalg.norm(exact)
    texts, same = (OpenClipTextEncoder(plain, dtype=dtype).embed(SENTENCES) for dtype in (torch.float32, torch.bfloat16))
    assert (texts * same).sum(1).min() > 0.999


def differing(one: dict, other: dict) -> set[str]:
    assert json.loads(json.dumps(one)) == one and set(one) == set(other)
    return {key for key in one if one[key] != other[key]}


def test_identity_tells_every_setting_apart(plain, plain_encoder, tmp_path):
    base = plain_encoder.identity
    assert base["tokens"] == [PATCHES, WIDTH] and base["model"] == "plain"
    for field, value in (("token_norm", "before"), ("image_range", "mindeye2"), ("dtype", torch.bfloat16)):
        assert differing(base, OpenClipImageEncoder(plain, **{field: value}).identity) == {field}
    file = Path(plain.removeprefix("local-dir:")) / "open_clip_model.safetensors"
    heads = save_model(tmp_path / "plain", vision_cfg={**VISION, "head_width": 8})
    assert differing(base, OpenClipImageEncoder(heads, file).identity) == {"form"}
    grey = save_model(tmp_path / "grey" / "plain", preprocess={"mean": [0.5] * 3})
    assert differing(base, OpenClipImageEncoder(grey).identity) == {"preprocess"}
    assert differing(base, OpenClipImageEncoder(plain, preprocess={"mean": [0.5] * 3}).identity) == {"preprocess"}
    weights = load_file(file)
    weights["visual.ln_post.bias"][3] += 1e-3
    save_file(weights, tmp_path / "w.safetensors")
    assert differing(base, OpenClipImageEncoder(plain, tmp_path / "w.safetensors").identity) == {"weights"}
    texts = OpenClipTextEncoder(plain).identity
    assert OpenClipTextEncoder(plain, tmp_path / "w.safetensors").identity == texts  # the images' tower is not theirs
    weights["ln_final.bias"][3] += 1e-3
    save_file(weights, tmp_path / "w2.safetensors")
    assert differing(texts, OpenClipTextEncoder(plain, tmp_path / "w2.safetensors").identity) == {"weights"}


def test_the_same_weights_from_any_file_are_the_same_encoder(plain, plain_encoder, tmp_path):
    weights = load_file(Path(plain.removeprefix("local-dir:")) / "open_clip_model.safetensors")
    torch.save(weights, tmp_path / "plain.pt")
    torch.save(
        {"epoch": 3, "state_dict": {f"module.{key}": value for key, value in weights.items()}, "optimizer": {"lr": [1e-3]}},
        tmp_path / "epoch_3.pt",
    )
    torch.save(weights, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    vector = {**weights, "logit_scale": weights["logit_scale"].reshape(1)}  # another form of the loss's temperature
    save_file(vector, tmp_path / "vector.safetensors")
    for file in ("plain.pt", "epoch_3.pt", "old.bin", "vector.safetensors"):
        for path in (tmp_path / file, str(tmp_path / file)):
            encoder = OpenClipImageEncoder(plain, path)
        assert encoder.identity == plain_encoder.identity
        np.testing.assert_array_equal(encoder.tokens(pictures()), plain_encoder.tokens(pictures()))


def refused(match: str, name: str, *args, **options) -> None:
    for kind in (OpenClipImageEncoder, OpenClipTextEncoder):
        with pytest.raises(UserError, match=match) as error:
            kind(name, *args, **options)
        assert "\n" not in str(error.value)


class Harmless:
    """Not even that may come out of a file."""


def test_files_that_are_no_weights_are_refused(plain, tmp_path):
    whole = Path(plain.removeprefix("local-dir:")) / "open_clip_model.safetensors"
    weights = load_file(whole)
    torch.save(weights, tmp_path / "whole.pt")
    for source, cut in ((whole, "cut.safetensors"), (tmp_path / "whole.pt", "cut.pt")):
        (tmp_path / cut).write_bytes(source.read_bytes()[:-2000])
        refused(rf"{cut}: (is cut short|not a whole file .*); expected the weights of", plain, tmp_path / cut)
    (tmp_path / "text.pt").write_text("not weights")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    torch.save({"model": Harmless()}, tmp_path / "code.pt")
    for file, said in (
        ("text.pt", "torch.save wrote no such file"),
        ("empty.safetensors", "not a whole file"),
        ("code.pt", r"holds Python code \(.*Harmless\), which is never run"),
    ):
        refused(rf"{file}: {said}.*; expected the weights of", plain, tmp_path / file)
    refused("gone.pt: not found; expected", plain, tmp_path / "gone.pt")
    refused("is a folder; expected the weights of", plain, tmp_path)
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    refused("list.pt: holds a list; expected", plain, tmp_path / "list.pt")
    torch.save({"model_state_dict": {"a": torch.zeros(2)}, "epoch": 1}, tmp_path / "other.pth")
    refused("other.pth: model_state_dict is a dict, no tensor; expected", plain, tmp_path / "other.pth")


def test_weights_of_another_model_are_refused(plain, tmp_path):
    weights = load_file(Path(plain.removeprefix("local-dir:")) / "open_clip_model.safetensors")

    def changed(file: str, **tensors) -> Path:
        save_file({key: value for key, value in {**weights, **tensors}.items() if value is not None}, tmp_path / file)
        return tmp_path / file

    def without(file: str, key: str) -> Path:
        save_file({k: v for k, v in weights.items() if k != key}, tmp_path / file)
        return tmp_path / file

    refused(
        r"less.safetensors: 1 tensors do not fit \(key visual.proj is missing, of shape \(32, 24\)\); expected ",
        plain,
        without("less.safetensors", "visual.proj"),
    )
    refused(
        r"more.safetensors: 1 tensors do not fit \(key extra is unknown\)",
        plain,
        changed("more.safetensors", extra=torch.zeros(1)),
    )
    larger = save_model(tmp_path / "larger", vision_cfg={**VISION, "image_size": 48})
    refused(
        r"do not fit .*visual.positional_embedding has shape \(37, 32\), not \(17, 32\)",
        plain,  # not resized in silence
        tmp_path / "larger" / "open_clip_model.safetensors",
    )
    refused(
        r"do not fit .*visual.positional_embedding has shape \(17, 32\), not \(37, 32\)", larger, changed("same.safetensors")
    )
    save_file({"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(2)}, tmp_path / "unclip.safetensors")
    refused(
        r"unclip.*positional_embedding is missing, .*; key model.diffusion_model.* is unknown",
        plain,
        tmp_path / "unclip.safetensors",
    )
    broken = {key: torch.full_like(value, float("nan")) for key, value in weights.items()}
    save_file(broken, tmp_path / "nan.safetensors")
    refused("not finite in float32; expected sound weights", plain, tmp_path / "nan.safetensors")


def test_models_and_settings_that_are_none_are_refused(plain, tmp_path, monkeypatch):
    refused("ViT-bigG-15: open_clip knows no such model; expected a name like ViT-bigG-14", "ViT-bigG-15", "x.pt")
    refused("ViT-bigG-14: no weights are given; expected a file, or .*laion2b_s39b_b160k", "ViT-bigG-14")
    refused("neither a file nor a tag laion3b; expected a file, or .*laion2b_s39b_b160k", "ViT-bigG-14", "laion3b")
    refused(
        "metaclip_fullcc was trained with another activation; expected the model ViT-B-32-quickgelu",
        "ViT-B-32",
        "metaclip_fullcc",
    )
    refused("no open_clip_config.json can be read", f"local-dir:{tmp_path}")
    (tmp_path / "open_clip_config.json").write_text('{"embed_dim": 3}')
    refused("describes no model; expected embed_dim, vision_cfg and text_cfg", f"local-dir:{tmp_path}")
    name = save_model(tmp_path / "two")
    refused("two.*other is no file; expected a file of weights", name, "other")
    torch.save({}, tmp_path / "two" / "b.safetensors")
    refused(r"two: holds 2 files \*.safetensors; expected one", name)
    for file in (tmp_path / "two").glob("*.safetensors"):
        file.unlink()
    refused("two: holds no weights; expected one file", name)
    refused("dtype is torch.float16; expected float32 or bfloat16", plain, dtype=torch.float16)
    for field in ("token_norm", "image_range"):
        with pytest.raises(UserError, match=f"{field} is none; expected "):
            OpenClipImageEncoder(plain, **{field: "none"})
    with pytest.raises(UserError, match="preprocess has the field size; expected only mean"):
        OpenClipImageEncoder(plain, preprocess={"size": 64})
    monkeypatch.setitem(sys.modules, "open_clip", None)
    refused("package open_clip: cannot be imported .*pip install open_clip_torch", plain)


def test_published_weights_that_cannot_be_had_say_so(tmp_path, monkeypatch):
    """The hub is never asked here: what open_clip's downloader raises without a network stands in for it."""

    def unreachable(*_, **__):
        raise FileNotFoundError("Failed to download file (open_clip_pytorch_model.bin)\nLast error: offline")

    monkeypatch.setattr(open_clip.pretrained, "hf_hub_download", unreachable)
    refused(
        "ViT-bigG-14, laion2b_s39b_b160k: the weights cannot be had .*or give a file", "ViT-bigG-14", "laion2b_s39b_b160k"
    )
    refused("hf-hub:nobody/nothing: no open_clip_config.json can be read", "hf-hub:nobody/nothing")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr(open_clip.pretrained.urllib.request, "urlopen", unreachable)
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED["ViT-bigG-14"], "elsewhere", {"url": "https://example.org/a.pt"})
    refused("the weights cannot be had .*HF_HUB_OFFLINE is set", "ViT-bigG-14", "elsewhere")


def test_published_weights_bring_their_own_preparation(plain, tmp_path, monkeypatch):
    """A tag says how images are prepared; a bare file can only where all tags of the model agree."""
    config = open_clip.get_model_config(plain)
    (tmp_path / "Tiny.json").write_text(json.dumps(config))
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", list(open_clip.factory._MODEL_CONFIG_PATHS))
    open_clip.add_model_config(tmp_path / "Tiny.json")
    file = Path(plain.removeprefix("local-dir:")) / "open_clip_model.safetensors"
    published = {
        "file": str(file),
        "mean": (0.5,) * 3,
        "std": (0.25,) * 3,
        "interpolation": "bilinear",
        "resize_mode": "squash",
    }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny", {"one": published})
    for given_as in ("one", file):
        found = OpenClipImageEncoder("Tiny", given_as)
        assert found.identity["preprocess"] == {
            "size": [SIDE, SIDE],
            "mean": [0.5] * 3,
            "std": [0.25] * 3,
            "interpolation": "bilinear",
            "resize_mode": "squash",
            "fill_color": 0,
        }
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "Tiny", {"one": published, "two": {**published, "std": (1.0,) * 3}})
    assert OpenClipImageEncoder("Tiny", "two").identity["preprocess"]["std"] == [1.0] * 3
    with pytest.raises(UserError, match=r"Tiny was published with different ways.*\(one, two\); expected preprocess"):
        OpenClipImageEncoder("Tiny", file)
    assert OpenClipTextEncoder("Tiny", file).width == JOINT  # texts are prepared one way only
    own = {"mean": [0.1] * 3, "std": [1] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    assert OpenClipImageEncoder("Tiny", file, preprocess=own).preprocess == {**own, "size": [SIDE, SIDE], "fill_color": 0}


COCA = {
    "multimodal_cfg": {**TEXT, "attn_pooler_heads": 2, "dim_head": 8, "width": JOINT},
    "custom_text": True,
    "text_cfg": {**TEXT, "embed_cls": True, "output_tokens": True},
    "vision_cfg": {**VISION, "attentional_pool": True, "output_tokens": True, **POOLER},
}


@pytest.mark.parametrize(
    "form",
    [{}, {"custom_text": True}, {"text_cfg": {**TEXT, "pool_type": "last", "proj_bias": True}, "custom_text": True}, COCA],
)
def test_texts_are_those_of_open_clips_own_encode_text(form, tmp_path):
    name = save_model(tmp_path / "m", **form)
    encoder = OpenClipTextEncoder(name, batch=2)
    model, tokenizer = open_clip.create_model(name).eval(), open_clip.get_tokenizer(name)
    with torch.no_grad():
        theirs = model.encode_text(tokenizer(SENTENCES), normalize=False)
    texts = encoder.embed(SENTENCES)
    assert texts.shape == (4, JOINT) == (4, encoder.width) and texts.dtype == np.float32
    np.testing.assert_allclose(texts, theirs / theirs.norm(dim=1, keepdim=True), atol=1e-5)
    np.testing.assert_array_equal(texts[0], texts[2])
    assert texts[0] @ texts[1] < 0.999 and encoder.embed([]).shape == (0, JOINT)
    if form is COCA:
        assert OpenClipImageEncoder(name).shape == (6, JOINT)


def test_weights_saved_without_a_text_module_fit_a_model_that_has_one(plain, tmp_path):
    """Older files keep the text tower's tensors at the top."""
    name = save_model(tmp_path / "custom", custom_text=True)
    file = Path(plain.removeprefix("local-dir:")) / "open_clip_model.safetensors"
    np.testing.assert_allclose(
        OpenClipTextEncoder(name, file).embed(SENTENCES), OpenClipTextEncoder(plain).embed(SENTENCES), atol=1e-5
    )


def test_the_text_of_an_image_is_the_normalised_mean_of_its_captions(plain):
    encoder = OpenClipTextEncoder(plain)
    got = encoder.embed_groups([(SENTENCES[0], SENTENCES[1]), (), (SENTENCES[3],)])
    one, two, three = (encoder.embed([SENTENCES[k]])[0].astype(np.float64) for k in (0, 1, 3))
    np.testing.assert_allclose(got[0], (one + two) / np.linalg.norm(one + two), atol=1e-5)
    np.testing.assert_array_equal(got[1], 0)
    np.testing.assert_allclose(got[2], three, atol=1e-5)


def test_towers_fill_the_caches(plain, plain_encoder, tmp_path):
    images = np.random.default_rng(3).random((3, 3, 224, 224)).astype(np.float16)
    captions = [("a cat", "a red ball"), (), ("two boats",)]
    stimuli = Stimuli(images, captions, np.zeros(3, bool), "here")
    texts = OpenClipTextEncoder(plain)
    tokens_tower, text_tower = openclip_towers(stimuli, plain_encoder, texts)
    tokens = tokens_tower.build(tmp_path, stimuli)
    expected = plain_encoder.tokens(images)
    assert tokens.shape == (3, PATCHES, WIDTH) and tokens_tower.size(tmp_path, stimuli)[0] == 3 * PATCHES * WIDTH * 2
    np.testing.assert_allclose(tokens[np.arange(3)], expected, rtol=2**-8, atol=1e-5)  # bfloat16 has 8 bits
    np.testing.assert_allclose(text_tower.build(tmp_path, stimuli), texts.embed_groups(captions), atol=1e-6)
    (exact,) = openclip_towers(stimuli, plain_encoder, None, np.float32)
    np.testing.assert_allclose(exact.build(tmp_path / "exact", stimuli)[:], expected, atol=1e-5)
    (before,) = openclip_towers(stimuli, OpenClipImageEncoder(plain, token_norm="before"), None)
    with pytest.raises(UserError, match=r"tokens\.json: identity\.token_norm is 'after'"):
        before.build(tmp_path, stimuli)
