"""Run the compact towers over all stimuli of a dataset once, into caches."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from mindtuner.data import Dataset, Stimuli, open_cache
from mindtuner.towers.compact import MAP_SIDE, MAP_WIDTH, TOKENS, WIDTH, Autoencoder, CompactImageEncoder, CompactTextEncoder
from mindtuner.towers.efficientnet import BATCH
from mindtuner.towers.low_level import AugmentedView
from mindtuner.towers.tower import Tower

PICTURE = 128  # side of the pictures that the compact towers and the generator work with
_PIXELS = {"side": PICTURE}


def embed(
    dataset: Dataset, folder: Path, images: CompactImageEncoder, texts: CompactTextEncoder, autoencoder: Autoencoder
) -> dict[str, np.ndarray]:
    """Caches over all N stimuli, built where they are missing, opened where they exist; rows are stimulus ids.

    pixels (N, 3, 128, 128) uint8, tokens (N, 16, 128) float32, text (N, 384) float32, latents (N, 8, 16, 16) float32,
    features and features_augmented (N, 16, 112) float32.
    Raises UserError where a cache belongs to another tower or to other stimuli.
    """
    towers = compact_towers(dataset.stimuli, folder, images, texts, autoencoder)
    return {tower.name: tower.build(folder, dataset.stimuli) for tower in towers}


def compact_towers(
    stimuli: Stimuli,
    folder: str | Path,
    images: CompactImageEncoder | None,
    texts: CompactTextEncoder | None,
    autoencoder: Autoencoder | None,
) -> list[Tower]:
    """What these encoders say of ``stimuli``, in an order in which it can be built; without an encoder, without its towers.

    All that look at images take them from the cache of ``pixels`` in ``folder``, so that large images are read once.
    """

    @functools.cache
    def cached() -> np.ndarray:
        return open_cache(folder, "pixels", _PIXELS, stimuli.hash)

    def pixels(ids):
        return cached()[ids]

    towers = [Tower("pixels", _PIXELS, (3, PICTURE, PICTURE), np.uint8, lambda ids: reduce(stimuli.images(ids)))]
    if images is not None:
        towers.append(
            Tower("tokens", images.identity, (TOKENS, WIDTH), np.float32, lambda ids: images.tokens(pixels(ids)), batch=BATCH)
        )
    if autoencoder is not None:
        towers.append(
            Tower("latents", autoencoder.identity, (8, 16, 16), np.float32, lambda ids: autoencoder.encode(pixels(ids)))
        )
    if images is not None:
        view, maps = AugmentedView(MAP_SIDE), (TOKENS, MAP_WIDTH)
        towers += [
            Tower("features", images.identity, maps, np.float32, lambda ids: images.maps(pixels(ids))),
            Tower(
                "features_augmented",
                {**images.identity, "view": 1},
                maps,
                np.float32,
                lambda ids: images.maps(view(pixels(ids), ids)),
            ),
        ]
    if texts is not None:  # large batches: equal captions are embedded once
        towers.append(
            Tower(
                "text",
                texts.identity,
                (texts.width,),
                np.float32,
                lambda ids: _text(texts, [stimuli.captions[i] for i in ids]),
                batch=4096,
            )
        )
    return towers


def _text(texts: CompactTextEncoder, captions: list[tuple[str, ...]]) -> np.ndarray:
    """The text of each image, 0 where it has no caption."""
    described = [k for k, group in enumerate(captions) if group]
    found = np.zeros((len(captions), texts.width), np.float32)
    found[described] = texts.embed_groups([captions[k] for k in described])
    return found


def reduce(images: np.ndarray) -> np.ndarray:
    """Images (n, 3, H, W) in 0..1 -> uint8 (n, 3, 128, 128), bilinear with antialiasing."""
    images = torch.from_numpy(np.asarray(images, np.float32))
    small = F.interpolate(images, (PICTURE, PICTURE), mode="bilinear", antialias=True, align_corners=False)
    return (small * 255).round().clamp(0, 255).to(torch.uint8).numpy()
