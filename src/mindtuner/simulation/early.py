"""What early visual cortex measures in an image, position by position: Gabor energy and colour-opponent contrast.

The decoder never sees these features. Gabor energy is the complex-cell model of Adelson and Bergen (1985):
the root of the summed squares of two Gabor filters in quadrature.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F

from mindtuner.errors import UserError

SIDE = 64  # pixels at which the finest Gabors look
GRID = 16  # the maps that are kept
SCALES, ORIENTATIONS = 3, 4
CHANNELS = SCALES * ORIENTATIONS + 6  # + luminance, red-green, blue-yellow, both signs of each
_BATCH = 64
# rows: luminance, red minus green, blue minus yellow
_OPPONENT = torch.tensor([[0.299, 0.587, 0.114], [0.5, -0.5, 0.0], [-0.25, -0.25, 0.5]])


def early_features(images: np.ndarray | torch.Tensor) -> np.ndarray:
    """Maps of early vision, float32 (n, 18, 16, 16), all >= 0.

    ``images`` are (n, 3, H, W) in 0..1, any float type. Channels 0-11 are Gabor energy, finest scale first
    and four orientations each (wavelengths 4, 8 and 16 of 64 pixels); 12-17 are brighter and darker than
    mid-grey, red, green, blue and yellow. An image's maps do not depend on the others in the batch.

    Raises UserError where the shape or the range is another.
    """
    if images.ndim != 4 or images.shape[1] != 3:
        raise UserError(f"images: shape {tuple(images.shape)}; expected (n, 3, H, W)")
    maps = np.empty((len(images), CHANNELS, GRID, GRID), np.float32)
    for start in range(0, len(images), _BATCH):
        batch = images[start : start + _BATCH]
        batch = torch.from_numpy(batch.astype(np.float32)) if isinstance(batch, np.ndarray) else batch.float()
        if not (batch.min() >= -1e-3 and batch.max() <= 1 + 1e-3):  # also refuses NaN
            raise UserError(f"images: values {batch.min():.3g} to {batch.max():.3g}; expected 0..1")
        maps[start : start + _BATCH] = _maps(batch).numpy()
    return maps


def _maps(images: torch.Tensor) -> torch.Tensor:
    small = F.interpolate(images, size=(SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    opponent = torch.einsum("oc,nchw->nohw", _OPPONENT, small)
    level, energies = opponent[:, :1], []
    for _ in range(SCALES):
        energies.append(F.adaptive_avg_pool2d(_gabor_energy(level), GRID))
        level = F.avg_pool2d(level, 2)
    contrast = F.adaptive_avg_pool2d(opponent - torch.tensor([0.5, 0.0, 0.0])[:, None, None], GRID)
    signs = torch.stack([contrast.relu(), (-contrast).relu()], 2).flatten(1, 2)
    return torch.cat([*energies, signs], 1)


def _gabor_energy(luminance: torch.Tensor) -> torch.Tensor:
    """(n, 1, s, s) -> (n, 4, s, s). Edges are mirrored, so that a picture's frame is no contour."""
    response = F.conv2d(F.pad(luminance, (4, 4, 4, 4), mode="reflect"), _gabors())
    even, odd = response[:, :ORIENTATIONS], response[:, ORIENTATIONS:]
    return (even**2 + odd**2).sqrt()


def _gabors() -> torch.Tensor:
    """Quadrature Gabors of 4 pixels' wavelength, (8, 1, 9, 9).

    Even ones come first, then odd ones; none sees uniform grey.
    """
    y, x = torch.meshgrid(torch.arange(-4.0, 5), torch.arange(-4.0, 5), indexing="ij")
    angles = torch.arange(ORIENTATIONS)[:, None, None] * math.pi / ORIENTATIONS
    phase = 2 * math.pi / 4 * (x * angles.cos() + y * angles.sin())
    envelope = torch.exp(-(x**2 + y**2) / (2 * 1.7**2))
    even = envelope * (phase.cos() - (envelope * phase.cos()).sum((1, 2), keepdim=True) / envelope.sum())
    return torch.cat([even, envelope * phase.sin()])[:, None] / envelope.sum()
