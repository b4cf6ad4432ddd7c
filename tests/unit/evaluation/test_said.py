"""Precision and recall of what is said, against plain loops and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from mindtuner.evaluation.said import PARTS, said_scores

NOUNS, COLOURS, PLACES = ("bird", "car", "tree"), ("red", "blue"), ("on the beach", "in the sea", "at night")


def drawn(rng, n):
    """Captions of one or two coloured things at a place."""
    captions = []
    for _ in range(n):
        things = [f"a {rng.choice(COLOURS)} {noun}" for noun in rng.permutation(NOUNS)[: rng.integers(1, 3)]]
        captions.append([" and ".join(things) + " " + rng.choice(PLACES)])
    return captions


@pytest.mark.parametrize("seed", range(3))
def test_against_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    said, true = drawn(rng, 60), drawn(rng, 60)
    found = said_scores(said, true, 0, n_boot=200)
    phrases = {
        "things": [f"a {noun}" for noun in NOUNS],
        "coloured": [f"a {colour} {noun}" for noun in NOUNS for colour in COLOURS],
        "places": PLACES,
    }
    for part, words in phrases.items():
        # captions here are built of these words alone, so that a plain search finds them
        def named(caption, word, part=part):
            return word[2:] in caption[0] if part == "things" else word in caption[0]

        table = [np.array([[named(c, word) for word in words] for c in group]) for group in (said, true)]
        expected = precision_recall_fscore_support(table[1], table[0], average="micro")[:3]
        for score, value in zip(("precision", "recall", "f1"), expected, strict=True):
            about = found[part][score]
            assert about["mean"] == pytest.approx(value)
            assert about["ci95"][0] <= value <= about["ci95"][1]


def test_chance_is_the_mean_over_pairs_of_two_images():
    rng = np.random.default_rng(1)
    said, true = drawn(rng, 8), drawn(rng, 8)
    found = said_scores(said, true, 0, n_boot=10)
    pairs = [(i, j) for i in range(8) for j in range(8) if i != j]
    once = said_scores([said[i] for i, _ in pairs], [true[j] for _, j in pairs], 0, n_boot=10)
    for part in PARTS:
        for score in ("precision", "recall", "f1"):
            assert found[part][score]["chance"] == pytest.approx(once[part][score]["mean"])


def test_what_is_not_said_costs_recall_alone_and_images_without_a_caption_do_not_count():
    found = said_scores([["a red bird"], [], ["a cat"]], [["a red bird"], ["a dog"], []], 0)
    assert found["things"]["precision"]["mean"] == 1 and found["things"]["recall"]["mean"] == 0.5
    assert found["coloured"]["f1"]["mean"] == 1
    assert found["places"]["f1"] == {"mean": 0, "ci95": [0, 0], "chance": 0}


def test_nothing_to_score():
    assert said_scores([["a cat"]], [[]], 0)["things"]["f1"]["mean"] == 0
