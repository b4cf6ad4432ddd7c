"""Retrieval by cosine similarity: which of n candidates is most like the query.

Directions as in the MindEye2 paper: *image* retrieval goes from brain to image, *brain* retrieval from image
to brain. The MindTuner paper adds *text* retrieval, from brain to text. All n test images are candidates at
once; ``pools`` says from that what smaller sets of candidates give, such as the published 300.

Ties count 1/k: a query whose true candidate shares the highest similarity with k - 1 others scores 1/k. With
it the chance level is 1/n whatever duplicates there are: if the top is shared by k candidates, a true
candidate placed at random is among them with probability k/n and then scores 1/k.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.stats import hypergeom, rankdata

from mindtuner.errors import UserError
from mindtuner.evaluation.scores.inputs import TIE, as_array, as_pair
from mindtuner.evaluation.statistics import bootstrap_ci

PAIRINGS = 999  # random ones, of p against chance
POOL, SUBSETS, TOP = 300, 30, (1, 5)  # the published evaluation: 30 random subsets of 300 images
COLUMNS = 32768  # columns turned to float64 at a time, so that full-size tokens never exist twice in memory


class Retrieval(NamedTuple):
    """Scores of each of n queries among n candidates."""

    top1: np.ndarray  # float64 (n,): 1 for a hit, 1/k for a k-fold tie at the top, else 0
    ranks: np.ndarray  # float64 (n,): 1 is best; the middle rank where candidates tie
    ahead: np.ndarray  # bool (n, n): candidate j is more like query i than the true one
    tied: np.ndarray  # bool (n, n): candidate j, not the true one itself, is as like
    similarity: np.ndarray  # (n, n): of which these were told

    @property
    def two_way(self) -> np.ndarray:
        """2AFC, float64 (n,): the share of the other candidates that are less like the query than the true one.

        Ties count half, so that chance is 0.5; times 100 it is the percentile rank. NaN where there is no other.
        """
        others = self.ahead.shape[1] - 1
        return (others + 1 - self.ranks) / others if others else np.full(len(self.ranks), np.nan)


def cosine(queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """Cosine similarities of rows; a zero row has similarity 0 to all.

    Parameters
    ----------
    queries : array (n, width)
    candidates : array (m, width)

    Returns
    -------
    array, float64 (n, m)

    Examples
    --------
    >>> cosine(np.array([[1.0, 0.0]]), np.array([[2.0, 0.0], [0.0, 3.0], [0.0, 0.0]]))
    array([[1., 0., 0.]])
    """
    dot = np.zeros((len(queries), len(candidates)))
    square_q, square_c = np.zeros(len(queries)), np.zeros(len(candidates))
    for start in range(0, queries.shape[1], COLUMNS):
        q = queries[:, start : start + COLUMNS].astype(np.float64)
        c = candidates[:, start : start + COLUMNS].astype(np.float64)
        dot += q @ c.T
        square_q += (q * q).sum(1)
        square_c += (c * c).sum(1)
    norms = np.sqrt(square_q)[:, None] * np.sqrt(square_c)[None, :]
    return np.divide(dot, norms, out=np.zeros_like(dot), where=norms > 0)


def score(similarity: np.ndarray, correct: np.ndarray) -> Retrieval:
    """Scores from similarities (n, m), where ``correct`` (n,) gives each query's true candidate."""
    every = np.arange(len(similarity))
    own = similarity[every, correct][:, None]
    ahead, tied = similarity > own + TIE, np.abs(similarity - own) <= TIE
    tied[every, correct] = False
    above, equal = ahead.sum(1), tied.sum(1)
    return Retrieval(top_k(above, equal, 1), 1.0 + above + equal / 2, ahead, tied, similarity)


def p_against_chance(similarity: np.ndarray, seed: int, pairings: int = PAIRINGS) -> float:
    """One-sided p of the mean rank of the true candidates by permutation.

    Under the null it does not matter which candidate is which query's own. p is (1 + number of random pairings whose mean
    rank is as good) / (1 + pairings) (Phipson and Smyth 2010).

    Parameters
    ----------
    similarity : array (n, n)
        Row k's true candidate is column k.
    seed : int
    pairings : int

    Returns
    -------
    float

    Examples
    --------
    >>> p_against_chance(np.eye(8), seed=0), p_against_chance(np.zeros((8, 8)), seed=0)
    (0.001, 1.0)
    """
    n, rng = len(similarity), np.random.default_rng(seed)
    ranks = rankdata(-np.round(similarity / TIE), axis=1)
    rows = np.arange(n)
    drawn = [ranks[rows, rng.permutation(n)].sum() for _ in range(pairings)]
    return float((1 + (np.array(drawn) <= ranks[rows, rows].sum() + 1e-9).sum()) / (1 + pairings))


def top_k(ahead, tied, k: int) -> np.ndarray:
    """Probability of the true candidate to be among the first k.

    ``ahead`` others are more like the query and ``tied`` as like, in random order: (k - ahead) / (1 + tied), kept within 0
    and 1. For k = 1, 1/(1 + tied) or 0.
    """
    return np.clip((k - np.asarray(ahead)) / (1.0 + np.asarray(tied)), 0, 1)


def expected_top_k(ahead, tied, n: int, pool: int, k: int) -> np.ndarray:
    """The mean of ``top_k`` over all sets of ``pool`` out of n candidates that hold the true one, exact.

    Ordered with ties broken at random, a + u of the other n - 1 candidates stand before the true one, u uniform on
    0..tied. Of these, a set that takes pool - 1 of the n - 1 holds a hypergeometric number H(n - 1, a + u, pool - 1), and
    the true one is among the first k where H < k. So the answer is the mean over u of P(H <= k - 1).

    Parameters
    ----------
    ahead, tied : array, int (q,)
        For each query how many of all others are more like it than the true one, and as like.
    n, pool, k : int

    Returns
    -------
    array, float64 (q,)

    Examples
    --------
    >>> expected_top_k([0, 1], [0, 0], n=3, pool=2, k=1)  # the one that is ahead is in half of the sets
    array([1. , 0.5])
    """
    positions = np.arange(n)
    reached = hypergeom.cdf(k - 1, n - 1, positions, pool - 1)  # by the number before the true one
    summed = np.concatenate([[0.0], np.cumsum(reached)])
    ahead, tied = np.asarray(ahead), np.asarray(tied)
    return (summed[ahead + tied + 1] - summed[ahead]) / (tied + 1)


def pools(found: Retrieval, pool: int, seed: int) -> list[dict]:
    """Retrieval among all n candidates and, where there are more than ``pool``, among random sets of that many.

    One entry a size: {"pool", "top1", "top5", "median_rank", "ci95": {of each of the three [low, high]}}, intervals being
    over the queries, whose candidates stay. The first has "two_way" too, which is the same for any size, and "p", by
    ``p_against_chance``. And of a smaller one "subsets": mean and sd of the three over SUBSETS random
    subsets, in each of which queries and candidates are the subset's images, as published. There top1 and top5 are exact, the
    expectation over all subsets, and median_rank is the median over queries of the expected rank.
    """
    n, above, tied = len(found.ranks), found.ahead.sum(1), found.tied.sum(1)
    entries = [_entry(n, [top_k(above, tied, k) for k in TOP], found.ranks, seed)]
    if n > 1:
        entries[0]["two_way"], entries[0]["p"] = float(found.two_way.mean()), p_against_chance(found.similarity, seed)
        entries[0]["ci95"]["two_way"] = list(bootstrap_ci(found.two_way, seed))
    if pool < n:
        share = (pool - 1) / (n - 1)  # of the others, how many a subset takes
        exact = _entry(pool, [expected_top_k(above, tied, n, pool, k) for k in TOP], 1 + (found.ranks - 1) * share, seed)
        drawn = np.array(_drawn(found, pool, seed))
        entries.append(
            {
                **exact,
                "subsets": {
                    "count": SUBSETS,
                    **{
                        name: {"mean": float(values.mean()), "sd": float(values.std(ddof=1))}
                        for name, values in zip(("top1", "top5", "median_rank"), drawn.T, strict=True)
                    },
                },
            }
        )
    return entries


def chance_of_pools(entries: list[dict]) -> list[dict]:
    """What guessing gives, for each of the sizes in ``pools``: exact."""
    return [
        {
            "pool": (size := entry["pool"]),
            "top1": 1 / size,
            "top5": min(5, size) / size,
            "median_rank": (size + 1) / 2,
            **({"two_way": 0.5} if "two_way" in entry else {}),
        }
        for entry in entries
    ]


def _drawn(found: Retrieval, pool: int, seed: int) -> list[tuple[float, float, float]]:
    rng = np.random.default_rng(seed)
    scores = []
    for _ in range(SUBSETS):
        chosen = rng.choice(len(found.ranks), pool, replace=False)
        above, tied = (table[np.ix_(chosen, chosen)].sum(1) for table in (found.ahead, found.tied))
        scores.append((*(top_k(above, tied, k).mean() for k in TOP), np.median(1 + above + tied / 2)))
    return scores


def _entry(pool: int, tops: list[np.ndarray], ranks: np.ndarray, seed: int) -> dict:
    by_name = {f"top{k}": top for k, top in zip(TOP, tops, strict=True)}
    return {
        "pool": pool,
        **{name: float(top.mean()) for name, top in by_name.items()},
        "median_rank": float(np.median(ranks)),
        "ci95": {
            **{name: list(bootstrap_ci(top, seed)) for name, top in by_name.items()},
            "median_rank": list(bootstrap_ci(ranks, seed, of=np.median)),
        },
    }


def image_retrieval(predicted_tokens, target_tokens) -> Retrieval:
    """Brain to image: query = tokens predicted from the brain, candidates = tokens of the n images.

    Similarity is the cosine of the flattened tokens (MindEye2 paper, retrieval).

    Parameters
    ----------
    predicted_tokens : array or tensor (n, T, D)
        Predicted from n brain patterns.
    target_tokens : array or tensor (n, T, D)
        Of the n images; row i of one belongs to row i of the other.

    Returns
    -------
    Retrieval

    Raises
    ------
    UserError
        For NaN or unequal shapes.

    Examples
    --------
    >>> tokens = np.random.default_rng(0).normal(size=(5, 2, 8))
    >>> image_retrieval(tokens, tokens).top1
    array([1., 1., 1., 1., 1.])
    """
    predicted, target = _tokens(predicted_tokens, target_tokens)
    return score(cosine(predicted, target), np.arange(len(predicted)))


def brain_retrieval(predicted_tokens, target_tokens) -> Retrieval:
    """Image to brain: query = tokens of an image, candidates = tokens predicted from the n brain patterns.

    Similarity is the cosine of the flattened tokens (MindEye2 paper, retrieval).

    Parameters
    ----------
    predicted_tokens : array or tensor (n, T, D)
        Predicted from n brain patterns.
    target_tokens : array or tensor (n, T, D)
        Of the n images; row i of one belongs to row i of the other.

    Returns
    -------
    Retrieval

    Raises
    ------
    UserError
        For NaN or unequal shapes.

    Examples
    --------
    >>> tokens = np.random.default_rng(0).normal(size=(5, 2, 8))
    >>> brain_retrieval(tokens, tokens).top1
    array([1., 1., 1., 1., 1.])
    """
    predicted, target = _tokens(predicted_tokens, target_tokens)
    return score(cosine(target, predicted), np.arange(len(predicted)))


def text_retrieval(predicted_text, candidate_texts) -> Retrieval:
    """Brain to text: query = text embedding predicted from the brain, candidates = the text of each of the n images.

    MindTuner paper, text retrieval.

    Parameters
    ----------
    predicted_text : array or tensor (n, d)
    candidate_texts : array or tensor (n, d)
        The normalised mean of each image's captions' embeddings. Images with one and the same text tie.

    Returns
    -------
    Retrieval

    Raises
    ------
    UserError
        For NaN or unequal shapes.

    Examples
    --------
    >>> text_retrieval(np.eye(2), np.ones((2, 2))).top1  # two images have one text
    array([0.5, 0.5])
    """
    predicted, target = as_pair(predicted_text, candidate_texts, ("predicted text", "candidate texts"), 2)
    return score(cosine(predicted, target), np.arange(len(predicted)))


def top5_ids(predicted, candidates, k: int = 5) -> np.ndarray:
    """Positions of the candidates most like each query, best first; ties keep the candidates' order.

    Parameters
    ----------
    predicted : array (n, ...)
    candidates : array (m, ...)
        Both are flattened; m need not be n.
    k : int

    Returns
    -------
    array, int64 (n, k)

    Raises
    ------
    UserError
        Where m < k, or rows are of unequal size.

    Examples
    --------
    >>> top5_ids(np.eye(3)[:1], np.eye(3)[[2, 0]], k=1)
    array([[1]])
    """
    if len(predicted) == 0:
        return np.empty((0, k), np.int64)
    queries = as_array(predicted, "predicted", np.ndim(predicted)).reshape(len(predicted), -1)
    others = as_array(candidates, "candidates", np.ndim(candidates)).reshape(len(candidates), -1)
    if queries.shape[1] != others.shape[1]:
        raise UserError(f"predicted: rows of {queries.shape[1]} numbers; expected {others.shape[1]}, as the candidates have")
    if len(others) < k:
        raise UserError(f"candidates: {len(others)} rows; expected at least {k}")
    return np.argsort(-cosine(queries, others), axis=1, kind="stable")[:, :k]


def _tokens(predicted, target) -> tuple[np.ndarray, np.ndarray]:
    a, b = as_pair(predicted, target, ("predicted tokens", "target tokens"), 3)
    return a.reshape(len(a), -1), b.reshape(len(b), -1)
