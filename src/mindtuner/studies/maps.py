"""Maps of a fingerprint over voxels: which part of each voxel's share it has, by region, beside what was planted."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import numpy as np
from scipy.stats import rankdata

from mindtuner.errors import UserError
from mindtuner.evaluation.statistics import bootstrap_ci
from mindtuner.studies.routes import ROUTES, Shares

OWN = ROUTES[1:]  # the routes that a fingerprint adds to a ridge
PERMUTATIONS = 999


def maps_of(found: Shares) -> dict[str, np.ndarray]:
    """Maps (V,), of magnitudes, since a share can be negative.

    There is one for each route, and ``fingerprint``, the part of the routes that a fingerprint adds in the sum of all; 0
    where a voxel has no share at all.
    """
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
            rows.append(
                {
                    "region": name,
                    "voxels": int(rois[name].sum()),
                    "route": route,
                    "share": float(values.sum()),
                    "ci": [low, high],
                }
            )
    return rows


def by_itself(subject_rois: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of each voxel the set of regions that hold it, as a number (V,)."""
    masks = np.array(list(subject_rois.values()), bool)
    return np.unique(masks, axis=1, return_inverse=True)[1].ravel()


def recovery(found: np.ndarray, planted: np.ndarray, region: np.ndarray, seed: int) -> dict:
    """Spearman correlation of a map (V,) with what was planted (V,), and what chance gives.

    Both are taken apart. ``between``: what regions (V,) have more, by the correlation as it is; its ``null``, the middle
    95 %, and one-sided ``p`` come from handing the regions' planted mean ranks to other regions, in every order where there
    are few. ``within``: the correlation of ranks from which each region's mean is taken, with voxels permuted within
    regions; None where what was planted is the same all over each region. Raises UserError where nothing varies at all.
    """
    for name, values in (("planted", planted), ("found", found)):
        if np.ptp(values) == 0:
            raise UserError(f"{name}: is the same in all voxels; expected a map that varies")
    a, b = rankdata(found), rankdata(planted)
    count = np.bincount(region)
    means = [np.bincount(region, x) / np.maximum(count, 1) for x in (a, b)]
    inner = [x - mean[region] for x, mean in zip((a, b), means, strict=True)]
    rng, held = np.random.default_rng(seed), np.flatnonzero(count)
    orders = (
        list(itertools.permutations(held))
        if math.factorial(len(held)) <= 1 + PERMUTATIONS
        else [held, *(rng.permutation(held) for _ in range(PERMUTATIONS))]
    )
    moved = np.tile(means[1], (len(orders), 1))
    moved[:, held] = means[1][np.array(orders)]
    result = {"between": _against(_correlation(a, b), [_correlation(a, inner[1] + m[region]) for m in moved]), "within": None}
    if np.abs(inner[1]).max() > 1e-6:
        order = np.argsort(region, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(region[order])) + 1)
        drawn = []
        for _ in range(PERMUTATIONS):
            mixed = np.empty_like(order)
            mixed[order] = np.concatenate([rng.permutation(part) for part in parts])
            drawn.append(_correlation(inner[0][mixed], inner[1]))
        true = _correlation(*inner)
        result["within"] = _against(true, [true, *drawn])
    return result


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    size = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / size) if size > 0 else 0.0


def _against(true: float, drawn: list[float]) -> dict:
    """``drawn`` has the true one among them."""
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"spearman": true, "null": [float(low), float(high)], "p": float(np.mean(np.array(drawn) >= true - 1e-12))}
