"""Phrases: what captions are made of, and which of them training images show."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.sparse import csr_array

from mindtuner.data import Stimuli
from mindtuner.data.words import COLOURS

PREPOSITIONS = frozenset(
    """about above across against along alongside amid among around aside at atop before behind below beneath beside between
    beyond by down during for from in inside into near next off on onto out outside over past through toward towards under
    underneath up upon with within without""".split()
)
ARTICLES = frozenset(("a", "an", "the"))
MOST = 5000  # phrases in a bank: rarer ones were seen too seldom to be sure of
LEAST = 2  # images that show a phrase


class TextEncoder(Protocol):
    """Any text tower."""

    def embed(self, sentences: list[str]) -> np.ndarray:
        """Sentences -> unit vectors (n, d)."""


def split(caption: str) -> list[str]:
    """A caption's phrases: cut at commas, semicolons and "and", and before prepositions, which stay with what follows.

    Two colours that "and" joins stay together. Prepositions in a row begin one phrase.

    Parameters
    ----------
    caption : str

    Returns
    -------
    list of str
        Lower case, without a final stop, each once.

    Examples
    --------
    >>> split("A red bird, a blue car and a tree on the beach.")
    ['a red bird', 'a blue car', 'a tree', 'on the beach']
    >>> split("A black and white dog lying down on top of a bed")
    ['a black and white dog lying', 'down on top of a bed']
    """
    phrases: list[list[str]] = []
    for part in re.split(r"[,;.:!?()\"]+", caption.lower()):
        words = part.split()
        phrase: list[str] = []
        for k, word in enumerate(words):
            between_colours = word == "and" and 0 < k < len(words) - 1 and {words[k - 1], words[k + 1]} <= COLOURS
            begins = word in PREPOSITIONS and not PREPOSITIONS.issuperset(phrase)
            if begins or (word == "and" and not between_colours):
                phrases.append(phrase)
                phrase = []
            if word != "and" or between_colours:
                phrase.append(word)
        if phrases and PREPOSITIONS.issuperset(phrase):  # nothing follows: "looking up"
            phrases[-1] = phrases[-1] + phrase
        else:
            phrases.append(phrase)
    return list(dict.fromkeys(" ".join(phrase) for phrase in phrases if phrase))


def is_place(phrase: str) -> bool:
    """Whether a phrase says where or with what, not what: it begins with a preposition."""
    return phrase.split(" ", 1)[0] in PREPOSITIONS


def without_colour(phrase: str) -> str | None:
    """What a phrase says where its colour is unsure; None where it names none, or nothing else.

    Examples
    --------
    >>> without_colour("an orange cat"), without_colour("a cat"), without_colour("an orange")
    ('a cat', None, None)
    """
    words = phrase.split()
    kept = [
        word
        for k, word in enumerate(words)
        if word not in COLOURS and not (word == "and" and 0 < k < len(words) - 1 and {words[k - 1], words[k + 1]} <= COLOURS)
    ]
    if len(kept) == len(words) or is_place(phrase) or ARTICLES.issuperset(kept):
        return None
    if kept[0] in ARTICLES:
        kept[0] = "an" if kept[1][0] in "aeiou" else "a"
    return " ".join(kept)


def phrases_of(captions: tuple[str, ...] | list[str]) -> list[str]:
    """All that an image's captions say of it: their phrases, and the same without colour; each once."""
    said = dict.fromkeys(phrase for caption in captions for phrase in split(caption))
    return list(said | dict.fromkeys(plain for plain in map(without_colour, said) if plain is not None))


def side_by_side(embeddings: Sequence[np.ndarray], width: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of n images' phrases in one array.

    Parameters
    ----------
    embeddings : sequence of n arrays (k, width)
        As many as an image has.
    width : int

    Returns
    -------
    array float32 (n, P, width), zeros where an image has fewer; and where there is one, array bool (n, P)

    Examples
    --------
    >>> found, there = side_by_side([np.ones((2, 3)), np.ones((0, 3))], 3)
    >>> found.shape, there.tolist()
    ((2, 2, 3), [[True, True], [False, False]])
    """
    found = np.zeros((len(embeddings), max(map(len, embeddings), default=0), width), np.float32)
    there = np.zeros(found.shape[:2], bool)
    for k, some in enumerate(embeddings):
        found[k, : len(some)], there[k, : len(some)] = some, True
    return found, there


@dataclass(frozen=True, eq=False)
class PhraseBank:
    """Phrases of captions of training images, and which images have them.

    An image decides membership by its id: test images are never in the bank.

    Attributes
    ----------
    phrases : list of m str
        The most common first.
    embeddings : array, float32 (m, d)
        Unit vectors of the text tower.
    images : array, int64 (n,)
        Ids of training images.
    shown : sparse array, float32 (n, m)
        1 where an image has a phrase.

    Examples
    --------
    >>> from mindtuner.data import Stimuli
    >>> from mindtuner.towers.compact import CompactTextEncoder
    >>> grey = np.full((4, 3, 224, 224), 0.5, np.float16)
    >>> captions = [["a red bird"], ["a blue bird on the beach"], ["a red bird on the beach"], ["a red bird"]]
    >>> stimuli = Stimuli(grey, captions, np.array([False, False, False, True]), "memory")
    >>> bank = PhraseBank.of(stimuli, np.arange(3), CompactTextEncoder())
    >>> dict(zip(bank.phrases, bank.counts.tolist()))
    {'a bird': 3, 'a red bird': 2, 'on the beach': 2}
    """

    phrases: list[str]
    embeddings: np.ndarray
    images: np.ndarray
    shown: csr_array

    @classmethod
    def of(
        cls, stimuli: Stimuli, training_images: np.ndarray, encoder: TextEncoder | None, least: int = LEAST, most: int = MOST
    ) -> PhraseBank:
        """The phrases of the captions of ``training_images`` (ids) that at least ``least`` of them have; the ``most`` common.

        Images without a caption are left out: nobody says what they show. Without an encoder its embeddings have no column.
        Raises ValueError if one of the images is a test image.
        """
        if stimuli.is_shared[training_images].any():
            raise ValueError("training_images: holds a test image")
        training_images = np.array([image for image in training_images if any(stimuli.captions[int(image)])], np.int64)
        said = [phrases_of(stimuli.captions[int(image)]) for image in training_images]
        counts: dict[str, int] = {}
        for phrases in said:
            for phrase in phrases:
                counts[phrase] = counts.get(phrase, 0) + 1
        kept = sorted((phrase for phrase, count in counts.items() if count >= least), key=lambda phrase: -counts[phrase])
        position = {phrase: k for k, phrase in enumerate(kept[:most])}
        pairs = [(row, position[phrase]) for row, phrases in enumerate(said) for phrase in phrases if phrase in position]
        rows, columns = np.array(pairs, np.int64).reshape(-1, 2).T
        shown = csr_array((np.ones(len(pairs), np.float32), (rows, columns)), shape=(len(said), len(position)))
        embeddings = np.empty((len(position), 0), np.float32)
        if encoder is not None and position:
            embeddings = encoder.embed(list(position))
        return cls(list(position), embeddings, np.asarray(training_images), shown)

    @property
    def counts(self) -> np.ndarray:
        """How many of the images have each phrase, int64 (m,)."""
        return np.bincount(self.shown.indices, minlength=len(self.phrases))
