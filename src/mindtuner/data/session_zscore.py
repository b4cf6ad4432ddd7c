"""Betas z-scored as they are read: per session, with the statistics of that session's training trials only."""

from __future__ import annotations

import numpy as np

from mindtuner.data.dataset import Rows
from mindtuner.data.zscore import FEWEST, Statistics, pool
from mindtuner.errors import UserError

BLOCK_BYTES = 32 * 2**20
FLAT = 1e-7  # sd over |mean| below which single precision cannot tell a voxel from a constant


class SessionZScored:
    """``view[rows]`` is (betas - mean) / sd, float32 (n, V), of the session that each row belongs to.

    Mean and sd (over n, not n - 1) are those of the session's training trials. A session with fewer than two takes
    those of all training trials of the others (``zscore.pool``). A voxel that is
    constant over a session's training trials is 0 in that session. Statistics of a session are computed when one
    of its rows is first asked for, in one pass, and kept: two float64 (V,) per session.

    source : (rows, V) · session : int64 (rows,) · training : bool (rows,) · where : the file, for messages
    """

    def __init__(self, source: Rows, session: np.ndarray, training: np.ndarray, where: str):
        self._source, self._session, self._training, self._where = source, session, training, where
        self._known: dict[int, Statistics] = {}
        self.shape, self.dtype = source.shape, np.dtype(np.float32)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Raises UserError where a training trial of the session holds a beta that is not finite, or where no session
        has two training trials."""
        out = np.empty((len(rows), self.shape[1]), np.float32)
        sessions = self._session[rows]
        for session in np.unique(sessions):
            mean, sd = self._statistics(int(session))
            inside = np.flatnonzero(sessions == session)
            for part in np.array_split(inside, 1 + len(inside) * self.shape[1] * 8 // BLOCK_BYTES):
                out[part] = (np.asarray(self._source[rows[part]], np.float64) - mean) / sd
        return out

    def _statistics(self, session: int) -> Statistics:
        if session not in self._known:
            rows = np.flatnonzero((self._session == session) & self._training)
            mean, sd = self._moments(rows) if len(rows) >= FEWEST else self._pooled()
            sd[sd <= FLAT * np.abs(mean)] = np.inf  # also where both are 0
            self._known[session] = mean, sd
        return self._known[session]

    def _pooled(self) -> Statistics:
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
            if not np.isfinite(block).all():
                at, voxel = np.argwhere(~np.isfinite(block))[0]
                raise UserError(
                    f"{self._where}: betas row {part[at]}, voxel {voxel} is {block[at, voxel]}; expected a finite number"
                )
            own = block.mean(axis=0)
            total = count + len(block)
            squares += ((block - own) ** 2).sum(axis=0) + (own - mean) ** 2 * (count * len(block) / total)
            mean += (own - mean) * (len(block) / total)
            count = total
        return mean, np.sqrt(squares / count)
