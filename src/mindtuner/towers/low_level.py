"""The low-level targets at paper size, cached once for all stimuli: latents, and features of an image and of a view of it."""

from __future__ import annotations

import numpy as np
from torchvision.transforms import v2

from mindtuner.data import Stimuli
from mindtuner.towers.augment import AugmentedView
from mindtuner.towers.convnext_maps import CellMaps
from mindtuner.towers.embed import Tower
from mindtuner.towers.sd_vae import StableAutoencoder

_VIEW = {"crop": 0.9, "jitter": [0.4, 0.4, 0.2, 0.1], "jitter_p": 0.8, "grey_p": 0.1, "solarise_p": 0.1}


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
    """What caches need to know of these encoders; without one, without its towers.

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
