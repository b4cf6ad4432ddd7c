"""The low-level submodule: hidden features -> a blurry picture as VAE latents, and contrastive features (MindEye2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn

from mindtuner.config import ModelConfig
from mindtuner.model.backbone import Dropout

EPS = 1e-6


class LowLevel(nn.Module):
    """From hidden features to image latents and to the features of an image (MindEye2 paper, low-level submodule).

    ``Linear(h -> C0 s s) -> Dropout .3 -> GroupNorm(1)``, then a CNN decoder and three 1 x 1 convolutions.

    ``s`` is ``lowlevel_side`` and ``C0`` half of the decoder's first width (paper: 64 and 128). The decoder has the form of
    diffusers' VAE decoder, with widths ``lowlevel_channels`` from coarse to fine; it doubles the side between two widths
    (paper: 7 -> 14 -> 28 over 128-64-32) and, where one more doubling is needed, once after the last.

    Parameters
    ----------
    config : ModelConfig

    Examples
    --------
    >>> from mindtuner.config import load_config
    >>> config = load_config("quick").model
    >>> latents, features = LowLevel(config).eval()(torch.zeros(2, config.hidden))
    >>> latents.shape, features.shape
    (torch.Size([2, 8, 16, 16]), torch.Size([2, 16, 112]))
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


class LatentDecoder(nn.Module):
    """A convolutional decoder of latents in the form of Stable Diffusion's autoencoder, from diffusers' blocks.

    (n, in_channels, s, s) -> (n, out_channels, S, S). ``widths`` go from coarse to fine, two residual blocks each.

    The side doubles between two widths, S = s 2^(len(widths) - 1), and with ``double_last`` once more after the last.

    Weights have the names and shapes that they have in diffusers' ``Decoder``, so MindEye2's checkpoints fit. It is put
    together here because its module there imports every network of the library, and all that trains would wait for that.
    """

    def __init__(self, in_channels: int, out_channels: int, widths: Sequence[int], groups: int, double_last: bool) -> None:
        super().__init__()
        first, last = widths[0], widths[-1]
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.mid_block = _Middle(first, groups)
        self.up_blocks = nn.ModuleList(
            _Up(before, after, groups, upsample=number < len(widths) - 1)
            for number, (before, after) in enumerate(pairwise([first, *widths]))
        )
        self.conv_norm_out = nn.GroupNorm(groups, last, EPS)
        self.conv_out = nn.Conv2d(last, out_channels, 3, padding=1)
        if double_last:
            self.up_blocks[-1].upsamplers.append(_doubled(last))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Maps (n, in_channels, s, s) -> latents (n, out_channels, S, S), S being s doubled once for each doubling."""
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class _Middle(nn.Module):
    """A residual block, self-attention with one head over all places, and another residual block."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        before = _residual(width, width, groups)
        self.attentions = nn.ModuleList(
            [
                Attention(
                    width,
                    heads=1,
                    dim_head=width,
                    norm_num_groups=groups,
                    eps=EPS,
                    bias=True,
                    residual_connection=True,
                    upcast_softmax=True,
                )
            ]
        )
        self.resnets = nn.ModuleList([before, _residual(width, width, groups)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        before, after = self.resnets
        return after(self.attentions[0](before(x, None)), None)


class _Up(nn.Module):
    """Two residual blocks, and then perhaps twice the side."""

    def __init__(self, width_in: int, width: int, groups: int, upsample: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([_residual(width_in, width, groups), _residual(width, width, groups)])
        self.upsamplers = nn.ModuleList([_doubled(width)] if upsample else [])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.resnets:
            x = block(x, None)
        for block in self.upsamplers:
            x = block(x)
        return x


def _residual(width_in: int, width: int, groups: int) -> ResnetBlock2D:
    return ResnetBlock2D(in_channels=width_in, out_channels=width, temb_channels=None, eps=EPS, groups=groups)


def _doubled(width: int) -> Upsample2D:
    return Upsample2D(width, use_conv=True, out_channels=width)
