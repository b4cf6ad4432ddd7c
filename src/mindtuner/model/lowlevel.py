"""The low-level submodule: hidden features -> a blurry picture as VAE latents, and contrastive features (MindEye2)."""

from __future__ import annotations

import math

import torch
from torch import nn

from mindtuner.config import ModelConfig
from mindtuner.model.latent_decoder import LatentDecoder
from mindtuner.model.parts import Dropout


class LowLevel(nn.Module):
    """``Linear(h -> C0 s s) -> Dropout .3 -> GroupNorm(1)``, then a CNN decoder and three 1 x 1 convolutions.

    ``s`` is ``lowlevel_side`` and ``C0`` half of the decoder's first width (paper: 64 and 128). The decoder has the form
    of diffusers' VAE decoder, with widths ``lowlevel_channels`` from coarse to fine; it doubles the side between two
    widths (paper: 7 -> 14 -> 28 over 128-64-32) and, where one more doubling is needed, once after the last.

    Raises ValueError where ``latent_side / lowlevel_side`` is not a power of two that the widths can reach, the first
    width is odd, or ``feature_positions`` is not ``lowlevel_side ** 2``.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        widths, side = config.lowlevel_channels, config.lowlevel_side
        self.map_shape = (widths[0] // 2, side, side)
        channels = self.map_shape[0]
        self.linear = nn.Linear(config.hidden, math.prod(self.map_shape))
        self.dropout = Dropout(0.3)
        self.norm = nn.GroupNorm(1, channels)
        self.decoder = LatentDecoder(
            channels,
            config.latent_channels,
            widths,
            math.gcd(32, *widths),
            double_last=side * 2 ** len(widths) == config.latent_side,
        )
        features = config.feature_width
        self.features = nn.Sequential(
            nn.Conv2d(channels, features, 1, bias=False),
            nn.GroupNorm(1, features),
            nn.ReLU(),
            nn.Conv2d(features, features, 1, bias=False),
            nn.GroupNorm(1, features),
            nn.ReLU(),
            nn.Conv2d(features, features, 1),
        )

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(n, h) -> latents (n, latent_channels, latent_side, latent_side), features (n, P, F) in row-major order."""
        coarse = self.norm(self.dropout(self.linear(x)).unflatten(1, self.map_shape))
        return self.decoder(coarse), self.features(coarse).flatten(2).transpose(1, 2)
