"""The simulated cortical sheet: where voxels lie, and maps that are smooth over it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindtuner.errors import UserError
from mindtuner.runtime import derive_seed

AREAS = ("V1", "V2", "V3", "V4", "higher_vis")
_SHARE = np.array([0.095, 0.095, 0.085, 0.05, 0.675])  # of the visual mask, before a subject's own variation
MIN_VOXELS = 50


@dataclass(frozen=True)
class Sheet:
    """Voxels of one subject, area after area.

    ``area`` (V,) indexes ``AREAS``. ``position`` (V, 2): place on the flattened sheet on which the areas lie
    side by side, in units of the sheet's height, so that areas have areas in proportion to their voxels.
    ``map`` (V, 2): coordinates 0..1 within the area, warped as this brain is: where two subjects' voxels have
    equal ``map``, they do the same thing.
    """

    area: np.ndarray
    position: np.ndarray
    map: np.ndarray

    def mask(self, *areas: str) -> np.ndarray:
        """bool (V,): voxels of any of the named areas."""
        return np.isin(self.area, [AREAS.index(name) for name in areas])

    def rois(self) -> dict[str, np.ndarray]:
        """bool masks (V,) under the names of NSD's files, with ``nsd_general`` all True."""
        return {"nsd_general": np.ones(len(self.area), bool), **{name: self.mask(name) for name in AREAS}}


def make_sheet(n_voxels: int, seed: int) -> Sheet:
    """Lay out a subject's voxels; area sizes (about 15 % sd) and warps are the subject's own.

    Raises UserError below 50 voxels.
    """
    if n_voxels < MIN_VOXELS:
        raise UserError(f"n_voxels: {n_voxels}; expected at least {MIN_VOXELS}")
    rng = np.random.default_rng(derive_seed(seed, "sheet"))
    share = _SHARE * np.exp(0.15 * rng.standard_normal(len(AREAS)))
    ends = np.round(np.cumsum(share / share.sum()) * n_voxels).astype(int)
    counts = np.diff(ends, prepend=0)
    # the R2 sequence spreads any number of points evenly; a random shift makes it the subject's own
    steps = np.array([0.7548776662466927, 0.5698402909980532])
    local = [(np.arange(n)[:, None] * steps + rng.random(2)) % 1 for n in counts]
    position = [points * [n / n_voxels * 6, 1] + [6 * (end - n) / n_voxels, 0] for points, n, end in zip(local, counts, ends)]
    warped = [
        points + 0.05 * smooth_fields(points, 2, 0.4, derive_seed(seed, "warp", name)) for points, name in zip(local, AREAS)
    ]
    return Sheet(np.repeat(np.arange(len(AREAS)), counts), np.concatenate(position), np.concatenate(warped))


def smooth_fields(points: np.ndarray, fields: int, length: float, seed: int) -> np.ndarray:
    """Random maps over the sheet, float32 (V, fields), each about a standard normal at every point.

    A Gaussian process with covariance exp(-d^2 / (2 length^2)), by 128 random Fourier features (Rahimi and
    Recht, 2007). The seed fixes the map itself: other points are other samples of the same map.
    """
    rng = np.random.default_rng(seed)
    waves, phases = rng.standard_normal((2, 128)) / length, rng.uniform(0, 2 * np.pi, 128)
    basis = np.sqrt(2 / 128) * np.cos(points @ waves + phases)
    return (basis @ rng.standard_normal((128, fields))).astype(np.float32)
