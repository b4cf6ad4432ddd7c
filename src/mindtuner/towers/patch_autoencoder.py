"""The compact generator's autoencoder: a linear patch encoder and a decoder that adds what neighbours tell.

Each 8 x 8 patch is described by its leading principal components. Decoding inverts that linearly, then a small
network of diffusers' residual blocks smooths the seams and sharpens edges, starting at zero. So it is usable before
training, and latents never change while the decoder trains.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers.models.resnet import ResnetBlock2D
from torch import nn

PATCH, CHANNELS = 8, 8
_WIDTH = 64


class PatchAutoencoder(nn.Module):
    """Images in -1..1 (n, 3, 128, 128) <-> latents (n, 8, 16, 16), about unit variance overall.

    The components' spread is compressed to the square root, so that leading ones (colour) still lead.
    """

    def __init__(self):
        super().__init__()
        size = 3 * PATCH**2
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("encoder", torch.zeros(size, CHANNELS))
        self.register_buffer("inverse", torch.zeros(CHANNELS, size))
        block = {"temb_channels": None, "groups": 16}
        self.coarse = nn.Sequential(
            nn.Conv2d(CHANNELS, _WIDTH, 3, padding=1),
            ResnetBlock2D(in_channels=_WIDTH, out_channels=_WIDTH, **block),
            ResnetBlock2D(in_channels=_WIDTH, out_channels=4 * 48, **block),
        )
        self.fine = ResnetBlock2D(in_channels=48, out_channels=48, **block)
        self.out = nn.Conv2d(48, 48, 3, padding=1)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    @torch.no_grad()
    def fit_linear(self, images: torch.Tensor) -> None:
        """Set the linear part from images (n, 3, 128, 128) in -1..1, in closed form."""
        rows = F.pixel_unshuffle(images, PATCH).permute(0, 2, 3, 1).flatten(0, 2).double()
        values, vectors = torch.linalg.eigh(torch.cov(rows.T))
        values, vectors = values.flip(0)[:CHANNELS], vectors.flip(1)[:, :CHANNELS]
        vectors = vectors * vectors[vectors.abs().argmax(0), torch.arange(CHANNELS)].sign()
        gain = values**-0.25
        gain = gain / (values * gain**2).mean().sqrt()
        self.mean.copy_(rows.mean(0))
        self.encoder.copy_(vectors * gain)
        self.inverse.copy_((vectors / gain).T)

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """(n, 3, 128, 128) in -1..1 -> (n, 8, 16, 16)."""
        patches = F.pixel_unshuffle(images, PATCH).permute(0, 2, 3, 1) - self.mean
        return (patches @ self.encoder).permute(0, 3, 1, 2)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """(n, 8, 16, 16) -> (n, 3, 128, 128), about -1..1."""
        patches = latents.permute(0, 2, 3, 1) @ self.inverse + self.mean
        linear = F.pixel_shuffle(patches.permute(0, 3, 1, 2), PATCH)
        hidden = latents
        for layer in self.coarse:
            hidden = layer(hidden, None) if isinstance(layer, ResnetBlock2D) else layer(hidden)
        hidden = self.fine(F.pixel_shuffle(hidden, 2), None)
        return linear + F.pixel_shuffle(self.out(hidden), 4)
