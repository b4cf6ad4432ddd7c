"""The reserved random stream: scenes that only generators and the token projection are trained on."""

from __future__ import annotations

from pathlib import Path

from mindtuner.simulation.cutouts import drawn_cutouts, folder_cutouts
from mindtuner.simulation.scenes import SceneStream

_RESERVED_SEED = 20_240_412  # simulations take seeds below this (see simulate.py), and other stream names


def generator_scenes(cutouts: str | Path | None = None) -> SceneStream:
    """Scenes of the generator's own cut-outs, from a seed and a stream name that no simulation uses."""
    pool = folder_cutouts(cutouts, "generator") if cutouts else drawn_cutouts("generator")
    return SceneStream(pool, "generator", _RESERVED_SEED)
