import numpy as np
import pytest
from scipy import stats

from mindtuner.errors import UserError
from mindtuner.evaluation.statistics import bootstrap_ci, over_seeds, paired_difference, paired_over_seeds


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
        ps.append(paired_difference(shared + rng.normal(size=25), shared + rng.normal(size=25), seed=trial,
                                    n_boot=10, n_flips=199)["p"])
    assert stats.kstest(ps, "uniform").pvalue > 0.001
    assert np.mean(np.array(ps) <= 0.05) < 0.11


def test_paired_p_equals_the_exact_one_of_all_sign_flips():
    d = np.array([0.3, -0.1, 0.4, 0.2, -0.3, 0.5, 0.1, 0.25])
    flips = np.array(np.meshgrid(*[[-1, 1]] * 8)).reshape(8, -1)
    exact = np.mean(np.abs(d @ flips) >= abs(d.sum()) - 1e-12)
    assert paired_difference(d, np.zeros(8), seed=0)["p"] == pytest.approx(exact, abs=0.02)


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
        values = (0.3 * rng.normal(size=(20, 1)) + rng.normal(size=(1, 80)) + 0.2 * rng.normal(size=(20, 80)))
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


def test_bad_values_are_refused():
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
