"""Scores of folds: intervals, p and ranks against what they are by definition."""

import itertools

import numpy as np
import pytest
from scipy import stats

from mindtuner.errors import UserError
from mindtuner.evaluation.pooled import p_of_folds, pools_of_folds
from mindtuner.evaluation.scores.retrieval import image_retrieval, p_against_chance, pools
from mindtuner.evaluation.statistics import over_folds


def decoded(n, noise, seed):
    rng = np.random.default_rng(seed)
    tokens = rng.normal(size=(n, 1, 6))
    return image_retrieval(tokens + noise * rng.normal(size=tokens.shape), tokens)


def test_one_fold_is_all_test_images():
    found = decoded(15, 2.0, 0)
    whole, pooled = pools(found, 300, 0)[0], pools_of_folds([found], 0)
    for key in ("pool", "top1", "top5", "median_rank", "two_way", "p"):
        assert pooled[key] == pytest.approx(whole[key]), key
    assert p_of_folds([found.similarity], 3) == p_against_chance(found.similarity, 3)


def test_each_query_meets_the_candidates_of_its_fold():
    folds = [decoded(n, 1.0, n) for n in (6, 9)]
    pooled = pools_of_folds(folds, 0)
    ranks = np.concatenate([1 + (one.similarity > np.diag(one.similarity)[:, None]).sum(1) for one in folds])
    others = np.repeat([5, 8], [6, 9])
    assert pooled["top1"] == pytest.approx((ranks == 1).mean())
    assert pooled["two_way"] == pytest.approx((1 - (ranks - 1) / others).mean())
    assert pooled["median_rank"] == np.median(ranks)
    assert 1 / pooled["pool"] == pytest.approx((6 * (1 / 6) + 9 * (1 / 9)) / 15)  # what guessing gives


def test_p_is_that_of_all_pairings_within_folds():
    rng = np.random.default_rng(4)
    tables = [rng.normal(size=(3, 3)), rng.normal(size=(4, 4))]
    ranks = [stats.rankdata(-table, axis=1) for table in tables]
    sums = [
        sum(own[k, at] for own, order in zip(ranks, orders, strict=True) for k, at in enumerate(order))
        for orders in itertools.product(itertools.permutations(range(3)), itertools.permutations(range(4)))
    ]
    observed = sum(np.trace(own) for own in ranks)
    assert p_of_folds(tables, 0, 20_000) == pytest.approx(np.mean(np.array(sums) <= observed), abs=0.01)


def test_an_interval_counts_what_the_images_of_a_fold_share_once_a_fold():
    """Images of a fold all alike: as many independent values as folds, whose resampled means have sd/sqrt(K)."""
    values = np.random.default_rng(0).normal(size=40)
    low, high = over_folds([np.full(25, value) for value in values], 0, 20_000)
    expected = values.mean() + np.array([-1.96, 1.96]) * values.std() / np.sqrt(40)
    np.testing.assert_allclose([low, high], expected, atol=0.02)
    alone = np.random.default_rng(1).normal(size=400)  # one fold: images alone
    low, high = over_folds([alone], 0, 20_000)
    np.testing.assert_allclose([low, high], alone.mean() + np.array([-1.96, 1.96]) * alone.std() / 20, atol=0.01)


def test_an_interval_of_folds_that_share_something_holds_the_truth_where_that_of_images_does_not():
    rng, held = np.random.default_rng(2), {"folds": 0, "images": 0}
    for seed in range(150):
        folds = rng.normal(size=(8, 1)) + rng.normal(size=(8, 20))
        for name, parts in (("folds", list(folds)), ("images", [folds.ravel()])):
            low, high = over_folds(parts, seed, 500)
            held[name] += low <= 0 <= high
    assert held["folds"] / 150 > 0.85 and held["images"] / 150 < 0.6


def test_undefined_values_are_left_out_and_all_of_them_refused():
    assert over_folds([[0.5, np.nan], [np.nan]], 0) == [0.5, 0.5]
    with pytest.raises(UserError, match="values: no image has one"):
        over_folds([[np.nan]], 0)
