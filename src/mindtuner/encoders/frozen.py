"""What frozen towers of other people's weights share: reading a checkpoint, giving it to a network, telling it by a hash."""

from __future__ import annotations

import hashlib
import pickle
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from mindtuner.errors import UserError
from mindtuner.runtime import device

_DAMAGED = (RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, AssertionError, struct.error)


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


def weights_hash(network: nn.Module) -> str:
    """16 hex digits over names, shapes and float32 values of a network's tensors, in whatever file they came."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().float().contiguous().numpy())
    return digest.hexdigest()[:16]


def read_model(path: str | Path, field: str, expected: str) -> dict[str, torch.Tensor]:
    """The state dict under ``field`` of a file that ``torch.save`` wrote, mapped from disk where the format allows it.

    Only tensors and plain containers are read. ``expected`` says, for the errors, what the file should be.
    Raises UserError where it is missing, cut, holds code, or has no such field.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: not found; expected {expected}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); expected {expected}") from error
    except pickle.UnpicklingError as error:
        raise UserError(f"{path}: no file of tensors alone, and code in it is never run; expected {expected}") from error
    except _DAMAGED as error:
        raise UserError(f"{path}: not a whole checkpoint ({one_line(error)}); expected {expected}") from error
    if not isinstance(content, dict) or field not in content:
        there = ", ".join(map(str, list(content)[:4])) if isinstance(content, dict) else type(content).__name__
        raise UserError(f"{path}: key {field} is missing (it holds {there or 'nothing'}); expected {expected}")
    tensors = content[field]
    if not isinstance(tensors, dict) or not tensors:
        raise UserError(f"{path}: {field} is no state dict; expected {expected}")
    for key, tensor in tensors.items():
        if not isinstance(key, str) or not isinstance(tensor, torch.Tensor):
            raise UserError(f"{path}: {field} holds {key}, a {type(tensor).__name__}; expected {expected}")
    return tensors


def misfits(tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor]) -> Iterator[str]:
    """What keeps ``tensors`` from being those of a network with ``wanted`` ones: each key with what is wrong with it."""
    for key, tensor in wanted.items():
        if key not in tensors:
            yield f"key {key} is missing; expected shape {tuple(tensor.shape)}"
        elif tensors[key].shape != tensor.shape:
            yield f"{key} has shape {tuple(tensors[key].shape)}; expected {tuple(tensor.shape)}"
        elif not tensors[key].is_floating_point():
            yield f"{key} is of {tensors[key].dtype}; expected floating point"
    for key in tensors:
        if key not in wanted:
            yield f"key {key} is unknown; expected only those of the network"


def one_line(error: BaseException) -> str:
    """The message of somebody else's exception, short and in one line."""
    return " ".join(str(error).split())[:160] or type(error).__name__
