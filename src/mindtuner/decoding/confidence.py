"""How sure a brain may be of what it retrieves: similarities, and how often they were right on trials held out."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

SHARPEST = 1000.0  # similarities that differ by 0.01 are then told apart for certain


def fit_sharpness(similarity: np.ndarray, own: np.ndarray) -> float:
    """The sharpness b of ``Confidence``, by maximum likelihood on trials that were held out.

    Least  mean_i [ log sum_j exp(b s_ij) - b s_i,own(i) ],  which is convex in b.

    Parameters
    ----------
    similarity : array (n, m)
        Of n brains to the tokens of m images.
    own : array of int (n,)
        Position of the image that each brain saw.

    Returns
    -------
    float
        From 0, where similarity says nothing and all candidates are alike, to ``SHARPEST``.

    Notes
    -----
    Temperature scaling: Guo, Pleiss, Sun and Weinberger (2017), "On calibration of modern neural networks".

    Examples
    --------
    >>> similarity = np.array([[0.4, 0.2], [0.2, 0.4], [0.4, 0.2], [0.4, 0.2]])
    >>> b = fit_sharpness(similarity, np.array([0, 1, 0, 1]))  # right in 3 of 4
    >>> round(float(1 / (1 + np.exp(-0.2 * b))), 3)
    0.75
    """
    similarity = np.asarray(similarity, np.float64)
    right = similarity[np.arange(len(own)), own]

    def loss(b: float) -> float:
        return float((logsumexp(b * similarity, axis=1) - b * right).mean())

    return float(minimize_scalar(loss, bounds=(0.0, SHARPEST), method="bounded", options={"xatol": 1e-3}).x)
