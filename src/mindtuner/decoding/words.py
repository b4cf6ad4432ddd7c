"""The text bank: what a brain can be described with, and what may correct a picture."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

import numpy as np

from mindtuner.data import Stimuli
from mindtuner.decoding.phrases import side_by_side
from mindtuner.decoding.reading import PhraseReader, Recogniser, compose, sentence
from mindtuner.towers.compact import CompactTextEncoder
from mindtuner.towers.openclip import OpenClipTextEncoder


@dataclass(frozen=True)
class TextBank:
    """Distinct captions of training images, and their embeddings (m, d).

    An image decides membership by its id: captions of test images are never in the bank. Where a training
    caption happens to read exactly like a test caption it stays, and is counted in ``equal_to_test``.
    """

    captions: list[str]
    embeddings: np.ndarray
    equal_to_test: int

    @classmethod
    def of(cls, stimuli: Stimuli, training_images: np.ndarray, encoder: CompactTextEncoder | OpenClipTextEncoder) -> TextBank:
        """The bank of the captions of ``training_images`` (ids). Raises ValueError if one of them is a test image."""
        if stimuli.is_shared[training_images].any():
            raise ValueError("training_images: holds a test image")
        captions = sorted({caption for image in training_images for caption in stimuli.captions[image]})
        tested = {caption for image in np.flatnonzero(stimuli.is_shared) for caption in stimuli.captions[image]}
        return cls(captions, encoder.embed(captions), len(tested.intersection(captions)))

    def nearest(self, text: np.ndarray) -> np.ndarray:
        """Position in the bank of the caption most similar to each text (n, d): int64 (n,)."""
        return (text @ self.embeddings.T).argmax(1)


@dataclass(frozen=True)
class Words:
    """What brains say in words: all that a generator may correct pictures by.

    Attributes
    ----------
    text : array (n, d)
        In the text tower's space.
    bank : TextBank
        Captions that it is read with.
    probabilities : array (n, m), optional
        Of each phrase that the reader knows; None where the nearest captions stand for phrases.
    reader : PhraseReader, optional
        Whose phrases they are.

    Examples
    --------
    >>> bank = TextBank(["a cat", "a dog in the sea"], np.eye(2, dtype=np.float32), 0)
    >>> Words(np.array([[0.1, 0.9]]), bank).prompts
    ['a dog in the sea']
    """

    text: np.ndarray
    bank: TextBank
    probabilities: np.ndarray | None = None
    reader: PhraseReader | None = None

    def rows(self, which: np.ndarray | slice) -> Words:
        """Those of some of the brains."""
        kept = None if self.probabilities is None else self.probabilities[which]
        return replace(self, text=self.text[which], probabilities=kept)

    @functools.cached_property
    def said(self) -> list[list[tuple[str, float]]] | None:
        """Of each brain the phrases composed, with their probabilities (``reading.compose``).

        None where the nearest captions stand for them.
        """
        if self.probabilities is None:
            return None
        assert self.reader is not None  # whose probabilities they are
        phrases = self.reader.bank.phrases
        chosen = zip(compose(self.probabilities, phrases), self.probabilities, strict=True)
        return [[(phrases[k], float(row[k])) for k in some] for some, row in chosen]

    @functools.cached_property
    def nearest(self) -> np.ndarray:
        """Position in the bank of each brain's caption, int64 (n,)."""
        return self.bank.nearest(self.text)

    @property
    def captions(self) -> list[str]:
        """The n captions nearest to the texts."""
        return [self.bank.captions[k] for k in self.nearest]

    @property
    def embeddings(self) -> np.ndarray:
        """Those captions' embeddings (n, d)."""
        return self.bank.embeddings[self.nearest]

    @property
    def phrases(self) -> list[list[str]]:
        """Of each brain its phrases: those composed, or the whole caption."""
        if self.said is None:
            return [[caption] for caption in self.captions]
        return [[phrase for phrase, _ in some] for some in self.said]

    @property
    def prompts(self) -> list[str]:
        """Of each brain a sentence of its phrases, "" where it is sure of nothing."""
        return [sentence(phrases) for phrases in self.phrases]

    @property
    def phrase_embeddings(self) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings of the phrases float32 (n, P, d), zeros where a brain has fewer, and where there is one, bool (n, P)."""
        if self.said is None:
            return self.embeddings[:, None].astype(np.float32), np.ones((len(self.text), 1), bool)
        assert self.reader is not None  # where there are phrases
        bank = self.reader.bank
        position = {phrase: k for k, phrase in enumerate(bank.phrases)}
        rows = [np.array([position[phrase] for phrase in phrases], np.int64) for phrases in self.phrases]
        return side_by_side([bank.embeddings[own] for own in rows], self.text.shape[1])

    def agreement(self, tokens: np.ndarray) -> np.ndarray:
        """How well pictures with these tokens (n, T, D) show what the n brains say, 0..1: see ``reading.Recogniser``.

        The same for all pictures, 0, where whole captions stand for phrases.
        """
        if self.probabilities is None:
            return np.zeros(len(tokens))
        return self._recogniser.agreement(tokens, self.probabilities)

    def told(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens (n, T, D) of the n brains that say of things what the words say, and nothing else: ``reading.Recogniser``.

        As they are where whole captions stand for phrases.
        """
        return tokens if self.probabilities is None else self._recogniser.told(tokens, self.probabilities)

    def without_things(self, tokens: np.ndarray) -> np.ndarray:
        """Tokens (n, T, D), less a mean, without what a linear readout finds of things in them: ``reading.Recogniser``.

        As they are where whole captions stand for phrases.
        """
        return tokens if self.probabilities is None else self._recogniser.without_things(tokens)

    @property
    def _recogniser(self) -> Recogniser:
        assert self.reader is not None  # whose probabilities they are
        return self.reader.recogniser
