"""The unCLIP generator: equal to the public classes (fixtures) and to diffusers' own renaming; what is refused; sampling."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.loaders import single_file_utils
from release import script
from safetensors.torch import load_file

from mindtuner.cli import main
from mindtuner.config import DecodeConfig
from mindtuner.errors import UserError
from mindtuner.generators.unclip import UnclipGenerator, size_and_crop, times
from mindtuner.interop import unclip
from mindtuner.interop.unclip import convert_unclip, new_scheduler, write_safetensors
from mindtuner.interop.unclip_keys import UNET, VAE, match_keys

parity, memory = script("parity/unclip"), script("convert_memory")
CASES = sorted(parity.FIXTURES.glob("*.safetensors"))
TOLERANCE = 1e-4
SMALL = parity.FIXTURES / "attention_everywhere.safetensors"
CONFIG = DecodeConfig(
    pictures=4, prior_steps=20, generator_steps=3, refine_steps=2, refine_start=0.5, guidance=5.0, neighbours=0
)


@pytest.fixture(scope="module")
def read() -> dict[str, torch.Tensor]:
    return parity.read_fixture(SMALL)[0]


@pytest.fixture
def weights(read) -> dict[str, torch.Tensor]:
    """Tests may change the dict."""
    return dict(read)


@pytest.fixture(scope="module")
def folder(read, tmp_path_factory) -> Path:
    at = tmp_path_factory.mktemp("generator")
    convert_unclip(save(at / "unclip.ckpt", read), at / "out")
    return at / "out"


def save(path: Path, weights: dict, **others) -> Path:
    torch.save({"state_dict": weights, "epoch": 0, "global_step": 110000, "callbacks": {}, **others}, path)
    return path


def refused(path: Path) -> str:
    out = path.parent / "refused"
    with pytest.raises(UserError) as caught:
        convert_unclip(path, out)
    assert not out.exists() and not list(path.parent.glob(".refused*"))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def paper() -> dict[str, torch.Tensor]:
    shapes = json.loads((parity.FIXTURES / "paper_shapes.json").read_text())["shapes"]
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


# the same function


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_networks_and_sampler_equal_the_public_classes(case, tmp_path):
    errors = parity.compare(case, tmp_path)
    assert set(errors) == set(parity.OUTPUTS) and max(errors.values()) <= TOLERANCE, errors


def test_fixtures_are_small_and_name_their_origin():
    assert {path.stem for path in CASES} == set(parity.CASES)
    for path in CASES:
        about = parity.read_fixture(path)[2]
        assert len(about["commit"]) == 40 and "MindEyeV2" in about["peer"] and path.stat().st_size <= 2**20


@pytest.mark.slow
def test_the_comparison_sees_a_changed_weight(weights, tmp_path):
    """Else equality above would mean nothing."""
    for begin, outputs in {
        UNET + "label_emb.0.2.": {"unet", "sampled"},
        UNET + "middle_block.1.transformer_blocks.1.attn2.": {"unet", "sampled"},
        VAE + "encoder.mid.attn_1.q.": {"moments"},
        VAE + "decoder.up.1.upsample.": {"decoded"},
    }.items():
        changed = {key: 1.5 * t if key.startswith(begin) else t for key, t in weights.items()}
        out = tmp_path / begin.replace(".", "")
        convert_unclip(save(tmp_path / "changed.ckpt", changed), out)
        errors = parity.output_errors(out, parity.read_fixture(SMALL)[1])
        assert {name for name, error in errors.items() if error > TOLERANCE} == outputs


# the mapping


def test_every_key_of_the_published_size_is_used_once():
    weights = paper()
    match = match_keys(weights, Path("unclip.ckpt"))
    used = [*match.unet_names.values(), *match.vae_names.values()]
    assert len(used) == len(set(used)) and set(used) == set(weights)
    config = match.unet.config
    assert tuple(config.block_out_channels) == (320, 640, 1280) and config.layers_per_block == 2
    assert tuple(config.transformer_layers_per_block) == (1, 2, 10) and config.cross_attention_dim == 1664
    assert tuple(config.down_block_types) == ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    assert tuple(config.attention_head_dim) == (5, 10, 20) and config.projection_class_embeddings_input_dim == 1024
    assert tuple(match.vae.config.block_out_channels) == (128, 256, 512, 512) and match.vae.config.scaling_factor == 0.13025


@pytest.mark.parametrize("size", ["paper", "attention_everywhere"])
def test_names_are_those_of_diffusers_own_converter(size, weights):
    """A second implementation of the renaming. It passes values through, so a value may be the key itself."""
    weights = paper() if size == "paper" else weights
    match = match_keys(weights, Path("unclip.ckpt"))
    theirs = single_file_utils.convert_ldm_unet_checkpoint(
        {key: key.removeprefix(UNET) for key in weights if key.startswith(UNET)}, match.unet.config
    )
    assert {ours: UNET + key for ours, key in theirs.items()} == match.unet_names
    numbered = {key: torch.full((1, 1, 1, 1), float(i)) for i, key in enumerate(weights) if key.startswith(VAE)}
    keys = list(weights)
    theirs = single_file_utils.convert_ldm_vae_checkpoint(dict(numbered), match.vae.config)
    assert {ours: keys[int(value.item())] for ours, value in theirs.items()} == match.vae_names


def test_a_missing_key_is_refused(weights, tmp_path):
    named = [
        "middle_block.1.transformer_blocks.1.ff.net.0.proj.bias",
        "label_emb.0.0.weight",
        "out.2.weight",
        "time_embed.2.bias",
        "input_blocks.0.0.bias",
        "output_blocks.1.2.conv.weight",
        "input_blocks.1.1.proj_in.weight",
        "output_blocks.3.0.skip_connection.weight",
    ]
    of_vae = [
        "quant_conv.bias",
        "encoder.mid.attn_1.q.weight",
        "decoder.up.0.block.0.nin_shortcut.bias",
        "encoder.conv_in.weight",
    ]
    for key in [UNET + key for key in named] + [VAE + key for key in of_vae]:
        with pytest.raises(UserError, match=key.replace(".", r"\.") + " is missing"):
            match_keys({k: t for k, t in weights.items() if k != key}, tmp_path)
    for key in (
        UNET + "input_blocks.2.0.op.weight",
        UNET + "input_blocks.1.0.out_layers.3.weight",
        VAE + "encoder.down.0.block.0.conv1.weight",
        VAE + "encoder.down.1.block.0.conv1.weight",
    ):
        with pytest.raises(UserError, match="expected"):  # a level or a size cannot be told: another key is named
            match_keys({k: t for k, t in weights.items() if k != key}, tmp_path)


@pytest.mark.parametrize(
    "key",
    [
        UNET + "middle_block.3.weight",
        VAE + "loss.logvar",
        "model_ema.decay",
        "betas",
        UNET + "input_blocks.1.1.transformer_blocks.0.attn3.to_q.weight",
    ],
)
def test_an_unknown_key_is_refused(weights, tmp_path, key):
    with pytest.raises(UserError, match=f"unknown key {key}".replace(".", r"\.")):
        match_keys({**weights, key: torch.zeros(2)}, tmp_path)


def test_a_misshapen_key_is_refused(weights, tmp_path):
    for key, shape, said in (
        (UNET + "out.0.weight", (63,), "expected (64,)"),
        (UNET + "input_blocks.1.1.proj_in.weight", (64, 64, 1, 1), "expected (64, 64)"),
        (UNET + "middle_block.1.transformer_blocks.0.attn2.to_v.weight", (128, 41), "expected (128, 40)"),
        (UNET + "label_emb.0.0.weight", (256, 2816), "has 2816 columns; expected 1024"),  # SDXL itself
        (UNET + "input_blocks.0.0.weight", (64,), "expected 4 dimensions"),
        (UNET + "input_blocks.3.0.out_layers.3.weight", (96, 96, 3, 3), "head width 64"),
        (VAE + "encoder.mid.attn_1.k.weight", (96, 96), "expected (96, 96, 1, 1)"),
    ):
        with pytest.raises(UserError) as caught:
            match_keys({**weights, key: torch.zeros(shape)}, tmp_path)
        assert key in str(caught.value) and said in str(caught.value)
    with pytest.raises(UserError, match="sizes that cannot be"):
        odd = {key: t[:31] if "encoder.down.0.block.0.conv1.weight" in key else t for key, t in weights.items()}
        match_keys(odd, tmp_path)


# the file


def test_folder_keeps_the_numbers_and_drops_the_tower(weights, tmp_path):
    key = UNET + "out.2.weight"
    half = {k: t if k == key else t.half() for k, t in weights.items()}
    half["conditioner.embedders.0.model.visual.proj"] = torch.ones(3, 7)
    card = convert_unclip(save(tmp_path / "half.ckpt", half), tmp_path / "out")
    assert card["dropped"]["conditioner"] == 21 and card == json.loads((tmp_path / "out" / "mindtuner.json").read_text())
    unet = load_file(tmp_path / "out" / "unet" / unclip.WEIGHTS)
    vae = load_file(tmp_path / "out" / "vae" / unclip.WEIGHTS)
    match = match_keys(half, tmp_path)
    assert all(
        torch.equal(unet[ours], half[theirs]) and unet[ours].dtype is half[theirs].dtype
        for ours, theirs in match.unet_names.items()
    )
    assert unet["conv_out.weight"].dtype is torch.float32
    assert all(torch.equal(vae[ours].flatten(), half[theirs].flatten()) for ours, theirs in match.vae_names.items())
    assert card["weights"] == {"unet": sum(t.numel() for t in unet.values()), "vae": sum(t.numel() for t in vae.values())}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"unet", "vae", "scheduler", "mindtuner.json"}


def test_written_tensors_are_read_back(tmp_path, monkeypatch):
    monkeypatch.setattr(unclip, "CHUNK", 7)  # pieces that do not divide the tensors
    tensors = {"a": torch.randn(3, 5).half(), "b": torch.randn(4, 6).T, "c": torch.randn(9).bfloat16(), "d": torch.ones(1)}
    write_safetensors(tmp_path / "a.safetensors", tensors)
    back = load_file(tmp_path / "a.safetensors")
    assert back.keys() == tensors.keys() and all(torch.equal(back[name], tensors[name]) for name in tensors)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_checkpoint_is_not_in_memory_as_a_whole(tmp_path):
    """A few pieces of it are the process's own at a time; what is mapped from the file is not."""
    peaks = memory.measure(tmp_path, 32)
    assert 150 < peaks["checkpoint_mb"] < 1.1 * peaks["load_all_mb"]  # the measure sees a whole copy
    assert peaks["convert_mb"] < 0.5 * peaks["checkpoint_mb"], peaks


class Harmful:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_files_that_cannot_be_converted_are_refused(weights, tmp_path):
    key = UNET + "out.2.bias"
    path = tmp_path / "unclip.ckpt"
    for change, said in (
        ({key: torch.tensor([1.0, float("nan"), 0.0, 0.0])}, f"{key} holds NaN"),
        ({key: torch.zeros(4, dtype=torch.int64)}, f"{key} is of type torch.int64"),
        ({"denoiser.sigmas": torch.linspace(0.02, 14, 1000)}, "denoiser.sigmas differs"),
        ({"denoiser.sigmas": torch.ones(10)}, "denoiser.sigmas differs"),
    ):
        assert said in refused(save(path, {**weights, **change}))
    assert "no key begins with first_stage_model." in refused(save(path, {k: t for k, t in weights.items() if VAE not in k}))
    torch.save({"model_state_dict": {}}, path)
    assert "field state_dict is missing" in refused(path)
    whole = save(path, weights).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert "is cut short" in refused(path)
    harm = Harmful()
    harm.path = str(tmp_path / "harm")
    said = refused(save(path, weights, callbacks={"x": harm}))
    assert "holds Python code" in said and "docs/full-size.md" in said and not (tmp_path / "harm").exists()


def test_command_says_what_it_did_and_replaces_nothing(weights, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    command = ["convert", "unclip", str(save(tmp_path / "unclip.ckpt", weights)), str(out)]
    assert main(command) == 0
    said = capsys.readouterr().out
    for part in ("tokens 40 wide", "weights of the UNet", "dropped: 0 weights (conditioner.*)", str(out)):
        assert part in said
    assert main(command) == 2
    err = capsys.readouterr().err
    assert "expected a new or empty folder" in err and err.count("\n") == 1


# sampling


def tokens_of(n: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, 5, 40)).astype(np.float32)


def test_any_subset_in_any_batch_paints_the_same_picture(folder):
    tokens, images = tokens_of(3), np.array([7, 3, 11])
    three = UnclipGenerator(CONFIG, 0, folder, "clip", side=16, batch=2).generate(tokens, images)
    assert three.shape == (3, 4, 8, 8) and three.dtype == torch.float32
    alone = UnclipGenerator(CONFIG, 0, folder, "clip", side=16)
    np.testing.assert_allclose(alone.generate(tokens[1:2], images[1:2]), three[1:2], rtol=1e-3, atol=1e-3)
    for other in (
        alone.generate(tokens[1:2], images[:1]),
        alone.generate(tokens[:1], images[1:2]),
        UnclipGenerator(CONFIG, 1, folder, "clip", side=16).generate(tokens[1:2], images[1:2]),
    ):
        assert np.abs(other - three[1:2]).max() > 0.1
    assert alone.generate(tokens[:0], images[:0]).shape == (0, 4, 8, 8)


def test_layers_that_come_one_by_one_paint_the_same(folder):
    """Offloading, here from the CPU to the CPU: weights are nowhere between their turns."""
    tokens, images = tokens_of(2), np.array([7, 3])
    whole, offloaded = (UnclipGenerator(CONFIG, 0, folder, "clip", side=16, offload=offload) for offload in (False, True))
    assert {p.device.type for network in (offloaded.unet, offloaded.vae) for p in network.parameters()} == {"meta"}
    latents = whole.generate(tokens, images)
    np.testing.assert_array_equal(offloaded.generate(tokens, images), latents)
    np.testing.assert_array_equal(offloaded.pictures(latents), whole.pictures(latents))


def test_overflow_is_not_a_black_picture(folder):
    generator = UnclipGenerator(CONFIG, 0, folder, "clip", side=16)
    generator.unet.conv_out.bias.fill_(float("nan"))
    with pytest.raises(UserError, match="not finite in float32; expected dtype bfloat16 or float32"):
        generator.generate(tokens_of(1), np.array([0]))


def test_range_of_pictures_follows_the_base(folder):
    """A washed-out picture w = (u + 1) / 2 of the range clip is u of the range mindeye2."""
    latents = np.random.default_rng(1).standard_normal((2, 4, 8, 8)).astype(np.float32) * 0.05
    clip, ours = (
        UnclipGenerator(CONFIG, 0, folder, name, side=16, batch=2).pictures(latents) for name in ("clip", "mindeye2")
    )
    assert clip.shape == (2, 3, 16, 16) and clip.dtype == np.float32 and 0 <= ours.min() and ours.max() <= 1
    inside = (clip > 0) & (clip < 1)
    assert inside.mean() > 0.2
    np.testing.assert_allclose(ours[inside], np.clip(2 * clip[inside] - 1, 0, 1), atol=1e-5)


def test_start_has_the_first_sigma_and_offset_noise(folder):
    """Variance of a pixel: 1 + sigma^2 (1 + .04^2). Of a picture's mean over m pixels: (1 + sigma^2) / m + (.04 sigma)^2."""
    generator = UnclipGenerator(CONFIG, 0, folder, "clip", side=32)
    sigma = new_scheduler().sigmas[0].item()
    starts, nulls = zip(*(generator._draw(image, (5, 40), sigma) for image in range(1500)), strict=True)
    starts, nulls = torch.stack(starts), torch.stack(nulls)
    assert sigma == pytest.approx(14.6146, abs=1e-3)
    assert starts.var().item() == pytest.approx(1 + sigma**2 * 1.0016, rel=0.02)
    offset = starts.mean((1, 2, 3)).var().item()
    assert offset == pytest.approx((1 + sigma**2) / 1024 + (0.04 * sigma) ** 2, rel=0.15)
    assert nulls.std().item() == pytest.approx(1, abs=0.01) and abs(nulls.mean().item()) < 0.01


def test_times_and_vector_by_hand():
    scheduler = new_scheduler()
    assert times(scheduler, 4) == [999, 749, 499, 249] and times(scheduler, 38)[-1] == 26
    assert times(scheduler, 1000) == list(range(999, -1, -1))
    for wrong in (0, 1001):
        with pytest.raises(ValueError, match="expected 1 to 1000"):
            times(scheduler, wrong)
    vector = size_and_crop(768, 2)
    assert vector.shape == (2, 1024) and torch.equal(vector[0, :256], vector[0, 256:512])
    angles = 768 * 10000.0 ** (-torch.arange(128, dtype=torch.float64) / 128)
    torch.testing.assert_close(vector[0, :128].double(), angles.cos(), atol=1e-3, rtol=0)
    torch.testing.assert_close(vector[0, 512:].double(), torch.cat([torch.ones(128), torch.zeros(128)]).repeat(2).double())


def test_a_generator_that_does_not_fit_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match=r"tokens have shape \(1, 5, 39\); expected \(n, T, 40\)"):
        UnclipGenerator(CONFIG, 0, folder, "clip", side=16).generate(tokens_of(1)[..., :39], np.array([0]))
    with pytest.raises(UserError, match="image_range is 'rgb'"):
        UnclipGenerator(CONFIG, 0, folder, "rgb")
    with pytest.raises(ValueError, match="multiple of 2"):
        UnclipGenerator(CONFIG, 0, folder, "clip", side=15)
    with pytest.raises(UserError, match="mindtuner.json: not found"):
        UnclipGenerator(CONFIG, 0, tmp_path, "clip")
    (tmp_path / "mindtuner.json").write_text('{"kind": "other"}')
    with pytest.raises(UserError, match="kind is 'other'"):
        UnclipGenerator(CONFIG, 0, tmp_path, "clip")
    (tmp_path / "mindtuner.json").write_bytes((folder / "mindtuner.json").read_bytes())
    with pytest.raises(UserError, match="unet.config.json: not found; expected the folder of a UNet2DConditionModel"):
        UnclipGenerator(CONFIG, 0, tmp_path, "clip")


def test_no_weight_is_left_random(folder, tmp_path):
    """diffusers fills what a file lacks, and only warns of what it holds beside."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))

    def refuse(match: str) -> None:
        with pytest.raises(UserError, match=match) as caught:
            UnclipGenerator(CONFIG, 0, copy, "clip", side=16)
        assert str(copy) in str(caught.value) and "expected" in str(caught.value) and "\n" not in str(caught.value)

    for part in ("unet", "vae"):
        file = copy / part / unclip.WEIGHTS
        whole, read = file.read_bytes(), load_file(file)
        tensors = {key: tensor.clone() for key, tensor in read.items()}
        for key in ("conv_in.weight", "conv_out.bias") if part == "unet" else ("encoder.conv_in.weight", "quant_conv.bias"):
            write_safetensors(file, {name: tensor for name, tensor in tensors.items() if name != key})
            refuse(f"{part}: lacks 1 tensors such as {key}")
            write_safetensors(file, {**tensors, key: tensors[key][:2]})
            refuse(f"{part}: not a whole ")
        write_safetensors(file, {**tensors, "conv_between.bias": torch.zeros(2)})
        refuse(f"{part}: holds 1 unknown tensors such as conv_between.bias")
        file.write_bytes(whole[: len(whole) // 2])
        refuse(f"{part}: not a whole ")
        file.write_bytes(whole)
    generator = UnclipGenerator(CONFIG, 0, copy, "clip", side=16)
    for network, part in ((generator.unet, "unet"), (generator.vae, "vae")):
        stored = load_file(folder / part / unclip.WEIGHTS)
        state = network.state_dict()
        assert state.keys() == stored.keys() and all(torch.equal(state[key], stored[key]) for key in stored)
        assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "beta_schedule": "none"}))
    refuse("scheduler_config.json: no noise schedule")
    path.unlink()
    refuse("scheduler_config.json: not found")
