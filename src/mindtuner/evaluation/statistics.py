"""Intervals and paired comparisons. Every function is deterministic in its seed.

The units that are resampled are test images, and where there are several, runs (seeds) and subjects. An interval of one
subject says nothing of how a method would do on other people.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import bootstrap

from mindtuner.errors import UserError
from mindtuner.evaluation.scores.inputs import as_array, as_pair

LEVELS = (2.5, 97.5)
PAIRS = 1000  # random pairings of a chance level
BATCH, CHUNK = 200, 500  # resamples, and sign flips, drawn at a time: their memory, and the processor's cache


def bootstrap_ci(values, seed: int, n_boot: int = 2000, of: Callable = np.mean) -> tuple[float, float]:
    """95 % percentile bootstrap interval of a mean over images, by SciPy.

    Parameters
    ----------
    values : array (n,)
        One value for each image.
    seed : int
    n_boot : int
        Resamples.
    of : callable
        What is taken of each resample, along an axis: ``np.mean``, ``np.median``.

    Returns
    -------
    low, high : float

    Raises
    ------
    UserError
        For NaN or an empty array.

    Examples
    --------
    >>> low, high = bootstrap_ci([0, 0, 1, 1, 1, 1], seed=0)
    >>> 0 <= low < 4 / 6 < high <= 1
    True
    """
    x = as_array(values, "values", 1).astype(np.float64)
    return _bootstrap(x, np.random.default_rng(seed), n_boot, of)


def paired_difference(a, b, seed: int, n_boot: int = 2000, n_flips: int = 4999) -> dict:
    """Compare two methods on the same images.

    Parameters
    ----------
    a, b : array (n,)
        Scores of either method; row k of both is of one image.
    seed : int
    n_boot : int
        Resamples of the interval.
    n_flips : int
        Random sign flips of the test, see ``sign_flips``.

    Returns
    -------
    dict
        ``mean`` of a - b; ``ci``, its 95 % interval [low, high]; ``p``, two-sided.

    Raises
    ------
    UserError
        For NaN or unequal lengths.

    Examples
    --------
    >>> found = paired_difference([0.4, 0.5, 0.6], [0.1, 0.2, 0.3], seed=0)
    >>> round(found["mean"], 6), found["p"]
    (0.3, 0.25)
    """
    x, y = as_pair(a, b, ("a", "b"), 1)
    difference = x.astype(np.float64) - y
    rng = np.random.default_rng(seed)
    ci = list(_bootstrap(difference, rng, n_boot))
    return {"mean": float(difference.mean()), "ci": ci, "p": _sign_flips(difference, rng, n_flips)}


def sign_flips(difference, seed: int, n_flips: int = 4999) -> float:
    """Two-sided p of a mean difference by permutation.

    Under the null each of the n, an image's difference say, is as likely to have the other sign. Where all 2**n flips are no
    more than ``n_flips`` + 1 they are gone through, and p is the share with a |mean| as large as the observed. Else p = (1 +
    number of ``n_flips`` random flips that have) / (1 + n_flips), which is never 0 (Phipson and Smyth 2010).

    Parameters
    ----------
    difference : array (n,)
    seed : int
    n_flips : int

    Returns
    -------
    float

    Raises
    ------
    UserError
        For NaN.

    Examples
    --------
    >>> sign_flips([1.0, 2.0, 3.0], seed=0)  # 2 of 8 flips are as large: none, and all
    0.25
    """
    return _sign_flips(as_array(difference, "difference", 1).astype(np.float64), np.random.default_rng(seed), n_flips)


def _sign_flips(difference: np.ndarray, rng: np.random.Generator, n_flips: int) -> float:
    n = len(difference)
    limit = abs(difference.sum()) - 1e-9 * np.abs(difference).sum()  # sums that differ only by rounding count as equal
    if n < 63 and 2**n <= n_flips + 1:
        signs = 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
        return float((np.abs(signs @ difference) >= limit).mean())
    extreme = 0
    for start in range(0, n_flips, CHUNK):
        signs = rng.choice([-1.0, 1.0], size=(min(CHUNK, n_flips - start), n))
        extreme += int((np.abs(signs @ difference) >= limit).sum())
    return (1 + extreme) / (1 + n_flips)


def holm(p: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of the p values of one family (Holm 1979).

    With k tests, the r-th smallest is multiplied by k - r + 1, made monotone and cut at 1. Rejecting those at most 0.05 keeps
    the chance of any false rejection at most 0.05, however the tests depend on each other.

    Parameters
    ----------
    p : sequence of k float

    Returns
    -------
    list of k float

    Examples
    --------
    >>> holm([0.01, 0.04, 0.5])
    [0.03, 0.08, 0.5]
    """
    order = np.argsort(p, kind="stable")
    steps = np.asarray(p, float)[order] * np.arange(len(order), 0, -1)
    adjusted = np.empty(len(order))
    adjusted[order] = np.minimum(1, np.maximum.accumulate(steps))
    return adjusted.tolist()


def over_seeds(values, seed: int, n_boot: int = 2000) -> dict:
    """Spread of a score over several runs on the same images.

    Parameters
    ----------
    values : array (S, n)
        S >= 2 runs (seeds), n images.
    seed : int
    n_boot : int

    Returns
    -------
    dict
        ``mean``; ``sd``, standard deviation (ddof 1) of the S per-run means; ``ci`` [low, high], the 95 % interval of
        ``over_subjects`` for the one subject; ``seeds``, S.

    Raises
    ------
    UserError
        For NaN or fewer than two runs.

    Examples
    --------
    >>> found = over_seeds([[0.1, 0.3, 0.5], [0.2, 0.4, 0.6]], seed=0)
    >>> round(found["mean"], 2), round(found["sd"], 3), found["seeds"]
    (0.35, 0.071, 2)
    """
    x = as_array(values, "values", 2).astype(np.float64)
    if len(x) < 2:
        raise UserError("values: 1 run; expected at least 2 seeds to measure a spread")
    return {
        "mean": float(x.mean()),
        "sd": float(x.mean(1).std(ddof=1)),
        "ci": _crossed_interval([x], seed, n_boot),
        "seeds": len(x),
    }


def over_subjects(values: Sequence, seed: int, n_boot: int = 2000) -> dict:
    """Spread of a score over several subjects, all on the same images.

    The interval is a bootstrap: subjects are resampled, within each subject drawn its runs, and images once for all of them.
    Subjects and runs saw the same images, so these are crossed with them and not nested in them: drawn anew within each
    subject, the share of a difference that belongs to the image would average out over subjects, and the interval would be
    too narrow (tests/unit/evaluation/test_statistics.py shows both).

    Parameters
    ----------
    values : sequence of G >= 2 arrays (S_g, n)
        One for each subject, one row a run of the subject, n images.
    seed : int
    n_boot : int

    Returns
    -------
    dict
        ``mean``, which weighs subjects equally whatever their numbers of runs; ``sd``, standard deviation (ddof 1) of the
        subjects' means; ``sd_seeds``, that of runs within a subject, pooled over the subjects that have several, None where
        none has; ``ci`` [low, high], 95 % interval of the mean; ``subjects``, G.

    Raises
    ------
    UserError
        For NaN, fewer than two subjects, or unequal numbers of images.

    Examples
    --------
    >>> found = over_subjects([[[0.1, 0.3]], [[0.3, 0.5]]], seed=0)
    >>> round(found["mean"], 2), found["subjects"], found["sd_seeds"]
    (0.3, 2, None)
    """
    groups = [as_array(x, f"values[{g}]", 2).astype(np.float64) for g, x in enumerate(values)]
    if len(groups) < 2:
        raise UserError(f"values: {len(groups)} subject; expected at least 2 to measure a spread")
    for g, x in enumerate(groups):
        if x.shape[1] != groups[0].shape[1]:
            raise UserError(f"values[{g}]: has {x.shape[1]} images; expected {groups[0].shape[1]}, as the first has")
    means = np.array([x.mean() for x in groups])
    several = [x.mean(1) for x in groups if len(x) > 1]
    pooled = (
        np.sqrt(sum(((m - m.mean()) ** 2).sum() for m in several) / sum(len(m) - 1 for m in several)) if several else None
    )
    return {
        "mean": float(means.mean()),
        "sd": float(means.std(ddof=1)),
        "sd_seeds": None if pooled is None else float(pooled),
        "ci": _crossed_interval(groups, seed, n_boot),
        "subjects": len(groups),
    }


def _crossed_interval(groups: list[np.ndarray], seed: int, n_boot: int) -> list[float]:
    """See ``over_subjects``; ``groups`` (S_g, n) each. With one group, runs and images are resampled."""
    rng = np.random.default_rng(seed)
    count, images = len(groups), groups[0].shape[1]
    means = []
    for start in range(0, n_boot, CHUNK):
        size = min(CHUNK, n_boot - start)
        times = rng.multinomial(count, np.full(count, 1 / count), size=size) if count > 1 else np.ones((size, 1), int)
        total = np.zeros((size, images))
        for g, x in enumerate(groups):
            # A subject drawn k times has its runs drawn k times, independently: k * S draws in all.
            runs = rng.multinomial(times[:, g] * len(x), np.full(len(x), 1 / len(x)))
            total += runs @ x / len(x)
        shown = rng.multinomial(images, np.full(images, 1 / images), size=size)
        means.append((total * shown).sum(1) / (count * images))
    return list(_interval(np.concatenate(means)))


def over_folds(values: Sequence, seed: int, n_boot: int = 2000) -> list[float]:
    """95 % interval of a mean over images that were tested in folds, each by a fit of its own.

    Folds are resampled, and within each fold drawn its images. What the images of a fold share, a fit and its candidates, so
    counts once for each fold. With one fold its images alone are resampled. The interval of a cross-validated score by images
    alone is too narrow (Bates, Hastie and Tibshirani 2023); this one is rather too wide where folds are few and alike.

    Parameters
    ----------
    values : sequence of K arrays (n_k,)
        One value for each image, by fold; NaN where it is undefined.
    seed : int
    n_boot : int

    Returns
    -------
    list of float
        [low, high]

    Examples
    --------
    >>> low, high = over_folds([[0, 0, 1, 1], [1, 1, 1, 0]], seed=0)
    >>> 0 <= low < 5 / 8 < high <= 1
    True
    """
    folds = [x[~np.isnan(x)] for x in (np.asarray(value, np.float64) for value in values)]
    folds = [x for x in folds if len(x)]
    if not folds:
        raise UserError("values: no image has one; expected images whose score is defined")
    rng, count = np.random.default_rng(seed), len(folds)
    times = rng.multinomial(count, np.full(count, 1 / count), size=n_boot)
    total = sum(
        rng.multinomial(times[:, k] * len(x), np.full(len(x), 1 / len(x))) @ x for k, x in enumerate(folds)
    )  # a fold drawn k times has its images drawn k times
    return list(_interval(total / (times @ np.array([len(x) for x in folds]))))


def paired_over_seeds(a, b, seed: int, n_boot: int = 2000) -> dict:
    """``over_seeds`` of a - b: the same S seeds and n images under two methods.

    Parameters
    ----------
    a, b : array (S, n)
    seed : int
    n_boot : int

    Returns
    -------
    dict
        As ``over_seeds``.

    Raises
    ------
    UserError
        As ``over_seeds``, and for unequal shapes.

    Examples
    --------
    >>> round(paired_over_seeds([[0.2, 0.4], [0.4, 0.6]], [[0.1, 0.3], [0.1, 0.3]], seed=0)["mean"], 2)
    0.2
    """
    x, y = as_pair(a, b, ("a", "b"), 2)
    return over_seeds(x - y, seed, n_boot)


def random_pairs(images: int, seed: int, pairs: int = PAIRS) -> tuple[np.ndarray, np.ndarray]:
    """Random pairs of unlike positions, drawn with replacement.

    A score that has no analytic chance level has its mean over these.

    Parameters
    ----------
    images : int
    seed : int
        With the number of images it decides the pairs, so every method meets the same ones.
    pairs : int

    Returns
    -------
    i, j : array, int64 (pairs,), i != j

    Raises
    ------
    UserError
        For fewer than 2 images.

    Examples
    --------
    >>> i, j = random_pairs(5, seed=0, pairs=100)
    >>> bool((i != j).all()), i.shape
    (True, (100,))
    """
    if images < 2:
        raise UserError(f"images: {images} to score; expected at least 2 to draw wrong pairs from")
    rng = np.random.default_rng(seed)
    i = rng.integers(images, size=pairs)
    return i, (i + rng.integers(1, images, size=pairs)) % images


def _bootstrap(x: np.ndarray, rng: np.random.Generator, n_boot: int, of: Callable = np.mean) -> tuple[float, float]:
    if len(x) == 1:  # of which SciPy makes no interval
        return float(x[0]), float(x[0])
    found = bootstrap((x,), of, n_resamples=n_boot, batch=BATCH, method="percentile", rng=rng).confidence_interval
    return float(found.low), float(found.high)


def _interval(means: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(means, LEVELS)
    return float(low), float(high)
