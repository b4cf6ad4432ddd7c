"""What the encoding model sees of a picture: the scoring network's features, early ones with their place."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import numpy as np
import torch

from mindtuner.evaluation.scores.features import GRID, LITE2, Reader
from mindtuner.evaluation.scores.preparation import OURS, Choices, as_images
from mindtuner.towers.efficientnet import BATCH


class EncodingFeatures:
    """``EncodingFeatures()(images)``: float (n, 3, H, W) in 0..1 or uint8 -> float32 (n, 1664).

    Of EfficientNet-lite2 at 128 x 128, in two ``groups``: 24 early maps at 4 x 4 places, (24, 4, 4) flattened, for voxels
    that see a part of the picture; then the 1,280 pooled features of two-way identification, for voxels that care what is in
    it. No decoder is trained on this network. ``choices``: how pictures are prepared, as for the scores.
    """

    groups = (24 * GRID * GRID, 1280)
    width = sum(groups)

    def __init__(self, choices: Choices = OURS) -> None:
        self.reader = Reader([LITE2], choices)

    @torch.inference_mode()
    def __call__(self, images, batch: int = BATCH) -> np.ndarray:
        """Features of the images. Raises UserError for another shape, NaN, or values outside 0..1."""
        pixels = as_images(images, "images")
        found = [joined(self.reader(pixels[start : start + batch])) for start in range(0, len(pixels), batch)]
        return np.concatenate(found) if found else np.empty((0, self.width), np.float32)


class Kept:
    """Features of the pictures that two-way identification looks at anyway, so that the network need not run again.

    ``keep(key, features)`` takes what it found of some pictures of a set, in order; ``kept[key]`` is float32 (n, 1664).
    """

    def __init__(self) -> None:
        self.parts: dict[Hashable, list[np.ndarray]] = {}

    def keep(self, key: Hashable, features: Mapping[str, torch.Tensor]) -> None:
        if "places" in features:
            self.parts.setdefault(key, []).append(joined(features))

    def __getitem__(self, key: Hashable) -> np.ndarray:
        return np.concatenate(self.parts[key])


def joined(features: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Both groups side by side, float32 (n, 1664)."""
    return torch.cat([features["places"].flatten(1), features["two_way"]], 1).cpu().numpy()
