"""Picture scores, one number for each image: PixCorr, SSIM and two-way identification.

Images are float (n, 3, H, W) in 0..1. They are scored at the size they come in: 128 x 128 in the demo, 425 x
425 in the published pipelines, so numbers of the two are not comparable.
"""

from __future__ import annotations

import numpy as np
import torch
from skimage.color import rgb2gray
from torch.nn import functional

from mindtuner.errors import UserError
from mindtuner.evaluation.scores.arrays import TIE, as_array, as_pair

SIGMA, RADIUS = 1.5, 5  # SSIM's Gaussian window, cut off at 3.5 sigma: 11 x 11 pixels
C1, C2 = 0.01**2, 0.03**2  # SSIM's stabilisers for values in 0..1


def as_images(images, name: str) -> np.ndarray:
    """Checked images (n, 3, H, W). Raises UserError for another shape, NaN, or values outside 0..1."""
    array = as_array(images, name, 4)
    if array.shape[1] != 3:
        raise UserError(f"{name}: has shape {array.shape}; expected (n, 3, H, W)")
    if array.min() < -1e-4 or array.max() > 1 + 1e-4:
        raise UserError(f"{name}: values from {array.min():.3g} to {array.max():.3g}; expected 0 to 1")
    return array


def resize(images, side: int) -> np.ndarray:
    """Images (n, 3, H, W) as float32 (n, 3, side, side): bilinear with antialiasing, clipped to 0..1."""
    array = as_images(images, "images")
    pixels = torch.from_numpy(np.array(array, dtype=np.float32))
    if pixels.shape[-2:] == (side, side):
        return pixels.numpy()
    pixels = functional.interpolate(pixels, size=(side, side), mode="bilinear", antialias=True,
                                    align_corners=False)
    return pixels.clamp(0, 1).numpy()


def correlations(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Pearson r (n, m) of every row of a (n, F) with every row of b (m, F); 0 where either row is constant.

    A constant row has no correlation. It counts 0, chance level, so that a method that paints one flat colour
    is scored like any other.
    """
    return _standardised(a) @ _standardised(b).T


def pixcorr(predicted, true) -> np.ndarray:
    """Pearson r over all pixels and channels of each image with its original: float64 (n,) in -1..1.

    A constant picture counts 0. Raises UserError for NaN, values outside 0..1 or unequal shapes.
    """
    a, b = _pair(predicted, true)
    return (_standardised(a.reshape(len(a), -1)) * _standardised(b.reshape(len(b), -1))).sum(1)


def ssim(predicted, true) -> np.ndarray:
    """Structural similarity (Wang et al. 2004) of the grey images: float64 (n,), 1 for equal images.

    Gaussian window of sigma 1.5, population covariance, data range 1, mean over all places where the window
    fits: ``skimage.metrics.structural_similarity`` with these settings, computed for many images at once.
    Raises UserError for NaN, values outside 0..1, unequal shapes, or images smaller than the window.
    """
    a, b = _pair(predicted, true)
    every = np.arange(len(a))
    return _ssim_of_pairs(a, b, every, every)


def two_way(features_predicted, features_true) -> np.ndarray:
    """Two-way identification from features (n, F), n > 1: float64 (n,) in 0..1, chance 0.5.

    For picture i: the share of the other originals j with r(predicted_i, true_i) > r(predicted_i, true_j),
    r being Pearson over features; equal r counts half. The picture is held fixed and originals compete, as in
    the MindEye papers. Raises UserError for NaN, unequal shapes, or a single image.
    """
    a, b = as_pair(features_predicted, features_true, ("predicted features", "true features"), 2)
    if len(a) < 2:
        raise UserError("predicted features: 1 row; expected at least 2, to compare between")
    r = correlations(a, b)
    ahead = np.diag(r)[:, None] - r
    points = np.where(np.abs(ahead) <= TIE, 0.5, ahead > 0)
    return (points.sum(1) - 0.5) / (len(a) - 1)  # each picture ties with itself: take that half point away


def random_pairing(predicted, true, seed: int, pairs: int = 1000) -> dict[str, float]:
    """Chance level of PixCorr and SSIM: their means over ``pairs`` random pairs of unlike index.

    A pair is (predicted_i, true_j) with i != j. Pairs are drawn with replacement and depend only on the seed
    and the number of images, so every method meets the same ones. Raises UserError as the scores do, and for
    fewer than 2 images.
    """
    a, b = _pair(predicted, true)
    n = len(a)
    if n < 2:
        raise UserError("predicted images: 1 image; expected at least 2 to draw wrong pairs from")
    rng = np.random.default_rng(seed)
    i = rng.integers(n, size=pairs)
    j = (i + rng.integers(1, n, size=pairs)) % n
    r = correlations(a.reshape(n, -1), b.reshape(n, -1))
    return {"pixcorr": float(r[i, j].mean()), "ssim": float(_ssim_of_pairs(a, b, i, j).mean())}


def _pair(predicted, true) -> tuple[np.ndarray, np.ndarray]:
    a, b = as_images(predicted, "predicted images"), as_images(true, "true images")
    if a.shape != b.shape:
        raise UserError(f"predicted images: shape {a.shape}; expected that of the true images, {b.shape}")
    return a, b


def _standardised(rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float64)
    centred = rows - rows.mean(1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    varies = norms > 1e-9 * np.linalg.norm(rows, axis=1, keepdims=True)  # below it there is only rounding
    return np.divide(centred, norms, out=np.zeros_like(centred), where=varies)


def _ssim_of_pairs(a: np.ndarray, b: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """SSIM (k,) of a[i] with b[j]. Means and variances are taken once an image, covariances by pair."""
    height, width = a.shape[-2:]
    if min(height, width) < 2 * RADIUS + 1:
        raise UserError(f"predicted images: {height} x {width} pixels; expected at least "
                        f"{2 * RADIUS + 1} x {2 * RADIUS + 1} for SSIM")
    down, across = _window(height), _window(width).T

    def local_mean(grey: np.ndarray) -> np.ndarray:
        return down @ grey @ across

    a, b = (rgb2gray(images.astype(np.float64), channel_axis=1) for images in (a, b))
    mean_a, mean_b = local_mean(a), local_mean(b)
    var_a, var_b = local_mean(a * a) - mean_a**2, local_mean(b * b) - mean_b**2
    scores = np.empty(len(i))
    for k, (x, y) in enumerate(zip(i, j, strict=True)):
        means = mean_a[x] * mean_b[y]
        covariance = local_mean(a[x] * b[y]) - means
        similarity = (2 * means + C1) * (2 * covariance + C2)
        similarity /= (mean_a[x] ** 2 + mean_b[y] ** 2 + C1) * (var_a[x] + var_b[y] + C2)
        scores[k] = similarity.mean()
    return scores


def _window(size: int) -> np.ndarray:
    """The Gaussian window at every place where it fits, as a matrix (size - 2 RADIUS, size)."""
    weights = np.exp(-(np.arange(-RADIUS, RADIUS + 1) ** 2) / (2 * SIGMA**2))
    rows = size - 2 * RADIUS
    matrix = np.zeros((rows, size))
    for offset, weight in enumerate(weights / weights.sum()):
        matrix[np.arange(rows), np.arange(rows) + offset] = weight
    return matrix
