"""Low-level targets at paper size: SD's autoencoder against diffusers' own, ConvNeXt maps against the public class."""

import json
import re

import numpy as np
import pytest
import timm
import torch
from diffusers import AutoencoderKL
from release import script
from safetensors.torch import load_file, save_file

from mindtuner.config import load_config
from mindtuner.data import HalfRows
from mindtuner.errors import UserError
from mindtuner.towers.convnext_maps import ConvNextMaps, PlainConvNextMaps
from mindtuner.towers.low_level import PaperView, low_level_towers
from mindtuner.towers.sd_vae import StableAutoencoder

parity = script("parity/convnext")

SIDE = 32
VAE_FILE = "diffusion_pytorch_model.safetensors"
TINY_VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [4, 4, 8, 8],
    "norm_num_groups": 2,
    "layers_per_block": 1,
    "latent_channels": 4,
}


def pictures(n=3, side=SIDE, seed=0):
    return np.random.default_rng(seed).random((n, 3, side, side), dtype=np.float32)


def refused(make, *words):
    """``make`` raises a UserError of one line that has all the words in it."""
    with pytest.raises(UserError) as caught:
        make()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    for word in words:
        assert str(word) in message
    return message


class Stimuli:
    """Float16 images of 224 x 224, as the release has them, and a hash."""

    hash = "these stimuli"

    def __init__(self, count=5):
        self.pixels = np.repeat(np.repeat(pictures(count, 14), 16, 2), 16, 3).astype(np.float16)

    def __len__(self):
        return len(self.pixels)

    def images(self, ids):
        return self.pixels[ids]


# ---- the autoencoder


def tiny_vae(seed=0, **changes):
    torch.manual_seed(seed)
    return AutoencoderKL(**{**TINY_VAE, **changes}).eval()


@pytest.fixture
def vae(tmp_path):
    """A pipeline's folder with an autoencoder in it, and that autoencoder."""
    network = tiny_vae()
    network.save_pretrained(tmp_path / "model" / "vae")
    return tmp_path / "model", network


def test_latents_are_the_scaled_mode_of_diffusers_own_posterior(vae):
    folder, network = vae
    encoder, images = StableAutoencoder(folder, side=SIDE), pictures()
    with torch.no_grad():
        moments = network.encode(torch.from_numpy(images) * 2 - 1).latent_dist.parameters
    found = encoder.encode(images)
    assert found.shape == (3, *encoder.shape) == (3, 4, 4, 4) and found.dtype == np.float32
    np.testing.assert_allclose(found, moments[:, :4].numpy() * 0.18215, atol=1e-5)
    np.testing.assert_array_equal(found, encoder.encode(images))  # nothing is drawn
    with torch.no_grad():
        rebuilt = network.decode(moments[:, :4]).sample.numpy() * 0.5 + 0.5
    np.testing.assert_allclose(encoder.decode(found), rebuilt.clip(0, 1), atol=1e-5)
    assert encoder.decode(np.full((1, 4, 4, 4), 1e4)).max() <= 1


def test_bytes_floats_and_sizes_of_images_agree(vae):
    encoder = StableAutoencoder(vae[0], side=SIDE)
    coarse = np.random.default_rng(1).integers(0, 256, (2, 3, SIDE, SIDE), dtype=np.uint8)
    expected = encoder.encode(coarse)
    np.testing.assert_allclose(encoder.encode(coarse.astype(np.float32) / 255), expected, atol=1e-6)
    np.testing.assert_allclose(encoder.encode(torch.from_numpy(coarse)), expected, atol=1e-6)
    flat = np.full((1, 3, 50, 50), 0.3, np.float32)  # of any size the same picture
    np.testing.assert_allclose(encoder.encode(flat), encoder.encode(flat[:, :, :SIDE, :SIDE]), atol=1e-5)
    with pytest.raises(ValueError, match="expected \\(n, 3, H, W\\)"):
        encoder.encode(coarse[0])


def test_paper_s_sizes_come_out_of_its_settings(vae):
    encoder, model = StableAutoencoder(vae[0]), load_config("paper").model
    assert encoder.shape == (model.latent_channels, model.latent_side, model.latent_side)


def test_the_folder_itself_and_torch_s_format_with_older_names_are_the_same_autoencoder(vae, tmp_path):
    folder, _ = vae
    wanted = StableAutoencoder(folder, side=SIDE).identity
    assert StableAutoencoder(folder / "vae", side=SIDE).identity == wanted
    state = load_file(folder / "vae" / VAE_FILE)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    older = {
        re.sub("|".join(map(re.escape, names)), lambda found: names[found[0]], key): tensor for key, tensor in state.items()
    }
    assert older.keys() != state.keys()
    (folder / "vae" / VAE_FILE).unlink()
    torch.save(older, folder / "vae" / "diffusion_pytorch_model.bin")
    assert StableAutoencoder(folder, side=SIDE).identity == wanted


def test_latents_identity_tells_weights_and_size(vae, tmp_path):
    folder, _ = vae
    identity = StableAutoencoder(folder, side=SIDE).identity
    assert json.loads(json.dumps(identity)) == identity
    tiny_vae(seed=1).save_pretrained(tmp_path / "other" / "vae")
    other = StableAutoencoder(tmp_path / "other", side=SIDE).identity
    assert {key for key in identity if identity[key] != other[key]} == {"weights"}
    larger = StableAutoencoder(folder, side=2 * SIDE).identity
    assert {key for key in identity if identity[key] != larger[key]} == {"side", "latents"}
    with pytest.raises(ValueError, match="multiple of 8"):
        StableAutoencoder(folder, side=30)


def edit_vae(folder, change):
    path = folder / "vae" / VAE_FILE
    state = load_file(path)
    change(state)
    save_file(state, path)


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda state: state.pop("encoder.conv_in.weight"), ("lacks 1 tensors such as encoder.conv_in.weight",)),
        (lambda state: state.update(extra=torch.zeros(1)), ("holds 1 unknown tensors such as extra",)),
        (
            lambda state: state.update({"quant_conv.bias": torch.zeros(6)}),
            ("quant_conv.bias has shape (6,), not (8,)", "by its config.json"),
        ),
    ],
)
def test_an_autoencoder_s_wrong_key_is_named(vae, change, words, capfd):
    edit_vae(vae[0], change)
    refused(lambda: StableAutoencoder(vae[0], side=SIDE), vae[0] / "vae", *words)
    assert capfd.readouterr().err == ""  # the one line is the error's


def test_cut_absent_and_other_folders_are_refused(vae, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a long path is cut in the library's reason
    folder = vae[0].relative_to(tmp_path)
    path = folder / "vae" / VAE_FILE
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(lambda: StableAutoencoder(folder), path)
    path.unlink()
    refused(lambda: StableAutoencoder(folder), folder / "vae")
    (folder / "vae" / "config.json").write_text("{")
    refused(lambda: StableAutoencoder(folder), folder / "vae", "config.json")
    refused(lambda: StableAutoencoder(tmp_path / "nothing"), tmp_path / "nothing", "expected the vae folder")
    refused(lambda: StableAutoencoder(path.with_name("config.json")), "is a file")
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel", "sample_size": 8}))
    refused(lambda: StableAutoencoder(tmp_path / "unet"), "_class_name is 'UNet2DModel'", "'AutoencoderKL'")


def test_sdxl_s_autoencoder_of_the_same_shapes_is_refused(tmp_path):
    tiny_vae(scaling_factor=0.13025).save_pretrained(tmp_path / "vae")
    refused(lambda: StableAutoencoder(tmp_path), "scaling_factor is 0.13025", "expected 0.18215")


# ---- the maps projector


@pytest.fixture(scope="module")
def small():
    return parity.read_fixture()


@pytest.fixture
def checkpoint(tmp_path, small):
    return parity.write_checkpoint(tmp_path / "small.pth", small[0])


def test_identity_does_not_depend_on_what_is_not_used(checkpoint, small, tmp_path):
    """Training state, the global projector and the classifier; with or without the prefix of several devices."""
    encoder = ConvNextMaps(checkpoint, side=parity.SIDE)
    torch.save({"model": small[0]}, tmp_path / "trimmed.pth")
    assert ConvNextMaps(tmp_path / "trimmed.pth", side=parity.SIDE).identity == encoder.identity
    assert json.loads(json.dumps(encoder.identity))["features"] == [9, 10]
    smaller = ConvNextMaps(checkpoint, side=64).identity
    assert {key for key in smaller if smaller[key] != encoder.identity[key]} == {"side", "features"}
    with pytest.raises(ValueError, match="multiple of 32"):
        ConvNextMaps(checkpoint, side=100)


NORM, CONV = "backbone.stages.2.1.norm.weight", "backbone.stages.1.0.dwconv.weight"


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda w: w.pop(NORM), (f"key {NORM} is missing", "(20,)")),
        (lambda w: w.pop("maps_projector.6.weight"), ("key maps_projector.6.weight is missing",)),
        (lambda w: w.pop("backbone.downsample_layers.0.0.weight"), ("backbone.downsample_layers.0.0.weight is missing",)),
        (lambda w: [w.pop(key) for key in list(w) if ".stages.3." in key], ("backbone.stages.3.0.dwconv.weight is missing",)),
        (lambda w: w.update({"backbone.stages.1.0.gamma": torch.ones(12)}), ("key backbone.stages.1.0.gamma is unknown",)),
        (lambda w: w.update({"backbone.stages.1.999.gamma": torch.ones(12)}), ("backbone.stages.1.999 is unknown",)),
        (lambda w: w.update({CONV: torch.zeros(12, 1, 5, 5)}), (f"{CONV} has shape (12, 1, 5, 5)", "not (12, 1, 7, 7)")),
        (lambda w: w.update({"maps_projector.3.weight": torch.zeros(3)}), ("maps_projector.3.weight has shape (3,)",)),
        (lambda w: w.update({NORM: torch.ones(20, dtype=torch.int32)}), (f"{NORM} is of torch.int32",)),
    ],
)
def test_a_released_checkpoint_s_wrong_key_is_named(tmp_path, small, change, words):
    weights = dict(small[0])
    change(weights)
    path = parity.write_checkpoint(tmp_path / "wrong.pth", weights)
    refused(lambda: ConvNextMaps(path), path, "convnext_xlarge_alpha0.75_fullckpt.pth", *words)


class Code:
    """What torch.load must never build."""

    def __reduce__(self):
        return print, ("this ran",)


def test_other_cut_and_dangerous_files_are_refused(tmp_path, checkpoint, small, vae, capsys):
    expected = "convnext_xlarge_alpha0.75_fullckpt.pth"
    bare = {name.removeprefix("backbone."): tensor for name, tensor in small[0].items() if name.startswith("backbone.")}
    path = tmp_path / "other.pth"

    def given(content, *words):
        torch.save(content, path)
        refused(lambda: ConvNextMaps(path), path, expected, *words)

    given(bare, "field model is missing", "downsample_layers.0.0.weight")  # the release without its projector
    given({"model_state_dict": bare}, "field model is missing", "model_state_dict")  # a base of MindEye2's
    given({"state_dict": bare}, "field model is missing")
    given({"model": {"module.backbone.conv1.weight": torch.zeros(8, 3, 7, 7)}}, "downsample_layers.0.0.weight is missing")
    given({"model": [1]}, "holds no tensors by name")
    given({"model": {"a": 1}}, "a is a int, no tensor")
    given([bare], "holds a list")
    given({"model": small[0], "args": Code()}, "holds Python code (print), which is never run")
    assert "this ran" not in capsys.readouterr().out
    whole = checkpoint.read_bytes()
    for length in (0, 10, len(whole) // 2, len(whole) - 20):
        path.write_bytes(whole[:length])
        refused(lambda: ConvNextMaps(path), path, expected)
    refused(lambda: ConvNextMaps(tmp_path / "none.pth"), "not found", expected)
    refused(lambda: ConvNextMaps(tmp_path), tmp_path, expected)
    refused(lambda: ConvNextMaps(vae[0] / "vae" / VAE_FILE), VAE_FILE, expected)
    refused(lambda: StableAutoencoder(checkpoint), checkpoint, "is a file")


# ---- a plain ConvNeXt of timm's

PLAIN = "test_convnext"


@pytest.fixture
def plain(tmp_path):
    torch.manual_seed(3)
    network = timm.create_model(PLAIN, num_classes=7).eval()
    save_file(network.state_dict(), tmp_path / "plain.safetensors")
    return tmp_path / "plain.safetensors", network


def test_a_plain_convnext_gives_its_last_stage_and_says_that_the_width_differs(plain, checkpoint):
    path, network = plain
    encoder, images = PlainConvNextMaps(PLAIN, path, side=64), pictures(2, 64)
    stages = timm.create_model(PLAIN, features_only=True).eval()
    stages.load_state_dict(
        {
            re.sub(r"^(stem|stages)\.(\d+)", r"\1_\2", key): tensor
            for key, tensor in network.state_dict().items()
            if not key.startswith("head.")
        }
    )
    with torch.no_grad():
        expected = stages((torch.from_numpy(images) - 0.5) / 0.5)[-1].flatten(2).transpose(1, 2)
    np.testing.assert_allclose(encoder.maps(images), expected.numpy(), atol=1e-4)
    assert encoder.shape == (4, network.num_features) and encoder.identity["features"] == list(encoder.shape)
    released = ConvNextMaps(checkpoint, side=64).identity
    assert encoder.identity["encoder"] == "timm test_convnext" and released["encoder"] == "VICRegL ConvNeXt"
    assert "none" in encoder.identity["projector"] and list(released["projector"]) == [18, 14, 10]


def test_a_plain_convnext_s_bad_input_is_refused(plain, checkpoint, tmp_path, monkeypatch):
    path, network = plain
    refused(lambda: PlainConvNextMaps("resnet18", path), "resnet18", "expected a ConvNeXt")
    refused(lambda: PlainConvNextMaps("convnext_huger", path), "convnext_huger", "unknown")
    refused(lambda: PlainConvNextMaps(f"{PLAIN}.no_such_tag", path), "no_such_tag", "known tag")
    refused(lambda: PlainConvNextMaps(PLAIN, checkpoint), checkpoint, "as safetensors")
    refused(lambda: PlainConvNextMaps(PLAIN, tmp_path / "none"), "none", "as safetensors")
    refused(lambda: PlainConvNextMaps("test_convnext2", path), path, "of timm's test_convnext2")

    def offline(*_, **__):
        raise OSError("no connection\nto the hub")

    monkeypatch.setattr("mindtuner.towers.convnext_maps.timm.create_model", offline)
    refused(lambda: PlainConvNextMaps(PLAIN), PLAIN, "no connection to the hub", "file with timm's keys")


# ---- caches


def test_towers_build_the_caches_that_targets_read(tmp_path, vae, checkpoint):
    stimuli = Stimuli()
    autoencoder, maps = StableAutoencoder(vae[0], side=SIDE), ConvNextMaps(checkpoint, side=64)
    towers = {tower.name: tower for tower in low_level_towers(stimuli, autoencoder, maps)}
    assert list(towers) == ["latents", "features", "features_augmented"]
    built = {name: tower.build(tmp_path / "cache", stimuli) for name, tower in towers.items()}
    images = stimuli.pixels.astype(np.float32)
    np.testing.assert_allclose(built["latents"], autoencoder.encode(images), atol=1e-6)
    assert built["latents"].dtype == np.float32 and isinstance(built["features"], HalfRows)
    np.testing.assert_allclose(built["features"][:], maps.maps(images), atol=2e-3)
    view = PaperView(64)
    single = np.concatenate([maps.maps(view(images[[i]], [i])) for i in (4, 1)])
    np.testing.assert_allclose(built["features_augmented"][[4, 1]], single, atol=2e-3)
    assert np.abs(built["features_augmented"][:] - built["features"][:]).max() > 0.1
    assert towers["features"].identity != towers["features_augmented"].identity
    assert [tower.name for tower in low_level_towers(stimuli, autoencoder, None)] == ["latents"]
    assert [tower.name for tower in low_level_towers(stimuli, None, maps)] == ["features", "features_augmented"]
    other = low_level_towers(stimuli, None, ConvNextMaps(checkpoint, side=96))[0]
    refused(lambda: other.build(tmp_path / "cache", stimuli), "features.json")


def test_views_are_within_range_crop_nine_tenths_and_follow_the_stimulus_alone():
    images = Stimuli(40).pixels.astype(np.float32)
    view = PaperView(64)
    before = torch.get_rng_state()
    found = view(images, range(40))
    assert torch.equal(torch.get_rng_state(), before)
    assert found.shape == (40, 3, 64, 64) and 0 <= found.min() and found.max() < 1 + 1e-5  # resizing rounds
    assert torch.equal(view(images[7:8], [7])[0], found[7])
    assert not torch.equal(view(images[7:8], [8])[0], found[7])
    # Of a picture whose red grows by column, that of an unjittered view spans the crop's side, the root of .9.
    ramp = np.zeros((300, 3, 64, 64), np.float32)
    ramp[:, 0] = np.linspace(0, 1, 64, dtype=np.float32)
    many = view(ramp, range(300))
    grey = (many[:, 0] - many[:, 1]).abs().amax((1, 2)) < 1e-6
    assert 0.04 < grey.float().mean() < 0.18  # one in ten; five standard errors are .087
    calm = [image for image in many if image[1:].max() == 0 and image[0, 0, 1] - image[0, 0, 0] < 0.02]
    spans = [float(image[0, 0, -1] - image[0, 0, 0]) for image in calm if image[0].diff(dim=1).min() >= 0]
    assert np.isclose(np.median(spans), 0.9**0.5, atol=0.03)
