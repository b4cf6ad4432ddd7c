import numpy as np
import pytest
from scipy import stats

from mindtuner.errors import UserError
from mindtuner.evaluation.statistics import (
    bootstrap_ci,
    holm,
    over_seeds,
    over_subjects,
    paired_difference,
    paired_over_seeds,
    sign_flips,
)


def test_bootstrap_interval_is_close_to_the_normal_one():
    x = np.random.default_rng(0).normal(3, 2, size=400)
    low, high = bootstrap_ci(x, seed=0)
    expected = stats.norm.interval(0.95, loc=x.mean(), scale=x.std() / 20)
    np.testing.assert_allclose((low, high), expected, atol=0.03)


def test_bootstrap_covers_a_known_mean():
    rng = np.random.default_rng(1)
    inside = 0
    for trial in range(200):
        low, high = bootstrap_ci(rng.normal(0.5, 1, size=60), seed=trial, n_boot=400)
        inside += low <= 0.5 <= high
    assert 0.89 <= inside / 200 <= 0.99


def test_bootstrap_is_a_function_of_its_seed():
    x = np.random.default_rng(2).random(50)
    assert bootstrap_ci(x, seed=3) == bootstrap_ci(x, seed=3)
    assert bootstrap_ci(x, seed=3) != bootstrap_ci(x, seed=4)
    assert bootstrap_ci(np.full(9, 0.25), seed=0) == (0.25, 0.25)


def test_paired_p_is_uniform_without_an_effect():
    rng = np.random.default_rng(3)
    ps = []
    for trial in range(200):
        shared = rng.normal(size=25)  # images differ, methods do not
        ps.append(
            paired_difference(shared + rng.normal(size=25), shared + rng.normal(size=25), seed=trial, n_boot=10, n_flips=199)[
                "p"
            ]
        )
    assert stats.kstest(ps, "uniform").pvalue > 0.001
    assert np.mean(np.array(ps) <= 0.05) < 0.11


def test_paired_p_equals_the_exact_one_of_all_sign_flips():
    d = np.array([0.3, -0.1, 0.4, 0.2, -0.3, 0.5, 0.1, 0.25])
    flips = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1)
    exact = np.mean(np.abs(d @ flips) >= abs(d.sum()) - 1e-12)
    assert paired_difference(d, np.zeros(8), seed=0)["p"] == pytest.approx(exact, abs=1e-12)  # all 256 are gone through
    assert sign_flips(d, seed=0, n_flips=200) == pytest.approx(exact, abs=0.1)  # 200 at random


@pytest.mark.parametrize(("n", "tolerance"), [(2, 1e-12), (7, 1e-12), (12, 1e-12), (40, 0.02)])
def test_sign_flips_agree_with_scipy(n, tolerance):
    rng = np.random.default_rng(n)
    for values in (rng.normal(0.2, 1, size=n), rng.choice([-1.0, 0, 0, 1], size=n)):  # continuous, and hits with many ties
        expected = stats.permutation_test(
            (values, np.zeros(n)),
            lambda x, y, axis: (x - y).mean(axis),
            vectorized=True,
            permutation_type="samples",
            n_resamples=9999,
            random_state=np.random.default_rng(0),
        )
        # scipy doubles the smaller tail; a null of sign flips is symmetric, so that is the share with a |mean| as large
        assert sign_flips(values, seed=0) == pytest.approx(expected.pvalue, abs=tolerance)


def test_holm_by_hand():
    np.testing.assert_allclose(holm([0.01, 0.04, 0.03, 0.005]), [0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([0.2]) == [0.2]


def test_holm_keeps_the_chance_of_any_false_rejection():
    rng = np.random.default_rng(8)
    p = stats.norm.sf(0.6 * rng.normal(size=(4000, 1)) + 0.8 * rng.normal(size=(4000, 6)))  # six scores that go together
    assert np.mean([min(holm(row)) <= 0.05 for row in p]) <= 0.06 < np.mean(p.min(1) <= 0.05)


def test_pairing_finds_an_effect_that_the_spread_over_images_hides():
    rng = np.random.default_rng(4)
    hard = rng.normal(0, 10, size=100)
    a, b = hard + 0.5 + rng.normal(size=100), hard + rng.normal(size=100)
    found = paired_difference(a, b, seed=0)
    assert found["p"] < 0.05 and found["ci"][0] > 0
    assert stats.ttest_ind(a, b).pvalue > 0.2
    assert found["mean"] == pytest.approx((a - b).mean())
    back = paired_difference(b, a, seed=0)
    assert back["mean"] == -found["mean"]
    np.testing.assert_allclose(back["ci"], [-found["ci"][1], -found["ci"][0]])


def test_methods_that_are_the_same_have_p_one():
    x = np.random.default_rng(5).random(40)
    assert paired_difference(x, x, seed=0) == {"mean": 0.0, "ci": [0.0, 0.0], "p": 1.0}


def test_spread_over_seeds_by_hand():
    values = np.array([[1.0, 2, 3], [3, 4, 5], [2, 3, 4]])
    found = over_seeds(values, seed=0)
    assert (found["mean"], found["sd"], found["seeds"]) == (3.0, 1.0, 3)
    assert found["ci"][0] < 3 < found["ci"][1]


def test_the_interval_over_seeds_covers_both_sources_of_variance():
    """Crossed design: var(grand mean) = seed variance / S + image variance / n + residual / (S n)."""
    rng = np.random.default_rng(6)
    inside, widths = 0, []
    for trial in range(150):
        values = 0.3 * rng.normal(size=(20, 1)) + rng.normal(size=(1, 80)) + 0.2 * rng.normal(size=(20, 80))
        low, high = over_seeds(values, seed=trial, n_boot=300)["ci"]
        inside += low <= 0 <= high
        widths.append(high - low)
    assert 0.87 <= inside / 150 <= 0.99
    true_sd = np.sqrt(0.3**2 / 20 + 1 / 80 + 0.2**2 / 1600)
    assert np.mean(widths) == pytest.approx(2 * 1.96 * true_sd, rel=0.12)


def test_paired_over_seeds_removes_what_methods_share():
    rng = np.random.default_rng(7)
    images = rng.normal(0, 5, size=(1, 60))
    b = images + rng.normal(size=(10, 60))
    a = images + 0.4 + rng.normal(size=(10, 60))
    found = paired_over_seeds(a, b, seed=0)
    assert 0 < found["ci"][0] < 0.4 < found["ci"][1]
    assert found["ci"][1] - found["ci"][0] < 0.8
    assert over_seeds(a, seed=0)["ci"][1] - over_seeds(a, seed=0)["ci"][0] > 2


def test_spread_over_subjects_by_hand():
    first, second = np.array([[1.0, 2, 3], [3, 4, 5], [2, 3, 4]]), np.array([[5.0, 6, 10]])
    found = over_subjects([first, second], seed=0)
    assert (found["mean"], found["subjects"], found["sd_seeds"]) == (5.0, 2, 1.0)  # subjects weigh alike
    assert found["sd"] == pytest.approx(np.sqrt(8))
    assert over_subjects([second, second], seed=0)["sd_seeds"] is None


def test_the_interval_over_subjects_covers_all_sources_of_variance():
    """Images are as hard for every subject. Drawn anew within each, they would average out, and intervals fall short."""
    rng = np.random.default_rng(9)
    inside, nested, widths = 0, 0, []
    subjects, runs, images = 8, 2, 40
    for trial in range(150):
        values = (
            0.2 * rng.normal(size=(subjects, 1, 1))
            + 0.2 * rng.normal(size=(subjects, runs, 1))
            + rng.normal(size=(1, 1, images))
            + 0.3 * rng.normal(size=(subjects, runs, images))
        )
        low, high = over_subjects(list(values), seed=trial, n_boot=300)["ci"]
        inside += low <= 0 <= high
        widths.append(high - low)
        times = rng.multinomial(subjects, np.full(subjects, 1 / subjects), size=200)
        drawn = [
            rng.multinomial(times[:, s] * images, np.full(images, 1 / images)) @ values[s].mean(0) for s in range(subjects)
        ]
        low, high = np.percentile(np.sum(drawn, 0) / (subjects * images), [2.5, 97.5])
        nested += low <= 0 <= high
    assert 0.88 <= inside / 150 <= 0.99 and nested / 150 < 0.85
    true_sd = np.sqrt(0.2**2 / 8 + 0.2**2 / 16 + 1 / 40 + 0.3**2 / 640)
    assert np.mean(widths) == pytest.approx(2 * 1.96 * true_sd, rel=0.12)


def test_bad_values_are_refused():
    with pytest.raises(UserError, match="1 subject; expected at least 2"):
        over_subjects([np.ones((2, 5))], seed=0)
    with pytest.raises(UserError, match=r"values\[1\]: has 4 images; expected 5"):
        over_subjects([np.ones((2, 5)), np.ones((1, 4))], seed=0)
    with pytest.raises(UserError, match="values: holds NaN"):
        bootstrap_ci(np.array([1, np.nan]), seed=0)
    with pytest.raises(UserError, match="at least one row"):
        bootstrap_ci(np.array([]), seed=0)
    with pytest.raises(UserError, match=r"a: has shape \(3,\); expected that of b, \(4,\)"):
        paired_difference(np.ones(3), np.ones(4), seed=0)
    with pytest.raises(UserError, match="1 run; expected at least 2"):
        over_seeds(np.ones((1, 5)), seed=0)
    with pytest.raises(UserError, match="expected that of b"):
        paired_over_seeds(np.ones((2, 5)), np.ones((3, 5)), seed=0)
