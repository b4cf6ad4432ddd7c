"""Rows of a file of 16-bit floats that may be far larger than memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch

from mindtuner.errors import UserError


class HalfRows:
    """Features of all stimuli, (N, *shape) bfloat16 or float16, of which only the rows asked for are ever read.

    ``rows(ids)`` gives them as they are stored, ``self[ids]`` as float32, which holds every one of these numbers exactly;
    NumPy has no bfloat16. Rows are read rather than mapped: one large read a row is quicker than a page fault for every few
    of its pages, a file that was cut is an error rather than a crash, and no page counts as this process's memory
    afterwards.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str):
        self.path, self.shape, self.dtype = path, tuple(shape), getattr(torch, dtype)
        self._file = open(path, "rb", buffering=0)  # reads name their offset, so threads may share it

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, ids) -> torch.Tensor:
        """Rows (n, *shape) of stimulus ids (n,), in the order asked for; an id may come twice.

        Raises UserError where the file ends early or cannot be read, IndexError where an id is out of range.
        """
        ids = np.arange(len(self))[np.asarray(ids)]
        # Ascending, which disks like best, and each once.
        ascending, places = np.unique(ids, return_inverse=True)
        bits = np.empty((len(ascending), *self.shape[1:]), np.int16)
        for row, number in zip(bits, ascending, strict=True):
            self._read(row, int(number))
        found = torch.from_numpy(bits).view(self.dtype)
        return found if np.array_equal(ascending, ids) else found[torch.from_numpy(places.reshape(ids.shape))]

    def __getitem__(self, index) -> np.ndarray:
        """float32, of whatever picks rows of an array: a number, a slice, ids, a mask (N,)."""
        ids = np.arange(len(self))[index]
        return self.rows(ids.reshape(-1)).float().numpy().reshape(*ids.shape, *self.shape[1:])

    def _read(self, row: np.ndarray, number: int) -> None:
        left, offset = memoryview(row).cast("B"), number * row.nbytes
        while left:
            try:
                read = os.preadv(self._file.fileno(), [left], offset)
            except OSError as error:
                raise UserError(f"{self.path}: row {number} cannot be read ({error.strerror}); expected a whole "
                                "file") from error
            if not read:
                raise UserError(f"{self.path}: ends within row {number}; expected {len(self)} rows")
            left, offset = left[read:], offset + read
