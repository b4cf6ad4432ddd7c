"""The text bank: what a brain can be described with, and what may correct a picture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindtuner.data import Stimuli
from mindtuner.encoders.compact import CompactTextEncoder


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
    def of(cls, stimuli: Stimuli, training_images: np.ndarray, encoder: CompactTextEncoder) -> TextBank:
        """The bank of the captions of ``training_images`` (ids). Raises ValueError if one of them is a test image."""
        if stimuli.is_shared[training_images].any():
            raise ValueError("training_images: holds a test image")
        captions = sorted({caption for image in training_images for caption in stimuli.captions[image]})
        tested = {caption for image in np.flatnonzero(stimuli.is_shared) for caption in stimuli.captions[image]}
        return cls(captions, encoder.embed(captions), len(tested.intersection(captions)))

    def nearest(self, text: np.ndarray) -> np.ndarray:
        """Position in the bank of the caption most similar to each text (n, d): int64 (n,)."""
        return (text @ self.embeddings.T).argmax(1)
