"""The Pivot's Adaptive Projector: from image tokens into the joint image-text space (MindTuner)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class AdaptiveProjector(nn.Module):
    """One bias-free matrix applied to the mean over tokens; (n, T, D) -> (n, d), rows of unit length.

    Tuning aligns brain tokens with image tokens, so what is trained on images maps brains to text as well.
    """

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.matrix = nn.Linear(width, text_width, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.matrix(tokens.mean(dim=1)), dim=-1)
