"""Importing MindEye2 checkpoints: outputs equal to the public classes' (fixtures), what is dropped or
refused."""

import dataclasses
import importlib.util
import json
import os
import sys
import types
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from paths import ROOT

from mindtuner.cli import main
from mindtuner.config import FingerprintConfig
from mindtuner.errors import UserError
from mindtuner.interop.mindeye2 import backbone_constant, convert_mindeye2
from mindtuner.interop.mindeye2_keys import match_keys
from mindtuner.interop.torch_files import read_weights
from mindtuner.training import load_network
from mindtuner.training.network_files import read_card, save_network

_SPEC = importlib.util.spec_from_file_location("parity_mindeye2", ROOT / "benchmarks" / "parity" / "mindeye2.py")
parity = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(parity)

CASES = sorted(parity.FIXTURES.glob("*.safetensors"))
TOLERANCE = 1e-4
OUTPUTS = {
    "one_subject": {"backbone", "retrieval", "prior", "prior_null"},
    "long_sequence": {"backbone", "retrieval", "prior", "prior_null"},
    "lowlevel": {"backbone", "retrieval", "prior", "prior_null", "latents", "features"},
    "without_prior": {"backbone", "retrieval"},
}
PRIOR = "diffusion_prior.net."
C_BIAS = "backbone.mixer_blocks2.0.1.3.bias"


def fixture(name: str) -> Path:
    return parity.FIXTURES / f"{name}.safetensors"


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    """Two subjects, prior, no low-level submodule; tests may change it."""
    return parity.read_fixture(fixture("long_sequence"))[0]


def save(path: Path, weights: dict, **others) -> Path:
    torch.save({"epoch": 149, "model_state_dict": weights, **others}, path)
    return path


def convert(path: Path, out: Path | None = None) -> dict:
    return convert_mindeye2(path, out or path.parent / "base.safetensors", [1, 2], text_width=8)


def refused(path: Path) -> str:
    out = path.parent / "refused.safetensors"
    with pytest.raises(UserError) as caught:
        convert(path, out)
    assert not out.exists()
    assert "\n" not in str(caught.value) and str(path.parent) in str(caught.value)
    return str(caught.value)


# the same function


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_every_output_equals_the_public_classes(case, tmp_path):
    errors = parity.compare(case, tmp_path)
    assert errors.keys() == OUTPUTS[case.stem]
    assert max(errors.values()) <= TOLERANCE, errors


def test_fixtures_are_small_and_name_their_origin():
    assert {path.stem for path in CASES} == OUTPUTS.keys()
    for path in CASES:
        about = parity.read_fixture(path)[2]
        assert len(about["commit"]) == 40 and "MindEyeV2" in about["peer"]
        assert path.stat().st_size <= 2**20


def test_the_comparison_sees_a_changed_weight(weights, tmp_path):
    """Of every live kind: else equality above would mean nothing."""
    for key, output in {
        C_BIAS: "backbone",
        "backbone.clip_proj.5.weight": "retrieval",
        PRIOR + "causal_transformer.layers.1.0.null_kv": "prior",
        PRIOR + "null_brain_embeds": "prior_null",
        PRIOR + "causal_transformer.rel_pos_bias.relative_attention_bias.weight": "prior",
    }.items():
        changed = {**weights, key: weights[key] * 1.5}
        convert(save(tmp_path / "last.pth", changed))
        assert parity.output_errors(tmp_path / "base.safetensors", fixture("long_sequence"))[output] > TOLERANCE, key


def test_channel_mlps_reach_nothing(weights, tmp_path):
    changed = {key: torch.randn_like(t) if key.startswith("backbone.mixer_blocks1.") else t for key, t in weights.items()}
    convert(save(tmp_path / "a.pth", weights), tmp_path / "a.safetensors")
    convert(save(tmp_path / "b.pth", changed), tmp_path / "b.safetensors")
    a, b = (load_network(tmp_path / f"{name}.safetensors").state_dict() for name in "ab")
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_constant_is_what_the_blocks_compute(weights, tmp_path):
    """Against nn.LayerNorm over one number and the residual stream, run with torch's own modules."""
    x = torch.randn(5, 1, dtype=torch.float64)
    stream = x
    for i in range(3):
        block = (
            torch.nn.Sequential(
                torch.nn.LayerNorm(1),
                torch.nn.Sequential(torch.nn.Linear(1, 1), torch.nn.GELU(), torch.nn.Dropout(), torch.nn.Linear(1, 1)),
            )
            .double()
            .eval()
        )
        begin = f"backbone.mixer_blocks2.{i}."
        block.load_state_dict({k.removeprefix(begin): t for k, t in weights.items() if k.startswith(begin)})
        stream = stream + block(torch.randn(5, 1, dtype=torch.float64))
    c = backbone_constant(weights, 3, tmp_path)
    assert abs(c) > 0.05
    torch.testing.assert_close(stream - x, torch.full_like(x, c))


def test_sixteen_bit_checkpoint_is_read_as_its_numbers(weights, tmp_path):
    half = {key: t.half() for key, t in weights.items()}
    convert(save(tmp_path / "half.pth", half), tmp_path / "half.safetensors")
    convert(
        save(tmp_path / "full.pth", {key: t.float() for key, t in half.items()}),
        tmp_path / "full.safetensors",
    )
    a, b = (load_network(tmp_path / f"{name}.safetensors").state_dict() for name in ("half", "full"))
    assert all(a[name].dtype is torch.float32 and torch.equal(a[name], b[name]) for name in a)


# the base and its card


def test_card_says_what_was_dropped_and_which_conventions_hold(weights, tmp_path):
    card = convert(save(tmp_path / "last.pth", weights))
    assert card == read_card(tmp_path / "base.safetensors")
    assert card["backbone"]["dropped_weights"] == 3 * (2 * 16 + 2 * (16 * 16 + 16))
    assert card["backbone"]["constant"] == pytest.approx(backbone_constant(weights, 3, tmp_path))
    assert card["backbone"]["folded_into"] == ["head.linear"]
    assert card["without"] == ["low-level submodule"]
    assert card["conventions"]["token_norm"] == "after" and card["conventions"]["image_range"] == "mindeye2"
    assert "Adaptive Projector" in card["untrained"]["projector"]
    assert card["subjects"] == {"subj01": 30, "subj02": 41}


def test_parts_that_a_release_lacks_are_absent(tmp_path):
    weights = parity.read_fixture(fixture("without_prior"))[0]
    path = save(tmp_path / "last.pth", weights)
    card = convert_mindeye2(path, tmp_path / "base.safetensors", [2, 3, 5])
    assert card["without"] == ["low-level submodule", "diffusion prior"] and card["public_sampling"] is None
    base = load_network(tmp_path / "base.safetensors")
    assert base.prior is None and base.lowlevel is None
    out = base(torch.zeros(2, 57), "subj05")
    assert out.latents is None and out.features is None
    save_network(tmp_path / "again.safetensors", base, card)
    assert load_network(tmp_path / "again.safetensors").without == ("lowlevel", "prior")


def test_fingerprint_on_an_imported_base_starts_at_its_function(weights, tmp_path):
    convert(save(tmp_path / "last.pth", weights))
    base = load_network(tmp_path / "base.safetensors")
    voxels = torch.randn(4, 25)
    torch.manual_seed(0)
    base.add_ridge("subj07", 25)
    before = base(voxels, "subj07")
    ridge = base.ridges["subj07"].state_dict()
    del base.ridges["subj07"]
    base.add_fingerprint("subj07", 25, FingerprintConfig(skip_head=True))
    base.ridges["subj07"].load_state_dict(ridge)
    after = base.eval()(voxels, "subj07")
    assert torch.equal(before.backbone_tokens, after.backbone_tokens)
    assert [stream.shape[1] for stream, _ in after.skips] == [16, 80 * 24]  # at x0 and at the token head


def test_subjects_are_told_from_nsd_voxel_counts():
    weights = {key: torch.empty(shape, device="meta") for key, shape in paper_shapes().items()}
    for i, voxels in enumerate((14278, 12682)):
        weights[f"ridge.linears.{i}.weight"] = torch.empty(4096, voxels, device="meta")
        weights[f"ridge.linears.{i}.bias"] = torch.empty(4096, device="meta")
    assert match_keys(weights, Path("last.pth")).voxels == {"subj02": 14278, "subj07": 12682}


def paper_shapes() -> dict:
    return json.loads((parity.FIXTURES / "paper_shapes.json").read_text())["shapes"]


def test_paper_size_is_matched_key_by_key():
    weights = {key: torch.empty(shape, device="meta") for key, shape in paper_shapes().items()}
    match = match_keys(weights, Path("last.pth"))
    assert match.dead == 134_283_264
    assert match.voxels == {"subj01": 15724} and match.without == ()
    assert dataclasses.asdict(match.config) | {"lowlevel_channels": ()} == {
        "backbone": "affine",
        "hidden": 4096,
        "blocks": 0,
        "tokens": 256,
        "width": 1664,
        "text_width": 1280,
        "backbone_dropout": 0.15,
        "prior_depth": 6,
        "prior_heads": 32,
        "prior_head_dim": 52,
        "latent_channels": 4,
        "latent_side": 28,
        "lowlevel_channels": (),
        "lowlevel_side": 7,
        "feature_positions": 49,
        "feature_width": 512,
    }
    assert sum(weights[key].numel() for key in match.names.values()) + match.dead + 6 * 4 == sum(
        t.numel() for key, t in weights.items() if "noise_scheduler" not in key and "rotary" not in key
    )


def test_projector_start_follows_the_seed(weights, tmp_path):
    path = save(tmp_path / "last.pth", weights)
    starts = []
    for seed in (0, 0, 1):
        convert_mindeye2(path, tmp_path / "base.safetensors", [1, 2], 8, seed)
        starts.append(load_network(tmp_path / "base.safetensors").projector.matrix.weight)
    assert torch.equal(starts[0], starts[1]) and not torch.equal(starts[0], starts[2])


# DeepSpeed


def deepspeed_classes(monkeypatch) -> types.SimpleNamespace:
    """Classes by the names that DeepSpeed pickles; gone again when the file is read."""
    made = {}
    for path, bases in (
        ("deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler", (object,)),
        ("deepspeed.utils.tensor_fragment.fragment_address", (object,)),
        ("deepspeed.runtime.zero.config.ZeroStageEnum", (int,)),
    ):
        module, name = path.rsplit(".", 1)
        parents = module.split(".")
        for depth in range(1, len(parents) + 1):
            full = ".".join(parents[:depth])
            if full not in sys.modules:
                monkeypatch.setitem(sys.modules, full, types.ModuleType(full))
        made[name] = type(name, bases, {"__module__": module})
        setattr(sys.modules[module], name, made[name])
    return types.SimpleNamespace(**made)


def save_zero(folder: Path, weights: dict, monkeypatch, ranks: int = 2, stage: int = 2) -> Path:
    """A ZeRO folder as DeepSpeed 0.13 lays it out: a 16-bit model, and each rank's slice of flat fp32
    groups."""
    folder.mkdir(parents=True)
    trained = {k: t for k, t in weights.items() if "noise_scheduler" not in k and "freqs" not in k}
    groups = [{k: t for k, t in trained.items() if k.startswith("ridge.") is first} for first in (True, False)]
    with monkeypatch.context() as patch:
        deepspeed = deepspeed_classes(patch)
        torch.save(
            {
                "module": OrderedDict((k, t.half()) for k, t in weights.items()),
                "buffer_names": [k for k in weights if "noise_scheduler" in k],
                "ds_config": {"fp16": {}},
                "param_shapes": [OrderedDict((k, t.shape) for k, t in group.items()) for group in groups],
                "sparse_tensor_module_names": set(),
                "shared_params": {},
                "ds_version": "0.13.1",
            },
            folder / "mp_rank_00_model_states.pt",
        )
        flat = [torch.cat([t.flatten() for t in group.values()]) for group in groups]
        flat = [torch.cat([f, torch.zeros(-len(f) % (2 * ranks))]) for f in flat]
        scaler, address = deepspeed.DynamicLossScaler(), deepspeed.fragment_address()
        scaler.cur_scale, address.numel = 2.0**16, 7
        for rank in range(ranks):
            torch.save(
                {
                    "optimizer_state_dict": {
                        "loss_scaler": scaler,
                        "zero_stage": deepspeed.ZeroStageEnum(stage),
                        "partition_count": [ranks] * 2,
                        "param_slice_mappings": [OrderedDict(a=address)],
                        "single_partition_of_fp32_groups": [f.chunk(ranks)[rank].clone() for f in flat],
                    }
                },
                folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt",
            )
    return folder


@pytest.mark.parametrize("given", ["last", ".", "last/mp_rank_00_model_states.pt"])
def test_zero_folder_gives_the_fp32_weights(weights, tmp_path, monkeypatch, given):
    save_zero(tmp_path / "run" / "last", weights, monkeypatch)
    convert(tmp_path / "run" / given, tmp_path / "base.safetensors")
    errors = parity.output_errors(tmp_path / "base.safetensors", fixture("long_sequence"))
    assert max(errors.values()) <= TOLERANCE, errors


def test_zero_ranks_are_joined_in_numeric_order(weights, tmp_path, monkeypatch):
    read, origin = read_weights(save_zero(tmp_path / "last", weights, monkeypatch, ranks=11))
    assert all(torch.equal(read[key], t) for key, t in weights.items() if "noise" not in key and "freqs" not in key)
    assert "11 ranks" in origin


def test_zero_model_file_alone_is_its_16_bit_copy_and_says_so(weights, tmp_path, monkeypatch):
    folder = save_zero(tmp_path / "last", weights, monkeypatch)
    for file in folder.glob("zero*"):
        file.unlink()
    read, origin = read_weights(folder)
    assert "16-bit" in origin and all(torch.equal(read[key], t.half()) for key, t in weights.items())


def test_zero_folder_with_a_rank_missing_or_of_stage_3_is_refused(weights, tmp_path, monkeypatch):
    folder = save_zero(tmp_path / "last", weights, monkeypatch)
    (folder / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
    assert "partition_count is 2, but 1 files" in refused(folder)
    assert "zero_stage is 3; expected 1 or 2" in refused(save_zero(tmp_path / "s3", weights, monkeypatch, stage=3))


def test_zero_partition_of_the_wrong_length_is_refused(weights, tmp_path, monkeypatch):
    folder = save_zero(tmp_path / "last", weights, monkeypatch)
    content = torch.load(folder / "mp_rank_00_model_states.pt", weights_only=True)
    content["param_shapes"][1]["extra"] = torch.Size([50])
    torch.save(content, folder / "mp_rank_00_model_states.pt")
    assert "group 1 hold" in refused(folder)


def test_optimiser_objects_inside_a_pth_are_never_used(weights, tmp_path, monkeypatch):
    """Training wrote them beside the weights: DeepSpeed's loss scaler and a scheduler's bound function."""
    with monkeypatch.context() as patch:
        scaler = deepspeed_classes(patch).DynamicLossScaler()
        scheduler = torch.optim.lr_scheduler.OneCycleLR
        path = save(
            tmp_path / "last.pth",
            weights,
            optimizer_state_dict={"loss_scaler": scaler},
            lr_scheduler={"anneal_func": scheduler._annealing_cos},
        )
    convert(path)
    assert max(parity.output_errors(tmp_path / "base.safetensors", fixture("long_sequence")).values()) <= TOLERANCE


# refusals


def test_keys_that_do_not_fit_are_named(weights, tmp_path):
    path = tmp_path / "last.pth"
    for change, message in (
        ({"backbone.extra.weight": torch.zeros(2)}, "unknown key backbone.extra.weight"),
        (
            {PRIOR + "causal_transformer.layers.0.0.q_norm.g": torch.ones(3)},
            "unknown key diffusion_prior.net.causal",
        ),
        (
            {"backbone.clip_proj.5.weight": torch.zeros(24, 23)},
            "backbone.clip_proj.5.weight has shape (24, 23); expected (24, 24)",
        ),
        (
            {"backbone.mixer_blocks2.1.0.bias": torch.zeros(2)},
            "backbone.mixer_blocks2.1.0.bias has shape (2,); expected (1,)",
        ),
        (
            {"backbone.backbone_linear.weight": torch.zeros(1919, 16)},
            "has 1919 rows; expected a multiple of the token width 24",
        ),
        (
            {"ridge.linears.0.bias": torch.zeros(16, dtype=torch.int64)},
            "ridge.linears.0.bias is of type torch.int64",
        ),
        ({"ridge.linears.1.weight": torch.full((16, 41), torch.nan)}, "ridge.linears.1.weight holds NaN"),
        ({C_BIAS: torch.tensor([torch.inf])}, f"{C_BIAS} holds NaN or infinity"),
        (
            {"backbone.bnorm.bias": torch.zeros(64)},
            "is missing; expected the whole low-level submodule or nothing of it",
        ),
        (
            {"diffusion_prior.noise_scheduler.alphas_cumprod": torch.linspace(1, 0, 100)},
            "differs from the cosine schedule",
        ),
        (
            {"diffusion_prior.noise_scheduler.betas": torch.zeros(1000)},
            "betas has shape (1000,); expected (100,)",
        ),
        ({PRIOR + "causal_transformer.layers.0.0.rotary_emb.freqs": torch.ones(16)}, "16 rotary frequencies"),
    ):
        assert message in refused(save(path, {**weights, **change}))


@pytest.mark.parametrize(
    "key, message",
    [
        ("ridge.linears.0.weight", "every key of ridge and backbone"),
        ("ridge.linears.1.bias", "every key of ridge and backbone"),
        ("backbone.clip_proj.3.bias", "every key of ridge and backbone"),
        ("backbone.mixer_blocks1.2.1.0.bias", "every key of ridge and backbone"),
        (PRIOR + "learned_query", "the whole diffusion prior or nothing of it"),
        (PRIOR + "causal_transformer.layers.0.0.null_kv", "the whole diffusion prior or nothing of it"),
        (PRIOR + "causal_transformer.layers.1.1.5.weight", "the whole diffusion prior or nothing of it"),
    ],
)
def test_a_missing_key_is_named(weights, tmp_path, key, message):
    del weights[key]
    assert f"{key} is missing; expected {message}" in refused(save(tmp_path / "last.pth", weights))


def test_a_part_without_blocks_is_refused(weights, tmp_path):
    weights = {key: t for key, t in weights.items() if "mixer_blocks" not in key}
    assert "backbone.mixer_blocks1.0.0.weight is missing" in refused(save(tmp_path / "last.pth", weights))


def test_files_that_are_no_checkpoint_are_refused(weights, tmp_path):
    path = save(tmp_path / "whole.pth", weights)
    whole = path.read_bytes()
    for share in (0.1, 0.5, 0.99):
        cut = tmp_path / "cut.pth"
        cut.write_bytes(whole[: int(share * len(whole))])
        assert "is cut short" in refused(cut)
    for content in (b"", b"not a checkpoint", bytes(1000)):
        (tmp_path / "junk.pth").write_bytes(content)
        assert "checkpoint" in refused(tmp_path / "junk.pth")
    torch.save({"state_dict": weights}, tmp_path / "other.pth")
    assert "field model_state_dict is missing (it holds state_dict); expected a checkpoint" in refused(tmp_path / "other.pth")
    torch.save({"model_state_dict": {"ridge": {}}}, tmp_path / "nested.pth")
    assert "ridge is a dict, no tensor; expected a checkpoint" in refused(tmp_path / "nested.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "holds a list" in refused(tmp_path / "list.pth")
    torch.save({"model_state_dict": {"a": torch.zeros(2)}}, tmp_path / "other_model.pth")
    assert "expected the model_state_dict of MindEye2" in refused(tmp_path / "other_model.pth")
    assert "not found" in refused(tmp_path / "absent.pth")
    (tmp_path / "empty").mkdir()
    assert "holds 0 folders" in refused(tmp_path / "empty")


class Harmful:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_pickle_is_refused_and_not_run(weights, tmp_path):
    harm = Harmful()
    harm.path = str(tmp_path / "harm")
    said = refused(save(tmp_path / "last.pth", weights, optimizer_state_dict=harm))
    assert "holds Python code (posix.mkdir)" in said or "holds Python code (nt.mkdir)" in said
    assert not (tmp_path / "harm").exists()


def test_subject_numbers_that_do_not_fit_are_refused(weights, tmp_path):
    path = save(tmp_path / "last.pth", weights)
    with pytest.raises(UserError, match="a ridge has 30 voxels.*expected subjects with"):
        convert_mindeye2(path, tmp_path / "base.safetensors")
    for numbers in ([1], [2, 2], [0, 1]):
        with pytest.raises(UserError, match="expected 2 different numbers from 1"):
            convert_mindeye2(path, tmp_path / "base.safetensors", numbers)


# the command


def test_command_writes_the_base_and_says_what_it_did(weights, tmp_path, capsys):
    path, out = save(tmp_path / "last.pth", weights), tmp_path / "base.safetensors"
    command = ["convert", "mindeye2", str(path), str(out), "--subjects", "3,4"]
    assert main(command) == 0
    said = capsys.readouterr().out
    for part in (
        "dropped: 1,728 dead weights",
        "folded: x4 = x0 + ",
        "without: low-level submodule",
        "subj03, subj04",
        "untrained: Adaptive Projector 24 -> 1280",
        "image_range mindeye2",
        str(out),
    ):
        assert part in said
    assert main(command) == 2
    assert "is there already" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    for wrong, message in (
        ([str(path), "base.pt"], "ends in '.pt'"),
        ([str(path), "b.safetensors"], "expected subjects with one number a ridge"),
        ([str(path), "b.safetensors", "--subjects", "1,x"], "expected numbers such as"),
        ([str(path), "b.safetensors", "--text-width", "0"], "--text-width: is 0"),
        ([str(tmp_path / "no.pth"), "b.safetensors"], "no.pth: not found"),
    ):
        assert main(["convert", "mindeye2", *wrong]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1
