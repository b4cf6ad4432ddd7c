"""Predictions of controls that no brain of the subject informs, or that a lookup would make."""

from __future__ import annotations

import numpy as np

from mindtuner.decoding.recall import TrainingTokens, blocks, most_similar


def nearest_training_image(predicted: np.ndarray, training: np.ndarray | TrainingTokens) -> np.ndarray:
    """Position of the training image whose tokens are most similar to the predicted ones: int64 (n,).

    predicted (n, T, D), training (m, T, D); cosine of the flattened tokens, as in retrieval.
    """
    return most_similar(predicted, training, 1)[:, 0]


def mean_token(training: np.ndarray | TrainingTokens, count: int) -> np.ndarray:
    """The mean of the training images' tokens (m, T, D), repeated for ``count`` images: (count, T, D)."""
    total = sum(tokens.sum(0, dtype=np.float64) for _, tokens in blocks(training))
    return np.repeat((total / len(training)).astype(np.float32)[None], count, axis=0)
