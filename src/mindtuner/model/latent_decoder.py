"""A convolutional decoder of latents in the form of Stable Diffusion's autoencoder, from diffusers' blocks.

Weights have the names and shapes that they have in diffusers' ``Decoder``, so MindEye2's checkpoints fit. It is put together
here because its module there imports every network of the library, and all that trains would wait for that.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.upsampling import Upsample2D
from torch import nn
from torch.nn import functional

EPS = 1e-6


class LatentDecoder(nn.Module):
    """(n, in_channels, s, s) -> (n, out_channels, S, S). ``widths`` go from coarse to fine, two residual blocks each.

    The side doubles between two widths, S = s 2^(len(widths) - 1), and with ``double_last`` once more after the last.
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
        x = self.mid_block(self.conv_in(x))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(functional.silu(self.conv_norm_out(x)))


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
