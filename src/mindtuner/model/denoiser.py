"""The compact generator's denoiser: a diffusers UNet over the autoencoder's latents.

Its form is the production generator's: cross-attention to image tokens and to one more token that carries a text,
which also joins the time embedding, as SDXL's pooled text does. The compact tokens lie on a grid, so they also enter
where they belong, as channels beside the noisy latents, which a small network learns from much sooner. Each of the two
conditions has an "absent" state, so that one network serves the first painting (image tokens), the correction (image
tokens and text) and guidance (neither).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import nn

from mindtuner.towers.patch_autoencoder import CHANNELS

LATENT_SIDE = 16
PLACED = 16  # channels by which tokens enter at their place


def noise_schedule() -> DDIMScheduler:
    """1,000 steps, zero signal at the last, velocity prediction."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=True,
        timestep_spacing="trailing",
        rescale_betas_zero_snr=True,
    )


class CompactDenoiser(nn.Module):
    """Predicts the velocity v of noisy latents (Salimans and Ho 2022).

    Parameters
    ----------
    tokens, width : shape of the image tokens (T, D)
    text_width : width d of the text embedding
    """

    def __init__(self, tokens: int = 16, width: int = 128, text_width: int = 384):
        super().__init__()
        self.grid = math.isqrt(tokens)
        self.cell = LATENT_SIDE // self.grid  # latents along one side of a token's cell
        self.place_tokens = nn.Linear(width, PLACED * self.cell**2)
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
            class_embed_type="projection",
            projection_class_embeddings_input_dim=text_width,
        )
        self.embed_tokens = nn.Linear(width, width)
        self.embed_text = nn.Linear(text_width, width)
        self.position = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.no_tokens = nn.Parameter(torch.randn(tokens, width) * 0.02)
        self.no_text = nn.Parameter(torch.randn(1, width) * 0.02)

    def forward(
        self,
        latents: torch.Tensor,
        time: torch.Tensor,
        tokens: torch.Tensor,
        text: torch.Tensor,
        keep_tokens: torch.Tensor,
        keep_text: torch.Tensor,
    ) -> torch.Tensor:
        """Velocity (n, 8, 16, 16).

        Parameters
        ----------
        latents : (n, 8, 16, 16), noisy
        time : (n,) integer diffusion times
        tokens : (n, T, D); text : (n, d)
        keep_tokens, keep_text : (n,) bool, False where that condition is absent
        """
        image = torch.where(keep_tokens[:, None, None], self.embed_tokens(tokens) + self.position, self.no_tokens)
        text = torch.where(keep_text[:, None], text, 0)
        words = torch.where(keep_text[:, None, None], self.embed_text(text)[:, None], self.no_text)
        placed = self.place_tokens(image).transpose(1, 2).unflatten(2, (self.grid, self.grid))
        placed = F.pixel_shuffle(placed, self.cell)
        return self.unet(torch.cat([latents, placed], 1), time, torch.cat([image, words], 1), class_labels=text).sample
