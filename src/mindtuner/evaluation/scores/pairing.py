"""Random pairings: the chance level of a score that has no analytic one."""

from __future__ import annotations

import numpy as np

from mindtuner.errors import UserError

PAIRS = 1000


def random_pairs(images: int, seed: int, pairs: int = PAIRS) -> tuple[np.ndarray, np.ndarray]:
    """``pairs`` random pairs of unlike positions i != j among ``images``: two int64 (pairs,).

    Drawn with replacement; they depend on the seed and the number of images alone, so every method meets the same ones.
    Raises UserError for fewer than 2 images.
    """
    if images < 2:
        raise UserError(f"images: {images} to score; expected at least 2 to draw wrong pairs from")
    rng = np.random.default_rng(seed)
    i = rng.integers(images, size=pairs)
    return i, (i + rng.integers(1, images, size=pairs)) % images
