"""The words that count are found in captions alone: for simulated scenes exactly what their labels say."""

import numpy as np
import pytest

from mindtuner.evaluation.vocabulary import Vocabulary
from mindtuner.simulation import scenes
from mindtuner.simulation.cutouts import Cutout, with_article
from mindtuner.simulation.drawing import COLOURS, KINDS
from mindtuner.simulation.labels import PlacedObject, SceneLabels


@pytest.fixture(scope="module")
def simulated():
    """Captions of 600 scenes, and what each shows; nothing is drawn."""
    rng = np.random.default_rng(0)
    captions, shown = [], []
    for _ in range(600):
        place = scenes.PLACES[rng.integers(len(scenes.PLACES))]
        cutouts = []
        for kind in rng.permutation(list(KINDS))[: rng.integers(1, 4)]:
            group, colours, _ = KINDS[kind]
            colour = colours[rng.integers(len(colours))]
            cutouts.append(Cutout(str(kind), group, colour, with_article(f"{colour} {kind}"), None))
        labels = SceneLabels(place, tuple(PlacedObject(c.name, c.group, c.colour, rng.random(), 0.5, 0.5) for c in cutouts))
        captions.append(scenes._captions(cutouts, labels, rng))
        shown.append({"objects": {c.name for c in cutouts}, "colours": {c.colour for c in cutouts}, "places": {place}})
    return captions, shown


def test_of_simulated_captions_the_words_are_the_kinds_the_colours_and_the_places(simulated):
    captions, shown = simulated
    vocabulary = Vocabulary.of(captions)
    expected = {"objects": KINDS, "colours": COLOURS, "places": scenes.PLACES}
    assert vocabulary.words == {kind: tuple(sorted(words)) for kind, words in expected.items()}
    assert vocabulary.left_out == dict.fromkeys(expected, 0)
    named = vocabulary.named(captions)
    for kind, words in vocabulary.words.items():
        assert [{words[k] for k in np.flatnonzero(row)} for row in named[kind]] == [own[kind] for own in shown]


def test_words_of_too_few_images_are_counted_and_left_out():
    captions = [["a dog", "the dog, a dog"]] * 3 + [["a cat on a sofa"]] * 2
    vocabulary = Vocabulary.of(captions, fewest=3)  # of images, not of captions
    assert vocabulary.words == {"objects": ("dog",), "colours": (), "places": ()}
    assert vocabulary.left_out == {"objects": 1, "colours": 0, "places": 1}
    assert vocabulary.named([["a cat"]])["objects"].tolist() == [[False]]
    assert vocabulary.named([["a cat"]])["colours"].shape == (1, 0) and vocabulary.named([])["objects"].shape == (0, 1)


def test_plurals_pairs_places_and_spellings():
    captions = [
        ["Two dogs and a gray teddy bear on the sofas"],
        ["a teddy bear, on a blue sofa"],
        ["a bear cub and a dog in front of a church"],
        ["a teddy bear and ponies"],
    ]
    assert Vocabulary.of(captions, fewest=1).words == {
        "objects": ("bear", "church", "cub", "dog", "ponies", "teddy bear"),
        "colours": ("blue", "grey"),
        "places": ("sofa",),
    }
    assert Vocabulary.of([*captions, ["a pony"]], fewest=1).named([["ponies"]])["objects"].sum() == 1


def test_a_word_is_a_place_by_most_of_its_mentions():
    mostly = [["a cup on the table"], ["a hat on a red table"], ["a table"]]
    assert Vocabulary.of(mostly, fewest=1).words["places"] == ("table",)
    assert "table" in Vocabulary.of([*mostly, ["the table"]], fewest=1).words["objects"]  # half is not most
    assert Vocabulary.of([["left of the table"], ["in the middle"]], fewest=1).words == {
        "objects": ("table",),
        "colours": (),
        "places": (),
    }
