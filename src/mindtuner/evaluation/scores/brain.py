"""Brain correlation: voxels predicted from a picture against the voxels measured while the image was seen.

Arithmetic over arrays alone; ``evaluation.encoding`` makes the predictions. p images, V voxels, K of them in a region.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mindtuner.errors import UserError
from mindtuner.evaluation.scores.inputs import as_array, as_pair
from mindtuner.evaluation.statistics import PAIRS, random_pairs

FEWEST = 2  # voxels that a correlation across voxels needs
CHUNK = 4096  # voxels turned to float64 at a time
CONSTANT = 1e-6  # relative to its mean, a spread below this is float32's rounding


def paired_correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson r of row k of ``a`` with row k of ``b``, both (n, m): float64 (n,); 0 where either row is constant."""
    a, b = _standardised(a), _standardised(b)
    return np.einsum("nm,nm->n", a, b)


def regions(rois: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The regions with at least 2 voxels; others have no correlation across voxels and are left out."""
    return {name: mask for name, mask in rois.items() if mask.sum() >= FEWEST}


def brain_scores(predicted, measured, rois: Mapping[str, np.ndarray]) -> dict[str, dict[str, np.ndarray]]:
    """Correlations of predicted with measured voxels, in each region (brain correlation of the MindEye papers).

    What is constant has no correlation and counts 0, chance level. Regions of fewer than 2 voxels are left out.

    Parameters
    ----------
    predicted, measured : array (p, V)
        Betas of p images.
    rois : mapping of str to array, bool (V,)

    Returns
    -------
    dict
        {region: {"pattern": float64 (p,), "voxelwise": float64 (K,)}}. Pattern: for each image, Pearson r across the K
        voxels of the region. Voxelwise: for each voxel of the region, Pearson r across the p images; none where p is 1.

    Raises
    ------
    UserError
        For NaN, unequal shapes or a mask that does not fit.

    Examples
    --------
    >>> betas = np.random.default_rng(0).normal(size=(4, 6))
    >>> found = brain_scores(2 * betas, betas, {"V1": np.arange(6) < 3})
    >>> found["V1"]["pattern"].round(6), found["V1"]["voxelwise"].shape
    (array([1., 1., 1., 1.]), (3,))
    """
    a, b = _voxels(predicted, measured, rois)
    across = np.zeros(a.shape[1])
    if len(a) > 1:
        for start in range(0, a.shape[1], CHUNK):
            part = slice(start, start + CHUNK)
            across[part] = paired_correlations(a[:, part].T, b[:, part].T)
    return {
        name: {"pattern": paired_correlations(a[:, mask], b[:, mask]), **({"voxelwise": across[mask]} if len(a) > 1 else {})}
        for name, mask in regions(rois).items()
    }


def brain_chance(predicted, measured, rois: Mapping[str, np.ndarray], seed: int, pairs: int = PAIRS) -> dict[str, float]:
    """Chance level of "pattern" in each region: its mean over random pairs of a prediction and another image's voxels.

    Not 0: all images drive a region alike to a degree, and a picture of anything predicts that.

    Parameters
    ----------
    predicted, measured : array (p, V), p > 1
    rois : mapping of str to array, bool (V,)
    seed : int
    pairs : int

    Returns
    -------
    dict of str to float

    Raises
    ------
    UserError
        As ``brain_scores`` does, and for fewer than 2 images.

    Examples
    --------
    >>> same = np.tile(np.arange(4.0), (3, 1))  # all images drive the region alike
    >>> round(brain_chance(same, same, {"V1": np.ones(4, bool)}, seed=0)["V1"], 6)
    1.0
    """
    a, b = _voxels(predicted, measured, rois)
    i, j = random_pairs(len(a), seed, pairs)
    return {
        name: float((_standardised(a[:, mask]) @ _standardised(b[:, mask]).T)[i, j].mean())
        for name, mask in regions(rois).items()
    }


@dataclass(frozen=True)
class VoxelNoise:
    """What repeats say of each voxel: the variances of its signal and of one trial's noise, both float64 (V,).

    Allen et al. (2022): noise = variance across an image's repeats, mean over images; signal = variance of all trials less
    the noise, at least 0.
    """

    signal: np.ndarray
    noise: np.ndarray

    @classmethod
    def of_sums(cls, count: int, images: int, squares: np.ndarray, between: np.ndarray, total: np.ndarray) -> VoxelNoise:
        """From sums over ``count`` trials of ``images`` repeated images, all float64 (V,).

        ``total`` and ``squares`` are sums over trials of x and x²; ``between`` is the sum over images of repeats x mean².
        """
        noise = np.maximum(squares - between, 0) / (count - images)
        variance = np.maximum(squares - total**2 / count, 0) / (count - 1)
        return cls(np.maximum(variance - noise, 0), noise)

    @classmethod
    def of_trials(cls, betas, images) -> VoxelNoise | None:
        """From single trials (n, V) and the image that each shows (n,).

        Images seen once are left out; None where no image was seen twice. Raises UserError for NaN or unequal lengths.
        """
        betas, images = as_array(betas, "betas", 2).astype(np.float64), np.asarray(images)
        if images.shape != (len(betas),):
            raise UserError(f"betas: {len(betas)} trials, but images have shape {images.shape}; expected ({len(betas)},)")
        _, image, repeats = np.unique(images, return_inverse=True, return_counts=True)
        betas, image = betas[repeats[image] > 1], image[repeats[image] > 1]
        if len(betas) == 0:
            return None
        _, image, repeats = np.unique(image, return_inverse=True, return_counts=True)
        sums = np.zeros((len(repeats), betas.shape[1]))
        np.add.at(sums, image, betas)
        return cls.of_sums(len(betas), len(repeats), (betas**2).sum(0), (sums**2 / repeats[:, None]).sum(0), betas.sum(0))

    @property
    def ncsnr(self) -> np.ndarray:
        """Signal sd over the noise sd of one trial, (V,); 0 where nothing varies."""
        return np.sqrt(np.divide(self.signal, self.noise, out=np.zeros_like(self.signal), where=self.noise > 0))

    def ceiling(self, repeats) -> np.ndarray:
        """Noise ceiling (V,) in 0..1 of means over ``repeats`` trials, a number or one for each image.

        It is the share of variance that a perfect model of the signal explains, signal / (signal + noise x mean(1 /
        repeats)). Its root is the highest voxel-wise correlation.
        """
        left = self.noise * np.mean(1 / np.asarray(repeats, float))
        both = self.signal + left
        return np.divide(self.signal, both, out=np.zeros_like(both), where=both > 0)

    def pattern_ceiling(self, repeats, mask: np.ndarray) -> float:
        """About the highest mean "pattern" correlation in a region.

        It is the root of its voxels' summed signal over their summed variance. Exact where noise is independent between
        voxels and voxels have one mean.
        """
        left = self.noise[mask].sum() * np.mean(1 / np.asarray(repeats, float))
        both = self.signal[mask].sum() + left
        return float(np.sqrt(self.signal[mask].sum() / both)) if both > 0 else 0.0


def _voxels(predicted, measured, rois: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    a, b = as_pair(predicted, measured, ("predicted voxels", "measured voxels"), 2)
    for name, mask in rois.items():
        if np.shape(mask) != (a.shape[1],):
            raise UserError(f"region {name}: has shape {np.shape(mask)}; expected ({a.shape[1]},), one for each voxel")
    return a, b


def _standardised(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    centred = rows - rows.mean(1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    varies = norms > CONSTANT * np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(centred, norms, out=np.zeros_like(centred), where=varies)
