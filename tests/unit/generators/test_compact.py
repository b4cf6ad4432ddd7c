"""The compact generator: its linear part in closed form, its conditions, its sampling with a known answer, its training."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from mindtuner.config import DecodeConfig
from mindtuner.errors import UserError
from mindtuner.generators import compact
from mindtuner.generators import train_compact as training
from mindtuner.generators.compact import CompactGenerator
from mindtuner.generators.train_compact import train_generator
from mindtuner.model.denoiser import CompactDenoiser, noise_schedule
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


# ---- noise schedule and denoiser


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
def denoiser():
    torch.manual_seed(1)
    return CompactDenoiser().eval()


def inputs(n=3):
    rng = torch.Generator().manual_seed(2)
    return {
        "latents": torch.randn(n, 8, 16, 16, generator=rng),
        "time": torch.tensor([999, 500, 3])[:n],
        "tokens": torch.randn(n, 16, 128, generator=rng),
        "text": torch.randn(n, 384, generator=rng),
    }


def velocity(denoiser, tokens_there, text_there, **changes):
    given_ = inputs() | changes
    n = len(given_["latents"])
    with torch.no_grad():
        return denoiser(**given_, keep_tokens=torch.full((n,), tokens_there), keep_text=torch.full((n,), text_there))


def test_an_absent_condition_does_not_matter_and_a_present_one_does(denoiser):
    other = {"tokens": torch.randn(3, 16, 128), "text": torch.randn(3, 384)}
    for tokens_there in (True, False):
        for text_there in (True, False):
            base = velocity(denoiser, tokens_there, text_there)
            assert base.shape == (3, 8, 16, 16)
            for name, there in (("tokens", tokens_there), ("text", text_there)):
                changed = velocity(denoiser, tokens_there, text_there, **{name: other[name]})
                assert torch.equal(changed, base) != there
            assert not torch.allclose(velocity(denoiser, tokens_there, text_there, time=torch.tensor([0, 1, 2])), base)


def test_each_row_keeps_its_own_conditions(denoiser):
    mixed = {**inputs(), "keep_tokens": torch.tensor([True, False, True]), "keep_text": torch.tensor([False, True, True])}
    with torch.no_grad():
        together = denoiser(**mixed)
        for k in range(3):
            alone = denoiser(**{name: value[k : k + 1] for name, value in mixed.items()})
            torch.testing.assert_close(together[k : k + 1], alone, atol=1e-4, rtol=1e-4)


def test_a_token_enters_at_its_place(denoiser):
    """The channels beside the latents change in the token's own 4 x 4 latents only."""
    placed = []
    hook = denoiser.unet.register_forward_pre_hook(lambda _, args: placed.append(args[0][:, CHANNELS:]))
    tokens = inputs()["tokens"]
    moved = tokens.clone()
    moved[:, 6] += 1  # row 1, column 2 of the grid
    velocity(denoiser, True, False)
    velocity(denoiser, True, False, tokens=moved)
    hook.remove()
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
    rng = np.random.default_rng(0)
    text = rng.normal(size=(n, 384)).astype(np.float32)
    return rng.normal(size=(n, 16, 128)).astype(np.float32), text / np.linalg.norm(text, axis=1, keepdims=True)


def test_noise_depends_on_seed_image_and_purpose_not_on_the_batch(painter, untrained_generator):
    draw = painter._noise(np.array([4, 9, 4]), "paint")
    assert torch.equal(draw[0], draw[2]) and not torch.equal(draw[0], draw[1])
    assert torch.equal(painter._noise(np.array([9]), "paint")[0], draw[1])
    assert not torch.equal(painter._noise(np.array([9]), "correct")[0], draw[1])
    assert not torch.equal(CompactGenerator(CONFIG, 1, untrained_generator)._noise(np.array([9]), "paint")[0], draw[1])
    many = painter._noise(np.arange(200), "paint")
    assert abs(many.mean()) < 0.01 and many.std().item() == pytest.approx(1, abs=0.01)


def test_the_same_seed_paints_the_same_latents(painter, untrained_generator):
    tokens, _ = brain(2)
    images = np.array([3, 8])
    latents = painter.generate(tokens, images)
    again = CompactGenerator(CONFIG, 0, untrained_generator).generate(tokens, images)
    np.testing.assert_array_equal(latents, again)
    assert latents.shape == (2, 8, 16, 16) and np.isfinite(latents).all()
    np.testing.assert_allclose(painter.generate(tokens[1:], images[1:]), latents[1:], atol=1e-3)
    other = CompactGenerator(CONFIG, 5, untrained_generator).generate(tokens, images)
    assert np.abs(other - latents).max() > 0.1


def oracle(clean):
    """A denoiser that knows the clean latents and returns the exact velocity; it also writes down what it was asked."""
    alphas = noise_schedule().alphas_cumprod
    asked = []

    class Oracle(torch.nn.Module):
        embed_text = torch.nn.Linear(384, 1)

        def forward(self, latents, time, tokens, text, keep_tokens, keep_text):
            asked.append((time[0].item(), latents, text, keep_tokens, keep_text))
            alpha = alphas[time][:, None, None, None]
            target = torch.cat([clean, clean])
            return (alpha.sqrt() * latents - target) / (1 - alpha).sqrt()

    return Oracle(), asked


@pytest.mark.parametrize("steps, tolerance", [(5, 1e-3), (20, 1e-3), (6, 0.05)])  # 6 does not divide 1000 steps
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_with_an_oracle_painting_ends_at_the_clean_latents(untrained_generator, steps, tolerance, guidance):
    painter = CompactGenerator(dataclasses.replace(CONFIG, generator_steps=steps, guidance=guidance), 0, untrained_generator)
    clean = torch.randn(3, 8, 16, 16, generator=torch.Generator().manual_seed(3))
    painter.denoiser, asked = oracle(clean)
    tokens, _ = brain()
    painted = painter.generate(tokens, np.arange(3))
    np.testing.assert_allclose(painted, clean.numpy(), atol=tolerance)
    assert len(asked) == steps and asked[0][0] == 999
    times = [entry[0] for entry in asked]
    assert times == sorted(times, reverse=True)
    first = asked[0]
    np.testing.assert_array_equal(first[1][:3], painter._noise(np.arange(3), "paint"))  # from pure noise
    assert first[3].tolist() == [True] * 3 + [False] * 3 and not first[4].any()  # guidance: without any condition


def test_with_an_oracle_correction_keeps_part_of_the_painting(untrained_generator):
    painter = CompactGenerator(CONFIG, 0, untrained_generator)
    clean = torch.randn(3, 8, 16, 16, generator=torch.Generator().manual_seed(3))
    painted = torch.randn(3, 8, 16, 16, generator=torch.Generator().manual_seed(4))
    painter.denoiser, asked = oracle(clean)
    tokens, text = brain()
    corrected = painter.correct(painted.numpy(), tokens, text, np.arange(3))
    np.testing.assert_allclose(corrected, clean.numpy(), atol=1e-3)
    assert len(asked) == CONFIG.refine_steps
    time, noisy, words, keep_tokens, keep_text = asked[0]
    assert time == pytest.approx(1000 * CONFIG.refine_start, abs=2)
    alpha = noise_schedule().alphas_cumprod[time]
    noise = painter._noise(np.arange(3), "correct 0")
    torch.testing.assert_close(noisy[:3], alpha.sqrt() * painted + (1 - alpha).sqrt() * noise, atol=1e-5, rtol=1e-5)
    np.testing.assert_array_equal(words[:3], text)
    assert keep_text.tolist() == keep_tokens.tolist() == [True] * 3 + [False] * 3


def test_of_several_corrections_the_one_is_kept_that_shows_most_of_the_decoded_tokens(untrained_generator):
    """Candidates whose pictures are known: that of the wanted image is kept, wherever among the candidates it lies."""
    painter = CompactGenerator(dataclasses.replace(CONFIG, corrections=3), 0, untrained_generator)
    latents = torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(3)).numpy()
    pictures = painter.pictures(latents)
    wanted = painter.tower.tokens(pictures)
    place = np.array([2, 0, 1, 0])  # of the right picture among an image's candidates
    candidates = [
        np.stack([latents[k if place[k] == candidate else (k + 1 + candidate) % 4] for k in range(4)])
        for candidate in range(3)
    ]
    asked = []

    def correct(start, tokens, text, images, title, candidate):
        asked.append(candidate)
        return candidates[candidate]

    painter.correct = correct
    kept = painter.best_correction(latents, wanted, None, np.arange(4))
    assert asked == [0, 1, 2]
    np.testing.assert_array_equal(kept, pictures)


def test_candidates_differ_by_their_noise_alone_and_one_candidate_is_the_correction(painter):
    tokens, text = brain(2)
    images, latents = np.array([3, 8]), np.zeros((2, 8, 16, 16), np.float32)
    first, second = (painter.correct(latents, tokens, text, images, candidate=candidate) for candidate in (0, 1))
    assert np.abs(first - second).max() > 0.1
    assert not torch.equal(painter._noise(images, "correct 0"), painter._noise(images, "correct 1"))
    np.testing.assert_array_equal(painter.best_correction(latents, tokens, text, images), painter.pictures(first))


def test_guidance_goes_past_the_conditional_velocity(untrained_generator):
    """With an answer that depends on the condition alone, DDIM's result is linear in the guidance."""
    tokens, _ = brain()

    class Constant(torch.nn.Module):
        embed_text = torch.nn.Linear(384, 1)

        def forward(self, latents, time, tokens, text, keep_tokens, keep_text):
            return keep_tokens.float()[:, None, None, None].expand_as(latents)

    results = []
    for guidance in (0.0, 1.0, 3.0):
        painter = CompactGenerator(dataclasses.replace(CONFIG, guidance=guidance), 0, untrained_generator)
        painter.denoiser = Constant()
        results.append(painter.generate(tokens, np.arange(3)))
    np.testing.assert_allclose(results[2] - results[0], 3 * (results[1] - results[0]), atol=1e-4)
    assert np.abs(results[1] - results[0]).max() > 0.1


def test_pictures_are_those_of_the_autoencoder(painter):
    latents = np.random.default_rng(0).normal(size=(2, 8, 16, 16)).astype(np.float32)
    pictures = painter.pictures(latents)
    assert pictures.shape == (2, 3, 128, 128) and 0 <= pictures.min() and pictures.max() <= 1
    with torch.no_grad():
        raw = painter.autoencoder.network.decode(torch.from_numpy(latents))
    np.testing.assert_allclose(pictures, ((raw + 1) / 2).clamp(0, 1).numpy(), atol=1e-5)


def test_weights_without_a_denoiser_are_refused(tmp_path, untrained_generator):
    from safetensors.torch import load_file, save_file

    tensors = load_file(untrained_generator)
    save_file({k: v for k, v in tensors.items() if k.startswith("autoencoder.")}, tmp_path / "half.safetensors")
    with pytest.raises(UserError, match=r"half\.safetensors: holds no denoiser\.\* tensors"):
        CompactGenerator(CONFIG, 0, tmp_path / "half.safetensors")
    tensors["denoiser.embed_text.weight"] = torch.zeros(128, 7)
    save_file(tensors, tmp_path / "narrow.safetensors")
    with pytest.raises(UserError, match=r"narrow\.safetensors: denoiser\.\* do not fit .*embed_text\.weight"):
        CompactGenerator(CONFIG, 0, tmp_path / "narrow.safetensors")


def test_the_shipped_weights_paint_what_their_tokens_hold(image_encoder):
    """Scenes of a stream that nothing was trained on: the painting of an image's own tokens resembles that image more
    than it resembles another, and the autoencoder alone loses little."""
    from mindtuner.simulation.cutouts import drawn_cutouts
    from mindtuner.simulation.scenes import SceneStream

    stream = SceneStream(drawn_cutouts("test", 1), "a test's own", 0)
    scenes = np.stack([stream(k).pixels for k in range(6)])
    painter = CompactGenerator(dataclasses.replace(CONFIG, generator_steps=6), 0)
    small = np.round(painter_side(scenes) * 255).astype(np.uint8)
    rebuilt = painter.pictures(painter.autoencoder.encode(small))
    assert np.abs(rebuilt - small / 255).mean() < 0.06
    painted = painter.pictures(painter.generate(image_encoder.tokens(small), np.arange(6)))
    similar = np.corrcoef(painted.reshape(6, -1), small.reshape(6, -1))[:6, 6:]
    own, others = np.diag(similar), similar[~np.eye(6, dtype=bool)]
    assert own.mean() > others.mean() + 0.3 and (similar.argmax(1) == np.arange(6)).sum() >= 4


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
    monkeypatch.setattr(training, "BATCH", {"autoencoder": 2, "prior": 8, "denoiser": 3})
    monkeypatch.setattr(training, "LOOKED_AT", 1)
    monkeypatch.setattr(training, "CompactImageEncoder", lambda: image_encoder)
    monkeypatch.setattr(training, "CompactTextEncoder", lambda: text_encoder)


def uncertain_tokens(tokens, *known, found={}, kind=training.UncertainTokens):
    key = tokens.numpy().tobytes(), known
    if key not in found:
        found[key] = kind(tokens, *known)
    return found[key]


def run(tmp_path, autoencoder=2, denoiser=2, prior=2, log=lambda record: None, **more):
    train_generator(
        tmp_path / "out.safetensors",
        tmp_path / "work",
        **{"scenes": 12, "seed": 0} | more,
        autoencoder_steps=autoencoder,
        prior_steps=prior,
        denoiser_steps=denoiser,
        log=log,
    )
    return tmp_path / "out.safetensors"


def steps_of(path):
    with safe_open(path, "pt") as file:
        return int(file.metadata()["denoiser_steps"])


@pytest.mark.slow
def test_a_run_leaves_weights_that_paint(tmp_path, few_scenes):
    out = run(tmp_path)
    assert steps_of(out) >= 1
    painter = CompactGenerator(CONFIG, 0, out)
    tokens, _ = brain(1)
    assert np.isfinite(painter.pictures(painter.generate(tokens, np.array([0])))).all()
    assert not list(tmp_path.rglob("*.part"))
    pixels = np.load(tmp_path / "work" / "pixels.npy")
    assert pixels.shape == (12, 3, 128, 128) and pixels.dtype == np.uint8
    scene = training.generator_scenes()(7)
    np.testing.assert_allclose(pixels[7], painter_side(scene.pixels[None])[0] * 255, atol=1)
    assert json.loads((tmp_path / "work" / "captions.json").read_text())[7] == list(scene.captions)


@pytest.mark.slow
def test_a_run_killed_after_the_autoencoder_goes_on_there(tmp_path, few_scenes, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "_fit_denoiser", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    saved = torch.load(tmp_path / "work" / "autoencoder.pt", weights_only=True)
    assert saved["step"] >= 1 and not (tmp_path / "out.safetensors").exists()
    times = {name: (tmp_path / "work" / name).stat().st_mtime_ns for name in ("pixels.npy", "tokens.npy", "texts.npy")}
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
def test_a_stopped_denoiser_ends_with_the_weights_of_an_unbroken_one(tmp_path, few_scenes, monkeypatch):
    unbroken = load_file(run(tmp_path / "unbroken", denoiser=4))
    real, calls = training._velocity_loss, []

    def stops(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(training, "SAVE_EVERY", 2)
    with monkeypatch.context() as patch:
        patch.setattr(training, "_velocity_loss", stops)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", denoiser=4)
    out = run(tmp_path / "stopped", denoiser=4)
    assert steps_of(out) == 4
    for name, value in load_file(out).items():
        assert torch.equal(value, unbroken[name]), name


@pytest.mark.parametrize("other", [{"scenes": 13}, {"seed": 1}])
def test_other_settings_in_the_same_work_folder_are_refused(tmp_path, few_scenes, other):
    run(tmp_path, 0, 0, 0)
    with pytest.raises(UserError, match=r"settings\.json: holds .*expected ") as error:
        run(tmp_path, 0, 0, 0, **other)
    assert "\n" not in str(error.value)


def test_a_damaged_work_folder_is_named(tmp_path, few_scenes):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "settings.json").write_text("{")
    with pytest.raises(UserError, match=r"settings\.json: not valid JSON"):
        run(tmp_path, 0, 0)
    (tmp_path / "work" / "settings.json").unlink()
    (tmp_path / "work").rmdir()
    (tmp_path / "work").write_text("a file")
    with pytest.raises(UserError, match="cannot be written"):
        run(tmp_path, 0, 0)


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
    """Against v = alpha noise - sigma x0, rebuilt from the noisy latents that the loss hands to the network."""
    alphas = noise_schedule().alphas_cumprod
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(64, 8, 16, 16)).astype(np.float16)
    dropped = []

    def perfect(noisy, times, tokens, texts, keep_tokens, keep_text):
        dropped.append((keep_tokens, keep_text))
        signal, sigma = (a[times].sqrt()[:, None, None, None] for a in (alphas, 1 - alphas))
        clean = torch.from_numpy(latents).float()
        noise = (noisy - signal * clean) / sigma.clamp_min(1e-6)
        return signal * noise - sigma * clean

    loss, clean = training._velocity_loss(
        perfect,
        alphas,
        torch.randn(64, 16, 128),
        rng.normal(size=(64, 384)).astype(np.float16),
        latents,
        torch.Generator().manual_seed(0),
    )
    assert loss.item() < 1e-4
    torch.testing.assert_close(clean, torch.from_numpy(latents).float(), atol=1e-3, rtol=0)
    keep_tokens, keep_text = dropped[0]
    assert 0.7 < keep_tokens.float().mean() < 1 and 0.35 < keep_text.float().mean() < 0.85


@given(st.integers(100, 10_000), st.data())
def test_the_learning_rate_warms_up_then_falls(steps, data):
    step = data.draw(st.integers(50, steps - 1))
    assert 0 < training._schedule(step + 1, steps) <= training._schedule(step, steps) <= 1
    assert training._schedule(25, steps) == pytest.approx(training._schedule(0, steps) + 0.5, abs=0.1)
    assert training._schedule(0, steps) == 0 and training._schedule(steps, steps) == pytest.approx(0.03)


def test_the_packaged_name_is_where_the_generator_looks():
    assert compact.packaged(compact.WEIGHTS).name == "generator.safetensors"
