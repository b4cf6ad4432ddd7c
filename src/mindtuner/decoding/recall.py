"""What training images can add to decoded tokens: a brain says which of them were much alike."""

from __future__ import annotations

import numpy as np

SHARE = 0.5  # of the recalled tokens that come from the training images


def most_similar(predicted: np.ndarray, training: np.ndarray, count: int) -> np.ndarray:
    """Positions of the ``count`` training images whose tokens are most similar to the predicted ones, best first.

    predicted (n, T, D), training (m, T, D) -> int64 (n, count), or (n, m) where there are fewer; cosine of the flattened
    tokens, as in retrieval.
    """
    queries, candidates = (x.reshape(len(x), -1) for x in (predicted, training))
    queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
    candidates = candidates / np.linalg.norm(candidates, axis=1, keepdims=True)
    return np.argsort(-(queries @ candidates.T), axis=1, kind="stable")[:, :count]


def recall(tokens: np.ndarray, training: np.ndarray, neighbours: int) -> np.ndarray:
    """Draw decoded tokens halfway to the mean tokens of the training images most similar to them.

    The prior gives the tokens to expect, and where a brain says little that is the mean of all images. The mean of
    images that resemble the decoded one keeps what goes together in pictures: a kernel regression beside the linear one.

    tokens (n, T, D), training (m, T, D) -> (n, T, D) float32. With ``neighbours`` 0, or no training image to resemble (a
    subject may bring test images alone), they stay as they are.
    """
    if neighbours == 0 or len(training) == 0:
        return tokens
    found = training[most_similar(tokens, training, neighbours)].mean(1, dtype=np.float32)
    return ((1 - SHARE) * tokens + SHARE * found).astype(np.float32)
