"""Ridge regression: one cross-validated penalty for all outputs.

It is fitted by himalaya, or by sums of products where rows are too many to hold. Voxels that respond alike can get weights
that are alike.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.linalg import eigh, solve
from scipy.sparse import csr_array

from mindtuner.data.splits import image_folds
from mindtuner.runtime import derive_seed

PENALTIES = np.logspace(-4, 2, 13)  # in units of the mean square of a row
FOLDS = 5
VOXELS = 256  # whose most similar others are looked for at a time


class Ridge(NamedTuple):
    """A fitted ridge regression, ``y = x weight + intercept``.

    Attributes
    ----------
    weight : array (p, q)
    intercept : array (q,)
    predicted : array (n, q)
        For each row by a fit that has not seen its image.
    """

    weight: np.ndarray
    intercept: np.ndarray
    predicted: np.ndarray


def ridge_regression(x: np.ndarray, y: np.ndarray, images: np.ndarray, seed: int) -> Ridge:
    """Ridge regression with one penalty, chosen by cross-validation.

    min over weight of ||y - x weight||² + penalty ||weight||², both centred. The penalties are ``PENALTIES`` times the mean
    square of x's rows. Solved by himalaya in the smaller of the two dimensions. With a single image there is nothing to
    validate on: the largest penalty is taken.

    Parameters
    ----------
    x : array (n, p)
    y : array (n, q)
    images : array (n,)
        Which image each row is of: no image is on both sides of a fold.
    seed : int
        Decides the folds.

    Returns
    -------
    Ridge

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(50, 3))
    >>> fit = ridge_regression(x, x @ np.array([[1.0], [2.0], [3.0]]) + 5, np.arange(50), seed=0)
    >>> fit.weight.round(2).ravel().tolist(), round(float(fit.intercept[0]), 2)
    ([1.0, 2.0, 3.0], 5.0)
    """
    # Only here, as scikit-learn comes with it, and pretraining would wait for both in vain.
    from himalaya.backend import set_backend
    from himalaya.kernel_ridge import solve_kernel_ridge_cv_eigenvalues, solve_kernel_ridge_eigenvalues
    from himalaya.ridge import solve_ridge_cv_svd, solve_ridge_svd

    set_backend("numpy")
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    alphas = (PENALTIES * max(float(np.square(x).sum(1).mean()), 1e-12)).astype(x.dtype)
    count = fold_count(images)
    folds = image_folds(images, count, derive_seed(seed, "folds")) if count > 1 else []
    kernel = x @ x.T if len(x) <= x.shape[1] else None

    def fitted(rows: np.ndarray, alpha: float) -> np.ndarray:
        if kernel is None:
            return solve_ridge_svd(x[rows], y[rows], alpha=alpha, warn=False)
        return x[rows].T @ solve_kernel_ridge_eigenvalues(kernel[np.ix_(rows, rows)], y[rows], alpha=alpha)

    every = np.arange(len(x))
    if not folds:
        return Ridge(weight := fitted(every, alphas[-1]), y_mean - x_mean @ weight, np.tile(y_mean, (len(x), 1)))
    if kernel is None:
        best, weight, _ = solve_ridge_cv_svd(x, y, alphas, cv=folds, local_alpha=False, warn=False)
    else:
        best, dual, _ = solve_kernel_ridge_cv_eigenvalues(kernel, y, alphas, cv=folds, local_alpha=False)
        weight = x.T @ dual
    predicted = np.empty_like(y)
    for rows, others in folds:
        predicted[others] = x[others] @ fitted(rows, float(best[0]))
    return Ridge(weight, y_mean - x_mean @ weight, predicted + y_mean)


def voxel_regression(betas: np.ndarray, y: np.ndarray, images: np.ndarray, seed: int, similar: int) -> Ridge:
    """Ridge regression on a subject's betas, in which voxels that respond alike get weights that are alike.

    Each voxel is averaged with those that are tuned most like it (``smoothing``). How a voxel is tuned is what the same
    regression the other way round, from y to the betas, says of it.

    Parameters
    ----------
    betas : array (n, V)
    y : array (n, q)
    images : array (n,)
    seed : int
    similar : int
        Voxels that each is averaged with; 0 for none.

    Returns
    -------
    Ridge
        Its weight is that of the voxels themselves, (V, q).

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> y = rng.normal(size=(60, 2))
    >>> betas = y @ rng.normal(size=(2, 8)) + 0.1 * rng.normal(size=(60, 8))
    >>> voxel_regression(betas, y, np.arange(60), seed=0, similar=2).weight.shape
    (8, 2)
    """
    if similar == 0:
        return ridge_regression(betas, y, images, seed)
    tuning = ridge_regression(y, betas, images, seed).weight
    if len(y) < y.shape[1]:  # then it lies in the space of the trials, where its cosines are found sooner
        tuning = np.linalg.qr((y - y.mean(0)).T)[0].T @ tuning
    smooth = smoothing(tuning, similar)
    fit = ridge_regression(betas @ smooth, y, images, seed)
    return fit._replace(weight=smooth @ fit.weight)


def smoothing(tuning: np.ndarray, similar: int) -> csr_array:
    """A matrix that averages each voxel with the mean of the others that are most like it, by the cosine of their tuning.

    A ridge on such betas is one on the voxels themselves, under a prior by which voxels that respond alike have weights
    that are alike.

    Parameters
    ----------
    tuning : array (q, V)
    similar : int

    Returns
    -------
    sparse array, float32 (V, V)
        For ``betas (n, V) @ smoothing``.

    Examples
    --------
    >>> smoothing(np.array([[1.0, 1.0, -1.0]]), similar=1).toarray()[:, 0].tolist()  # voxel 0 with voxel 1
    [0.5, 0.5, 0.0]
    """
    directions = (tuning / np.maximum(np.linalg.norm(tuning, axis=0), 1e-12)).astype(np.float32)
    voxels = directions.shape[1]
    nearest = np.empty((voxels, similar := min(similar, voxels - 1)), np.int64)
    for start in range(0, voxels, VOXELS):
        alike = directions[:, start : start + VOXELS].T @ directions
        alike[np.arange(len(alike)), start + np.arange(len(alike))] = -2  # not itself
        nearest[start : start + VOXELS] = np.argpartition(-alike, similar - 1, axis=1)[:, :similar]
    own = np.arange(voxels)
    rows, columns = np.r_[own, nearest.ravel()], np.r_[own, own.repeat(similar)]
    weights = np.r_[np.full(voxels, 0.5), np.full(nearest.size, 0.5 / max(similar, 1))].astype(np.float32)
    return csr_array((weights, (rows, columns)), shape=(voxels, voxels))


def fold_count(images: np.ndarray) -> int:
    """Folds of these images (n,): FOLDS, or as many as there are images."""
    return min(FOLDS, len(np.unique(images)))


class FoldSums:
    """Ridge regression of rows that are too many to hold: sums of their products, fold by fold, are all it needs.

    Rows x (n, p) and y (n, q), each of one of the ``folds``, of which only sums are kept: ``folds`` (p² + p q) float64."""

    def __init__(self, folds: int, p: int, q: int) -> None:
        self.count, self.y_squared = np.zeros(folds), np.zeros(folds)
        self.x, self.y = np.zeros((folds, p)), np.zeros((folds, q))
        self.xx, self.xy = np.zeros((folds, p, p)), np.zeros((folds, p, q))

    def add(self, fold: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
        """Add rows x (n, p) and y (n, q) to their folds (n,)."""
        for f in np.unique(fold):
            own_x, own_y = x[fold == f].astype(np.float64), y[fold == f].astype(np.float64)
            self.count[f] += len(own_x)
            self.x[f] += own_x.sum(0)
            self.y[f] += own_y.sum(0)
            self.xx[f] += own_x.T @ own_x
            self.xy[f] += own_x.T @ own_y
            self.y_squared[f] += np.square(own_y).sum()

    def ridge(self, penalties: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``y = x weight + intercept``: weight (p, q) and intercept (q,).

        min over weight of ||y - x weight||² + penalty ||weight||², both centred; of ``penalties``, in units of the mean
        square of a row of x, ascending, the one with the least squared error on the folds left out, the last with a single
        fold.
        """
        x_mean, y_mean = self.x.sum(0) / self.count.sum(), self.y.sum(0) / self.count.sum()
        xx, xy, y_squared = self._centred(x_mean, y_mean)
        every_xx, every_xy = xx.sum(0), xy.sum(0)
        alphas = penalties * max(np.trace(every_xx) / self.count.sum(), 1e-12)
        errors = np.zeros(len(alphas))
        for f in range(len(self.count)) if len(self.count) > 1 else ():
            errors += _errors(every_xx - xx[f], every_xy - xy[f], xx[f], xy[f], y_squared[f], alphas) / self.count[f]
        best = alphas[np.argmin(errors)] if len(self.count) > 1 else alphas[-1]
        weight = solve(every_xx + best * np.eye(len(every_xx)), every_xy, assume_a="pos")
        return weight, y_mean - x_mean @ weight

    def _centred(self, x_mean: np.ndarray, y_mean: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """``xx``, ``xy`` and ``y_squared`` of rows less the means."""
        count = self.count[:, None, None]
        x, y = self.x[:, :, None], self.y[:, None, :]
        xx = self.xx - x * x_mean - x_mean[:, None] * self.x[:, None, :] + count * np.outer(x_mean, x_mean)
        xy = self.xy - x * y_mean - x_mean[:, None] * y + count * np.outer(x_mean, y_mean)
        return xx, xy, self.y_squared - 2 * self.y @ y_mean + self.count * (y_mean @ y_mean)


def _errors(
    xx: np.ndarray, xy: np.ndarray, out_xx: np.ndarray, out_xy: np.ndarray, out_y_squared: float, alphas: np.ndarray
) -> np.ndarray:
    """Summed squared errors on the rows left out, by the sums of these and of the rows fitted to, for each penalty.

    ||Y - X W||² = ||Y||² - 2 tr(Wᵀ XᵀY) + tr(Wᵀ XᵀX W), with W = V (L + penalty)⁻¹ Vᵀ xy where xx = V L Vᵀ.
    """
    values, vectors = eigh(xx)
    fitted = vectors.T @ xy
    linear = (fitted * (vectors.T @ out_xy)).sum(1)
    square = (vectors.T @ out_xx @ vectors) * (fitted @ fitted.T)
    shrink = 1 / (np.maximum(values, 0) + alphas[:, None])
    return out_y_squared - 2 * shrink @ linear + np.einsum("ai,ij,aj->a", shrink, square, shrink)
