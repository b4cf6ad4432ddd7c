"""The words that the captions of a data set name things, colours and places by.

Nothing but captions is needed, so measured and simulated data are read alike. A word is

- a **colour** where ``data.words.COLOURS`` has it,
- a **place** where more than half of its mentions follow "in", "on" or "at": "on the beach", "at night",
- a **thing** otherwise, unless it says nothing of what is seen (``data.words.STOP_WORDS``).

Two words that stand side by side in more than half of the mentions of either are one ("ice cream"). A plural of rule is its
singular. Nobody tells a noun from a verb here: where people write freely, "sitting" is a thing too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mindtuner.data.words import COLOURS, STOP_WORDS, WORD

FEWEST = 10  # images that have to name a word
KINDS = ("objects", "colours", "places")
_WHERE, _ARTICLES = ("in", "on", "at"), ("a", "an", "the")
_SPELLINGS = {"gray": "grey"}
_ENDINGS = (("ies", "y"), ("es", ""), ("s", ""))  # of a plural, and of its singular


@dataclass(frozen=True)
class Vocabulary:
    """The words that count.

    words : by kind (``KINDS``), in alphabetical order · left_out : by kind, how many more there are that too few images name
    · singular : plurals and what they are plurals of · pairs : two words that are one
    """

    words: dict[str, tuple[str, ...]]
    left_out: dict[str, int]
    singular: dict[str, str]
    pairs: frozenset[tuple[str, str]]

    @classmethod
    def of(cls, captions: Sequence[Sequence[str]], fewest: int = FEWEST) -> Vocabulary:
        """The words that the captions of at least ``fewest`` of the images name.

        Parameters
        ----------
        captions : sequence of sequences of str
            Those of each image.
        fewest : int

        Examples
        --------
        >>> found = Vocabulary.of([["a red bird on the beach"], ["two birds and an ice cream at night"]], fewest=1)
        >>> found.words
        {'objects': ('bird', 'ice cream'), 'colours': ('red',), 'places': ('beach', 'night')}
        """
        texts = [text for own in captions for text in own]
        single = Counter(word for text in texts for _, run in _runs(text) for word in run)
        singular = {word: found for word in single if (found := _singular(word, single))}
        single, beside = Counter[str](), Counter[tuple[str, str]]()
        for text in texts:
            for _, run in _runs(text):
                known = [singular.get(word, word) for word in run]
                single.update(known)
                beside.update(zip(known, known[1:], strict=False))
        pairs = frozenset(two for two, count in beside.items() if all(count > single[word] / 2 for word in two))
        vocabulary = cls({}, {}, singular, pairs)
        images, mentions, placed = Counter[str](), Counter[str](), Counter[str]()
        for own in captions:
            named = [one for text in own for one in vocabulary._mentions(text)]
            images.update({word for word, _ in named})
            mentions.update(word for word, _ in named)
            placed.update(word for word, is_place in named if is_place)
        kinds: dict[str, list[str]] = {kind: [] for kind in KINDS}
        for word in sorted(images):
            kinds["colours" if word in COLOURS else "places" if placed[word] > mentions[word] / 2 else "objects"].append(word)
        kept = {kind: tuple(word for word in words if images[word] >= fewest) for kind, words in kinds.items()}
        left_out = {kind: len(words) - len(kept[kind]) for kind, words in kinds.items()}
        return cls(kept, left_out, singular, pairs)

    def named(self, captions: Sequence[Iterable[str]]) -> dict[str, np.ndarray]:
        """Which words the captions of each of n images name: by kind bool (n, words).

        Parameters
        ----------
        captions : sequence of n iterables of str

        Examples
        --------
        >>> found = Vocabulary.of([["a red bird"], ["a cat"]], fewest=1)
        >>> found.named([["two cats", "a red cat"], []])["objects"]
        array([[False,  True],
               [False, False]])
        """
        said = [{word for text in own for word, _ in self._mentions(text)} for own in captions]
        return {
            kind: np.array([[word in own for word in words] for own in said], bool).reshape(len(said), len(words))
            for kind, words in self.words.items()
        }

    def _mentions(self, caption: str) -> Iterator[tuple[str, bool]]:
        """Every word of a caption, a pair as one, and whether it follows "in", "on" or "at"."""
        for is_place, run in _runs(caption):
            words = [self.singular.get(word, word) for word in run]
            while words:
                both = tuple(words[:2]) in self.pairs
                yield " ".join(words[: 1 + both]), is_place
                del words[: 1 + both]


def _runs(caption: str) -> Iterator[tuple[bool, list[str]]]:
    """The words of a caption that say something, those side by side together; a colour stands alone."""
    run: list[str] = []
    follows = False  # "in", "on" or "at", with an article or a colour between at most
    for word in [*re.findall(rf"{WORD}|[^\w\s]", caption.lower()), "."]:
        word = _SPELLINGS.get(word, word)
        says = word[0].isalpha() and word not in STOP_WORDS
        if says and word not in COLOURS:
            run.append(word)
            continue
        if run:
            yield follows, run
            run, follows = [], False
        if says:
            yield False, [word]
        elif word not in _ARTICLES:
            follows = word in _WHERE


def _singular(word: str, known: Counter[str]) -> str | None:
    """The word that this one is a plural of, where the captions have it."""
    for ending, instead in _ENDINGS:
        stem = word.removesuffix(ending) + instead
        if word.endswith(ending) and stem in known:
            return stem
    return None
