"""The low-level targets, cached once for all stimuli (MindEye2 paper, low-level submodule).

They are latents, and features of an image and of an augmented view of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torchvision.transforms import v2

from mindtuner.data import Stimuli
from mindtuner.towers.tower import Tower

if TYPE_CHECKING:  # they bring networks that the compact views have no use for
    from mindtuner.towers.convnext_maps import CellMaps
    from mindtuner.towers.sd_vae import StableAutoencoder

_VIEW = {"crop": 0.9, "jitter": [0.4, 0.4, 0.2, 0.1], "jitter_p": 0.8, "grey_p": 0.1, "solarise_p": 0.1}


class AugmentedView:
    """Crop of at least 0.9 of the area, colour jitter, grey (p .2) and solarisation (p .2).

    The view of a stimulus depends on its id alone, so a cache can be built in any order.
    """

    def __init__(self, side: int):
        self.transform = v2.Compose(
            [
                v2.RandomResizedCrop(side, scale=(0.9, 1.0), ratio=(0.95, 1.05), antialias=True),
                v2.ColorJitter(0.4, 0.4, 0.2, 0.1),
                v2.RandomGrayscale(0.2),
                v2.RandomSolarize(128, 0.2),
            ]
        )

    def __call__(self, images: np.ndarray, ids: np.ndarray) -> torch.Tensor:
        """Images uint8 (n, 3, H, W) of stimuli ``ids`` (n,) -> uint8 (n, 3, side, side)."""
        views = []
        with torch.random.fork_rng(devices=[]):
            for image, number in zip(torch.from_numpy(np.asarray(images)), ids, strict=True):
                torch.manual_seed(int(number))
                views.append(self.transform(image))
        return torch.stack(views)


class PaperView(AugmentedView):
    """The view with the numbers of MindEye2's training code, on images float 0..1; it depends on the stimulus's id alone.

    Colour jitter (p .8), grey (p .1), solarisation above one half (p .1), then a square of .9 of the area, enlarged.
    """

    def __init__(self, side: int):
        area = (_VIEW["crop"], _VIEW["crop"])
        self.transform = v2.Compose(
            [
                v2.RandomApply([v2.ColorJitter(*_VIEW["jitter"])], p=_VIEW["jitter_p"]),
                v2.RandomGrayscale(_VIEW["grey_p"]),
                v2.RandomSolarize(0.5, _VIEW["solarise_p"]),
                v2.RandomResizedCrop(side, area, (1, 1), antialias=True),
            ]
        )


def low_level_towers(stimuli: Stimuli, autoencoder: StableAutoencoder | None, maps: CellMaps | None) -> list[Tower]:
    """The towers at paper size; without an encoder, without its towers.

    latents (4, 28, 28) float32; features and features_augmented (49, 512) float16, which together are 7.3 GB of NSD's
    73,000 images; shapes are those that ``paper.yaml`` expects.
    """
    towers = []
    if autoencoder is not None:
        towers.append(
            Tower(
                "latents",
                autoencoder.identity,
                autoencoder.shape,
                np.float32,
                lambda ids: autoencoder.encode(_images(stimuli, ids)),
                batch=16,
            )
        )
    if maps is not None:
        view = PaperView(maps.side)
        towers += [
            Tower("features", maps.identity, maps.shape, np.float16, lambda ids: maps.maps(_images(stimuli, ids)), batch=32),
            Tower(
                "features_augmented",
                {**maps.identity, "view": _VIEW},
                maps.shape,
                np.float16,
                lambda ids: maps.maps(view(_images(stimuli, ids), ids)),
                batch=32,
            ),
        ]
    return towers


def _images(stimuli: Stimuli, ids: np.ndarray) -> np.ndarray:
    return stimuli.images(ids).astype(np.float32)
