import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import correlation
from scipy.stats import pearsonr
from skimage.color import rgb2gray
from skimage.metrics import structural_similarity

from mindtuner.errors import UserError
from mindtuner.evaluation.scores.images import score_images
from mindtuner.evaluation.scores.pictures import Lineup, distance, pixcorr, ssim, two_way
from mindtuner.evaluation.scores.preparation import resize

few = settings(max_examples=15, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def images(seed, n=6, side=20):
    return np.random.default_rng(seed).random((n, 3, side, side), dtype=np.float32)


def published_ssim(a, b):
    grey_a, grey_b = rgb2gray(a.transpose(1, 2, 0)), rgb2gray(b.transpose(1, 2, 0))
    return structural_similarity(
        grey_a, grey_b, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
    )


@few
@given(seeds, st.floats(0, 1))
def test_pixcorr_and_ssim_equal_scipy_and_skimage(seed, share):
    true = images(seed)
    predicted = share * true + (1 - share) * images(seed + 1)
    both = list(zip(predicted, true, strict=True))
    np.testing.assert_allclose(pixcorr(predicted, true), [pearsonr(p.ravel(), t.ravel())[0] for p, t in both], atol=1e-6)
    np.testing.assert_allclose(
        ssim(predicted, true), [published_ssim(p.astype(float), t.astype(float)) for p, t in both], atol=1e-7
    )


def test_ssim_equals_skimage_on_images_that_are_not_square_and_smooth():
    ramp = np.linspace(0, 1, 40)[None, None, None, :] * np.ones((1, 3, 17, 1))
    other = ramp[..., ::-1] ** 2
    assert ssim(ramp, other)[0] == pytest.approx(published_ssim(ramp[0], other[0]), abs=1e-7)


def test_digits_are_kept_where_pictures_are_flat_and_bright():
    """There variances are small differences of large numbers: in float32 these scores would be off by up to 3e-4."""
    half = np.full((1, 3, 60, 40), 230, np.uint8)
    half[..., :20] = 50
    pale = (images(9, 1, 60)[..., :40] * 5 + 250).astype(np.uint8)
    pairs = [(half, half[..., ::-1]), (half, pale), (pale, np.full_like(pale, 250)), (pale, pale[..., ::-1])]
    for a, b in pairs:
        assert ssim(a, b)[0] == pytest.approx(published_ssim(a[0] / 255, b[0] / 255), abs=1e-6)
        if np.ptp(b):
            assert pixcorr(a, b)[0] == pytest.approx(pearsonr(a.ravel() / 255, b.ravel() / 255)[0], abs=1e-6)


def test_a_perfect_picture_scores_one_and_its_negative_minus_one():
    true = images(0)
    np.testing.assert_allclose(pixcorr(true, true), 1)
    np.testing.assert_allclose(ssim(true, true), 1)
    np.testing.assert_allclose(pixcorr(1 - true, true), -1, atol=1e-6)
    # blind to brightness and contrast:
    np.testing.assert_allclose(pixcorr(0.2 + 0.5 * true, true), 1, atol=1e-6)


def test_a_flat_picture_counts_zero_correlation():
    true = images(1)
    flat = np.full_like(true, 0.3)
    assert (pixcorr(flat, true) == 0).all() and np.isnan(pixcorr(true, flat)).all()
    one_colour = flat * np.array([0.2, 0.5, 1.0])[:, None, None]  # not one value: its channels vary together with others
    assert (np.abs(pixcorr(one_colour, true)) > 1e-4).all()
    assert (ssim(flat, true) < 0.5).all()


def plain_two_way(predicted, true):
    scores = []
    for i in range(len(predicted)):
        own, points = pearsonr(predicted[i], true[i])[0], 0.0
        for j in range(len(true)):
            if j != i:
                other = pearsonr(predicted[i], true[j])[0]
                points += 1.0 if own > other + 1e-6 else 0.5 if abs(own - other) <= 1e-6 else 0.0
        scores.append(points / (len(true) - 1))
    return scores


@few
@given(seeds, st.booleans())
def test_two_way_equals_a_plain_double_loop(seed, duplicate):
    rng = np.random.default_rng(seed)
    true = rng.normal(size=(7, 12))
    if duplicate:
        true[3] = true[5]
    predicted = true + 2 * rng.normal(size=true.shape)
    np.testing.assert_allclose(two_way(predicted, true), plain_two_way(predicted, true), atol=1e-12)


def test_two_way_holds_the_picture_fixed_and_lets_originals_compete():
    true = np.array([[3.0, 1, 0, 0], [0, 3, 1, 0], [0, 0, 3, 1]])
    predicted = np.stack([true[0], true[0], true[2]])  # the second picture shows the first original
    assert two_way(predicted, true).tolist() == [1.0, 0.5, 1.0]
    # The other way round the first original meets two equal pictures, and ties with one.
    assert two_way(true, predicted).tolist() == [0.75, 0.5, 1.0]


def test_two_way_is_one_when_perfect_and_half_without_information():
    rng = np.random.default_rng(2)
    true = rng.normal(size=(40, 30))
    assert (two_way(true, true) == 1).all()
    one_picture_for_all = np.repeat(rng.normal(size=(1, 30)), 40, axis=0)
    assert two_way(one_picture_for_all, true).mean() == pytest.approx(0.5)
    assert (two_way(np.ones_like(true), true) == 0.5).all()
    random = np.mean([two_way(rng.normal(size=(40, 30)), true).mean() for _ in range(30)])
    assert abs(random - 0.5) < 0.03


@few
@given(seeds)
def test_scores_move_with_a_permutation_of_the_images(seed):
    rng = np.random.default_rng(seed)
    true, predicted, order = images(seed, 5, 12), images(seed + 1, 5, 12), rng.permutation(5)
    for score in (pixcorr, ssim):
        moved = score(predicted[order], true[order])
        np.testing.assert_allclose(score(predicted, true)[order], moved, atol=1e-12)
    a, b = rng.normal(size=(5, 9)), rng.normal(size=(5, 9))
    np.testing.assert_allclose(two_way(a, b)[order], two_way(a[order], b[order]))


def chance(predicted, true, seed=0):
    return score_images(true, {"p": predicted}, [], chance_of=["p"], seed=seed)[1]["p"]


def test_chance_is_the_mean_over_wrong_pairs():
    true = images(3, 8, 14)
    predicted = 0.7 * true + 0.3 * images(4, 8, 14)
    wrong = [(i, j) for i in range(8) for j in range(8) if i != j]
    expected = {
        "pixcorr": [pearsonr(predicted[i].ravel(), true[j].ravel())[0] for i, j in wrong],
        "ssim": [published_ssim(predicted[i].astype(float), true[j].astype(float)) for i, j in wrong],
    }
    found = chance(predicted, true)
    for score, values in expected.items():
        assert abs(found[score] - np.mean(values)) < 4 * np.std(values) / np.sqrt(1000)
    assert found["pixcorr"] < pixcorr(predicted, true).min()  # no right pair slipped in
    assert found == chance(predicted, true) != chance(predicted, true, seed=1)


def test_chance_of_two_images_only_draws_the_two_wrong_pairs():
    true = images(5, 2, 12)
    values = [pixcorr(true[:1], true[1:])[0], pixcorr(true[1:], true[:1])[0]]
    assert chance(true, true)["pixcorr"] == pytest.approx(np.mean(values), abs=1e-9)


@few
@given(seeds)
def test_distance_is_that_of_scipy(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(5, 9)), rng.normal(size=(5, 9))
    np.testing.assert_allclose(distance(a, b), [correlation(x, y) for x, y in zip(a, b, strict=True)], atol=1e-12)
    assert distance(np.ones((1, 9)), b[:1]).tolist() == [1.0]  # no correlation with constant features


@few
@given(seeds, st.sampled_from(["half", "lost"]), st.floats(0, 1))
def test_two_way_in_blocks_settles_near_ties_as_float64_does(seed, ties, alike):
    """Features so alike that float32 cannot tell their correlations apart, some equal, in three blocks of originals."""
    rng = np.random.default_rng(seed)
    base = rng.normal(size=400)
    true = (base + 10.0 ** (-3 * alike) * rng.normal(size=(9, 400))).astype(np.float32)
    predicted = (base + 0.1 * rng.normal(size=(9, 400))).astype(np.float32)
    true[4] = true[1]
    lineup = Lineup(ties)
    for rows in torch.from_numpy(true).split(3):
        lineup.add(rows)
    found = np.concatenate([lineup(rows, at) for at, rows in enumerate(torch.from_numpy(predicted).split(3))])
    r = np.corrcoef(predicted.astype(float), true.astype(float))[:9, 9:]
    ahead = np.diag(r)[:, None] - r
    tie = 1e-6 if ties == "half" else 1e-12
    points = (ahead > tie) + (0.5 * (np.abs(ahead) <= tie) if ties == "half" else 0)
    unsure = np.abs(np.abs(ahead) - tie) < 2e-8  # rounding of float32 rows decides these
    for table in (points, unsure):
        np.fill_diagonal(table, 0)
    assert (np.abs(found - points.sum(1) / 8) * 8 <= unsure.sum(1) + 1e-9).all()
    assert unsure.sum() <= 4
    np.testing.assert_allclose(found, two_way(predicted, true, ties), atol=1e-12)


def test_resize_keeps_means_and_does_not_alias():
    checks = np.indices((64, 64)).sum(0) % 2 * np.ones((1, 3, 1, 1))
    small = resize(checks, 16)
    assert small.shape == (1, 3, 16, 16)
    np.testing.assert_allclose(small[..., 2:-2, 2:-2], 0.5, atol=0.02)  # without antialiasing it stays 0 or 1
    np.testing.assert_array_equal(resize(images(7), 20), images(7))


def test_bad_pictures_are_refused():
    good = images(8)
    nan = good.copy()
    nan[0, 0, 0, 0] = np.nan
    for score in (pixcorr, ssim):
        with pytest.raises(UserError, match="predicted images: holds NaN"):
            score(nan, good)
        with pytest.raises(UserError, match="expected that of the true images"):
            score(good[:3], good)
        with pytest.raises(UserError, match="true images: values from .* expected 0 to 1"):
            score(good, good * 255)
        with pytest.raises(UserError, match=r"expected \(n, 3, H, W\)"):
            score(good[:, :1], good[:, :1])
    with pytest.raises(UserError, match="10 x 10 pixels; expected at least 11 x 11"):
        ssim(good[..., :10, :10], good[..., :10, :10])
    with pytest.raises(UserError, match="expected at least 2"):
        chance(good[:1], good[:1])
    with pytest.raises(UserError, match="3 of them; expected one for each of the 6 seen"):
        chance(good[:3], good)
    with pytest.raises(UserError, match="expected at least 2"):
        two_way(np.ones((1, 4)), np.ones((1, 4)))
    with pytest.raises(UserError, match="true features: holds NaN"):
        two_way(np.ones((2, 2)), np.array([[1, np.nan], [0, 0]]))
    with pytest.raises(UserError, match="predicted features: has shape"):
        two_way(np.ones((2, 3)), np.ones((2, 2)))
