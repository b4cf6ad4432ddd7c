"""The number format of the products in a training, and of the frozen weights while it lasts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from mindtuner import runtime
from mindtuner.config import FitConfig
from mindtuner.errors import UserError
from mindtuner.model import BrainNetwork
from mindtuner.training.distributed import sharded


def number_format(config: FitConfig, device: torch.device) -> torch.dtype:
    """The dtype of the products. Raises UserError where ``device`` cannot train in it."""
    if config.dtype == "float16" and device.type == "cpu":
        raise UserError("dtype: float16 trains on a GPU only; expected float32, bfloat16 or auto on this machine")
    return runtime.fast_dtype() if config.dtype == "auto" else getattr(torch, config.dtype)


@contextlib.contextmanager
def frozen_in(dtype: torch.dtype, network: BrainNetwork) -> Iterator[None]:
    """Inside the block the frozen weights of Linears and convolutions are held in ``dtype``, afterwards as before.

    Autocast makes the same numbers of them, bit for bit, but anew at each use. The originals wait in the CPU's memory. Ridges
    stay as they are, since frozen ones are those of other subjects, and so do weights in shards, and everything where
    ``dtype`` is float32, which means no autocast.
    """
    layers = (
        ()
        if sharded() or dtype is torch.float32
        else [
            layer
            for name, part in network.named_children()
            if name != "ridges"
            for layer in part.modules()
            if isinstance(layer, nn.Linear | nn.Conv2d)
        ]
    )
    originals = {
        weight: (weight.data.cpu(), weight.device)
        for layer in layers
        for weight in layer.parameters(recurse=False)
        if not weight.requires_grad
    }
    for weight in originals:
        weight.data = weight.data.to(dtype)
    try:
        yield
    finally:
        for weight, (original, device) in originals.items():
            weight.data = original.to(device)
