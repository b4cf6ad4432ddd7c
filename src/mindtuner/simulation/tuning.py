"""The part of a brain that subjects share up to a linear mixing.

It is pRFs in early areas, tuning to scenes above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindtuner.errors import UserError
from mindtuner.runtime import derive_seed
from mindtuner.simulation.cortex import AREAS, Sheet, smooth_fields
from mindtuner.simulation.early import CHANNELS, GRID
from mindtuner.simulation.semantic import BLOCKS, FEATURES

EARLY = AREAS[:4]
# pRF size (sd) = base + slope * eccentricity, in shares of the image's width; and the compressive exponent
_SIZE_BASE = np.array([0.035, 0.045, 0.06, 0.09])
_SIZE_SLOPE = np.array([0.10, 0.15, 0.22, 0.35])
_EXPONENT = np.array([0.7, 0.6, 0.5, 0.4])
_FOVEA, _PERIPHERY = 0.06, 0.62  # cortical magnification halves at the first; the maps end at the second
_BLOCK_WEIGHT = {"objects": 1.0, "place": 0.7, "colours": 0.45, "counts": 0.3, "layout": 0.5, "bindings": 0.4}
_PATCHES = 6


@dataclass(frozen=True)
class Prfs:
    """Population receptive fields of the voxels of V1 to V4.

    ``centre`` (V, 2) is x, y in 0..1 of the image (y down), ``size`` (V,) a standard deviation in the same unit, ``exponent``
    (V,), ``tuning`` (V, 18) over channels.
    """

    centre: np.ndarray
    size: np.ndarray
    exponent: np.ndarray
    tuning: np.ndarray


def make_prfs(sheet: Sheet, atlas_seed: int, seed: int) -> Prfs:
    """The pRFs of a subject's early voxels.

    The first map coordinate is eccentricity (logarithmic, so the fovea is magnified), the second polar angle, mirrored
    between neighbouring areas. Channel tuning is one shared map per area plus a smaller one of the subject's own.
    """
    early = sheet.mask(*EARLY)
    area, at = sheet.area[early], sheet.map[early]
    eccentricity = _FOVEA * np.expm1(np.clip(at[:, 0], 0, 1) * np.log1p(_PERIPHERY / _FOVEA))
    angle = 2 * np.pi * at[:, 1] * np.where(area % 2, -1, 1)
    centre = np.clip(0.5 + eccentricity[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), 0, 1)
    spread = np.exp(0.1 * smooth_fields(at, 1, 0.2, derive_seed(seed, "prf size"))[:, 0])
    size = (_SIZE_BASE[area] + _SIZE_SLOPE[area] * eccentricity) * spread
    tuning = np.empty((len(area), CHANNELS), np.float32)
    for index, name in enumerate(EARLY):
        here = area == index
        shared = smooth_fields(at[here], CHANNELS, 0.15, derive_seed(atlas_seed, "channels", name))
        own = smooth_fields(at[here], CHANNELS, 0.15, derive_seed(seed, "channels", name))
        tuning[here] = np.exp(1.8 * shared + 0.6 * own)
    tuning /= tuning.sum(1, keepdims=True)
    return Prfs(centre, size, _EXPONENT[area], tuning)


def prf_responses(maps: np.ndarray, prfs: Prfs) -> np.ndarray:
    """Responses of early voxels, float32 (n, V), to ``maps`` (n, 18, 16, 16).

    They are (sum over channels and places of tuning x pRF x map)^exponent, the compressive spatial summation model (Kay et
    al. 2013). 5 % of the pRF's weight lies evenly over the image, so that a plain background never leaves a voxel silent.
    """
    maps = maps.reshape(len(maps), CHANNELS, -1)
    maps = maps / np.maximum(maps.mean((0, 2), keepdims=True), 1e-6)  # channels adapt to their average drive
    cells = (np.arange(GRID) + 0.5) / GRID
    x, y = (np.exp(-((cells - prfs.centre[:, [axis]]) ** 2) / (2 * prfs.size[:, None] ** 2)) for axis in (0, 1))
    weight = (y[:, :, None] * x[:, None, :]).reshape(len(x), -1)
    weight = 0.95 * weight / weight.sum(1, keepdims=True) + 0.05 / GRID**2
    weight = weight.astype(np.float32).T
    out = np.zeros((len(maps), weight.shape[1]), np.float32)
    for channel in range(CHANNELS):
        out += (maps[:, channel] @ weight) * prfs.tuning[:, channel]
    return out ** prfs.exponent.astype(np.float32)


def selectivity(sheet: Sheet, atlas_seed: int) -> np.ndarray:
    """How much a voxel lies in a category-selective patch, float (V,) in 0..1; 0 below V4.

    The patches are at the same places of every subject's map.
    """
    centres = np.random.default_rng(derive_seed(atlas_seed, "patches")).uniform(0.1, 0.9, (_PATCHES, 2))
    distance = ((sheet.map[:, None] - centres) ** 2).sum(-1).min(1)
    return np.exp(-distance / (2 * 0.1**2)) * sheet.mask("higher_vis")


def scene_responses(features: np.ndarray, sheet: Sheet, voxels: np.ndarray, atlas_seed: int, seed: int) -> np.ndarray:
    """Responses of ``voxels`` (bool mask) to what scenes hold, float32 (n, V).

    They are linear in the features (n, 76).

    Tuning is one smooth map per feature, shared by all subjects; a subject's own mixing of features and a
    smaller map of its own come on top. Which kind of feature (objects, place, layout ...) a stretch of cortex
    cares for varies smoothly too, and category-selective patches listen to objects most.
    """
    at = sheet.map[voxels]
    drive = scale_blocks(features)
    tuning = smooth_fields(at, FEATURES, 0.15, derive_seed(atlas_seed, "scene tuning"))
    mixing = np.random.default_rng(derive_seed(seed, "mixing")).standard_normal((FEATURES, FEATURES))
    tuning = tuning + 0.35 * tuning @ (mixing / np.sqrt(FEATURES))
    tuning += 0.25 * smooth_fields(at, FEATURES, 0.15, derive_seed(seed, "scene tuning"))
    interest = np.exp(0.6 * smooth_fields(at, len(BLOCKS), 0.3, derive_seed(atlas_seed, "interest")))
    for index, (name, columns) in enumerate(BLOCKS.items()):
        tuning[:, columns] *= interest[:, [index]]
        if name == "objects":
            tuning[:, columns] *= 1 + selectivity(sheet, atlas_seed)[voxels, None]
    return (drive @ tuning.T).astype(np.float32)


def scale_blocks(features: np.ndarray) -> np.ndarray:
    """Centre the features over images and give each block its fixed share of the variance.

    A block that never varies (places where only captions are known) stays 0.
    """
    out = np.zeros_like(features)
    for name, columns in BLOCKS.items():
        centred = features[:, columns] - features[:, columns].mean(0)
        total = np.sqrt(centred.var(0).sum())
        if total > 1e-6:
            out[:, columns] = centred * (_BLOCK_WEIGHT[name] / total)
    return out


def standardise(responses: np.ndarray, what: str) -> np.ndarray:
    """Mean 0 and sd 1 over images, float32. Raises UserError where a voxel's response never varies."""
    sd = responses.std(0, dtype=np.float64)
    if not sd.min() > 1e-7:
        raise UserError(f"{what}: all images evoke the same response; expected stimuli that differ")
    return ((responses - responses.mean(0, dtype=np.float64)) / sd).astype(np.float32)


def shared_responses(
    maps: np.ndarray, features: np.ndarray, sheet: Sheet, prfs: Prfs, atlas_seed: int, seed: int
) -> np.ndarray:
    """The linear part L, float32 (n, V), mean 0 and sd 1 over images.

    V1 to V3 are pRFs, V4 mixes pRFs with scene tuning (smoothly varying weights around one half of the variance each), higher
    areas are scene tuning.
    """
    early, upper, v4 = sheet.mask(*EARLY), sheet.mask("V4", "higher_vis"), sheet.mask("V4")
    out = np.empty((len(maps), len(sheet.area)), np.float32)
    seen = standardise(prf_responses(maps, prfs), "images")
    known = standardise(scene_responses(features, sheet, upper, atlas_seed, seed), "labels")
    out[:, early], out[:, sheet.mask("higher_vis")] = seen, known[:, ~v4[upper]]
    lean = np.pi / 4 + 0.25 * smooth_fields(sheet.map[v4], 1, 0.3, derive_seed(atlas_seed, "V4 lean"))[:, 0]
    out[:, v4] = standardise(np.cos(lean) * seen[:, v4[early]] + np.sin(lean) * known[:, v4[upper]], "stimuli")
    return out
