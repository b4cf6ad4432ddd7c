"""What frozen towers of other people's weights share: how images come in, and the hash that tells weights apart."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mindtuner.runtime import device


def unit_images(images, side: int) -> torch.Tensor:
    """Images (n, 3, H, W), uint8 or float in 0..1 -> float32 (n, 3, side, side) in 0..1, on the device.

    Where the size differs: bilinear, with antialiasing. Raises ValueError where they are no RGB images.
    """
    # Memory maps may be read-only, so arrays are copied.
    images = images if isinstance(images, torch.Tensor) else torch.from_numpy(np.array(images))
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}; expected (n, 3, H, W)")
    scale = 255 if images.dtype == torch.uint8 else 1
    images = images.to(device()).float() / scale
    if images.shape[-2:] != (side, side):
        images = F.interpolate(images, (side, side), mode="bilinear", antialias=True, align_corners=False)
    return images


def weights_hash(network: nn.Module, without: tuple[str, ...] = ()) -> str:
    """16 hex digits over names, shapes and float32 values of a network's tensors, in whatever file they came.

    Tensors whose names begin with one of ``without`` do not count.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        if name.startswith(without):
            continue
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy())
    return digest.hexdigest()[:16]
