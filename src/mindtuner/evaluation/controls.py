"""Predictions of controls that no brain of the subject informs, or that a lookup would make."""

from __future__ import annotations

import numpy as np

from mindtuner.decoding.recall import most_similar


def nearest_training_image(predicted: np.ndarray, training: np.ndarray) -> np.ndarray:
    """Position of the training image whose tokens are most similar to the predicted ones: int64 (n,).

    predicted (n, T, D), training (m, T, D); cosine of the flattened tokens, as in retrieval.
    """
    return most_similar(predicted, training, 1)[:, 0]


def mean_token(training: np.ndarray, count: int) -> np.ndarray:
    """The mean of the training images' tokens (m, T, D), repeated for ``count`` images: (count, T, D)."""
    return np.repeat(training.mean(0, keepdims=True), count, axis=0)
