from itertools import combinations, permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mindtuner.errors import UserError
from mindtuner.evaluation.scores import retrieval
from mindtuner.evaluation.scores.retrieval import (
    brain_retrieval,
    chance_of_pools,
    expected_top_k,
    image_retrieval,
    p_against_chance,
    pools,
    score,
    text_retrieval,
    top5_ids,
)
from mindtuner.evaluation.statistics import bootstrap_ci

few = settings(max_examples=40, deadline=None)
seeds = st.integers(0, 2**32 - 1)


def plain_scores(queries, candidates):
    """Second implementation: double loop, one query at a time, in plain Python."""
    top1, ranks = [], []
    for i, q in enumerate(queries):
        similarities = []
        for c in candidates:
            length = (q @ q) ** 0.5 * (c @ c) ** 0.5
            similarities.append(float(q @ c / length) if length else 0.0)
        better = [s for s in similarities if s > similarities[i] + 1e-6]
        equal = [s for s in similarities if abs(s - similarities[i]) <= 1e-6]
        top1.append(0.0 if better else 1 / len(equal))
        ranks.append(len(better) + (1 + len(equal)) / 2)
    return np.array(top1), np.array(ranks)


@few
@given(seeds, st.integers(1, 12), st.integers(0, 4))
def test_both_directions_equal_a_plain_double_loop(seed, n, copies):
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(n, 2, 3))
    target[rng.integers(n, size=copies)] = target[0]  # some candidates are the same
    predicted = target + rng.normal(size=target.shape)
    flat_p, flat_t = predicted.reshape(n, -1), target.reshape(n, -1)
    for found, expected in (
        (image_retrieval(predicted, target), plain_scores(flat_p, flat_t)),
        (brain_retrieval(predicted, target), plain_scores(flat_t, flat_p)),
        (text_retrieval(flat_p, flat_t), plain_scores(flat_p, flat_t)),
    ):
        np.testing.assert_allclose(found.top1, expected[0])
        np.testing.assert_allclose(found.ranks, expected[1])


def test_perfect_prediction_scores_one_whatever_its_length():
    tokens = np.random.default_rng(0).normal(size=(20, 4, 5)).astype(np.float32)
    lengths = np.linspace(0.01, 100, 20, dtype=np.float32)[:, None, None]
    for direction in (image_retrieval, brain_retrieval):
        found = direction(lengths * tokens, tokens)
        assert (found.top1 == 1).all() and (found.ranks == 1).all()


@few
@given(seeds)
def test_permuting_the_images_permutes_the_scores(seed):
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(15, 3, 2))
    predicted = target + 2 * rng.normal(size=target.shape)
    order = rng.permutation(15)
    before, after = image_retrieval(predicted, target), image_retrieval(predicted[order], target[order])
    np.testing.assert_array_equal(before.top1[order], after.top1)
    np.testing.assert_array_equal(before.ranks[order], after.ranks)


def test_ties_count_one_over_k():
    texts = np.eye(4)[[0, 0, 0, 1, 2]]
    found = text_retrieval(texts, texts)
    np.testing.assert_allclose(found.top1, [1 / 3, 1 / 3, 1 / 3, 1, 1])
    np.testing.assert_allclose(found.ranks, [2, 2, 2, 1, 1])


def test_texts_that_differ_by_rounding_tie_as_equal_ones_do():
    rng = np.random.default_rng(1)
    texts = rng.normal(size=(6, 50)).astype(np.float32)
    texts[1] = texts[0] * np.float32(1.0000001) + np.float32(1e-8)
    assert text_retrieval(texts, texts).top1[:2].tolist() == [0.5, 0.5]


@few
@given(seeds, st.lists(st.integers(0, 3), min_size=1, max_size=12))
def test_chance_is_one_over_n_with_any_duplicates(seed, kinds):
    """Whatever a query prefers, its score averaged over all places of the true candidate is exactly 1/n."""
    n = len(kinds)
    candidates = np.random.default_rng(0).normal(size=(4, 7))[kinds]
    query = np.random.default_rng(seed).normal(size=(1, 7))
    similarity = np.repeat(retrieval.cosine(query, candidates), n, axis=0)
    assert retrieval.score(similarity, np.arange(n)).top1.sum() == pytest.approx(1.0)


def test_a_brain_blind_constant_prediction_scores_exactly_chance():
    target = np.random.default_rng(2).normal(size=(30, 3, 4))
    constant = np.repeat(target.mean(0, keepdims=True), 30, axis=0)
    assert image_retrieval(constant, target).top1.mean() == pytest.approx(1 / 30)
    assert brain_retrieval(constant, target).top1.mean() == pytest.approx(1 / 30)
    assert brain_retrieval(np.zeros_like(target), target).top1.mean() == pytest.approx(1 / 30)


def test_random_predictions_stay_near_chance():
    rng = np.random.default_rng(3)
    hits = np.concatenate(
        [image_retrieval(rng.normal(size=(100, 2, 5)), rng.normal(size=(100, 2, 5))).top1 for _ in range(100)]
    )
    assert abs(hits.mean() - 0.01) < 4 * np.sqrt(0.01 * 0.99 / len(hits))


def test_wide_tokens_in_blocks_equal_one_product(monkeypatch):
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(5, 23)), rng.normal(size=(6, 23))
    expected = (a @ b.T) / np.outer(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1))
    monkeypatch.setattr(retrieval, "COLUMNS", 7)
    np.testing.assert_allclose(retrieval.cosine(a, b), expected, atol=1e-12)


def test_torch_tensors_score_as_arrays_do():
    tokens = torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(0))
    noisy = tokens + torch.randn(9, 2, 3, generator=torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(image_retrieval(noisy, tokens).ranks, image_retrieval(noisy.numpy(), tokens.numpy()).ranks)


def test_top5_holds_the_most_similar_best_first():
    rng = np.random.default_rng(5)
    queries, candidates = rng.normal(size=(8, 2, 3)), rng.normal(size=(20, 2, 3))
    found = top5_ids(queries, candidates)
    for row, query in zip(found, queries, strict=True):
        by_hand = sorted(range(20), reverse=True, key=lambda j: (query * candidates[j]).sum() / np.linalg.norm(candidates[j]))
        assert row.tolist() == by_hand[:5]
    assert (top5_ids(candidates, candidates)[:, 0] == np.arange(20)).all()
    with pytest.raises(UserError, match="4 rows; expected at least 5"):
        top5_ids(queries, candidates[:4])
    with pytest.raises(UserError, match="rows of 6 numbers; expected 3"):
        top5_ids(queries, candidates[:, 0])


@pytest.mark.parametrize("direction", [image_retrieval, brain_retrieval])
def test_bad_tokens_are_refused(direction):
    good = np.ones((3, 2, 2))
    bad = good.copy()
    bad[1, 0, 0] = np.nan
    with pytest.raises(UserError, match="predicted tokens: holds NaN"):
        direction(bad, good)
    with pytest.raises(UserError, match=r"expected that of target tokens, \(2, 2, 2\)"):
        direction(good, good[:2])
    with pytest.raises(UserError, match="target tokens: has shape"):
        direction(good, np.ones((3, 4)))
    with pytest.raises(UserError, match="at least one row"):
        direction(good[:0], good[:0])


def in_a_pool(similarity, query, pool, k):
    """Top-k of one query among the candidates ``pool``, its own among them, by the definition: ties in random order."""
    own = similarity[query, query]
    ahead = sum(similarity[query, other] > own + 1e-6 for other in pool)
    tied = sum(abs(similarity[query, other] - own) <= 1e-6 for other in pool if other != query)
    return min(1.0, max(0.0, (k - ahead) / (1 + tied)))


@few
@given(seeds, st.integers(2, 7), st.integers(1, 7), st.sampled_from([1, 2, 5]), st.integers(2, 9))
def test_the_expectation_is_the_mean_over_all_subsets(seed, n, pool, k, levels):
    """By enumeration; few levels of similarity make many ties."""
    pool = min(n, pool)
    similarity = np.random.default_rng(seed).integers(levels, size=(n, n)).astype(float)
    found = score(similarity, np.arange(n))
    expected = [
        np.mean(
            [
                in_a_pool(similarity, query, (query, *others), k)
                for others in combinations([other for other in range(n) if other != query], pool - 1)
            ]
        )
        for query in range(n)
    ]
    np.testing.assert_allclose(expected_top_k(found.ahead.sum(1), found.tied.sum(1), n, pool, k), expected, atol=1e-12)


def test_the_mean_over_many_subsets_converges_to_the_closed_form(monkeypatch):
    rng = np.random.default_rng(1)
    found = score(np.round(rng.normal(size=(60, 60)) + 1.5 * np.eye(60), 1), np.arange(60))
    assert found.tied.any()
    monkeypatch.setattr(retrieval, "SUBSETS", 4000)
    every, small = pools(found, 20, seed=0)
    assert every["pool"] == 60 and small["pool"] == 20 and small["subsets"]["count"] == 4000
    for name in ("top1", "top5"):
        drawn = small["subsets"][name]
        assert abs(drawn["mean"] - small[name]) < 4 * drawn["sd"] / 4000**0.5
        assert drawn["sd"] > 0 and every[name] < small[name]  # a smaller pool is easier
    for entry in (every, small):
        for name, (low, high) in entry["ci95"].items():
            assert low < entry[name] < high
    assert every["ci95"]["top1"] == list(bootstrap_ci(found.top1, 0))
    draws = np.random.default_rng(7).choice(found.ranks, (4000, 60))  # by another stream of random numbers
    assert every["ci95"]["median_rank"] == pytest.approx(np.percentile(np.median(draws, 1), (2.5, 97.5)), abs=0.5)
    assert every["top1"] == found.top1.mean() and every["median_rank"] == np.median(found.ranks)
    # a query's expected rank: its share of the others come along
    assert small["median_rank"] == pytest.approx(np.median(1 + (found.ranks - 1) * 19 / 59))
    assert small["subsets"]["median_rank"]["mean"] == pytest.approx(small["median_rank"], abs=0.5)


def test_pools_of_guessing_are_at_their_chance():
    rng = np.random.default_rng(2)
    found = [pools(score(rng.normal(size=(80, 80)), np.arange(80)), 30, seed) for seed in range(40)]
    for at, expected in enumerate(chance_of_pools(found[0])):
        assert expected == {
            "pool": (80, 30)[at],
            "top1": 1 / expected["pool"],
            "top5": 5 / expected["pool"],
            "median_rank": (expected["pool"] + 1) / 2,
            **({"two_way": 0.5} if at == 0 else {}),
        }
        for name in ("top1", "top5", "median_rank"):
            values = [entries[at][name] for entries in found]
            assert abs(np.mean(values) - expected[name]) < 4 * np.std(values) / 40**0.5 + 1e-9
    constant = pools(score(np.zeros((80, 80)), np.arange(80)), 30, 0)  # all tie: chance exactly, not 0 and not 1
    for entry, expected in zip(constant, chance_of_pools(constant), strict=True):
        assert {name: entry[name] for name in expected} == pytest.approx(expected)


def test_a_pool_as_large_as_all_is_all():
    found = score(np.eye(6), np.arange(6))
    assert (
        pools(found, 6, 0)
        == pools(found, 300, 0)
        == [
            {
                "pool": 6,
                "top1": 1.0,
                "top5": 1.0,
                "median_rank": 1.0,
                "two_way": 1.0,
                "p": pytest.approx(1 / 720, abs=0.004),  # of 6! pairings one is as good
                "ci95": dict.fromkeys(("top1", "top5", "median_rank", "two_way"), [1.0, 1.0]),
            }
        ]
    )
    assert expected_top_k(*(table.sum(1) for table in (found.ahead, found.tied)), 6, 1, 1).tolist() == [1.0] * 6


def test_nobody_asking_finds_nothing():
    assert top5_ids(np.empty((0, 4, 3), np.float32), np.ones((9, 4, 3), np.float32)).shape == (0, 5)


@few
@given(seeds, st.integers(2, 9), st.integers(2, 9))
def test_two_way_is_counted_pair_by_pair(seed, n, levels):
    similarity = np.random.default_rng(seed).integers(levels, size=(n, n)).astype(float)
    counted = [
        np.mean(
            [(similarity[i, i] > similarity[i, j]) + 0.5 * (similarity[i, i] == similarity[i, j]) for j in range(n) if j != i]
        )
        for i in range(n)
    ]
    np.testing.assert_allclose(score(similarity, np.arange(n)).two_way, counted, atol=1e-12)


def test_p_is_that_of_all_pairings_and_uniform_under_the_null():
    rng = np.random.default_rng(3)
    similarity = rng.normal(size=(5, 5)) + np.eye(5)
    ranks = (similarity[:, None, :] > similarity[:, :, None]).sum(2)
    sums = [sum(ranks[i, j] for i, j in enumerate(order)) for order in permutations(range(5))]
    exact = np.mean(np.array(sums) <= np.trace(ranks))
    assert p_against_chance(similarity, 0, 20_000) == pytest.approx(exact, abs=0.015)
    found = np.array([p_against_chance(rng.normal(size=(20, 20)), seed, 199) for seed in range(200)])
    assert abs((found <= 0.05).mean() - 0.05) < 0.05 and abs(found.mean() - 0.5) < 0.08


def test_of_one_image_there_is_no_two_way_and_no_p():
    [entry] = pools(score(np.ones((1, 1)), np.arange(1)), 300, 0)
    assert "two_way" not in entry and "p" not in entry
