"""Maps of a fingerprint over voxels: which part of each voxel's share it has, by region, beside what was planted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.stats import rankdata

from mindtuner.analysis.routes import ROUTES, Shares
from mindtuner.errors import UserError
from mindtuner.evaluation.statistics import bootstrap_ci

OWN = ROUTES[1:]  # the routes that a fingerprint adds to a ridge
PERMUTATIONS = 999


def maps_of(found: Shares) -> dict[str, np.ndarray]:
    """Maps (V,), of magnitudes, since a share can be negative: that of each route, and ``fingerprint``, the part of the
    routes that a fingerprint adds in the sum of all; 0 where a voxel has no share at all."""
    size = np.abs(found.voxel)
    total = size.sum(0)
    part = np.divide(size[1:].sum(0), total, out=np.zeros_like(total), where=total > 0)
    return {**dict(zip(ROUTES, size, strict=True)), "fingerprint": part}


def regions(found: Shares, rois: Mapping[str, np.ndarray], seed: int) -> list[dict]:
    """An entry a region and route: ``share`` of the decoded variance, and its 95 % interval over images, ``ci``.

    The variance that is shared out is that of all images; only which of them count is resampled.
    """
    rows = []
    for name, added in found.by_roi.items():
        for route, values in zip(ROUTES, added.T, strict=True):
            low, high = bootstrap_ci(values * len(values), seed)
            rows.append({"region": name, "voxels": int(rois[name].sum()), "route": route, "share": float(values.sum()),
                         "ci": [low, high]})
    return rows


def by_itself(subject_rois: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of each voxel the set of regions that hold it, as a number (V,)."""
    masks = np.array(list(subject_rois.values()), bool)
    return np.unique(masks, axis=1, return_inverse=True)[1].ravel()


def recovery(found: np.ndarray, planted: np.ndarray, region: np.ndarray, seed: int) -> dict:
    """Spearman correlation of a map (V,) with what was planted (V,), and what chance gives.

    ``within``: the same of ranks from which each region's mean is taken, so that a map which only knows that some regions
    have more finds nothing; ``null``, the middle 95 % of it with voxels permuted within their ``region`` (V,), and the
    one-sided ``p``. Raises UserError where nothing varies.
    """
    for name, values in (("planted", planted), ("found", found)):
        if np.ptp(values) == 0:
            raise UserError(f"{name}: is the same in all voxels; expected a map that varies")
    a, b = rankdata(found), rankdata(planted)
    centred = [x - (np.bincount(region, x) / np.maximum(np.bincount(region), 1))[region] for x in (a, b)]
    rng, order = np.random.default_rng(seed), np.argsort(region, kind="stable")
    starts = np.flatnonzero(np.diff(region[order])) + 1

    def correlation(x: np.ndarray, y: np.ndarray) -> float:
        size = np.linalg.norm(x) * np.linalg.norm(y)
        return float(x @ y / size) if size > 0 else 0.0

    drawn = np.empty(PERMUTATIONS)
    for k in range(PERMUTATIONS):
        mixed = np.empty_like(order)
        mixed[order] = np.concatenate([rng.permutation(part) for part in np.split(order, starts)])
        drawn[k] = correlation(centred[0][mixed], centred[1])
    within = correlation(*centred)
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"spearman": correlation(a - a.mean(), b - b.mean()), "within": within, "null": [float(low), float(high)],
            "p": float((1 + (drawn >= within).sum()) / (1 + PERMUTATIONS))}
