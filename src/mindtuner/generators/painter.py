"""What the verbs ask of a generator, whichever it is."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from mindtuner.decoding.words import Words

LOWLEVEL, RECONSTRUCTED, CORRECTED = "lowlevel", "reconstructed", "corrected"


class Painter(Protocol):
    """A generator: the compact one, or the one at full size.

    ``identity`` : JSON values that tell its weights and settings from any other's
    """

    identity: dict

    def stages(
        self, tokens: np.ndarray, words: Words, lowlevel: np.ndarray | None, images: np.ndarray, title: str = ""
    ) -> dict[str, np.ndarray]:
        """Pictures of n images, float32 (n, 3, H, W) in 0..1, by stage, in the order in which they come to be.

        ``lowlevel``, where its latents (n, C, s, s) are given and it can decode them; ``reconstructed``, painted from the
        image tokens (n, T, D); ``corrected`` by the words, where there are any. Noise depends on the seed and the images'
        ids (n,) alone.
        """
        ...

    def captions(self, tokens: np.ndarray) -> list[str] | None:
        """What it writes of image tokens (n, T, D), a caption each; None where it writes none."""
        ...


def main_picture(stages: dict[str, np.ndarray]) -> np.ndarray:
    """The pictures that count: the corrected ones, or, where nothing corrects, the reconstructed."""
    return stages[CORRECTED if CORRECTED in stages else RECONSTRUCTED]
