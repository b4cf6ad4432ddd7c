"""The compact generator: its linear part in closed form, its conditions, its sampling with a known answer, its training."""

import dataclasses
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from mindtuner.config import DecodeConfig
from mindtuner.data.stimuli import picture_hashes
from mindtuner.decoding.decoder import Predictions
from mindtuner.decoding.phrases import side_by_side, split
from mindtuner.errors import UserError
from mindtuner.formats.image_files import BYTE_AS_HALF, read_picture
from mindtuner.generators import compact
from mindtuner.generators import train_compact as training
from mindtuner.generators.compact import CompactGenerator
from mindtuner.generators.train_compact import train_generator
from mindtuner.model.token_painter import TokenPainter
from mindtuner.model.word_prior import WordPrior, noise_schedule
from mindtuner.simulation.cutouts import drawn_cutouts
from mindtuner.simulation.scenes import ReservedPictures, SceneStream
from mindtuner.towers.compact import pictures_trained_on
from mindtuner.towers.embed import reduce
from mindtuner.towers.patch_autoencoder import CHANNELS, PATCH, PatchAutoencoder

CONFIG = DecodeConfig(
    pictures=4, prior_steps=10, generator_steps=5, refine_steps=5, refine_start=0.5, guidance=2.0, neighbours=0
)


# ---- autoencoder


@pytest.fixture(scope="module")
def images():
    """Smooth coloured pictures in -1..1, so that few components matter."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.rand(12, 3, 16, 16, generator=rng)
    fine = torch.nn.functional.interpolate(coarse, (128, 128), mode="bicubic", align_corners=False)
    return (fine + 0.05 * torch.randn(fine.shape, generator=rng)).clamp(0, 1) * 2 - 1


@pytest.fixture(scope="module")
def fitted(images):
    torch.manual_seed(0)
    network = PatchAutoencoder()
    network.fit_linear(images)
    return network.eval()


def patches_of(images):
    """Rows (n * 256, 192) of 8 x 8 patches by plain slicing, channel, then row, then column."""
    rows = [
        image[:, y : y + PATCH, x : x + PATCH].reshape(-1)
        for image in np.asarray(images, np.float64)
        for y in range(0, 128, PATCH)
        for x in range(0, 128, PATCH)
    ]
    return np.array(rows)


def pca(images):
    rows = patches_of(images)
    mean = rows.mean(0)
    _, singular, components = np.linalg.svd(rows - mean, full_matrices=False)
    return rows, mean, singular[:CHANNELS] ** 2 / (len(rows) - 1), components[:CHANNELS]


def test_latents_are_principal_components_with_compressed_spread(images, fitted):
    rows, mean, variance, components = pca(images)
    latents = fitted.encode(images).permute(0, 2, 3, 1).reshape(-1, CHANNELS).numpy()
    projected = (rows - mean) @ components.T
    for k in range(CHANNELS):
        assert abs(np.corrcoef(latents[:, k], projected[:, k])[0, 1]) > 0.9999
    np.testing.assert_allclose(
        latents.var(0, ddof=1) / np.sqrt(variance), latents[:, 0].var(ddof=1) / variance[0] ** 0.5, rtol=1e-3
    )


def test_latents_have_unit_variance_overall(images, fitted):
    latents = fitted.encode(images)
    assert latents.shape == (12, 8, 16, 16)
    assert latents.var((0, 2, 3)).mean().item() == pytest.approx(1, abs=0.01)
    assert latents.mean((0, 2, 3)).abs().max() < 1e-3


def test_decoding_before_training_is_the_pca_reconstruction(images, fitted):
    rows, mean, _, components = pca(images)
    rebuilt = mean + (rows - mean) @ components.T @ components
    with torch.no_grad():
        ours = patches_of(fitted.decode(fitted.encode(images)))
    np.testing.assert_allclose(ours, rebuilt, atol=1e-3)
    assert np.abs(rebuilt - rows).mean() < np.abs(rows - mean).mean() / 2


def test_training_the_decoder_never_moves_latents(images, fitted):
    network = PatchAutoencoder()
    network.load_state_dict(fitted.state_dict())
    before = network.encode(images[:2])
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    for _ in range(2):
        (network.decode(before) - images[:2]).square().mean().backward()
        optimiser.step()
    assert torch.equal(network.encode(images[:2]), before)
    assert not torch.allclose(network.decode(before), fitted.decode(before))


# ---- noise schedule, the prior that knows words, and the painter


def test_the_schedule_ends_without_signal():
    alphas = noise_schedule().alphas_cumprod.double()
    assert alphas[-1] == 0 and alphas[0] > 0.999 and (alphas.diff() < 0).all()


def test_the_schedule_is_the_shifted_squared_cosine():
    """Cosine betas (Nichol and Dhariwal 2021), then sqrt(alpha-bar) shifted and scaled so that the last is 0 and the
    first stays (Lin et al. 2024)."""
    bar = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    betas = np.array([min(1 - bar((k + 1) / 1000) / bar(k / 1000), 0.999) for k in range(1000)])
    root = np.sqrt(np.cumprod(1 - betas))
    expected = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
    np.testing.assert_allclose(noise_schedule().alphas_cumprod.numpy(), expected, atol=2e-5)


@pytest.fixture(scope="module")
def prior():
    torch.manual_seed(1)
    network = WordPrior().eval()
    torch.nn.init.normal_(network.out.weight, std=0.1)  # zeros at the start
    return network


def inputs(n=3):
    rng = torch.Generator().manual_seed(2)
    return {
        "noisy": torch.randn(n, 16, 128, generator=rng),
        "time": torch.tensor([999, 500, 3])[:n],
        "known": torch.randn(n, 16, 128, generator=rng),
        "keep_known": torch.tensor([True, False, True])[:n],
        "phrases": torch.randn(n, 4, 384, generator=rng),
        "said": torch.tensor([[True, True, False, False], [False] * 4, [True] * 4])[:n],
    }


@torch.no_grad()
def velocity(prior, **changes):
    return prior(**inputs() | changes)


def test_an_absent_condition_does_not_matter_and_a_present_one_does(prior):
    known, phrases = inputs()["known"], inputs()["phrases"]
    base = velocity(prior)
    assert base.shape == (3, 16, 128)
    moved = velocity(prior, known=known + 1)
    assert [torch.equal(moved[k], base[k]) for k in range(3)] == [False, True, False]
    other = phrases.clone()
    other[:, 2:] += 1  # places that hold no phrase in the first two
    torch.testing.assert_close(velocity(prior, phrases=other)[:2], base[:2])
    other[:, 1] += 1
    changed = (velocity(prior, phrases=other) - base).abs().amax((1, 2))
    assert changed[0] > 1e-3 and changed[1] < 1e-5 and changed[2] > 1e-3
    assert not torch.allclose(velocity(prior, time=torch.tensor([0, 1, 2])), base, atol=1e-3)


@torch.no_grad()
def test_layers_compute_what_pytorch_makes_of_them(prior):
    given_ = inputs()
    entered = []
    hook = prior.transformer.layers[0].norm1.register_forward_pre_hook(lambda _, given: entered.append(given[0]))
    velocities = velocity(prior)
    hook.remove()
    unheard = torch.cat([torch.zeros(3, 18, dtype=torch.bool), ~given_["said"]], 1)
    wanted = prior.out(prior.transformer(entered[0], src_key_padding_mask=unheard)[:, :16])
    torch.testing.assert_close(velocities, wanted, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_without_phrases_it_is_as_with_phrases_unsaid(prior):
    nobody = velocity(prior, said=torch.zeros(3, 4, dtype=torch.bool))
    fewer = velocity(prior, phrases=torch.zeros(3, 0, 384), said=torch.zeros(3, 0, dtype=torch.bool))
    torch.testing.assert_close(fewer, nobody, atol=1e-5, rtol=1e-5)


def test_phrases_have_no_order_and_as_many_places_as_they_need(prior):
    given_, turn = inputs(), torch.tensor([3, 1, 0, 2])
    turned = velocity(prior, phrases=given_["phrases"][:, turn], said=given_["said"][:, turn])
    torch.testing.assert_close(turned, velocity(prior), atol=1e-5, rtol=1e-4)
    more = {"phrases": torch.cat([given_["phrases"], torch.ones(3, 5, 384)], 1)}
    more["said"] = torch.cat([given_["said"], torch.zeros(3, 5, dtype=torch.bool)], 1)
    torch.testing.assert_close(velocity(prior, **more), velocity(prior), atol=1e-5, rtol=1e-4)


def test_each_row_keeps_its_own_conditions(prior):
    together = velocity(prior)
    with torch.no_grad():
        for k in range(3):
            alone = prior(**{name: value[k : k + 1] for name, value in inputs().items()})
            torch.testing.assert_close(together[k : k + 1], alone, atol=1e-4, rtol=1e-4)


def test_a_token_enters_at_its_place():
    """The channels beside the canvas change in the token's own 4 x 4 latents only."""
    torch.manual_seed(1)
    network, placed = TokenPainter().eval(), []
    network.unet.register_forward_pre_hook(lambda _, args: placed.append(args[0][:, CHANNELS:]))
    tokens = inputs()["known"]
    moved = tokens.clone()
    moved[:, 6] += 1  # row 1, column 2 of the grid
    with torch.no_grad():
        network(tokens), network(moved)
    changed = (placed[0] != placed[1]).any(1)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[4:8, 8:12] = True
    assert all(torch.equal(one, expected) for one in changed)


def test_the_generator_is_small_enough_to_ship(untrained_generator):
    assert untrained_generator.stat().st_size < 40e6


# ---- painting


@pytest.fixture(scope="module")
def painter(untrained_generator):
    return CompactGenerator(CONFIG, 0, untrained_generator)


def brain(n=3):
    """Tokens, and two phrases of each but the last, of which nothing is said."""
    rng = np.random.default_rng(0)
    phrases, said = rng.normal(size=(n, 2, 384)).astype(np.float32), np.ones((n, 2), bool)
    said[-1] = False
    return rng.normal(size=(n, 16, 128)).astype(np.float32), (phrases, said)


def test_noise_depends_on_seed_image_and_purpose_not_on_the_batch(painter, untrained_generator):
    draw = painter._noise(np.array([4, 9, 4]), "paint")
    assert torch.equal(draw[0], draw[2]) and not torch.equal(draw[0], draw[1])
    assert torch.equal(painter._noise(np.array([9]), "paint")[0], draw[1])
    assert not torch.equal(painter._noise(np.array([9]), "correct")[0], draw[1])
    assert not torch.equal(CompactGenerator(CONFIG, 1, untrained_generator)._noise(np.array([9]), "paint")[0], draw[1])
    many = painter._noise(np.arange(200), "paint")
    assert abs(many.mean()) < 0.01 and many.std().item() == pytest.approx(1, abs=0.01)


def test_the_same_seed_imagines_the_same_tokens(painter, untrained_generator):
    tokens, _ = brain(2)
    images = np.array([3, 8])
    imagined = painter.imagine(tokens, images)
    again = CompactGenerator(CONFIG, 0, untrained_generator).imagine(tokens, images)
    np.testing.assert_array_equal(imagined, again)
    assert imagined.shape == (2, 16, 128) and np.isfinite(imagined).all()
    other = CompactGenerator(CONFIG, 5, untrained_generator).imagine(tokens, images)
    assert np.abs(other - imagined).max() > 0.1


def oracle(clean):
    """A prior that knows the clean tokens and returns the exact velocity; it also writes down what it was asked."""
    alphas = noise_schedule().alphas_cumprod
    asked = []

    class Oracle(torch.nn.Module):
        read_phrase = torch.nn.Linear(384, 1)

        def forward(self, noisy, time, known, keep_known, phrases, said):
            asked.append((time[0].item(), noisy, keep_known, said))
            alpha = alphas[time][:, None, None]
            return (alpha.sqrt() * noisy - clean) / (1 - alpha).sqrt()

    return Oracle(), asked


@pytest.mark.parametrize("steps, tolerance", [(5, 1e-3), (20, 1e-3), (6, 0.05)])  # 6 does not divide 1000 steps
@pytest.mark.parametrize("there", [True, False])
def test_with_an_oracle_imagining_ends_at_the_clean_tokens(untrained_generator, steps, tolerance, there):
    painter = CompactGenerator(dataclasses.replace(CONFIG, generator_steps=steps), 0, untrained_generator)
    clean = torch.randn(3, 16, 128, generator=torch.Generator().manual_seed(3))
    painter.prior, asked = oracle(clean)
    tokens, phrases = brain()
    imagined = painter.imagine(tokens if there else None, np.arange(3), phrases)
    np.testing.assert_allclose(imagined, clean.numpy(), atol=tolerance)
    assert len(asked) == 2 * steps and asked[0][0] == 999
    times = [entry[0] for entry in asked]
    assert times == sorted(times, reverse=True)
    np.testing.assert_array_equal(asked[0][1], painter._noise(np.arange(3), "paint"))  # from pure noise
    assert all(keep.tolist() == [there] * 3 for _, _, keep, _ in asked)
    assert not asked[0][3].any() and torch.equal(asked[1][3], torch.from_numpy(phrases[1]))  # guidance: without, and with


def test_with_an_oracle_correction_keeps_part_of_what_was_imagined(untrained_generator):
    painter = CompactGenerator(CONFIG, 0, untrained_generator)
    clean = torch.randn(3, 16, 128, generator=torch.Generator().manual_seed(3))
    imagined = torch.randn(3, 16, 128, generator=torch.Generator().manual_seed(4))
    painter.prior, asked = oracle(clean)
    corrected = painter.correct(imagined.numpy(), *brain(), np.arange(3))
    np.testing.assert_allclose(corrected, clean.numpy(), atol=1e-3)
    assert len(asked) == 2 * CONFIG.refine_steps
    time, noisy, _, _ = asked[0]
    assert time == pytest.approx(1000 * CONFIG.refine_start, abs=2)
    alpha = noise_schedule().alphas_cumprod[time]
    noise = painter._noise(np.arange(3), "correct 0")
    torch.testing.assert_close(noisy, alpha.sqrt() * imagined + (1 - alpha).sqrt() * noise, atol=1e-5, rtol=1e-5)


class Wanted:
    """Words that agree with some tokens more than with others, by the first number of each image's tokens."""

    phrase_embeddings = None

    def told(self, tokens):
        return tokens

    without_things = told

    def agreement(self, tokens):
        return np.asarray(tokens, float)[:, 0, 0]


class Silent(Wanted):
    """Words that agree with everything alike."""

    def agreement(self, tokens):
        return np.zeros(len(tokens))


def decoded(images, backbone, retrieval=None, mean=None):
    return Predictions(images, backbone, backbone if retrieval is None else retrieval, None, np.empty((len(images), 0)), mean)


def test_of_several_corrections_the_one_is_kept_that_shows_most_of_the_retrieval_tokens(untrained_generator):
    """Candidates whose pictures are known: that of the wanted image is kept, wherever among the candidates it lies."""
    painter = CompactGenerator(dataclasses.replace(CONFIG, corrections=3), 0, untrained_generator)
    tokens = torch.randn(4, 16, 128, generator=torch.Generator().manual_seed(3)).numpy()
    pictures = painter.pictures(tokens)
    wanted = painter.tower.tokens(pictures)
    place = np.array([2, 0, 1, 0])  # of the right picture among an image's candidates
    candidates = [
        np.stack([tokens[k if place[k] == candidate else (k + 1 + candidate) % 4] for k in range(4)])
        for candidate in range(3)
    ]
    asked = []

    def correct(imagined, tokens, phrases, images, title, candidate):
        asked.append(candidate)
        return candidates[candidate]

    painter.correct = correct
    mean = wanted.mean(0)
    kept = painter.best_correction(tokens, decoded(np.arange(4), np.zeros_like(wanted), wanted - mean, mean), Silent())
    assert asked == [0, 1, 2]
    np.testing.assert_allclose(kept, pictures, atol=1e-5)


def test_of_many_corrections_those_that_words_and_tokens_speak_for_are_painted(untrained_generator, monkeypatch):
    """Of each image the PAINTED best by merit; of their pictures the one of most merit to the tower."""
    count, n = 9, 5
    painter = CompactGenerator(dataclasses.replace(CONFIG, corrections=count), 0, untrained_generator)
    rng = np.random.default_rng(0)
    candidates, tokens = rng.normal(size=(count, n, 16, 128)).astype(np.float32), rng.normal(size=(n, 16, 128))
    painter.correct = lambda imagined, tokens, phrases, images, title, candidate: candidates[candidate]
    painted = []
    painter.pictures = lambda some: painted.append(some) or some
    painter.tower = type("Tower", (), {"tokens": lambda self, pictures: -pictures})()  # a painter that turns all round
    kept = painter.best_correction(candidates[0], decoded(np.arange(n), tokens), Wanted())
    cosine = np.array(
        [[a.ravel() @ b.ravel() / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(one, tokens)] for one in candidates]
    )
    merits = compact.FAITH * cosine + candidates[:, :, 0, 0]
    assert len(painted) == compact.PAINTED
    for k in range(n):
        best = np.argsort(-merits[:, k])[: compact.PAINTED]
        assert [some[k, 0, 0] for some in painted] == [candidates[b, k, 0, 0] for b in best]
        np.testing.assert_array_equal(kept[k], candidates[best[-1], k])  # the least of them, turned round, is the most


def test_what_is_said_beside_words_are_the_backbone_tokens(painter):
    """The picture without words is of the tokens to paint; the correction starts from it, and goes by the backbone tokens."""
    tokens, phrases = brain(2)
    backbone, images, words = -tokens, np.array([3, 8]), Silent()
    words.phrase_embeddings, words.bank = phrases, SimpleNamespace(captions=["a cat"])
    found = painter.stages(tokens, decoded(images, backbone, tokens), words)
    imagined = painter.imagine(tokens, images)
    np.testing.assert_array_equal(found["reconstructed"], painter.pictures(imagined))
    corrected = painter.pictures(painter.correct(imagined, backbone, phrases, images))
    np.testing.assert_array_equal(found["corrected"], corrected)
    assert np.abs(corrected - painter.pictures(painter.correct(imagined, tokens, phrases, images))).max() > 1e-3


def test_candidates_differ_by_their_noise_alone_and_one_candidate_is_the_correction(painter):
    tokens, phrases = brain(2)
    images, imagined = np.array([3, 8]), np.zeros((2, 16, 128), np.float32)
    first, second = (painter.correct(imagined, tokens, phrases, images, candidate=candidate) for candidate in (0, 1))
    assert np.abs(first - second).max() > 0.1
    assert not torch.equal(painter._noise(images, "correct 0"), painter._noise(images, "correct 1"))
    words = Silent()
    words.phrase_embeddings = phrases
    np.testing.assert_array_equal(painter.best_correction(imagined, decoded(images, tokens), words), painter.pictures(first))


def test_guidance_goes_past_the_velocity_with_phrases(untrained_generator):
    """With an answer that depends on the phrases alone, DDIM's result is linear in the guidance."""

    class Constant(torch.nn.Module):
        read_phrase = torch.nn.Linear(384, 1)

        def forward(self, noisy, time, known, keep_known, phrases, said):
            return said.any(1).float()[:, None, None].expand_as(noisy)

    results = []
    for guidance in (0.0, 1.0, 3.0):
        painter = CompactGenerator(dataclasses.replace(CONFIG, guidance=guidance), 0, untrained_generator)
        painter.prior = Constant()
        tokens, phrases = brain()
        results.append(painter.imagine(tokens, np.arange(3), phrases))
    np.testing.assert_allclose(results[2] - results[0], 3 * (results[1] - results[0]), atol=1e-4)
    assert np.abs(results[1] - results[0])[:2].max() > 0.1 and (results[1] == results[0])[2].all()


def test_pictures_are_the_painters(painter):
    tokens, _ = brain(2)
    pictures = painter.pictures(tokens)
    assert pictures.shape == (2, 3, 128, 128) and 0 <= pictures.min() and pictures.max() <= 1
    with torch.no_grad():
        alone = painter.painter(torch.from_numpy(tokens[1:]))
    np.testing.assert_allclose(pictures[1:], alone.clamp(0, 1).numpy(), atol=1e-4)


def test_weights_without_a_painter_are_refused(tmp_path, untrained_generator):
    from safetensors.torch import load_file, save_file

    tensors = load_file(untrained_generator)
    save_file({k: v for k, v in tensors.items() if k.startswith("autoencoder.")}, tmp_path / "half.safetensors")
    with pytest.raises(UserError, match=r"half\.safetensors: holds no painter\.\* tensors"):
        CompactGenerator(CONFIG, 0, tmp_path / "half.safetensors")
    tensors["words.read_phrase.weight"] = torch.zeros(320, 7)
    save_file(tensors, tmp_path / "narrow.safetensors")
    with pytest.raises(UserError, match=r"narrow\.safetensors: words\.\* do not fit .*read_phrase\.weight"):
        CompactGenerator(CONFIG, 0, tmp_path / "narrow.safetensors")


@pytest.fixture(scope="module")
def unseen_scenes():
    """Scenes of a stream that nothing was trained on, 128 x 128, uint8."""
    from mindtuner.simulation.cutouts import drawn_cutouts
    from mindtuner.simulation.scenes import SceneStream

    stream = SceneStream(drawn_cutouts("test", 1), "a test's own", 0)
    scenes = [stream(k) for k in range(12)]
    small = np.round(painter_side(np.stack([scene.pixels for scene in scenes])) * 255).astype(np.uint8)
    return small, [scene.captions[0] for scene in scenes]


def matches(painted, scenes):
    """How many pictures resemble their own scene more than any other's, by correlation."""
    n = len(scenes)
    similar = np.corrcoef(painted.reshape(n, -1), scenes.reshape(n, -1))[:n, n:]
    return (similar.argmax(1) == np.arange(n)).sum()


def test_the_shipped_weights_paint_what_tokens_hold(image_encoder, unseen_scenes):
    small, _ = unseen_scenes
    painter = CompactGenerator(CONFIG, 0)
    rebuilt = painter.autoencoder.decode(painter.autoencoder.encode(small))
    assert np.abs(rebuilt - small / 255).mean() < 0.06
    tokens = image_encoder.tokens(small)
    painted = painter.pictures(tokens)
    assert np.abs(painted - small / 255).mean() < 0.09 and matches(painted, small) == 12
    seen = np.corrcoef(image_encoder.tokens(painted).ravel(), tokens.ravel())[0, 1]
    assert seen > 0.7  # the tower sees the scene's tokens in the picture


def test_the_shipped_weights_imagine_what_phrases_say(image_encoder, text_encoder, unseen_scenes):
    """From a scene's phrases alone: what is imagined resembles tokens of that scene more than of the others, and phrases of
    another scene do not do that."""
    small, captions = unseen_scenes
    painter = CompactGenerator(dataclasses.replace(CONFIG, generator_steps=10), 0)
    phrases = side_by_side([text_encoder.embed(split(caption)) for caption in captions], 384)
    tokens = image_encoder.tokens(small).mean(1)
    tokens -= tokens.mean(0)

    def own_rank(imagined):
        found = imagined.mean(1) - imagined.mean(1).mean(0)
        similar = np.corrcoef(found, tokens)[:12, 12:]
        return (similar > np.diag(similar)[:, None]).sum(1).mean()

    shift = tuple(np.roll(one, 1, 0) for one in phrases)
    assert own_rank(painter.imagine(None, np.arange(12), phrases)) < 2.5  # 5.5 by chance
    assert own_rank(painter.imagine(None, np.arange(12), shift)) > 3.5


def painter_side(pixels):
    small = torch.nn.functional.interpolate(
        torch.from_numpy(pixels).float() / 255, (128, 128), mode="bilinear", antialias=True
    )
    return small.numpy()


# ---- training


@pytest.fixture
def few_scenes(few_cutouts, monkeypatch, image_encoder, text_encoder):
    """Small batches, towers that are loaded once, and tokens whose components are found once."""
    monkeypatch.setattr(training, "UncertainTokens", uncertain_tokens)
    monkeypatch.setattr(training, "BATCH", {"autoencoder": 2, "prior": 8, "painter": 2, "words": 3})
    monkeypatch.setattr(training, "CompactImageEncoder", lambda: image_encoder)
    monkeypatch.setattr(training, "CompactTextEncoder", lambda: text_encoder)


def uncertain_tokens(tokens, *known, found={}, kind=training.UncertainTokens):
    key = tokens.numpy().tobytes(), known
    if key not in found:
        found[key] = kind(tokens, *known)
    return found[key]


def run(tmp_path, autoencoder=2, words=2, painter=2, prior=2, log=lambda record: None, **more):
    train_generator(
        tmp_path / "out.safetensors",
        tmp_path / "work",
        **{"scenes": 12, "seed": 0} | more,
        autoencoder_steps=autoencoder,
        prior_steps=prior,
        painter_steps=painter,
        words_steps=words,
        log=log,
    )
    return tmp_path / "out.safetensors"


def steps_of(path):
    with safe_open(path, "pt") as file:
        return int(file.metadata()["words_steps"])


@pytest.mark.slow
def test_a_run_leaves_weights_that_paint(tmp_path, few_scenes):
    out = run(tmp_path)
    assert steps_of(out) >= 1
    painter = CompactGenerator(CONFIG, 0, out)
    tokens, _ = brain(1)
    assert np.isfinite(painter.pictures(painter.imagine(tokens, np.array([0])))).all()
    assert not list(tmp_path.rglob("*.part"))
    pixels = np.load(tmp_path / "work" / "pixels.npy")
    assert pixels.shape == (12, 3, 128, 128) and pixels.dtype == np.uint8
    scene = training.generator_scenes()(7)
    np.testing.assert_allclose(pixels[7], painter_side(scene.pixels[None])[0] * 255, atol=1)
    assert json.loads((tmp_path / "work" / "captions.json").read_text())[7] == list(scene.captions)


@pytest.mark.slow
def test_weights_know_the_pictures_that_they_were_trained_on(tmp_path, few_scenes):
    """And none of those that the folder keeps for scenes of subjects."""
    root = tmp_path / "photographs"
    root.mkdir()
    for k in range(110):
        Image.fromarray(np.random.default_rng(k).integers(0, 255, (20, 30, 3)).astype(np.uint8)).save(root / f"{k}.png")
        (root / f"{k}.txt").write_text(f"thing {k}")
    out = run(tmp_path, stimuli=root)
    reserved = ReservedPictures(root)
    images = np.stack([read_picture(path) for path in sorted(root.glob("*.png"))])
    own = np.array([path in reserved.paths for path in sorted(root.glob("*.png"))])
    assert 30 <= own.sum() < 60
    for pixels in (images, BYTE_AS_HALF[images]):
        assert np.isin(picture_hashes(pixels), pictures_trained_on(out)).tolist() == own.tolist()
    with pytest.raises(UserError, match=r"settings\.json: holds .*expected "):
        run(tmp_path)


def test_fidelity_is_the_variance_of_tokens_that_pictures_keep(untrained_generator):
    """By a tower that sees what is wanted plus known errors; and one that sees the same in every picture keeps none."""
    generator = CompactGenerator(CONFIG, 0, untrained_generator)
    rng = np.random.default_rng(0)
    tokens, error = rng.normal(size=(2, 50, 16, 128)).astype(np.float32)
    generator.tower = type("Tower", (), {"tokens": lambda self, pictures: tokens + 0.5 * error})()
    assert generator.fidelity(tokens) == pytest.approx(1 - 0.25, abs=0.01)
    generator.tower = type("Tower", (), {"tokens": lambda self, pictures: np.broadcast_to(tokens.mean(0), tokens.shape)})()
    assert generator.fidelity(tokens) == pytest.approx(0, abs=1e-6)


def test_the_packages_painter_is_at_home_in_its_scenes_and_not_in_noise():
    generator = CompactGenerator(CONFIG, 0)
    scenes = SceneStream(drawn_cutouts("train"), "train", 3)
    drawn = reduce(np.stack([scenes(k).pixels for k in range(12)]) / 255)
    noise = np.random.default_rng(0).integers(0, 256, (12, 3, 128, 128)).astype(np.uint8)
    drawn, noise = (generator.fidelity(generator.tower.tokens(some)) for some in (drawn, noise))
    assert drawn > 0.6 and noise < 0 and len(pictures_trained_on(generator.path)) == 0


@pytest.mark.slow
def test_a_run_killed_after_the_autoencoder_goes_on_there(tmp_path, few_scenes, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "_fit_painter", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    saved = torch.load(tmp_path / "work" / "autoencoder.pt", weights_only=True)
    assert saved["step"] >= 1 and not (tmp_path / "out.safetensors").exists()
    times = {name: (tmp_path / "work" / name).stat().st_mtime_ns for name in ("pixels.npy", "tokens.npy")}
    with monkeypatch.context() as patch:
        patch.setattr(training, "render", killed)  # neither scenes nor tokens are made again
        patch.setattr(image_encoder_type(), "tokens", killed)
        out = run(tmp_path)
    assert steps_of(out) >= 1
    assert {name: (tmp_path / "work" / name).stat().st_mtime_ns for name in times} == times
    again = torch.load(tmp_path / "work" / "autoencoder.pt", weights_only=True)
    for name, value in saved["network"].items():  # its steps were already done
        assert torch.equal(again["network"][name], value)


def image_encoder_type():
    from mindtuner.towers.compact import CompactImageEncoder

    return CompactImageEncoder


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["painter_losses", "velocity_loss"])
def test_a_stopped_stage_ends_with_the_weights_of_an_unbroken_one(tmp_path, few_scenes, monkeypatch, loss):
    unbroken = load_file(run(tmp_path / "unbroken", words=4, painter=4))
    real, calls = getattr(training, loss), []

    def stops(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "SAVE_EVERY", 2)
    with monkeypatch.context() as patch:
        patch.setattr(training, loss, stops)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", words=4, painter=4)
    out = run(tmp_path / "stopped", words=4, painter=4)
    assert steps_of(out) == 4
    for name, value in load_file(out).items():
        assert torch.equal(value, unbroken[name]), name


@pytest.mark.parametrize("other", [{"scenes": 13}, {"seed": 1}])
def test_other_settings_in_the_same_work_folder_are_refused(tmp_path, few_scenes, other):
    run(tmp_path, 0, 0, 0, 0)
    with pytest.raises(UserError, match=r"settings\.json: holds .*expected ") as error:
        run(tmp_path, 0, 0, 0, **other)
    assert "\n" not in str(error.value)


def test_a_damaged_work_folder_is_named(tmp_path, few_scenes):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "settings.json").write_text("{")
    with pytest.raises(UserError, match=r"settings\.json: not valid JSON"):
        run(tmp_path, 0, 0, 0, 0)
    (tmp_path / "work" / "settings.json").unlink()
    (tmp_path / "work").rmdir()
    (tmp_path / "work").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        run(tmp_path, 0, 0, 0, 0)


@pytest.mark.parametrize("least", [0.1, 0.5, 1.0])
def test_uncertain_tokens_are_conditional_means_of_known_share(least):
    """A conditional mean c of t has E<t - c, c - m> = 0 and keeps its share of the variance: E|c - m|^2 = share tr C.
    Shares are uniform in least..1; with a share of 1 nothing is lost."""
    rng = torch.Generator().manual_seed(0)
    spread = torch.linspace(2, 0.1, 12)
    turn = torch.linalg.qr(torch.randn(12, 12, generator=rng))[0]
    tokens = ((torch.randn(20_000, 12, generator=rng) * spread) @ turn.T + 0.7).view(-1, 3, 4)
    means = training.UncertainTokens(tokens, least, 1.0)(tokens, rng)
    assert means.shape == tokens.shape and means.dtype == torch.float32
    t, c = tokens.flatten(1) - 0.7, means.flatten(1) - 0.7
    total = spread.square().sum().item()
    assert ((t - c) * c).sum(1).mean().item() / total == pytest.approx(0, abs=0.01)
    assert c.square().sum(1).mean().item() / total == pytest.approx((least + 1) / 2, abs=0.01)
    if least == 1:
        torch.testing.assert_close(means, tokens, atol=0.3, rtol=0)


def test_the_velocity_of_a_perfect_network_has_no_loss():
    """Against v = alpha noise - sigma x0, rebuilt from the noisy tokens that the loss hands to the network."""
    alphas = noise_schedule().alphas_cumprod
    clean = torch.randn(64, 16, 128, generator=torch.Generator().manual_seed(1))

    def perfect(noisy, times, known, keep, phrases, said):
        signal, sigma = (a[times].sqrt()[:, None, None] for a in (alphas, 1 - alphas))
        noise = (noisy - signal * clean) / sigma.clamp_min(1e-6)
        return signal * noise - sigma * clean

    nothing = torch.zeros(64, 1, 384), torch.zeros(64, 1, dtype=torch.bool)
    keep = torch.ones(64, dtype=torch.bool)
    loss = training.velocity_loss(perfect, clean, clean, keep, *nothing, torch.Generator().manual_seed(0))
    assert loss.item() < 1e-4


def test_phrases_are_those_of_one_caption_and_some_are_left_out(text_encoder):
    captions = [("a red bird and a blue car on the beach", "a red bird on the left, on the beach"), ("a cat",)]
    phrases, rng = training.Phrases(captions, text_encoder), np.random.default_rng(0)
    meant, said = phrases.draw(np.arange(2).repeat(2000), rng)
    assert meant.shape == (4000, training.PHRASES, 384) and said.shape == (4000, training.PHRASES)
    first, second = said[:2000].sum(1), said[2000:].sum(1)
    assert first.max() == 3 and second.max() == 1
    kept = (1 - training.PHRASE_DROP) * (1 - training.WORDS_DROP)
    assert first.float().mean() == pytest.approx((3 - 2 * training.WHOLE) * kept, abs=0.06)
    assert second.float().mean() == pytest.approx(kept, abs=0.03)
    rounded = lambda numbers: tuple(np.round(numbers, 4).tolist())
    parts = {rounded(row) for row, n in zip(meant[:2000, :3, 0].numpy(), first) if n == 3}
    plain = ["a red bird and a car on the beach", "a bird and a blue car on the beach", "a bird and a car on the beach"]
    plain += ["a bird on the left, on the beach"]
    assert parts == {rounded(text_encoder.embed(split(caption))[:, 0]) for caption in [*captions[0], *plain]}
    alone = {rounded(row) for row, n in zip(meant[:2000, :1, 0].numpy(), first) if n == 1}
    assert alone > {rounded(one[:1]) for one in text_encoder.embed(list(captions[0]))}


def test_a_painter_that_paints_the_scene_has_no_loss(image_encoder):
    scenes = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    tokens = torch.from_numpy(image_encoder.tokens(scenes))
    exact = training.painter_losses(lambda given: scenes, image_encoder, tokens, tokens, scenes)
    other = training.painter_losses(lambda given: scenes.flip(0), image_encoder, tokens, tokens, scenes)
    assert set(exact) == set(training.PAINTER_WEIGHTS)
    for name, loss in exact.items():
        assert loss < 1e-4 and other[name] > 0.01


@given(st.integers(100, 10_000), st.data())
def test_the_learning_rate_warms_up_then_falls(steps, data):
    step = data.draw(st.integers(50, steps - 1))
    assert 0 < training._schedule(step + 1, steps) <= training._schedule(step, steps) <= 1
    assert training._schedule(25, steps) == pytest.approx(training._schedule(0, steps) + 0.5, abs=0.1)
    assert training._schedule(0, steps) == 0 and training._schedule(steps, steps) == pytest.approx(0.03)


def test_the_packaged_name_is_where_the_generator_looks():
    assert compact.packaged(compact.WEIGHTS).name == "generator.safetensors"
