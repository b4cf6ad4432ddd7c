"""An augmented view of an image, for the soft contrastive loss of the low-level submodule (MindEye2 paper)."""

from __future__ import annotations

import numpy as np
import torch
from torchvision.transforms import v2


class AugmentedView:
    """Crop of at least 0.9 of the area, colour jitter, grey (p .2) and solarisation (p .2).

    The view of a stimulus depends on its id alone, so a cache can be built in any order.
    """

    def __init__(self, side: int):
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(side, scale=(0.9, 1.0), ratio=(0.95, 1.05), antialias=True),
                v2.ColorJitter(0.4, 0.4, 0.2, 0.1),
                v2.RandomGrayscale(0.2),
                v2.RandomSolarize(128, 0.2),
            ]
        )

    def __call__(self, images: np.ndarray, ids: np.ndarray) -> torch.Tensor:
        """Images uint8 (n, 3, H, W) of stimuli ``ids`` (n,) -> uint8 (n, 3, side, side)."""
        views = []
        with torch.random.fork_rng(devices=[]):
            for image, number in zip(torch.from_numpy(np.asarray(images)), ids, strict=True):
                torch.manual_seed(int(number))
                views.append(self.transform(image))
        return torch.stack(views)
