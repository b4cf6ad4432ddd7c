"""What all frozen towers share.

That is the cache of what each says of every stimulus, how images come in, and the hash that tells weights apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mindtuner.data import FileRows, HalfRows, Stimuli, build_cache
from mindtuner.data.cache import bytes_to_write
from mindtuner.runtime import to_device


@dataclass(frozen=True)
class Tower:
    """All that a cache needs to know of a tower.

    Parameters
    ----------
    name : str
        Of the cache.
    identity : dict
        JSON values that tell this tower with its settings from any other.
    shape : tuple of int
        Of one stimulus's features.
    dtype : NumPy dtype or "bfloat16"
    compute : callable
        Stimulus ids (n,) -> features (n, *shape), array or tensor, each row of its own stimulus alone.
    batch : int
        Stimuli computed at a time.
    """

    name: str
    identity: dict
    shape: tuple[int, ...]
    dtype: type | str
    compute: Callable[[np.ndarray], np.ndarray | torch.Tensor]
    batch: int = 64

    def build(self, folder: str | Path, stimuli: Stimuli) -> FileRows | HalfRows:
        """This tower's cache in ``folder``, computed where it is missing. Raises UserError as ``build_cache`` does."""
        return build_cache(
            folder,
            self.name,
            self.shape,
            self.dtype,
            self.identity,
            stimuli,
            self.compute,
            self.batch,
            self.name,
            inputs=lambda ids: ids,
        )

    def size(self, folder: str | Path, stimuli: Stimuli) -> tuple[int, int]:
        """Bytes of the cache, and how many of them the disk still has to give.

        Raises UserError where the cache in ``folder`` is of something else.
        """
        return bytes_to_write(folder, self.name, self.shape, self.dtype, self.identity, stimuli, self.batch)


def unit_images(images, side: int) -> torch.Tensor:
    """Images (n, 3, H, W), uint8 or float in 0..1 -> float32 (n, 3, side, side) in 0..1, on the device.

    Where the size differs: bilinear, with antialiasing. Raises ValueError where they are no RGB images.
    """
    # Memory maps may be read-only, so arrays are copied.
    images = images if isinstance(images, torch.Tensor) else torch.from_numpy(np.array(images))
    if images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images have shape {tuple(images.shape)}; expected (n, 3, H, W)")
    scale = 255 if images.dtype == torch.uint8 else 1
    images = to_device(images).float() / scale
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
