"""Rows of a file of 16-bit floats that may be far larger than memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from mindtuner.data.lazy import FileRows


class HalfRows:
    """Features of all stimuli, (N, *shape) bfloat16 or float16, of which only the rows asked for are ever read.

    ``rows(ids)`` gives them as they are stored, ``self[ids]`` as float32, which holds every one of these numbers exactly;
    NumPy has no bfloat16.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str):
        self.shape, self.dtype = tuple(shape), getattr(torch, dtype)
        self._bits = FileRows(path, shape, np.int16)

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, ids) -> torch.Tensor:
        """Rows (n, *shape) of stimulus ids (n,), in the order asked for; an id may come twice.

        Raises UserError where the file ends early or cannot be read, IndexError where an id is out of range.
        """
        return torch.from_numpy(self._bits[ids]).view(self.dtype)

    def __getitem__(self, index) -> np.ndarray:
        """float32, of whatever picks rows of an array: a number, a slice, ids, a mask (N,)."""
        return self.rows(index).float().numpy()
