"""Scores of pictures against their originals, one number for each: PixCorr, SSIM, and what is made of networks' features.

Images are (n, 3, H, W), floats in 0..1 or uint8, and are scored here at the size they come in; ``images.score_images``
brings them to the sizes that are wanted and holds all scores of a run together.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from mindtuner.errors import UserError
from mindtuner.evaluation.scores.inputs import TIE, as_images, as_pair
from mindtuner.evaluation.scores.preparation import HALF_POINT, OURS, Choices, prepare

SIGMA, RADIUS = 1.5, 5  # SSIM's Gaussian window, cut off at 3.5 sigma: 11 x 11 pixels
WINDOW = np.exp(-(np.arange(-RADIUS, RADIUS + 1) ** 2) / (2 * SIGMA**2))
WINDOW /= WINDOW.sum()
STRIP = 16  # places along one direction that the window is laid on together
BAND = np.stack([np.concatenate([np.zeros(k), WINDOW, np.zeros(STRIP - 1 - k)]) for k in range(STRIP)])
C1, C2 = 0.01**2, 0.03**2  # SSIM's stabilisers for values in 0..1
GREY = (0.2125, 0.7154, 0.0721)  # skimage.color.rgb2gray's
FLAT = 1e-6  # values of an image that differ by less are one value
IN_CACHE = 200_000  # pixels of images looked at together
ROUNDING = 4e-6  # beyond what a product of float32 rows of unit length is off by
SAME = 1e-12  # what float64 makes of one and the same row in two places
BLOCK = 32  # rows turned to float64 at a time


def pixcorr(predicted, true) -> np.ndarray:
    """Pearson r over all pixels and channels of each image with its original (PixCorr).

    A flat picture, one value everywhere, has no correlation. It counts 0, no relation, so that a method cannot gain by
    painting nothing. Where the original is flat, no method can have a correlation: NaN, which means leave out.

    Parameters
    ----------
    predicted, true : array (n, 3, H, W)
        Floats in 0..1, or uint8.

    Returns
    -------
    array, float64 (n,), in -1..1

    Raises
    ------
    UserError
        For NaN, values outside 0..1 or unequal shapes.

    Examples
    --------
    >>> image = np.random.default_rng(0).random((1, 3, 16, 16))
    >>> pixcorr(image, image).round(6), pixcorr(1 - image, image).round(6)
    (array([1.]), array([-1.]))
    """
    return pixel_scores(*_pair(predicted, true), only="pixcorr")["pixcorr"]


def ssim(predicted, true) -> np.ndarray:
    """Structural similarity of the grey images (Wang et al. 2004).

    Gaussian window of sigma 1.5, population covariance, data range 1, mean over all places where the window fits:
    ``skimage.metrics.structural_similarity`` with these settings.

    Parameters
    ----------
    predicted, true : array (n, 3, H, W)
        Floats in 0..1, or uint8.

    Returns
    -------
    array, float64 (n,), 1 for equal images

    Raises
    ------
    UserError
        For NaN, values outside 0..1, unequal shapes, or images smaller than the window of 11 x 11.

    Examples
    --------
    >>> image = np.random.default_rng(0).random((1, 3, 16, 16))
    >>> ssim(image, image).round(6), bool(ssim(1 - image, image) < 0)
    (array([1.]), True)
    """
    return pixel_scores(*_pair(predicted, true), only="ssim")["ssim"]


def two_way(features_predicted, features_true, ties: str = HALF_POINT) -> np.ndarray:
    """Two-way identification: chance 0.5.

    For picture i: the share of the other originals j with r(predicted_i, true_i) > r(predicted_i, true_j), r being Pearson
    over features. The picture is held fixed and originals compete, as in the MindEye papers.

    Parameters
    ----------
    features_predicted, features_true : array (n, F), n > 1
        What a network makes of the pictures and of their originals.
    ties : str
        Equal r (within 1e-6) count half with ``half``, nothing with ``lost``.

    Returns
    -------
    array, float64 (n,), in 0..1

    Raises
    ------
    UserError
        For NaN, unequal shapes, or a single image.

    Examples
    --------
    >>> features = np.random.default_rng(0).normal(size=(4, 20))
    >>> two_way(features, features)
    array([1., 1., 1., 1.])
    """
    a, b = as_pair(features_predicted, features_true, ("predicted features", "true features"), 2)
    if len(a) < 2:
        raise UserError("predicted features: 1 row; expected at least 2, to compare between")
    lineup = Lineup(ties)
    lineup.add(torch.from_numpy(b.astype(np.float32)))
    return lineup(torch.from_numpy(a.astype(np.float32)), 0)


def distance(features_predicted, features_true) -> np.ndarray:
    """1 - r of features with those of the original, r being Pearson over features.

    Features that are all equal have no correlation: r = 0, distance 1.

    Parameters
    ----------
    features_predicted, features_true : array (n, F)

    Returns
    -------
    array, float64 (n,), in 0..2; lower is better

    Raises
    ------
    UserError
        For NaN or unequal shapes.

    Examples
    --------
    >>> distance([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]], [[2.0, 4.0, 6.0], [3.0, 2.0, 1.0]]).round(6)
    array([0., 2.])
    """
    a, b = as_pair(features_predicted, features_true, ("predicted features", "true features"), 2)
    return 1 - (standardised(torch.from_numpy(a)) * standardised(torch.from_numpy(b))).sum(1).numpy()


def pixel_scores(
    predicted: np.ndarray,
    true: np.ndarray,
    choices: Choices = OURS,
    i: np.ndarray | None = None,
    j: np.ndarray | None = None,
    only: str | None = None,
) -> dict[str, np.ndarray]:
    """PixCorr and SSIM of pairs of checked images, predicted[i] with true[j]: float64 (k,) each; see ``pixcorr``, ``ssim``.

    Few pairs at a time, one of large images: their arrays then stay in the processor's cache, which is several times faster.
    """
    every = np.arange(len(predicted))
    i, j = every if i is None else i, every if j is None else j
    side = choices.pixel_side or choices.first_side
    pixels = side * side if side else predicted.shape[2] * predicted.shape[3]
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in ("pixcorr", "ssim") if only in (None, name)}
    for start in range(0, len(i), step := max(1, IN_CACHE // pixels)):
        some = slice(start, start + step)
        a, b = (prepare(images[rows[some]], choices.pixel_side, choices) for images, rows in ((predicted, i), (true, j)))
        if "ssim" in parts:
            parts["ssim"].append(_ssim(_grey(a), _grey(b)))
        if "pixcorr" in parts:
            parts["pixcorr"].append(_correlation(a, b))
    scores = {name: torch.cat(found).numpy() for name, found in parts.items()}
    if "pixcorr" in scores:
        scores["pixcorr"][is_flat(predicted)[i]] = 0.0
        scores["pixcorr"][is_flat(true)[j]] = np.nan
    return scores


def is_flat(images: np.ndarray) -> np.ndarray:
    """Which of the images (n, 3, H, W) have one value everywhere, and so no correlation with any other: bool (n,)."""
    rows = images.reshape(len(images), -1)
    flat = np.ptp(rows[:, ::97], axis=1) < FLAT  # of most a few values tell
    flat[flat] = np.ptp(rows[flat], axis=1) < FLAT
    return flat


def standardised(rows: torch.Tensor) -> torch.Tensor:
    """Rows (n, F) with mean 0 and length 1, float64; 0 where a row is constant."""
    rows = rows.double()
    size = rows.norm(dim=1, keepdim=True)
    centred = rows - rows.mean(1, keepdim=True)
    norms = centred.norm(dim=1, keepdim=True)
    varies = norms > 1e-9 * size  # below it there is only rounding
    return torch.where(varies, centred / torch.where(varies, norms, 1), 0)


class Lineup:
    """Two-way identification among fixed originals, whose features are added in blocks of rows, as they come.

    ``lineup(features (k, F), at) -> (k,)`` scores k pictures whose originals are the k rows of block ``at``. Features are
    standardised in place, once, and stay on their device, in float32; comparisons that float32 cannot tell from a tie are
    done again in float64, so the answer is that of float64 at the speed of float32.
    """

    def __init__(self, ties: str = HALF_POINT):
        self.ties = ties
        self.blocks: list[torch.Tensor] = []

    def add(self, features: torch.Tensor) -> None:
        """Add the originals of the next block, (m, F), which are standardised in place."""
        self.blocks.append(_standardise_in_place(features))

    def __call__(self, features: torch.Tensor, at: int) -> np.ndarray:
        """Score k pictures, (k, F), whose originals are the rows of block ``at`` -> float64 (k,) in 0..1."""
        rows, true = _standardise_in_place(features), self.blocks[at]
        similar = [rows @ block.T for block in self.blocks]
        own = similar[at].diagonal().clone()
        tie = TIE if self.ties == HALF_POINT else SAME
        points = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
        for number, block in enumerate(self.blocks):
            ahead = (own[:, None] - similar[number]).double()
            if number == at:
                ahead.fill_diagonal_(-2)  # the original itself does not compete
            _settle(ahead, rows, true, block, tie + ROUNDING)
            points += (ahead > tie).sum(1)
            if self.ties == HALF_POINT:
                points += 0.5 * (ahead.abs() <= tie).sum(1)
        return (points / (sum(map(len, self.blocks)) - 1)).cpu().numpy()


def _settle(ahead: torch.Tensor, rows: torch.Tensor, true: torch.Tensor, block: torch.Tensor, slack: float) -> None:
    """Do again in float64 what is as close to a tie as ``slack``: ahead (k, m) = rows (k, F) . true - rows x block (m, F)."""
    close = ahead.abs() <= slack
    for k in torch.nonzero(close.any(1))[:, 0].tolist():
        row = standardised(rows[k : k + 1])[0]
        for some in torch.nonzero(close[k])[:, 0].split(BLOCK):
            both = standardised(torch.cat([true[k : k + 1], block[some]])) @ row
            ahead[k, some] = both[0] - both[1:]


def _standardise_in_place(rows: torch.Tensor) -> torch.Tensor:
    """Float32 rows (n, F) become of mean 0 and length 1, a constant one 0."""
    mean = rows.mean(1, keepdim=True)
    norms = torch.linalg.vector_norm(rows.sub_(mean), dim=1, keepdim=True)
    varies = norms > 1e-6 * mean.abs() * rows.shape[1] ** 0.5  # below it there is only rounding
    return rows.mul_(torch.where(varies, 1 / norms, 0))


def _pair(predicted, true) -> tuple[np.ndarray, np.ndarray]:
    a, b = as_images(predicted, "predicted images"), as_images(true, "true images")
    if a.shape != b.shape:
        raise UserError(f"predicted images: shape {a.shape}; expected that of the true images, {b.shape}")
    return a, b


def _correlation(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Of two stacks of float32 images (k, 3, H, W) that are not flat, which are centred in place: float64 (k,)."""
    for images in (a, b):
        images.sub_(images.mean((1, 2, 3), keepdim=True))
    product, square_a, square_b = (_sums(x * y) for x, y in ((a, b), (a, a), (b, b)))
    return product / (square_a * square_b).sqrt()


def _sums(images: torch.Tensor) -> torch.Tensor:
    """Of float32 images (k, 3, H, W), each row for itself and the rows' sums in float64: (k,)."""
    return images.sum(3).double().sum((1, 2))


def _grey(images: torch.Tensor) -> np.ndarray:
    """Float32 images (k, 3, H, W) as float64 (k, H, W): what SSIM makes of nearly flat places needs that many digits."""
    red, green, blue = images.unbind(1)
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2]).double().numpy()


def _ssim(a: np.ndarray, b: np.ndarray) -> torch.Tensor:
    """Of two stacks of grey images (k, H, W): (k,). In place where it can be: new memory costs more here than the sums."""
    height, width = a.shape[-2:]
    if min(height, width) < len(WINDOW):
        raise UserError(
            f"predicted images: {height} x {width} pixels; expected at least {len(WINDOW)} x {len(WINDOW)} for SSIM"
        )
    mean_a, mean_b, covariance = _local_mean(a), _local_mean(b), _local_mean(a * b)
    variances = _local_mean(np.add(np.square(a, out=a), np.square(b, out=b), out=a))  # their sum
    product, squares = mean_a * mean_b, np.add(np.square(mean_a, out=mean_a), np.square(mean_b, out=mean_b), out=mean_a)
    covariance -= product
    variances -= squares
    above, below = (2 * product + C1) * (2 * covariance + C2), (squares + C1) * (variances + C2)
    return torch.from_numpy((above / below).mean((1, 2)))


def _local_mean(grey: np.ndarray) -> np.ndarray:
    """The window's mean at every place where it fits: (k, H, W) -> (k, H - 2 RADIUS, W - 2 RADIUS).

    The window is separable, and in each direction a product with a band matrix. It is taken strip by strip, since most of
    the whole matrix is 0.
    """
    images, height, width = grey.shape
    down = np.empty((images, height - 2 * RADIUS, width))
    for inside, around, band in _strips(down.shape[1]):
        np.matmul(band, grey[:, around], out=down[:, inside])
    across = np.empty((images, height - 2 * RADIUS, width - 2 * RADIUS))
    for inside, around, band in _strips(across.shape[2]):
        np.matmul(down[:, :, around], band.T, out=across[:, :, inside])
    return across


def _strips(places: int) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Of a direction along which the window fits ``places`` times: strips of places, what their windows see, the weights."""
    for start in range(0, places, STRIP):
        size = min(STRIP, places - start)
        yield slice(start, start + size), slice(start, start + size + 2 * RADIUS), BAND[:size, : size + 2 * RADIUS]
