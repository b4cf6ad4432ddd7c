"""Betas seen otherwise than they lie on disk, still read only when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from mindtuner.data.dataset import Rows


class Columns:
    """Some voxels of a subject's betas: ``view[rows]`` is (n, K) for int64 columns (K,)."""

    def __init__(self, source: Rows, columns: np.ndarray):
        self._source, self._columns = source, columns
        self.shape, self.dtype = (source.shape[0], len(columns)), source.dtype

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self._source[rows])[:, self._columns]


class RowMeans:
    """Means over groups of rows, in float64 on the way: ``view[groups]`` is float32 (n, V).

    groups : for each of the view's rows the rows of ``source`` that it averages, at least one
    """

    def __init__(self, source: Rows, groups: list[np.ndarray]):
        self._source, self._groups = source, groups
        self.shape, self.dtype = (len(groups), source.shape[1]), np.dtype(np.float32)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        if len(rows) == 0:
            return np.empty((0, self.shape[1]), np.float32)
        groups = [self._groups[row] for row in rows]
        counts = np.array([len(group) for group in groups])
        parts = np.asarray(self._source[np.concatenate(groups)])
        sums = np.add.reduceat(parts, np.cumsum(counts) - counts, axis=0, dtype=np.float64)
        return (sums / counts[:, None]).astype(np.float32)
