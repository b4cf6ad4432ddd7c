"""Run the frozen towers over all stimuli of a dataset once, into memory-mapped caches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mindtuner.data import Dataset, build_cache
from mindtuner.encoders.augment import AugmentedView
from mindtuner.encoders.compact import (
    MAP_SIDE,
    MAP_WIDTH,
    TOKENS,
    WIDTH,
    Autoencoder,
    CompactImageEncoder,
    CompactTextEncoder,
)

PICTURE = 128  # side of the pictures that the compact towers and the generator work with


def embed(dataset: Dataset, folder: Path, images: CompactImageEncoder, texts: CompactTextEncoder,
          autoencoder: Autoencoder) -> dict[str, np.ndarray]:
    """Caches over all N stimuli, built where they are missing, opened where they exist; rows are stimulus ids.

    pixels (N, 3, 128, 128) uint8, tokens (N, 16, 128) float32, text (N, 384) float32, latents (N, 8, 16, 16) float32,
    features and features_augmented (N, 16, 112) float32.
    Raises UserError where a cache belongs to another tower or to other stimuli.
    """
    stimuli = dataset.stimuli
    pixels = build_cache(folder, "pixels", (3, PICTURE, PICTURE), np.uint8, {"side": PICTURE}, stimuli, reduce, 64,
                         "pictures")
    view = AugmentedView(MAP_SIDE)

    def cache(name, shape, identity, compute, inputs, batch=64):
        return build_cache(folder, name, shape, np.float32, identity, stimuli, compute, batch, name, inputs=inputs)

    def small(ids):
        return pixels[ids]

    return {
        "pixels": pixels,
        "tokens": cache("tokens", (TOKENS, WIDTH), images.identity, images.tokens, small),
        "latents": cache("latents", (8, 16, 16), autoencoder.identity, autoencoder.encode, small),
        "features": cache("features", (TOKENS, MAP_WIDTH), images.identity, images.maps, small),
        "features_augmented": cache("features_augmented", (TOKENS, MAP_WIDTH), {**images.identity, "view": 1},
                                    images.maps, lambda ids: view(pixels[ids], ids)),
        "text": cache("text", (texts.width,), texts.identity, texts.embed_groups,
                      lambda ids: [stimuli.captions[i] for i in ids], batch=4096),  # equal captions are embedded once
    }


def reduce(images: np.ndarray) -> np.ndarray:
    """Images (n, 3, H, W) in 0..1 -> uint8 (n, 3, 128, 128), bilinear with antialiasing."""
    images = torch.from_numpy(np.asarray(images, np.float32))
    small = F.interpolate(images, (PICTURE, PICTURE), mode="bilinear", antialias=True, align_corners=False)
    return (small * 255).round().clamp(0, 255).to(torch.uint8).numpy()
