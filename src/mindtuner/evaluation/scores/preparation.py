"""How pictures are brought to a size before they are scored: one place, because others differ exactly here.

The published evaluation resized tensors with torchvision 0.16, bilinear and without antialiasing (the default became the
other in 0.17), brought everything to 256 x 256 first, and took PixCorr and SSIM at 425 x 425. PUBLISHED does so. OURS
antialiases, resizes once, from the size that pictures come in, and takes PixCorr and SSIM at that size.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from mindtuner.evaluation.scores.inputs import as_images

HALF_POINT, LOST = "half", "lost"


@dataclass(frozen=True)
class Choices:
    """How pictures are prepared and scored.

    ``antialias``: when a picture is reduced · ``first_side``: every picture is brought to this side before anything else,
    None for no such step · ``pixel_side``: of PixCorr and SSIM, None for the side that pictures come in · ``ties``: of
    two-way identification, HALF_POINT or LOST
    """

    antialias: bool = True
    first_side: int | None = None
    pixel_side: int | None = None
    ties: str = HALF_POINT

    def described(self) -> dict:
        """Each choice in words, for the setting of a run."""
        return {
            "as_published": self == PUBLISHED,
            "resize": f"bilinear, {'with' if self.antialias else 'without'} antialiasing, the whole picture (no crop)",
            "first_brought_to": self.first_side,
            "pixel_side": self.pixel_side or "as the pictures come",
            "value_range": "0 to 1",
            "grey": "0.2125 R + 0.7154 G + 0.0721 B",
            "ssim_window": "Gaussian, sigma 1.5, 11 x 11, population covariance, places where it fits",
            "two_way_ties": {HALF_POINT: "half a point (within 1e-6)", LOST: "lost"}[self.ties],
        }


OURS = Choices()
PUBLISHED = Choices(antialias=False, first_side=256, pixel_side=425, ties=LOST)


def resize(images, side: int) -> np.ndarray:
    """Images (n, 3, H, W) as float32 (n, 3, side, side): bilinear with antialiasing, clipped to 0..1."""
    return prepare(as_images(images, "images"), side, OURS).clamp(0, 1).numpy()


def prepare(images: np.ndarray, side: int | None, choices: Choices) -> torch.Tensor:
    """Checked images (n, 3, H, W) as a float32 tensor (n, 3, side, side) of values 0..1, its own memory.

    Where ``side`` is None, they stay as large as they are.
    """
    sizes = [(wanted, wanted) for wanted in (choices.first_side, side) if wanted is not None]
    if len(images) > 1 and any(size != images.shape[-2:] for size in sizes):
        # one at a time, so that it stays in the processor's cache
        return torch.cat([prepare(images[k : k + 1], side, choices) for k in range(len(images))])
    pixels = torch.from_numpy(np.ascontiguousarray(images)).to(torch.float32, copy=True)
    if images.dtype == np.uint8:
        pixels /= 255
    planes = pixels.flatten(0, 1)[:, None]  # each channel for itself, which torch resizes twice as fast
    for size in sizes:
        if planes.shape[-2:] != size:
            planes = functional.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=choices.antialias)
    return planes.view(len(images), 3, *planes.shape[-2:])
