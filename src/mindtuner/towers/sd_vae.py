"""Stable Diffusion's autoencoder: the blurry picture that the low-level submodule is to predict (MindEye2 paper)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from mindtuner.errors import UserError
from mindtuner.files import read_json
from mindtuner.runtime import device
from mindtuner.thirdparty import load_part, model_folder, released
from mindtuner.towers.tower import unit_images, weights_hash

SIDE, SCALE = 224, 0.18215
_EXPECTED = "the vae folder of Stable Diffusion image variations, as diffusers writes it"


class StableAutoencoder:
    """Images of 224 x 224 <-> latents (4, 28, 28): the posterior's mode times 0.18215, as MindEye2's bases learned it.

    The mode, since a drawn latent would be another one at each run.

    Parameters
    ----------
    source : path
        A folder of diffusers' with a subfolder ``vae``, that subfolder itself, or a hub id of the same form (the papers'
        weights: lambdalabs/sd-image-variations-diffusers).
    side : int
        Of the images; latents follow from it and from the network.

    Attributes
    ----------
    identity : dict
        Of the weights and settings; it goes into caches.
    shape : tuple
        Of one image's latents.

    Raises
    ------
    UserError
        Where there is no such autoencoder, or a key is missing, unknown or of another shape.
    """

    def __init__(self, source: str | Path, side: int = SIDE) -> None:
        with released("vae"):
            self.network = _load(source).to(device())
        config = self.network.config
        reduction = 2 ** (len(config.block_out_channels) - 1)
        if side < reduction or side % reduction:
            raise ValueError(f"side is {side}; expected a multiple of {reduction}")
        self.side, self.shape = side, (config.latent_channels, side // reduction, side // reduction)
        self.identity = {
            "encoder": "AutoencoderKL",
            "weights": weights_hash(self.network),
            "latents": list(self.shape),
            "side": side,
            "range": [-1, 1],
            "posterior": "mode",
            "scale": SCALE,
        }

    @torch.no_grad()
    def encode(self, images) -> np.ndarray:
        """Images (n, 3, H, W), uint8 or float 0..1 -> latents float32 (n, *shape)."""
        posterior = self.network.encode(unit_images(images, self.side) * 2 - 1).latent_dist
        return (posterior.mode() * SCALE).cpu().numpy()

    @torch.no_grad()
    def decode(self, latents) -> np.ndarray:
        """Latents (n, *shape) -> images float32 (n, 3, side, side) in 0..1."""
        latents = torch.as_tensor(np.asarray(latents), dtype=torch.float32, device=device())
        return ((self.network.decode(latents / SCALE).sample + 1) / 2).clamp(0, 1).cpu().numpy()


def _load(source: str | Path) -> AutoencoderKL:
    folder = model_folder(source, [f"vae/*.{end}" for end in ("json", "safetensors", "bin")], _EXPECTED)
    if not (folder / "config.json").is_file():
        folder = folder / "vae"
    path = folder / "config.json"
    config = read_json(path)
    # Other networks' folders look alike, and SDXL's autoencoder even has the same shapes.
    for field, wanted in (("_class_name", "AutoencoderKL"), ("scaling_factor", SCALE)):
        found = config.get(field, wanted if field == "scaling_factor" else None)  # older configs leave the default out
        if found != wanted:
            raise UserError(f"{path}: {field} is {found!r}; expected {wanted!r}, {_EXPECTED}")
    # Older folders have torch's format alone. What is misshapen is to be told by its key, which these two options allow.
    return load_part(
        AutoencoderKL,
        folder,
        torch.float32,
        exact=True,
        use_safetensors=None,
        low_cpu_mem_usage=False,
        ignore_mismatched_sizes=True,
    )
