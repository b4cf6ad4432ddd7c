"""Retrieval by cosine similarity: which of n candidates is most like the query?

Directions as in the MindEye2 paper: *image* retrieval goes from brain to image, *brain* retrieval from image
to brain. The MindTuner paper adds *text* retrieval, from brain to text. All n test images are candidates at
once.

Ties count 1/k: a query whose true candidate shares the highest similarity with k - 1 others scores 1/k. With
it the chance level is 1/n whatever duplicates there are: if the top is shared by k candidates, a true
candidate placed at random is among them with probability k/n and then scores 1/k.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mindtuner.errors import UserError
from mindtuner.evaluation.scores.arrays import TIE, as_array, as_pair

COLUMNS = 32768  # columns turned to float64 at a time, so that full-size tokens never exist twice in memory


class Retrieval(NamedTuple):
    """Scores of each of n queries."""

    top1: np.ndarray  # float64 (n,): 1 for a hit, 1/k for a k-fold tie at the top, else 0
    ranks: np.ndarray  # float64 (n,): 1 is best; the middle rank where candidates tie


def cosine(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Cosine similarities (n, m) of rows (n, width) and (m, width); a zero row has similarity 0 to all."""
    dot = np.zeros((len(queries), len(candidates)))
    square_q, square_c = np.zeros(len(queries)), np.zeros(len(candidates))
    for start in range(0, queries.shape[1], COLUMNS):
        q = queries[:, start:start + COLUMNS].astype(np.float64)
        c = candidates[:, start:start + COLUMNS].astype(np.float64)
        dot += q @ c.T
        square_q += (q * q).sum(1)
        square_c += (c * c).sum(1)
    norms = np.sqrt(square_q)[:, None] * np.sqrt(square_c)[None, :]
    return np.divide(dot, norms, out=np.zeros_like(dot), where=norms > 0)


def score(similarity: np.ndarray, correct: np.ndarray) -> Retrieval:
    """Scores from similarities (n, m), where ``correct`` (n,) gives each query's true candidate."""
    own = similarity[np.arange(len(similarity)), correct][:, None]
    above = (similarity > own + TIE).sum(1)
    tied = (np.abs(similarity - own) <= TIE).sum(1)  # counts the true candidate itself
    return Retrieval(np.where(above == 0, 1.0 / tied, 0.0), 1.0 + above + (tied - 1) / 2)


def image_retrieval(predicted_tokens, target_tokens) -> Retrieval:
    """Brain to image: query = tokens predicted from the brain, candidates = tokens of the n images.

    Both (n, T, D), flattened; row i of one belongs to row i of the other. Raises UserError for NaN or unequal
    shapes.
    """
    predicted, target = _tokens(predicted_tokens, target_tokens)
    return score(cosine(predicted, target), np.arange(len(predicted)))


def brain_retrieval(predicted_tokens, target_tokens) -> Retrieval:
    """Image to brain: query = tokens of an image, candidates = tokens predicted from the n brain patterns.

    Shapes and errors as in ``image_retrieval``.
    """
    predicted, target = _tokens(predicted_tokens, target_tokens)
    return score(cosine(target, predicted), np.arange(len(predicted)))


def text_retrieval(predicted_text, candidate_texts) -> Retrieval:
    """Brain to text: query = text embedding predicted from the brain, candidates = the text of each of the n
    images (the normalised mean of its captions' embeddings).

    Both (n, d). Images with one and the same text tie. Raises UserError for NaN or unequal shapes.
    """
    predicted, target = as_pair(predicted_text, candidate_texts, ("predicted text", "candidate texts"), 2)
    return score(cosine(predicted, target), np.arange(len(predicted)))


def top5_ids(predicted, candidates, k: int = 5) -> np.ndarray:
    """Positions of the k candidates most like each query, int64 (n, k), best first; ties keep the candidates'
    order.

    ``predicted`` (n, ...) and ``candidates`` (m, ...) are flattened; m need not be n. Raises UserError where
    m < k.
    """
    queries = as_array(predicted, "predicted", np.ndim(predicted)).reshape(len(predicted), -1)
    others = as_array(candidates, "candidates", np.ndim(candidates)).reshape(len(candidates), -1)
    if queries.shape[1] != others.shape[1]:
        raise UserError(f"predicted: rows of {queries.shape[1]} numbers; expected {others.shape[1]}, as the "
                        "candidates have")
    if len(others) < k:
        raise UserError(f"candidates: {len(others)} rows; expected at least {k}")
    return np.argsort(-cosine(queries, others), axis=1, kind="stable")[:, :k]


def _tokens(predicted, target) -> tuple[np.ndarray, np.ndarray]:
    a, b = as_pair(predicted, target, ("predicted tokens", "target tokens"), 3)
    return a.reshape(len(a), -1), b.reshape(len(b), -1)
