"""The compact generator's autoencoder, in diffusers' own KL form, at a size that a laptop trains."""

from __future__ import annotations

from diffusers import AutoencoderKL


def build_autoencoder() -> AutoencoderKL:
    """Blocks of 4 x 4 pixels (48 channels on a 32 x 32 grid) <-> latents (4, 16, 16)."""
    return AutoencoderKL(
        in_channels=48, out_channels=48, latent_channels=4, sample_size=32,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(64, 96), layers_per_block=1, norm_num_groups=16, mid_block_add_attention=False)
