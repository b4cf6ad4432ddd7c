"""Inputs as the scores want them: NumPy, finite, of the expected number of axes; pictures in 0..1 or uint8."""

from __future__ import annotations

import numpy as np
import torch

from mindtuner.errors import UserError

# Similarities closer than this are equal: float32 embeddings of one text differ that much by batch.
TIE = 1e-6


def as_array(value, name: str, axes: int) -> np.ndarray:
    """``value`` (tensor or array) as a floating NumPy array with ``axes`` axes, at least one row, no NaN.

    Raises UserError naming ``name`` where it is anything else.
    """
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().float().numpy()
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise UserError(f"{name}: holds {array.dtype}; expected numbers")
    if array.ndim != axes or array.size == 0:
        raise UserError(f"{name}: has shape {array.shape}; expected {axes} axes and at least one row")
    if array.dtype.kind != "f" or array.dtype.itemsize < 4:
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.float64)
    if not np.isfinite(array).all():
        raise UserError(f"{name}: holds NaN or infinite values; expected finite numbers")
    return array


def as_pair(first, second, names: tuple[str, str], axes: int) -> tuple[np.ndarray, np.ndarray]:
    """Two arrays of the same shape, row i of one belonging to row i of the other. Raises UserError."""
    a, b = as_array(first, names[0], axes), as_array(second, names[1], axes)
    if a.shape != b.shape:
        raise UserError(f"{names[0]}: has shape {a.shape}; expected that of {names[1]}, {b.shape}")
    return a, b


def as_images(images, name: str) -> np.ndarray:
    """Checked images (n, 3, H, W): uint8, or floating and in 0..1.

    Raises UserError for another shape, NaN, or values outside 0..1.
    """
    array = images if isinstance(images, np.ndarray) and images.dtype == np.uint8 else as_array(images, name, 4)
    if array.ndim != 4 or array.shape[1] != 3 or array.size == 0:
        raise UserError(f"{name}: has shape {array.shape}; expected (n, 3, H, W)")
    if array.dtype != np.uint8 and (array.min() < -1e-4 or array.max() > 1 + 1e-4):
        raise UserError(f"{name}: values from {array.min():.3g} to {array.max():.3g}; expected 0 to 1")
    return array
