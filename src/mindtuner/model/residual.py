"""The shared path from hidden features to token spaces: residual blocks, token head, retrieval projector."""

from __future__ import annotations

import torch
from torch import nn

from mindtuner.model.parts import Dropout


class ResidualBlock(nn.Module):
    """``x + MLP(LN(x))`` with ``MLP = Linear(h, h) -> GELU -> Dropout -> Linear(h, h)``; (n, h) -> (n, h).

    MindEye2's published code follows such an MLP with a second one over a sequence of length 1. Its LayerNorm then
    sees a single number, so the first MLP never reaches the output and stays untrained. There is no second MLP here:
    every block takes part in the function and gets gradient. A ``silent`` block starts as the identity, its last Linear
    at zero: one that is put into a trained network changes nothing before it is trained.
    """

    def __init__(self, hidden: int, dropout: float, silent: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), Dropout(dropout), nn.Linear(hidden, hidden))
        if silent:
            nn.init.zeros_(self.mlp[-1].weight)
            nn.init.zeros_(self.mlp[-1].bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.mlp(self.norm(x))


class TokenHead(nn.Module):
    """One Linear, (n, h) -> (n, T * D): the backbone tokens, still flat so that a skip path can be added."""

    def __init__(self, hidden: int, tokens: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, tokens * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)


class RetrievalProjector(nn.Sequential):
    """Three times ``LN -> GELU -> Linear`` of one width; backbone tokens (n, T, D) -> retrieval tokens (n, T, D)."""

    def __init__(self, width: int) -> None:
        layers = [nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width)) for _ in range(3)]
        super().__init__(*layers)
