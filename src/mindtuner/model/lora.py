"""The two low-rank paths that make a subject's fingerprint: LoRA and Skip-LoRA (MindTuner)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


class LoRALinear(nn.Module):
    """A frozen Linear with a trainable low-rank update, ``y = W x + b + (alpha / r) B (A x)`` (Hu et al. 2021).

    ``A`` (r, in) starts random and ``B`` (out, r) at zero, so that tuning starts exactly at the pretrained function.

    Parameters
    ----------
    linear : Linear
        Its weights are frozen in place.
    rank : int
        r.
    alpha : float

    Raises
    ------
    ValueError
        Where the rank is below 1.

    Examples
    --------
    >>> linear = nn.Linear(4, 3)
    >>> x = torch.ones(2, 4)
    >>> torch.equal(LoRALinear(linear, rank=2, alpha=4)(x), linear(x))
    True
    """

    def __init__(self, linear: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.scale = _scale(rank, alpha)
        self.A = nn.Parameter(_random_factor(rank, linear.in_features).to(linear.weight))
        self.B = nn.Parameter(torch.zeros(linear.out_features, rank).to(linear.weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Inputs (..., in) -> (..., out), the Linear's output and the scaled low-rank update."""
        return self.linear(x) + self.scale * F.linear(F.linear(x, self.A), self.B)

    @torch.no_grad()
    def merge(self) -> nn.Linear:
        """A plain Linear of the same function: ``W + (alpha / r) B A``, same bias."""
        merged = nn.Linear(
            self.linear.in_features,
            self.linear.out_features,
            bias=self.linear.bias is not None,
            device=self.linear.weight.device,
            dtype=self.linear.weight.dtype,
        )
        merged.weight.copy_(self.linear.weight + self.scale * (self.B @ self.A))
        if self.linear.bias is not None:
            merged.bias.copy_(self.linear.bias)
        return merged


class SkipLoRA(nn.Module):
    """A path from the raw voxels past the network, ``GELU((alpha / r) B A V)`` (MindTuner paper, Skip-LoRA).

    The GELU stands after the product: the subject's own part of the code is not linear in the voxels. ``B`` starts at zero
    and GELU(0) = 0, so the path starts silent.

    Parameters
    ----------
    n_voxels : int
        V.
    out_features : int
        Width of what the path is added to.
    rank : int
    alpha : float

    Raises
    ------
    ValueError
        Where the rank is below 1.

    Examples
    --------
    >>> SkipLoRA(n_voxels=30, out_features=8, rank=2, alpha=4)(torch.ones(5, 30)).abs().max().item()
    0.0
    """

    def __init__(self, n_voxels: int, out_features: int, rank: int, alpha: float) -> None:
        super().__init__()
        self.scale = _scale(rank, alpha)
        self.A = nn.Parameter(_random_factor(rank, n_voxels))
        self.B = nn.Parameter(torch.zeros(out_features, rank))

    def forward(self, voxels: torch.Tensor) -> torch.Tensor:
        """Betas (n, V) -> what is added to hidden features, (n, out)."""
        return F.gelu(self.product(voxels))

    def product(self, voxels: torch.Tensor) -> torch.Tensor:
        """The linear part, before the GELU: ``(alpha / r) B A V``."""
        return self.scale * F.linear(F.linear(voxels, self.A), self.B)


def add_lora(module: nn.Module, rank: int, alpha: float) -> None:
    """Replace every Linear inside a module, at any depth, by a LoRALinear around it, in place.

    Parameters
    ----------
    module : Module
    rank : int
    alpha : float

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    >>> add_lora(network, rank=2, alpha=4)
    >>> type(network[0]).__name__
    'LoRALinear'
    """
    for name, child in list(module.named_children()):
        if isinstance(child, nn.Linear):
            setattr(module, name, LoRALinear(child, rank, alpha))
        else:
            add_lora(child, rank, alpha)


def merge_lora(module: nn.Module) -> None:
    """Undo ``add_lora`` without losing what was learned.

    Each LoRALinear becomes the plain Linear that it merges into, in place.

    Parameters
    ----------
    module : Module

    Examples
    --------
    >>> network = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    >>> add_lora(network, rank=2, alpha=4)
    >>> merge_lora(network)
    >>> type(network[0]).__name__
    'Linear'
    """
    for name, child in list(module.named_children()):
        if isinstance(child, LoRALinear):
            setattr(module, name, child.merge())
        else:
            merge_lora(child)


def _scale(rank: int, alpha: float) -> float:
    if rank < 1:
        raise ValueError(f"rank is {rank}; expected at least 1")
    return alpha / rank


def _random_factor(rank: int, in_features: int) -> torch.Tensor:
    """Uniform within 1 / sqrt(in), as a Linear starts, from the CPU's global generator whatever the device."""
    bound = 1 / math.sqrt(in_features)
    return torch.empty(rank, in_features).uniform_(-bound, bound)
