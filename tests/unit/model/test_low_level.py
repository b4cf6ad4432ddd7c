"""The decoder of the low-level submodule beside diffusers' own."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from diffusers.models.autoencoders.vae import Decoder
from diffusers.models.upsampling import Upsample2D
from torch import nn

from mindtuner.model.low_level import LatentDecoder


def theirs(in_channels: int, out_channels: int, widths: tuple[int, ...], groups: int, double_last: bool) -> Decoder:
    decoder = Decoder(
        in_channels,
        out_channels,
        ("UpDecoderBlock2D",) * len(widths),
        tuple(reversed(widths)),
        layers_per_block=1,
        norm_num_groups=groups,
    )
    if double_last:
        last = Upsample2D(widths[-1], use_conv=True, out_channels=widths[-1])
        decoder.up_blocks[-1].upsamplers = nn.ModuleList([last])
    return decoder


@pytest.mark.parametrize("double_last", (False, True))
@pytest.mark.parametrize("widths", ((16,), (32, 16), (32, 16, 8)))
def test_weights_and_outputs_are_those_of_diffusers(widths, double_last):
    made = []
    for kind in (LatentDecoder, theirs):
        torch.manual_seed(0)
        made.append(kind(6, 4, widths, 4, double_last).eval())
    ours, other = (decoder.state_dict() for decoder in made)
    assert list(ours) and set(ours) == set(other)
    assert all(torch.equal(ours[name], other[name]) for name in other)  # drawn in the same order, too
    x = torch.randn(3, 6, 5, 5, requires_grad=True)
    found = [decoder(x) for decoder in made]
    side = 5 * 2 ** (len(widths) - 1 + double_last)
    assert found[0].shape == (3, 4, side, side)
    torch.testing.assert_close(*found)
    torch.testing.assert_close(*(torch.autograd.grad(y.square().sum(), x)[0] for y in found))


@pytest.mark.slow
def test_training_does_not_import_every_network_of_diffusers():
    code = (
        "import sys, mindtuner.training\nprint(*(name for name in sys.modules if name.startswith('diffusers.models.unets')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
