"""z-scoring with the statistics of training trials alone, whole or session by session."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

Statistics = tuple[np.ndarray, np.ndarray]  # mean and sd of each voxel, (V,)
FEWEST = 2  # training trials that a session's own statistics need


def zscore(betas: np.ndarray, session: np.ndarray, is_training: np.ndarray) -> np.ndarray:
    """Betas (n, V) z-scored per session, voxel by voxel, with mean and sd of that session's training trials.

    ``session`` (n,) is any number per trial, ``is_training`` (n,) bool. A session with fewer than two training trials uses
    the statistics of all training trials of the others. Where a voxel is constant over the training trials its z-scores
    are 0, see ``standardise``. Raises ValueError where no session has two.
    """
    numbers = np.unique(session)
    own = {
        number: mean_and_sd(betas[rows]) for number in numbers if (rows := (session == number) & is_training).sum() >= FEWEST
    }
    if len(own) < len(numbers):
        counts = [int(((session == number) & is_training).sum()) for number in own]
        pooled = pool(counts, list(own.values()))
        own = {number: own.get(number, pooled) for number in numbers}
    out = np.empty_like(betas)
    for number in numbers:
        out[session == number] = standardise(betas[session == number], *own[number])
    return out


def mean_and_sd(betas: np.ndarray) -> Statistics:
    """Mean and sd (divided by n) of each voxel of ``betas`` (n, V); the sd of a constant voxel is exactly 0."""
    constant = (betas == betas[0]).all(0)  # rounding of the mean would leave such a voxel a tiny sd instead
    return np.where(constant, betas[0], betas.mean(0)), np.where(constant, 0, betas.std(0))


def pool(counts: Sequence[int], statistics: Sequence[Statistics]) -> Statistics:
    """Mean and sd over the trials of several sessions together, from those of each and its number of trials.

    The variance is the mean variance within sessions plus the variance of their means, each weighted by trials.
    Raises ValueError where there is no session.
    """
    if not counts:
        raise ValueError("no session has training trials; there is nothing to z-score with")
    means, sds = (np.stack(parts) for parts in zip(*statistics, strict=True))
    mean = np.average(means, axis=0, weights=counts)
    sd = np.sqrt(np.average(sds**2 + (means - mean) ** 2, axis=0, weights=counts))
    constant = (sds == 0).all(0) & (means == means[0]).all(0)
    return np.where(constant, means[0], mean).astype(means.dtype), np.where(constant, 0, sd).astype(sds.dtype)


def standardise(betas: np.ndarray, mean: np.ndarray, sd: np.ndarray) -> np.ndarray:
    """(betas - mean) / sd of (n, V), and 0 in a voxel whose sd is 0.

    Such a voxel did not vary over the session's training trials (NSD writes zeros where the head moved out of the
    imaged volume), so there is no scale to divide by; 0, the session's mean, says that nothing is known.
    """
    constant = sd == 0
    out = (betas - mean) / np.where(constant, 1, sd).astype(sd.dtype)
    out[:, constant] = 0
    return out
