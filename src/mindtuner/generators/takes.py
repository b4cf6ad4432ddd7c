"""Which of several pictures of the same brain to keep."""

from __future__ import annotations

import numpy as np

from mindtuner.decoding.recall import directions


def best_take(seen: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Of each image the take in which the tower sees most of what was decoded: int64 (n,).

    seen (takes, n, T, D), what the image tower says of the takes · wanted (n, T, D), the decoded tokens that all of them
    were painted from. By the cosine of the flattened tokens, as in retrieval; the first of equal takes.
    """
    target = directions(wanted)
    return np.stack([(directions(take) * target).sum(1) for take in seen]).argmax(0)
