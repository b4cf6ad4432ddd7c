"""The compact generator's painter: image tokens -> a picture, in one pass.

What tokens leave open is settled before, by ``WordPrior``; a picture of given tokens needs no noise and no steps, as in
representation autoencoders (Zheng et al. 2025). The network has the production generator's form, a diffusers UNet with
cross-attention to image tokens. The compact tokens lie on a grid, so they also enter where they belong, as channels, which
a small network learns from much sooner.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from torch import nn

from mindtuner.towers.patch_autoencoder import CHANNELS, PatchAutoencoder

LATENT_SIDE = 16
PLACED = 16  # channels by which tokens enter at their place
_TIME = 999  # the UNet asks for a diffusion time; one pass has but one


class TokenPainter(nn.Module):
    """Pictures that show what tokens say: latents by a UNet, and a decoder for these latents.

    The decoder has the form of the autoencoder's, and learns with the UNet. It is not the autoencoder's own, which decodes
    latents of true pictures.

    Parameters
    ----------
    tokens, width : int
        Shape of the image tokens (T, D); T is a square.

    Examples
    --------
    >>> TokenPainter().eval()(torch.zeros(2, 16, 128)).shape
    torch.Size([2, 3, 128, 128])
    """

    def __init__(self, tokens: int = 16, width: int = 128) -> None:
        super().__init__()
        self.grid = math.isqrt(tokens)
        self.cell = LATENT_SIDE // self.grid  # latents along one side of a token's cell
        self.embed_tokens = nn.Linear(width, width)
        self.position = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.place_tokens = nn.Linear(width, PLACED * self.cell**2)
        self.canvas = nn.Parameter(torch.zeros(1, CHANNELS, LATENT_SIDE, LATENT_SIDE))
        self.unet = UNet2DConditionModel(
            sample_size=LATENT_SIDE,
            in_channels=CHANNELS + PLACED,
            out_channels=CHANNELS,
            block_out_channels=(48, 96, 192),
            layers_per_block=(3, 2, 1),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=width,
            norm_num_groups=16,
            attention_head_dim=(2, 3, 6),  # diffusers means the number of heads: each is 32 wide
        )
        self.decoder = PatchAutoencoder()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pictures.

        Parameters
        ----------
        tokens : tensor (n, T, D)

        Returns
        -------
        tensor (n, 3, 128, 128)
            About 0..1; not clipped.
        """
        n = len(tokens)
        image = self.embed_tokens(tokens) + self.position
        placed = self.place_tokens(image).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        canvas = torch.cat([self.canvas.expand(n, -1, -1, -1), F.pixel_shuffle(placed, self.cell)], 1)
        latents = self.unet(canvas, torch.full((n,), _TIME, device=tokens.device), image).sample
        return (self.decoder.decode(latents) + 1) / 2
