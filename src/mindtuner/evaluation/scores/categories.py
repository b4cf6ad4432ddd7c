"""Which category was decoded of images whose captions are categories: accuracy, by category too, and confusions.

A decoder that always says one category gets all of its images right, and no other. So chance is what the same answers give
where each is judged by an image at random, of the same fold: the share of a category's images times that of its answers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mindtuner.evaluation.statistics import over_folds

PAIRINGS = 4999  # random ones, of p against chance


def category_block(seen: Sequence[str], decoded: Sequence[str], fold: np.ndarray, seed: int) -> dict:
    """Scores of the categories that a method decoded.

    Parameters
    ----------
    seen, decoded : sequence of n str
        The category of each test image, and the one decoded.
    fold : array, int (n,)
        Which images were decoded by one fit; zeros where all were.
    seed : int
        Of intervals and p.

    Returns
    -------
    dict
        ``names``, k categories; ``confusion``, k x k numbers of images, a row for each category seen and a column for each
        decoded; ``accuracy`` and ``balanced``, the mean of the categories' own accuracies, each with ``value``, ``ci95``
        (``over_folds``), ``chance`` and ``p``, one-sided, by random pairings of answers and images of a fold; and ``own``,
        for each category seen its ``images``, ``accuracy`` and ``chance``.

    Examples
    --------
    >>> found = category_block(["cat", "cat", "dog", "dog"], ["cat", "cat", "cat", "dog"], np.zeros(4, int), seed=0)
    >>> found["confusion"], found["accuracy"]["value"], found["accuracy"]["chance"]
    ([[2, 0], [1, 1]], 0.75, 0.5)
    >>> [own["chance"] for own in found["own"].values()]  # it says cat in three of four
    [0.75, 0.25]
    """
    names = sorted({*seen, *decoded})
    rows, columns = (np.array([names.index(name) for name in said]) for said in (seen, decoded))
    folds = [np.flatnonzero(fold == k) for k in np.unique(fold)]
    count = lambda which: np.bincount(which, minlength=len(names))
    expected = sum(count(rows[at]) * count(columns[at]) / len(at) for at in folds)  # hits, where answers are paired at random
    shown, hits = count(rows), count(rows[rows == columns])
    some = np.flatnonzero(shown)
    rng = np.random.default_rng(seed)
    drawn = np.zeros((PAIRINGS, len(names)))
    for at in folds:
        judged = rng.permuted(np.tile(rows[at], (PAIRINGS, 1)), axis=1)
        for k in some:
            drawn[:, k] += ((judged == k) & (columns[at] == k)).sum(1)
    weigh = {"accuracy": np.full(len(names), 1 / len(rows)), "balanced": 1 / np.maximum(shown, 1) / len(some)}
    return {
        "names": names,
        "confusion": np.bincount(rows * len(names) + columns, minlength=len(names) ** 2).reshape(len(names), -1).tolist(),
        **{
            kind: {
                "value": float(hits @ weight),
                "ci95": over_folds([(weight[rows] * len(rows) * (rows == columns))[f] for f in folds], seed),
                "chance": float(expected @ weight),
                "p": float((1 + (drawn @ weight >= hits @ weight - 1e-9).sum()) / (1 + PAIRINGS)),
            }
            for kind, weight in weigh.items()
        },
        "own": {
            names[k]: {
                "images": int(shown[k]),
                "accuracy": float(hits[k] / shown[k]),
                "chance": float(expected[k] / shown[k]),
            }
            for k in some
        },
    }
