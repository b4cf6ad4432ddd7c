"""Simulated brains that look at images. What is simulated, and what is not: docs/simulation.md.

S_v = (L_v + N_v) / sd        L linear mixing of responses that subjects share, sd 1
y_v = S_v + noise e / ncsnr_v       N the subject's fingerprint, sd phi_v, uncorrelated with L
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindtuner.errors import UserError
from mindtuner.runtime import derive_seed
from mindtuner.simulation.cortex import Sheet, make_sheet
from mindtuner.simulation.early import CHANNELS, GRID
from mindtuner.simulation.fingerprint import fingerprint, phi_per_voxel
from mindtuner.simulation.noise import check_noise, ncsnr_of, noise_ceilings, session_noise
from mindtuner.simulation.semantic import FEATURES
from mindtuner.simulation.tuning import Prfs, make_prfs, selectivity, shared_responses

MIN_IMAGES = 20


@dataclass(frozen=True)
class Brain:
    """One simulated subject and its noise-free responses to n images.

    ``signal`` and ``linear`` are float32 (n, V): S and L, each voxel of mean 0 and sd 1 over the images.
    ``phi`` (V,) is sd of the fingerprint over sd of the linear part, ``ncsnr`` (V,) signal sd over the noise
    sd of one trial at noise 1, ``noise_ceiling`` (V,) that of the mean of three repeats. ``prfs`` are those
    of V1 to V4.
    """

    number: int
    signal: np.ndarray
    linear: np.ndarray
    sheet: Sheet
    prfs: Prfs
    phi: np.ndarray
    ncsnr: np.ndarray
    noise_ceiling: np.ndarray
    seed: int

    @property
    def rois(self) -> dict[str, np.ndarray]:
        """bool masks (V,): nsd_general (all), V1, V2, V3, V4, higher_vis."""
        return self.sheet.rois()

    @property
    def fingerprint(self) -> np.ndarray:
        """N, float32 (n, V): the non-linear part in units of L, so of sd ``phi``."""
        return self.signal * np.sqrt(1 + self.phi**2) - self.linear

    @property
    def fingerprint_share(self) -> np.ndarray:
        """Share of the signal's variance that is the fingerprint's, (V,)."""
        return self.phi**2 / (1 + self.phi**2)

    def truth(self) -> dict[str, np.ndarray]:
        """What was planted, per voxel, as arrays to store beside the data.

        They are ``ncsnr``, ``noise_ceiling``, ``phi``, ``fingerprint_share`` (V,), ``sheet`` (V, 2), and ``prf_x``,
        ``prf_y``, ``prf_size`` (V,), NaN where a voxel has no pRF.
        """
        early = self.sheet.mask("V1", "V2", "V3", "V4")
        prf = np.full((3, len(early)), np.nan, np.float32)
        prf[:, early] = [*self.prfs.centre.T, self.prfs.size]
        return {
            "ncsnr": self.ncsnr,
            "noise_ceiling": self.noise_ceiling,
            "phi": self.phi,
            "fingerprint_share": self.fingerprint_share,
            "sheet": self.sheet.position.astype(np.float32),
            "prf_x": prf[0],
            "prf_y": prf[1],
            "prf_size": prf[2],
        }


def simulate_brain(
    number: int,
    n_voxels: int,
    early: np.ndarray,
    semantic: np.ndarray,
    phi: float,
    seed: int,
    group: int | None = None,
) -> Brain:
    """A subject's noise-free responses to the images whose features are given.

    ``early`` (n, 18, 16, 16) and ``semantic`` (n, 76) come from ``early_features`` and ``semantic_features``.
    All subjects of one ``seed`` share an atlas of tuning; ``number`` decides everything that is the subject's
    own. Subjects of one ``group`` recode alike: the parameters of their fingerprints are the same maps over the
    sheet. Without a group they are the subject's own. Standardisation and regressions run over exactly these
    images, so give all that the subject ever sees.

    Raises UserError on shapes that do not fit, fewer than 20 images, fewer than 50 voxels, a negative ``phi``
    or stimuli that are all alike.
    """
    if early.shape[1:] != (CHANNELS, GRID, GRID) or semantic.shape != (len(early), FEATURES):
        raise UserError(
            f"features: shapes {early.shape} and {semantic.shape}; expected (n, {CHANNELS}, {GRID}, "
            f"{GRID}) and (n, {FEATURES})"
        )
    if len(early) < MIN_IMAGES:
        raise UserError(f"images: {len(early)} for subject {number}; expected at least {MIN_IMAGES}")
    atlas, own = derive_seed(seed, "atlas"), derive_seed(seed, "subject", number)
    sheet = make_sheet(n_voxels, own)
    strength = phi_per_voxel(sheet, phi)
    prfs = make_prfs(sheet, atlas, own)
    linear = shared_responses(early, semantic, sheet, prfs, atlas, own)
    signal = linear
    if phi > 0:
        recoding = derive_seed(own, "fingerprint") if group is None else derive_seed(seed, "fingerprint", group)
        part = fingerprint(linear, semantic, sheet, recoding)
        signal = (linear + strength * part) / np.sqrt(1 + strength**2)
    ceiling = noise_ceilings(sheet, selectivity(sheet, atlas), own)
    return Brain(number, signal, linear, sheet, prfs, strength, ncsnr_of(ceiling), ceiling, own)


def measure(brain: Brain, rows: np.ndarray, session: np.ndarray, noise: float = 1.0) -> np.ndarray:
    """Betas of single trials before any z-scoring, float32 (trials, V), in units of the signal's sd.

    ``rows`` (trials,) says which image of ``brain.signal`` each trial shows and ``session`` (trials,) in
    which session, trials of a session in the order of time. ``noise`` multiplies the noise; 0 gives the
    signal itself. A session's noise depends on the subject and the session's number only, so sessions may be
    measured one by one.

    Raises UserError where ``noise`` is negative, or rows and sessions do not fit each other or the brain.
    """
    check_noise(noise)
    rows, session = np.asarray(rows), np.asarray(session)
    if rows.ndim != 1 or rows.shape != session.shape:
        raise UserError(f"rows and session: shapes {rows.shape} and {session.shape}; expected two equal (trials,)")
    if rows.size and not (0 <= rows.min() and rows.max() < len(brain.signal)):
        raise UserError(f"rows: {rows.min()} to {rows.max()}; expected 0 to {len(brain.signal) - 1}")
    betas = brain.signal[rows]
    if noise > 0:
        for number in np.unique(session):
            here = session == number
            betas[here] += noise / brain.ncsnr * session_noise(int(here.sum()), brain.sheet, brain.seed, int(number))
    return betas
