"""What hidden features to expect of an image: the base's memory of how the brains that it knows responded."""

from __future__ import annotations

import torch
from torch import nn


class ExpectedHidden(nn.Module):
    """E[x0 | image], linear in what the token head can say of the image's tokens Z (T, D):

        x0 = M Wᵀ (Z - b) + c        W (T·D, h), b: those of the token head

    No subject's voxels are in it, so it holds for a new one. Fitted once, when a base is trained, to the ridges' outputs for
    the training images of its subjects (``training.start.learn_expectation``); never by gradients.

    Buffers: matrix M (h, h); offset c (h,); spread, the variance of x0 over single trials, summed over features and averaged
    over subjects.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.zeros(hidden, hidden))
        self.register_buffer("offset", torch.zeros(hidden))
        self.register_buffer("spread", torch.zeros(()))

    def forward(self, tokens: torch.Tensor, head: nn.Linear) -> torch.Tensor:
        """Image tokens (n, T, D) and the base's token head (its Linear, without adapters) -> x0 (n, h)."""
        return nn.functional.linear(said_by_head(tokens, head), self.matrix, self.offset)


def said_by_head(tokens: torch.Tensor, head: nn.Linear) -> torch.Tensor:
    """Wᵀ (Z - b): image tokens (n, T, D) -> (n, h), all that a head of h inputs can tell of them."""
    return (tokens.flatten(1) - head.bias) @ head.weight
