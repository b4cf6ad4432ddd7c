"""Pictures from decoded tokens, by whichever generator; the one place where pictures are painted."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from mindtuner.decoding.decoder import Predictions
from mindtuner.decoding.words import Words
from mindtuner.evaluation.results import to_uint8
from mindtuner.evaluation.scores.preparation import resize
from mindtuner.generators.painter import Painter, main_picture


@dataclass(frozen=True)
class Painted:
    """What a generator made of n images.

    stages : pictures uint8 (n, 3, H, W) by stage, in the order in which they came to be
    written : what it wrote of each, empty where it writes nothing
    retrieved : the caption of a training image that corrects each, empty where there is none
    """

    stages: dict[str, np.ndarray]
    written: list[str]
    retrieved: list[str] = field(default_factory=list)

    @property
    def pictures(self) -> np.ndarray:
        """Those that count, uint8 (n, 3, H, W): the corrected, or, where nothing corrects, the reconstructed."""
        return main_picture(self.stages)


def paint(
    generator: Painter,
    tokens: np.ndarray,
    found: Predictions,
    rows: np.ndarray,
    words: Words,
    title: str = "",
    *,
    lowlevel: bool = True,
    side: int | None = None,
) -> Painted:
    """Paint some of the images that were decoded.

    Parameters
    ----------
    generator : Painter
    tokens : array, float32 (n, T, D)
        Image tokens to paint from.
    found : Predictions
        Of N images: their latents are the low level, and their tokens stand beside the words.
    rows : array of int (n,)
        Positions in ``found`` of the images that are painted.
    words : Words
        Of the n images that are painted: what corrects the pictures.
    title : str
        Of the progress bar.
    lowlevel : bool
        Whether the latents say anything; a control's do not.
    side : int, optional
        Side to resize the pictures to, by default the generator's own.

    Returns
    -------
    Painted
    """
    stages = generator.stages(tokens, found.rows(rows), words, lowlevel, title)
    pictures = {stage: to_uint8(some if side is None else resize(some, side)) for stage, some in stages.items()}
    return Painted(pictures, generator.captions(tokens) or [])
