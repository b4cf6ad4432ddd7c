"""Intervals and paired comparisons. Every function is deterministic in its seed.

The units that are resampled are test images (and tuning seeds). The simulated or scanned subject is one
subject, so no interval here says how a method would do on other people.
"""

from __future__ import annotations

import numpy as np

from mindtuner.errors import UserError
from mindtuner.evaluation.scores.arrays import as_array, as_pair

LEVELS = (2.5, 97.5)
CHUNK = 500  # resamples drawn at a time, to bound memory


def bootstrap_ci(values, seed: int, n_boot: int = 2000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the mean of ``values`` (n,), one value for each image.

    Raises UserError for NaN or an empty array.
    """
    x = as_array(values, "values", 1).astype(np.float64)
    return _interval(_resampled_means(x, np.random.default_rng(seed), n_boot))


def paired_difference(a, b, seed: int, n_boot: int = 2000, n_flips: int = 4999) -> dict:
    """Mean of a - b over the same images (both (n,)), its 95 % interval, and a two-sided p.

    p by sign-flip permutation: under the null each image's difference is as likely to have the other sign;
    p = (1 + number of flips with |mean| >= observed) / (1 + n_flips). Raises UserError for NaN or unequal
    lengths. Returns {"mean": float, "ci": [lo, hi], "p": float}.
    """
    x, y = as_pair(a, b, ("a", "b"), 1)
    difference = x.astype(np.float64) - y
    rng = np.random.default_rng(seed)
    low, high = _interval(_resampled_means(difference, rng, n_boot))
    observed = abs(difference.sum())
    slack = 1e-9 * np.abs(difference).sum()  # sums that differ only by rounding count as equal
    extreme = 0
    for start in range(0, n_flips, CHUNK):
        signs = rng.choice([-1.0, 1.0], size=(min(CHUNK, n_flips - start), len(difference)))
        extreme += int((np.abs(signs @ difference) >= observed - slack).sum())
    return {"mean": float(difference.mean()), "ci": [low, high], "p": (1 + extreme) / (1 + n_flips)}


def over_seeds(values, seed: int, n_boot: int = 2000) -> dict:
    """Spread of a score over S >= 2 runs on the same n images; ``values`` (S, n).

    ``sd`` is the standard deviation (ddof 1) of the S per-run means. ``ci`` is a 95 % bootstrap interval of
    the grand mean in which runs and images are resampled at once: images are the same in every run (crossed,
    not nested), so one draw of images serves all runs. Raises UserError for NaN or fewer than two runs.
    Returns {"mean": float, "sd": float, "ci": [lo, hi], "seeds": S}.
    """
    x = as_array(values, "values", 2).astype(np.float64)
    seeds, images = x.shape
    if seeds < 2:
        raise UserError("values: 1 run; expected at least 2 seeds to measure a spread")
    rng = np.random.default_rng(seed)
    means = []
    for start in range(0, n_boot, CHUNK):
        size = min(CHUNK, n_boot - start)
        runs = rng.multinomial(seeds, np.full(seeds, 1 / seeds), size=size)
        shown = rng.multinomial(images, np.full(images, 1 / images), size=size)
        means.append(((runs @ x) * shown).sum(1) / (seeds * images))
    low, high = _interval(np.concatenate(means))
    return {"mean": float(x.mean()), "sd": float(x.mean(1).std(ddof=1)), "ci": [low, high], "seeds": seeds}


def paired_over_seeds(a, b, seed: int, n_boot: int = 2000) -> dict:
    """``over_seeds`` of a - b, both (S, n): the same S seeds and n images under two methods."""
    x, y = as_pair(a, b, ("a", "b"), 2)
    return over_seeds(x - y, seed, n_boot)


def _resampled_means(x: np.ndarray, rng: np.random.Generator, n_boot: int) -> np.ndarray:
    means = [x[rng.integers(len(x), size=(min(CHUNK, n_boot - start), len(x)))].mean(1)
             for start in range(0, n_boot, CHUNK)]
    return np.concatenate(means)


def _interval(means: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(means, LEVELS)
    return float(low), float(high)
