"""Tokens of training images beside decoded ones: which are most similar, what these add, and the controls made of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from mindtuner.data import FileRows, HalfRows

SHARE = 0.5  # of the tokens that come from the training images
_BLOCK = 2**26  # numbers read at a time: 256 MB of float32


@dataclass(frozen=True)
class TrainingTokens:
    """Rows ``ids`` (m,) of a cache (N, ...), read from disk when asked for: at full size all tokens of NSD are 120 GB.

    Where the functions here want ``training`` they take these, or an array in memory.
    """

    cache: np.ndarray | FileRows | HalfRows
    ids: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        """Rows by position, of the cache's own order: float32 (k, ...)."""
        return np.asarray(self.cache[self.ids[which]], np.float32)


def in_blocks(training: np.ndarray | TrainingTokens) -> Iterator[tuple[slice, np.ndarray]]:
    """All of ``training`` (m, ...), as many rows at a time as memory is spent on: positions, and float32 (k, ...)."""
    step = max(1, _BLOCK // max(1, training[:1].size))
    for start in range(0, len(training), step):
        some = slice(start, start + step)
        yield some, np.asarray(training[some], np.float32)


def similarity(predicted: np.ndarray, candidates: np.ndarray | TrainingTokens, less: np.ndarray | None = None) -> np.ndarray:
    """Cosines of flattened tokens, of n predicted (n, T, D) to m candidates (m, T, D): float32 (n, m).

    ``less``, (T, D), is taken off the candidates before: ``Predictions.mean_token``.
    """
    queries = unit_rows(predicted)
    found = np.empty((len(queries), len(candidates)), np.float32)
    for some, tokens in in_blocks(candidates):
        found[:, some] = queries @ unit_rows(tokens if less is None else tokens - less).T
    return found


def most_similar(predicted: np.ndarray, training: np.ndarray | TrainingTokens, count: int) -> np.ndarray:
    """Positions of the training images whose tokens are most similar to the predicted ones, best first.

    Parameters
    ----------
    predicted : array (n, T, D)
    training : array (m, T, D) or TrainingTokens
    count : int

    Returns
    -------
    array, int64 (n, count), or (n, m) where there are fewer
        By the cosine of the flattened tokens, as in retrieval.

    Examples
    --------
    >>> training = np.eye(3)[:, None]
    >>> most_similar(np.array([[[0.1, 0.9, 0.0]]]), training, 2)
    array([[1, 0]])
    """
    return np.argsort(-similarity(predicted, training), axis=1, kind="stable")[:, :count]


def nearest_training_image(predicted: np.ndarray, training: np.ndarray | TrainingTokens) -> np.ndarray:
    """Position of the training image whose tokens are most similar to the predicted ones: a control.

    Parameters
    ----------
    predicted : array (n, T, D)
    training : array (m, T, D) or TrainingTokens

    Returns
    -------
    array, int64 (n,)

    Examples
    --------
    >>> nearest_training_image(np.array([[[0.1, 0.9, 0.0]]]), np.eye(3)[:, None])
    array([1])
    """
    return most_similar(predicted, training, 1)[:, 0]


def draw_to_neighbours(tokens: np.ndarray, training: np.ndarray | TrainingTokens, neighbours: int) -> np.ndarray:
    """Draw decoded tokens halfway to the mean tokens of the training images most similar to them.

    The prior gives the tokens to expect, and where a brain says little that is the mean of all images. The mean of images
    that resemble the decoded one keeps what goes together in pictures: a kernel regression beside the linear one.

    Parameters
    ----------
    tokens : array (n, T, D)
    training : array (m, T, D) or TrainingTokens
    neighbours : int
        With 0, or no training image to resemble (a subject may bring test images alone), tokens stay as they are.

    Returns
    -------
    array, float32 (n, T, D)

    Examples
    --------
    >>> draw_to_neighbours(np.array([[[0.0, 2.0]]]), np.eye(2)[:, None], neighbours=1)
    array([[[0. , 1.5]]], dtype=float32)
    """
    if neighbours == 0 or len(training) == 0:
        return tokens
    similar = most_similar(tokens, training, neighbours)
    found = np.stack([training[positions].mean(0, dtype=np.float32) for positions in similar])
    return ((1 - SHARE) * tokens + SHARE * found).astype(np.float32)


def mean_token(training: np.ndarray | TrainingTokens, count: int) -> np.ndarray:
    """The mean of the training images' tokens, repeated: what a control without a brain paints from.

    Parameters
    ----------
    training : array (m, T, D) or TrainingTokens
    count : int

    Returns
    -------
    array, float32 (count, T, D)

    Examples
    --------
    >>> mean_token(np.array([[[1.0]], [[3.0]]]), 2).ravel()
    array([2., 2.], dtype=float32)
    """
    total = sum(tokens.sum(0, dtype=np.float64) for _, tokens in in_blocks(training))
    return np.repeat((total / len(training)).astype(np.float32)[None], count, axis=0)


def unit_rows(tokens: np.ndarray) -> np.ndarray:
    """Tokens (n, T, D) -> (n, T * D), each image's of unit length."""
    flat = tokens.reshape(len(tokens), -1)
    return flat / np.linalg.norm(flat, axis=1, keepdims=True)
