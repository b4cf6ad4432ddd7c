"""Phrases of captions, and the bank of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindtuner.data import Stimuli
from mindtuner.decoding.phrases import PREPOSITIONS, PhraseBank, phrases_of, split, without_colour

CAPTIONS = {  # as annotators of photographs write
    "a red bird, a blue car and a tree on the beach": ["a red bird", "a blue car", "a tree", "on the beach"],
    "A man riding a wave on top of a surfboard.": ["a man riding a wave", "on top of a surfboard"],
    "Two dogs; one cat": ["two dogs", "one cat"],
    "a black and white cat and a dog": ["a black and white cat", "a dog"],
    "a person lying down on a bed looking up": ["a person lying", "down on a bed looking up"],
    "On the beach, a kite": ["on the beach", "a kite"],
    "A bus in front of a house next to a tree": ["a bus", "in front of a house", "next to a tree"],
    "a dog and a dog": ["a dog"],
    " , and . ": [],
}


class Lengths:
    """Stands for a text tower."""

    def embed(self, sentences):
        return np.array([[len(sentence)] for sentence in sentences], np.float32)


@pytest.mark.parametrize("caption", CAPTIONS)
def test_a_caption_is_cut_into_phrases(caption):
    assert split(caption) == CAPTIONS[caption]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(["a", "red", "dog", "and", "on", "top", "white", "of", "up", "tree,", "b;", "black"]), max_size=12
    )
)
def test_a_phrase_holds_no_cut_and_no_word_is_lost(words):
    caption = " ".join(words)
    phrases = split(caption)
    assert len(set(phrases)) == len(phrases)
    assert {word for phrase in phrases for word in phrase.split()} - {"and"} == {word.strip(",;") for word in words} - {"and"}
    for phrase in phrases:
        said = phrase.split()
        inside = [k for k in range(1, len(said)) if said[k] in PREPOSITIONS and said[k - 1] not in PREPOSITIONS]
        assert not inside or PREPOSITIONS.issuperset(said[inside[0] :])  # only what nothing follows


@pytest.mark.parametrize(
    ("phrase", "plain"),
    [
        ("a red bird", "a bird"),
        ("a red ant", "an ant"),
        ("an orange cat", "a cat"),
        ("two white dogs", "two dogs"),
        ("a black and white cat", "a cat"),
        ("an orange", None),
        ("a bird", None),
        ("red", None),
        ("on a red sofa", None),
    ],
)
def test_a_phrase_without_its_colour(phrase, plain):
    assert without_colour(phrase) == plain


def stimuli(captions, shared):
    return Stimuli(np.zeros((len(captions), 3, 224, 224), np.float16), captions, np.array(shared), "memory")


def test_the_bank_holds_phrases_of_training_images_alone():
    captions = [["a red bird, a tree"], ["a red bird on the beach", "A RED BIRD"], [], ["a tree on the beach"], ["a car"]]
    bank = PhraseBank.of(stimuli(captions, [False, False, False, True, True]), np.array([0, 1, 2]), Lengths(), least=1)
    assert dict(zip(bank.phrases, bank.counts.tolist(), strict=True)) == {
        "a red bird": 2,
        "a bird": 2,
        "a tree": 1,
        "on the beach": 1,
    }
    assert bank.embeddings[:, 0].tolist() == [len(phrase) for phrase in bank.phrases]
    assert bank.images.tolist() == [0, 1]  # nobody says what the third shows
    for row, image in enumerate(bank.images):  # against plain membership
        for column, phrase in enumerate(bank.phrases):
            assert bank.shown[row, column] == (phrase in phrases_of(captions[image]))


def test_rare_phrases_are_left_out():
    captions = [["a bird, a tree"], ["a bird, a car"], ["a car"], ["a bird"]]
    some = stimuli(captions, [False] * 4)
    assert PhraseBank.of(some, np.arange(4), Lengths()).phrases == ["a bird", "a car"]
    assert PhraseBank.of(some, np.arange(4), Lengths(), most=1).phrases == ["a bird"]
    assert PhraseBank.of(some, np.arange(4), Lengths(), least=9).phrases == []


def test_a_test_image_is_refused():
    with pytest.raises(ValueError, match="test image"):
        PhraseBank.of(stimuli([["a bird"], ["a bird"]], [False, True]), np.array([0, 1]), Lengths())
