"""Ridge regression of rows that are too many to hold: sums of their products, fold by fold, are all it needs."""

from __future__ import annotations

import numpy as np
from scipy.linalg import eigh, solve


class FoldSums:
    """Rows x (n, p) and y (n, q), each of one of the ``folds``, of which only sums are kept: ``folds`` (p² + p q) float64."""

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
