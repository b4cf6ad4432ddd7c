"""The text bank: what a brain can be described with, and what may correct a picture."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from mindtuner.data import Stimuli
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
    """What brains say in words: text (n, d), and the bank that it is read with.

    It carries all that a generator may correct pictures by: embeddings for one that reads those, texts and captions for one
    that reads prompts.
    """

    text: np.ndarray
    bank: TextBank

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
