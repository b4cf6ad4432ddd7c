"""Where a new subject's ridge starts: in closed form, against the frozen base.

Tuning asks of a new ridge that the frozen base make the right tokens of its output. The base knows what it is used to: for
each image, the hidden features x0 that the brains it was trained on gave. Regressed on the image's tokens, over all of
them, that is E[x0 | image] (``model.backbone``), free of any one subject's noise. A ridge regression from the new
subject's voxels to what is to be expected of the images it saw has a closed form, with a penalty chosen by
cross-validation, and takes seconds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array

from mindtuner.data import Subject, Trials
from mindtuner.data.splits import image_folds
from mindtuner.model import BrainNetwork
from mindtuner.model.backbone import ExpectedHidden, head_projection
from mindtuner.runtime import derive_seed, progress
from mindtuner.training.batches import Feed
from mindtuner.training.fold_sums import FoldSums
from mindtuner.training.targets import Targets

PENALTIES = np.logspace(-4, 2, 13)  # in units of the mean square of a row
FOLDS = 5
CHUNK = 256  # trials or images at a time
IMAGES = 128  # at a time, with all of a subject's trials of them


class Ridge(NamedTuple):
    """``y = x weight + intercept``: weight (p, q), intercept (q,); ``predicted`` (n, q), for each row by a fit that has not
    seen its image."""

    weight: np.ndarray
    intercept: np.ndarray
    predicted: np.ndarray


def ridge_regression(x: np.ndarray, y: np.ndarray, images: np.ndarray, seed: int) -> Ridge:
    """Ridge regression of y (n, q) on x (n, p), its one penalty chosen by cross-validation.

    min over weight of ||y - x weight||² + penalty ||weight||², both centred. The folds are of images (n,), so no image is on
    both sides, and the penalties are ``PENALTIES`` times the mean square of x's rows. Solved by himalaya in the smaller of
    the two dimensions. With a single image there is nothing to validate on: the largest penalty is taken.
    """
    # Only here, as scikit-learn comes with it, and pretraining would wait for both in vain.
    from himalaya.backend import set_backend
    from himalaya.kernel_ridge import solve_kernel_ridge_cv_eigenvalues, solve_kernel_ridge_eigenvalues
    from himalaya.ridge import solve_ridge_cv_svd, solve_ridge_svd

    set_backend("numpy")
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    alphas = (PENALTIES * max(float(np.square(x).sum(1).mean()), 1e-12)).astype(x.dtype)
    count = _fold_count(images)
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
    """``ridge_regression`` of y (n, q) on a subject's betas (n, V), in which voxels that respond alike get weights that are
    alike: each is averaged with the ``similar`` that are tuned most like it (``smoothing``), 0 for none. How a voxel is
    tuned is what the same regression the other way round, from y to the betas, says of it.
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
    """Each voxel averaged with the mean of the ``similar`` others whose tuning (q, V) is most like its own, by cosine: a
    sparse (V, V), ``betas (n, V) @ smoothing``.

    A ridge on such betas is one on the voxels themselves, under a prior by which voxels that respond alike have weights that
    are alike.
    """
    directions = (tuning / np.maximum(np.linalg.norm(tuning, axis=0), 1e-12)).astype(np.float32)
    voxels = directions.shape[1]
    nearest = np.empty((voxels, similar := min(similar, voxels - 1)), np.int64)
    for start in range(0, voxels, CHUNK):
        alike = directions[:, start : start + CHUNK].T @ directions
        alike[np.arange(len(alike)), start + np.arange(len(alike))] = -2  # not itself
        nearest[start : start + CHUNK] = np.argpartition(-alike, similar - 1, axis=1)[:, :similar]
    own = np.arange(voxels)
    rows, columns = np.r_[own, nearest.ravel()], np.r_[own, own.repeat(similar)]
    weights = np.r_[np.full(voxels, 0.5), np.full(nearest.size, 0.5 / max(similar, 1))].astype(np.float32)
    return csr_array((weights, (rows, columns)), shape=(voxels, voxels))


def _fold_count(images: np.ndarray) -> int:
    return min(FOLDS, len(np.unique(images)))


@torch.no_grad()
def learn_expectation(
    network: BrainNetwork, subjects: dict[str, Subject], trials: dict[str, Trials], targets: Targets, seed: int
) -> None:
    """Give a trained base its ``expectation``, from the training trials of the subjects that it knows (by name).

    Image by image, so that memory does not grow with their number.
    """
    device, hidden = network.head.linear.weight.device, network.config.hidden
    seen = {name: np.unique(trials[name].stimulus) for name in subjects}
    images = np.concatenate(list(seen.values()))
    fold, count = np.zeros(len(images), np.int64), _fold_count(images)
    for k, (_, held) in enumerate(image_folds(images, count, derive_seed(seed, "folds"))):
        fold[held] = k
    sums, spreads, done = FoldSums(count, hidden, hidden), [], 0
    for name in progress(subjects, "expectation", unit="subject"):
        order = np.argsort(trials[name].stimulus, kind="stable")
        row, stimulus = trials[name].row[order], trials[name].stimulus[order]
        total, squares = np.zeros(hidden), 0.0
        for some in np.array_split(seen[name], 1 + len(seen[name]) // IMAGES):
            first, last = np.searchsorted(stimulus, (some[0], some[-1] + 1))
            betas = torch.from_numpy(subjects[name].betas(row[first:last])).to(device)
            x0 = network.embed(betas, name).cpu().double().numpy()
            starts = np.searchsorted(stimulus[first:last], some)
            mean = np.add.reduceat(x0, starts) / np.diff(starts, append=last - first)[:, None]
            said = head_projection(targets.rows("tokens", some).to(device), network.head.linear).cpu().numpy()
            sums.add(fold[done : done + len(some)], said, mean)
            total, squares, done = total + x0.sum(0), squares + float(np.square(x0).sum()), done + len(some)
        spreads.append(squares / len(row) - float(np.square(total / len(row)).sum()))
    weight, intercept = sums.ridge(PENALTIES)
    network.expectation = ExpectedHidden(hidden).to(device)
    for buffer, value in (("matrix", weight.T), ("offset", intercept), ("spread", np.mean(spreads))):
        getattr(network.expectation, buffer).copy_(torch.as_tensor(value))


@torch.no_grad()
def solve_ridge(network: BrainNetwork, base: BrainNetwork, feed: Feed, targets: Targets, seed: int, similar: int = 0) -> None:
    """Set the subject's ridge in ``network``, which stands on ``base``, in closed form: ``fit_hidden``."""
    head, expectation, stimulus = base.head.linear, base.expectation, feed.trials.stimulus
    expected = torch.cat(
        [
            expectation(targets.rows("tokens", some).to(head.weight.device), head).cpu()
            for some in np.array_split(stimulus, 1 + len(stimulus) // CHUNK)
        ]
    ).numpy()
    betas = feed.subject.betas(feed.trials.row) if feed.betas is None else feed.betas
    fit_hidden(expected, betas, stimulus, float(expectation.spread), seed, similar).put_into(network.ridges[feed.name])


class HiddenRidge(NamedTuple):
    """Voxels to hidden features, ``x0 = x weight + bias``: weight (V, h), bias (h,)."""

    weight: np.ndarray
    bias: np.ndarray

    @torch.no_grad()
    def put_into(self, ridge: torch.nn.Linear) -> None:
        ridge.weight.copy_(torch.from_numpy(self.weight.T))
        ridge.bias.copy_(torch.from_numpy(self.bias))


def fit_hidden(
    expected: np.ndarray, betas: np.ndarray, images: np.ndarray, spread: float, seed: int, similar: int = 0
) -> HiddenRidge:
    """The ridge regression from a subject's betas (n, V) to the hidden features to expect (n, h) of the images (n,) that
    it saw: ``voxel_regression``.

    A regression shrinks what it predicts, and the base is used to the x0 of noisy single trials, so the prediction is
    ``stretched`` until its cross-validated variance over trials is what the base knows (``spread``).
    """
    fit = voxel_regression(betas, expected, images, seed, similar)
    return stretched(fit.weight, fit.intercept, fit.predicted.var(0).sum(), spread, expected.mean(0))


def stretched(weight: np.ndarray, bias: np.ndarray, variance: float, spread: float, mean: np.ndarray) -> HiddenRidge:
    """The ridge whose x0 varies by ``spread`` around ``mean`` (h,), where it varied by ``variance``, summed over features."""
    stretch = (spread / float(variance)) ** 0.5 if variance > 0 else 1.0
    return HiddenRidge(*((stretch * weight).astype(np.float32), (mean + stretch * (bias - mean)).astype(np.float32)))
