"""How weights move: AdamW's groups, the learning rate, one step, the running average, and the number format."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from mindtuner import runtime
from mindtuner.config import FitConfig
from mindtuner.errors import UserError
from mindtuner.model import BrainNetwork
from mindtuner.training.checkpoint import Weights
from mindtuner.training.distributed import gather_shards, sharded


def parameter_groups(network: BrainNetwork, config: FitConfig) -> list[dict]:
    """Trainable parameters in three groups.

    They are ridge weights, other matrices, and (never decayed) biases and norm gains.
    """
    ridge, matrices, vectors = [], [], []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            chosen = vectors if parameter.ndim < 2 else ridge if name.startswith("ridges.") else matrices
            chosen.append(parameter)
    decays = (config.ridge_weight_decay, config.weight_decay, 0.0)
    return [
        {"params": group, "weight_decay": decay}
        for group, decay in zip((ridge, matrices, vectors), decays, strict=True)
        if group
    ]


def one_cycle(step: int, steps: int, lr: float, warmup: float) -> float:
    """Learning rate of step 0 .. steps - 1 (MindEye2 paper, training).

    It follows a cosine from lr/25 up to lr at share ``warmup`` of the steps, then cosine down to lr/25,000.
    """
    start, end = lr / 25, lr / 25_000
    peak, last = max(warmup * steps - 1, 0), steps - 1
    if step < peak:
        return lr + (start - lr) * (1 + math.cos(math.pi * step / peak)) / 2
    share = (step - peak) / max(1, last - peak)
    return end + (lr - end) * (1 + math.cos(math.pi * share)) / 2


def take_step(
    optimizer: torch.optim.Optimizer, scaler: torch.amp.GradScaler, parameters: list[nn.Parameter], lr: float, clip: float
) -> Tensor:
    """Step along the gradients that lie in ``parameters``, clipped to the norm ``clip``; returns the norm they had.

    In float16 a norm that is not finite means that the scaler leaves this step out and scales the next one lower; that
    is how it finds its scale, so the norm is given as 0.
    """
    scaler.unscale_(optimizer)
    norm = gather_shards(nn.utils.clip_grad_norm_(parameters, clip).detach())
    for group in optimizer.param_groups:
        group["lr"] = lr
    scaler.step(optimizer)
    scaler.update()
    return norm.nan_to_num(0.0, 0.0, 0.0) if scaler.is_enabled() else norm


def update_average(average: dict[str, Tensor], parameters: list[nn.Parameter], decay: float, step: int) -> None:
    """``average = d average + (1 - d) parameters`` after step 0, 1, ..., with d = min(decay, (1 + step) / (10 + step)).

    So it starts faster than it goes on. In place; only what trains is averaged.
    """
    keep = min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_(list(average.values()), [p.detach() for p in parameters], 1 - keep)


@contextlib.contextmanager
def exchanged(weights: Weights, others: Weights) -> Iterator[None]:
    """Inside the block ``weights`` hold the values of ``others``; where there are none, their own."""
    if not others:
        yield
        return
    own = weights.clone()
    weights.load_state_dict(others)
    try:
        yield
    finally:
        weights.load_state_dict(own)


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
