"""A category that no training sees: which images show it, and what they are left out of."""

import copy
import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_categories import category_in_both, truly

from mindtuner.data.hold_out import mask, shows
from mindtuner.errors import UserError
from mindtuner.formats import load
from mindtuner.simulation.drawing import KINDS


@pytest.fixture(scope="module")
def dataset(simulated):
    return load(simulated)


@pytest.fixture(scope="module")
def category(simulated, dataset):
    return category_in_both(simulated, dataset)


def test_the_rule_finds_what_the_simulator_drew_and_nothing_else(simulated, dataset):
    for kind in KINDS:
        np.testing.assert_array_equal(mask(dataset.stimuli.captions, kind), truly(simulated, kind), err_msg=kind)


@pytest.mark.parametrize(
    ("caption", "category", "expected"),
    [
        ("A dog.", "dog", True),
        ("Two DOGS run", "Dog", True),
        ("a hotdog", "dog", False),
        ("a hot dog", "dog", True),
        ("the dogma of cats", "dog", False),
        ("two buses", "bus", True),
        ("ponies", "pony", True),
        ("boys", "boy", True),
        ("an ice cream", "ice cream", True),
        ("cream on ice", "ice cream", False),
        ("a balloon", "ball", False),
        ("", "dog", False),
        ("a puppy", "dog", False),
        ("a dog's bowl", "dog", True),
        ("the naïve café", "café", True),
        ("fire-trucks", "fire truck", True),
    ],
)
def test_words_and_plurals(caption, category, expected):
    assert shows([caption], category) is expected
    assert shows(["nothing here", caption], category) is expected


@given(
    st.lists(st.sampled_from(["dog", "dogs", "hot", "a", "ice", "cream", "creams"]), max_size=6),
    st.sampled_from(["dog", "ice cream", "hot dog"]),
)
def test_it_is_a_search_for_the_words_in_order(words, category):
    padded = f" {' '.join(words)} "
    assert shows([" ".join(words)], category) == (f" {category} " in padded or f" {category}s " in padded)


def test_training_loses_them_and_testing_does_not(dataset, simulated, category):
    without, shown = dataset.without_category(category.upper()), truly(simulated, category)
    assert without.stimuli.category == category and without.stimuli.hash == dataset.stimuli.hash
    shared = dataset.stimuli.is_shared
    np.testing.assert_array_equal(without.stimuli.training_images, np.flatnonzero(~shared & ~shown))
    np.testing.assert_array_equal(dataset.stimuli.training_images, np.flatnonzero(~shared))  # the whole one is as it was
    for number, subject in without.subjects.items():
        before = dataset.subject(number)
        assert not shown[subject.train.stimulus].any() and shown[before.train.stimulus].any()
        assert len(before.train) - len(subject.train) == shown[before.train.stimulus].sum()
        np.testing.assert_array_equal(subject.test.row, before.test.row)
        kept = before.train.select(~shown[before.train.stimulus])
        np.testing.assert_array_equal(subject.betas(subject.train.row), before.betas(kept.row))


def test_categories_that_cannot_be_held_out(dataset, category):
    with pytest.raises(UserError, match=r"'unicorn' is in no caption of a training image of .*; expected a word .* such as"):
        dataset.without_category("unicorn")
    with pytest.raises(UserError, match="is '7 !'; expected a word"):
        dataset.without_category("7 !")
    stimuli, shared = copy.copy(dataset.stimuli), dataset.stimuli.is_shared
    edited = dataclasses.replace(dataset, stimuli=stimuli)
    stimuli.captions = [("a cat",) if test else own for own, test in zip(dataset.stimuli.captions, shared, strict=True)]
    with pytest.raises(UserError, match=f"'{category}' is shown by 0 of the 8 test images"):
        edited.without_category(category)
    said = f"a {category}"
    stimuli.captions = [(said,) if test else own for own, test in zip(dataset.stimuli.captions, shared, strict=True)]
    with pytest.raises(UserError, match=f"'{category}' is shown by 8 of the 8 test images"):
        edited.without_category(category)
    first = np.flatnonzero(shared)[0]
    own = set(dataset.subject(1).train.stimulus.tolist()) | {first}
    stimuli.captions = [("a gnu",) if image in own else ("a cat",) for image in range(len(stimuli))]
    with pytest.raises(UserError, match="'gnu' is shown by all training images of subject 1"):
        edited.without_category("gnu")
