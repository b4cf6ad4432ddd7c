"""z-scoring of a session that has only begun."""

from __future__ import annotations

import numpy as np

from mindtuner.data.zscore import FLAT, Statistics

USUAL_TRIALS = 20.0  # for how many trials of the session the statistics of earlier sessions count


class RunningZScore:
    """z-scores each trial by the session so far, itself included, and by earlier sessions while it has few trials.

    With m trials' worth of earlier mean mu and sd sigma, and n trials x of this session, it takes mean and variance of all
    m + n together. Stimuli of a session that is still going on are not known to be training or test; so, unlike
    ``SessionZScored``, all trials count.

    Parameters
    ----------
    usual : pair of float64 (V,)
        Mean and sd of earlier sessions.
    weight : float
        m.

    Examples
    --------
    >>> z = RunningZScore((np.zeros(1), np.ones(1)), weight=1)
    >>> z(np.array([2.0]))  # mean of 0 and 2, sd of their mixture: (2 - 1) / sqrt(1.5)
    array([0.8164966], dtype=float32)
    """

    def __init__(self, usual: Statistics, weight: float = USUAL_TRIALS):
        self._mean, self._sd = (np.asarray(one, np.float64) for one in usual)
        self._weight = weight
        self.count, self.sums, self.squares = 0, np.zeros(len(self._mean)), np.zeros(len(self._mean))

    def __call__(self, betas: np.ndarray) -> np.ndarray:
        """Betas (V,) z-scored, float32; 0 in a voxel that has not varied. The trial counts from now on."""
        away = np.asarray(betas, np.float64) - self._mean  # small numbers, so that squares lose nothing
        self.count += 1
        self.sums += away
        self.squares += away**2
        whole = self._weight + self.count
        mean = self.sums / whole
        sd = np.sqrt(np.maximum((self._weight * self._sd**2 + self.squares) / whole - mean**2, 0))
        flat = sd <= FLAT * np.abs(self._mean + mean)
        return np.where(flat, 0, (away - mean) / np.where(flat, 1, sd)).astype(np.float32)
