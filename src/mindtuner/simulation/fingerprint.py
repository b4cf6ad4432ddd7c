"""The visual fingerprint: how one subject recodes the shared responses, non-linearly and alone.

    R_v = g_v E_v^n_v / (s^n_v + ((E_v^2 + P_v^2) / 2)^(n_v / 2)),    E_v = log(1 + exp(L_v + 1/2)),  s = 1/2

E is the rectified shared response, n_v the subject's own exponent, P the activity of the subject's own
normalisation pools (root mean square, so that a voxel saturates with itself and with its pool) (Heeger 1992,
Carandini and Heeger 2012) and g an attention-like gain: the categories that the subject cares for compete for
attention in each scene, and the winner scales responses differently over the sheet (Reynolds and Heeger
2009). The fingerprint is what R has beyond the same formula with everybody's average parameters, less
everything linear in the shared responses.
"""

from __future__ import annotations

import numpy as np

from mindtuner.errors import UserError
from mindtuner.runtime import derive_seed
from mindtuner.simulation.cortex import Sheet, smooth_fields
from mindtuner.simulation.semantic import BLOCKS
from mindtuner.simulation.tuning import scale_blocks, standardise

_AREA_FACTOR = np.array([0.6, 0.75, 0.9, 1.0, 1.3])  # higher areas are more individual
_PREFERENCES, _POOLS = 4, 8
_TYPICAL_EXPONENT = 1.4
_COMPONENTS = 100


def phi_per_voxel(sheet: Sheet, phi: float) -> np.ndarray:
    """sd of the fingerprint over sd of the linear part, float32 (V,); its mean over voxels is ``phi``.

    Raises UserError where ``phi`` is negative or not finite.
    """
    if not 0 <= phi < np.inf:
        raise UserError(f"fingerprint: {phi}; expected a number of at least 0")
    factor = _AREA_FACTOR[sheet.area]
    return (phi * factor / factor.mean()).astype(np.float32)


def fingerprint(linear: np.ndarray, features: np.ndarray, sheet: Sheet, seed: int) -> np.ndarray:
    """The subject's non-linear part N, float32 (n, V), mean 0 and sd 1 over images.

    ``linear`` (n, V) is L, ``features`` (n, 76) the scenes. The leading principal components of L (100, at
    most a quarter of the images) and each voxel's own L are regressed out, so no linear read-out of the
    shared responses gives N. All parameters come from ``seed``.
    """
    own = _recode(linear, _gain(features, sheet, seed), _exponents(sheet, seed), _pools(sheet, seed))
    nobody = np.full(linear.shape[1], _TYPICAL_EXPONENT, np.float32)
    everybody = np.full((linear.shape[1], 1), 1 / linear.shape[1], np.float32)
    own -= _recode(linear, np.float32(1), nobody, (everybody, np.ones_like(everybody)))
    return without_linear(own, linear)


def _gain(features: np.ndarray, sheet: Sheet, seed: int) -> np.ndarray:
    """(n, V): exp of the sheet's modulation by whichever preferred category holds attention."""
    rng = np.random.default_rng(derive_seed(seed, "preferences"))
    shown = scale_blocks(features)[:, BLOCKS["objects"]]
    salience = shown @ rng.standard_normal((shown.shape[1], _PREFERENCES))
    salience /= np.maximum(salience.std(0), 1e-6)  # the features are centred already
    attention = np.exp(salience - salience.max(1, keepdims=True))
    attention /= attention.sum(1, keepdims=True)
    modulation = smooth_fields(sheet.position, _PREFERENCES, 0.3, derive_seed(seed, "modulation"))
    return np.exp(0.6 * attention.astype(np.float32) @ modulation.T)


def _exponents(sheet: Sheet, seed: int) -> np.ndarray:
    field = smooth_fields(sheet.position, 1, 0.4, derive_seed(seed, "exponents"))[:, 0]
    return _TYPICAL_EXPONENT * np.exp(0.3 * np.tanh(field))


def _pools(sheet: Sheet, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which voxels feed each of 8 pools, and which pools normalise each voxel: (V, 8) each."""
    into = np.exp(2 * smooth_fields(sheet.position, _POOLS, 0.4, derive_seed(seed, "pool input")))
    onto = np.exp(2 * smooth_fields(sheet.position, _POOLS, 0.4, derive_seed(seed, "pool output")))
    return into / into.sum(0), onto / onto.sum(1, keepdims=True)


def _recode(linear, gain, exponent, pools) -> np.ndarray:
    into, onto = pools
    drive = np.log1p(np.exp(linear + np.float32(0.5)))
    pool = np.sqrt((drive**2 + (drive**2 @ into) @ onto.T) / 2)
    return gain * drive**exponent / (np.float32(0.5) ** exponent + pool**exponent)


def without_linear(part: np.ndarray, linear: np.ndarray) -> np.ndarray:
    """Regress out of each voxel's ``part`` what is linear.

    That is a constant, the leading components of ``linear`` and its own ``linear`` (n, V); what is left is scaled to sd 1
    over images.
    """
    count = min(_COMPONENTS, len(linear) // 4)
    centred = linear - linear.mean(0)
    leading = np.linalg.eigh((centred @ centred.T).astype(np.float64))[1][:, -count:].astype(np.float32)
    part = part - part.mean(0)
    part -= leading @ (leading.T @ part)
    rest = centred - leading @ (leading.T @ centred)
    slope = (rest * part).sum(0) / np.maximum((rest**2).sum(0), 1e-6 * len(rest))
    part -= rest * slope
    return standardise(part, "fingerprint")
