"""Folds for cross-validation, by image: the repeats of an image resemble each other, so they must not be parted."""

from __future__ import annotations

import numpy as np

from mindtuner.errors import UserError


def image_folds(images, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """``folds`` splits of rows into (fitted, left out), int64 positions; all rows of an image, by its id in images (n,),
    are on one side, and each row is left out once.

    Raises UserError for fewer images than folds.
    """
    images = np.asarray(images)
    distinct = np.unique(images)
    if len(distinct) < folds:
        raise UserError(f"images: {len(distinct)} to cross-validate over; expected at least {folds}")
    splits = []
    for out in np.array_split(np.random.default_rng(seed).permutation(distinct), folds):
        left = np.isin(images, out)
        splits.append((np.flatnonzero(~left), np.flatnonzero(left)))
    return splits
