"""The low-level submodule: hidden features -> a blurry picture as VAE latents, and contrastive features (MindEye2)."""

from __future__ import annotations

import math

import torch
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.upsampling import Upsample2D
from torch import nn

from mindtuner.config import ModelConfig
from mindtuner.model.parts import Dropout


class LowLevel(nn.Module):
    """``Linear(h -> C0 s s) -> Dropout .3 -> GroupNorm(1)``, then a CNN decoder and three 1 x 1 convolutions.

    ``s`` is ``lowlevel_side`` and ``C0`` half of the decoder's first width (paper: 64 and 128). The decoder is
    diffusers' VAE decoder with widths ``lowlevel_channels`` from coarse to fine; it doubles the side between two
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
        self.decoder = Decoder(
            in_channels=channels,
            out_channels=config.latent_channels,
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            block_out_channels=tuple(reversed(widths)),  # diffusers counts from fine to coarse
            layers_per_block=1,
            norm_num_groups=math.gcd(32, *widths),
        )
        if side * 2 ** len(widths) == config.latent_side:
            upsample = Upsample2D(widths[-1], use_conv=True, out_channels=widths[-1])
            self.decoder.up_blocks[-1].upsamplers = nn.ModuleList([upsample])
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
