"""Measurement: noise ceilings planted per voxel, and trials measured under them."""

from __future__ import annotations

import numpy as np

from mindtuner.errors import UserError
from mindtuner.runtime import derive_seed
from mindtuner.simulation.cortex import Sheet, smooth_fields

MEAN_CEILING, LOWEST, HIGHEST = 0.36, 0.02, 0.80
SHARED_SHARE, DRIFT_SHARE = 0.3, 0.1  # of the noise variance; the rest is each voxel's own
_SHARED, _DRIFTS = 10, 4
_AREA_OFFSET = np.array([1.2, 1.0, 0.8, 0.5, -0.5])


def noise_ceilings(sheet: Sheet, patches: np.ndarray, seed: int) -> np.ndarray:
    """Noise ceiling of the mean of 3 repeats, float32 (V,): smooth over the sheet, between 0.02 and 0.80.

    Its mean is 0.36 exactly. It is higher in early areas and in category-selective ``patches`` (V,) in 0..1.
    """
    field = smooth_fields(sheet.position, 1, 0.2, derive_seed(seed, "ceiling"))[:, 0]
    own = np.random.default_rng(derive_seed(seed, "ceiling of one voxel")).standard_normal(len(field))
    height = _AREA_OFFSET[sheet.area] + 1.3 * patches + 1.0 * field + 0.4 * own
    low, high = -20.0, 20.0
    for _ in range(60):  # bisection on the level that gives the mean
        level = (low + high) / 2
        ceiling = LOWEST + (HIGHEST - LOWEST) / (1 + np.exp(-height - level))
        low, high = (level, high) if ceiling.mean() < MEAN_CEILING else (low, level)
    return ceiling.astype(np.float32)


def ncsnr_of(ceiling: np.ndarray) -> np.ndarray:
    """Signal sd over the noise sd of one trial, from NC = ncsnr^2 / (ncsnr^2 + 1/3) (Allen et al. 2022)."""
    return np.sqrt(ceiling / (3 * (1 - ceiling)))


def session_noise(trials: int, sheet: Sheet, seed: int, session: int) -> np.ndarray:
    """Noise of one session, float32 (trials, V), each voxel's of unit variance in expectation.

    30 % of the variance is shared (10 smooth maps, new weights every trial), 10 % drifts slowly (4 smooth
    maps on the four slowest cosines of the session, so it has no mean within a session), 60 % is each voxel's
    own.
    """
    rng = np.random.default_rng(derive_seed(seed, "noise", session))
    shared = rng.standard_normal((trials, _SHARED), np.float32) @ _unit_maps(sheet, _SHARED, seed, "shared").T
    time = (np.arange(trials) + 0.5) / trials
    slow = np.sqrt(2) * np.cos(np.pi * time[:, None] * np.arange(1, 5))
    courses = slow @ rng.standard_normal((4, _DRIFTS)) / 2  # variance 1 in expectation
    drift = courses.astype(np.float32) @ _unit_maps(sheet, _DRIFTS, seed, "drift").T
    noise = rng.standard_normal((trials, len(sheet.area)), np.float32)
    noise *= np.sqrt(1 - SHARED_SHARE - DRIFT_SHARE)
    noise += np.float32(np.sqrt(SHARED_SHARE)) * shared
    noise += np.float32(np.sqrt(DRIFT_SHARE)) * drift
    return noise


def _unit_maps(sheet: Sheet, count: int, seed: int, name: str) -> np.ndarray:
    maps = smooth_fields(sheet.position, count, 0.5, derive_seed(seed, name, "maps"))
    return maps / np.maximum(np.linalg.norm(maps, axis=1, keepdims=True), 1e-6)


def check_noise(noise: float) -> None:
    """Raise UserError where the noise knob is negative or not finite."""
    if not 0 <= noise < np.inf:
        raise UserError(f"noise: {noise}; expected a number of at least 0")
