"""Categories decoded: accuracy, confusions and chance against scikit-learn and closed forms."""

import itertools

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix

from mindtuner.evaluation.scores.categories import category_block

NAMES = np.array(["cat", "dog", "face"])


def answers(seed, n=60):
    rng = np.random.default_rng(seed)
    seen = NAMES[rng.choice(3, n, p=[0.5, 0.3, 0.2])]
    said = np.where(rng.random(n) < 0.5, seen, NAMES[rng.integers(3, size=n)])
    return seen.tolist(), said.tolist(), np.arange(n) % 4


def test_confusions_and_accuracies_are_scikit_learns():
    seen, said, fold = answers(0)
    found = category_block(seen, said, fold, 0)
    assert found["names"] == NAMES.tolist()
    np.testing.assert_array_equal(found["confusion"], confusion_matrix(seen, said))
    assert found["accuracy"]["value"] == pytest.approx(accuracy_score(seen, said))
    assert found["balanced"]["value"] == pytest.approx(balanced_accuracy_score(seen, said))
    for name in NAMES:
        own = np.array(seen) == name
        assert found["own"][name]["images"] == own.sum()
        assert found["own"][name]["accuracy"] == pytest.approx((np.array(said)[own] == name).mean())
    for kind in ("accuracy", "balanced"):
        low, high = found[kind]["ci95"]
        assert low < found[kind]["value"] < high


def test_chance_is_the_mean_over_all_pairings_within_folds():
    seen, said, fold = ["a", "a", "b", "b", "b", "a"], ["a", "b", "b", "b", "a", "a"], np.array([0, 0, 0, 1, 1, 1])
    every = [
        accuracy_score([*first, *second], said)
        for first in itertools.permutations(seen[:3])
        for second in itertools.permutations(seen[3:])
    ]
    found = category_block(seen, said, fold, 0)
    assert found["accuracy"]["chance"] == pytest.approx(np.mean(every))
    share = np.mean(np.array(every) >= accuracy_score(seen, said) - 1e-9)
    assert found["accuracy"]["p"] == pytest.approx(share, abs=0.03)


def test_who_always_says_one_category_is_at_chance():
    seen = ["cat"] * 8 + ["dog"] * 2
    found = category_block(seen, ["cat"] * 10, np.zeros(10, int), 0)
    assert found["accuracy"]["value"] == pytest.approx(found["accuracy"]["chance"]) == pytest.approx(0.8)
    assert found["balanced"]["value"] == pytest.approx(found["balanced"]["chance"]) == pytest.approx(0.5)
    assert found["accuracy"]["p"] == 1.0 and found["balanced"]["p"] == 1.0
    assert {name: own["chance"] for name, own in found["own"].items()} == {"cat": 1.0, "dog": 0.0}


def test_a_category_that_was_never_shown_may_be_said():
    found = category_block(["cat", "cat", "dog"], ["cat", "face", "dog"], np.zeros(3, int), 0)
    assert found["names"] == ["cat", "dog", "face"] and sorted(found["own"]) == ["cat", "dog"]
    assert found["confusion"] == [[1, 0, 1], [0, 1, 0], [0, 0, 0]]
    assert found["balanced"]["value"] == pytest.approx((0.5 + 1) / 2)


def test_answers_that_are_right_by_nothing_but_luck_are_seldom_significant():
    rng = np.random.default_rng(1)
    p = [
        category_block(
            NAMES[rng.integers(3, size=24)].tolist(), NAMES[rng.integers(3, size=24)].tolist(), np.arange(24) % 3, k
        )["accuracy"]["p"]
        for k in range(60)
    ]
    assert np.mean(np.array(p) <= 0.05) < 0.15 and np.mean(p) > 0.4
