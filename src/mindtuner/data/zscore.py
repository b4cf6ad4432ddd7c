"""z-scoring with the statistics of training trials alone: of betas in memory, or as they are read, session by session."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mindtuner.data.lazy import LazyArray
from mindtuner.errors import UserError

Statistics = tuple[np.ndarray, np.ndarray]  # mean and sd of each voxel, (V,)
FEWEST = 2  # training trials that a session's own statistics need
BLOCK_BYTES = 32 * 2**20
LARGEST = 1e6  # of a beta: percent signal change, z-scores and scanner units stay far below
MEASURED = "a finite number of at most a million"
FLAT = 1e-7  # sd over |mean| below which single precision cannot tell a voxel from a constant


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


def refuse_absurd(betas: np.ndarray, rows: np.ndarray, where: str) -> None:
    """Raise UserError where one of ``betas`` (n, V), which are these ``rows`` (n,), is no measurement: see ``LARGEST``."""
    measured = np.abs(betas) <= LARGEST  # false of NaN too
    if not measured.all():
        at, voxel = np.argwhere(~measured)[0]
        raise UserError(f"{where}: betas row {rows[at]}, voxel {voxel} is {betas[at, voxel]:g}; expected {MEASURED}")


class SessionZScored:
    """``view[rows]`` is (betas - mean) / sd, float32 (n, V), of the session that each row belongs to.

    Mean and sd (over n, not n - 1) are those of the session's training trials. A session with fewer than two takes
    those of all training trials of the others (``pool``). A voxel that is
    constant over a session's training trials is 0 in that session. Statistics of a session are computed when one
    of its rows is first asked for, in one pass, and kept: two float64 (V,) per session.

    source : (rows, V) · session : int64 (rows,) · training : bool (rows,) · where : the file, for messages
    """

    def __init__(self, source: LazyArray, session: np.ndarray, training: np.ndarray, where: str):
        self._source, self._session, self._training, self._where = source, session, training, where
        self._known: dict[int, Statistics] = {}
        self.shape, self.dtype = source.shape, np.dtype(np.float32)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Betas of these rows, z-scored.

        Raises UserError where one of them, or a training trial of their sessions, holds a beta that is not finite or larger
        than any measurement, or where no session has two training trials.
        """
        out = np.empty((len(rows), self.shape[1]), np.float32)
        sessions = self._session[rows]
        for session in np.unique(sessions):
            mean, sd = self._statistics(int(session))
            inside = np.flatnonzero(sessions == session)
            for part in np.array_split(inside, 1 + len(inside) * self.shape[1] * 8 // BLOCK_BYTES):
                block = np.asarray(self._source[rows[part]], np.float64)
                refuse_absurd(block, rows[part], self._where)
                out[part] = (block - mean) / sd
        return out

    def _statistics(self, session: int) -> Statistics:
        if session not in self._known:
            rows = np.flatnonzero((self._session == session) & self._training)
            mean, sd = self._moments(rows) if len(rows) >= FEWEST else self.pooled()
            sd[sd <= FLAT * np.abs(mean)] = np.inf  # also where both are 0
            self._known[session] = mean, sd
        return self._known[session]

    def pooled(self) -> Statistics:
        """Mean and sd of all training trials, float64 (V,).

        Raises UserError where no session has two training trials, or a beta is not finite.
        """
        numbers, counts = np.unique(self._session[self._training], return_counts=True)
        numbers, counts = numbers[counts >= FEWEST], counts[counts >= FEWEST]
        if len(numbers) == 0:
            raise UserError(
                f"{self._where}: no session has {FEWEST} training trials, so there are no statistics to z-score "
                "with; expected some, or a dataset.json that says how the betas were z-scored"
            )
        return pool(
            counts.tolist(), [self._moments(np.flatnonzero((self._session == number) & self._training)) for number in numbers]
        )

    def _moments(self, rows: np.ndarray) -> Statistics:
        """Mean and sd over rows, each float64 (V,), block by block (Chan, Golub and LeVeque 1983)."""
        count, mean, squares = 0, np.zeros(self.shape[1]), np.zeros(self.shape[1])
        for part in np.array_split(rows, 1 + len(rows) * self.shape[1] * 8 // BLOCK_BYTES):
            block = np.asarray(self._source[part], np.float64)
            refuse_absurd(block, part, self._where)
            own = block.mean(axis=0)
            total = count + len(block)
            squares += ((block - own) ** 2).sum(axis=0) + (own - mean) ** 2 * (count * len(block) / total)
            mean += (own - mean) * (len(block) / total)
            count = total
        return mean, np.sqrt(squares / count)
