"""What every generator is asked for, and where it can run."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from mindtuner import runtime
from mindtuner.decoding.decoder import Predictions
from mindtuner.decoding.words import Words
from mindtuner.errors import UserError

LOWLEVEL, RECONSTRUCTED, CORRECTED = "lowlevel", "reconstructed", "corrected"


class Painter(Protocol):
    """A generator: the compact one, or the one at full size.

    ``identity`` : JSON values that tell its weights and settings from any other's
    """

    identity: dict

    def stages(
        self, tokens: np.ndarray, found: Predictions, words: Words, lowlevel: bool = True, title: str = ""
    ) -> dict[str, np.ndarray]:
        """Pictures of n images, float32 (n, 3, H, W) in 0..1, by stage, in the order in which they come to be.

        ``lowlevel``, where it is wanted, ``found`` has latents and it can decode them; ``reconstructed``, painted from the
        image tokens (n, T, D); ``corrected`` by the words, where there are any, and by what else is found. Noise depends on
        the seed and the images' ids alone.
        """
        ...

    def captions(self, tokens: np.ndarray) -> list[str] | None:
        """What it writes of image tokens (n, T, D), a caption each; None where it writes none."""
        ...


def main_picture(stages: dict[str, np.ndarray]) -> np.ndarray:
    """The pictures that count: the corrected ones, or, where nothing corrects, the reconstructed."""
    return stages[CORRECTED if CORRECTED in stages else RECONSTRUCTED]


def usable_device(where: torch.device | str | None, dtype: torch.dtype) -> torch.device:
    """The device ``where``, or the one this machine is fastest with.

    Raises UserError where this machine has no such device, or the device does not compute in ``dtype``.
    """
    where = runtime.device() if where is None else runtime.available(where)
    if where.type == "cpu" and dtype == torch.float16:
        raise UserError("dtype: is float16 on a CPU; expected float32, or device cuda")
    return where
