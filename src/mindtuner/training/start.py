"""Where a new subject's ridge starts: in closed form, against the frozen base.

Tuning asks of a new ridge that the frozen base make the right tokens of its output. The base knows what it is used to: for
each image, the hidden features x0 that the brains it was trained on gave. Regressed on the image's tokens, over all of
them, that is E[x0 | image] (``model.expectation``), free of any one subject's noise. A ridge regression from the new
subject's voxels to what is to be expected of the images it saw has a closed form, with a penalty chosen by
cross-validation, and takes seconds.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from himalaya.backend import set_backend
from himalaya.kernel_ridge import solve_kernel_ridge_cv_eigenvalues, solve_kernel_ridge_eigenvalues
from himalaya.ridge import solve_ridge_cv_svd, solve_ridge_svd

from mindtuner.data import Subject, Trials
from mindtuner.data.folds import image_folds
from mindtuner.model import BrainNetwork
from mindtuner.model.expectation import ExpectedHidden, said_by_head
from mindtuner.runtime import derive_seed, progress
from mindtuner.training.batches import Feed
from mindtuner.training.targets import Targets

PENALTIES = np.logspace(-4, 2, 13)  # in units of the mean square of a row
FOLDS = 5
CHUNK = 256  # trials or images at a time


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
    set_backend("numpy")
    x_mean, y_mean = x.mean(0), y.mean(0)
    x, y = x - x_mean, y - y_mean
    alphas = (PENALTIES * max(float(np.square(x).sum(1).mean()), 1e-12)).astype(x.dtype)
    count = min(FOLDS, len(np.unique(images)))
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


def reliability(expected: np.ndarray, betas: np.ndarray, images: np.ndarray, seed: int) -> np.ndarray:
    """How far each voxel follows the images that were seen: float32 (V,), mean square 1.

    max(0, r_v), r_v the correlation of a voxel's betas (n, V) with what a cross-validated ridge regression from the images'
    expected hidden features (n, h) predicts of them; 1 everywhere where no voxel is predicted. A ridge regression on voxels
    times these weights has the prior that the sd of a voxel's own weights is as large as it is reliable.
    """
    predicted = ridge_regression(expected, betas, images, seed).predicted
    a, b = predicted - predicted.mean(0), betas - betas.mean(0)
    norms = np.sqrt(np.square(a).sum(0) * np.square(b).sum(0))
    r = np.divide((a * b).sum(0), norms, out=np.zeros_like(norms), where=norms > 0).clip(min=0)
    return r / np.sqrt(np.square(r).mean()) if r.any() else np.ones_like(r)


@torch.no_grad()
def learn_expectation(network: BrainNetwork, subjects: dict[str, Subject], trials: dict[str, Trials], targets: Targets,
                      seed: int) -> None:
    """Give a trained base its ``expectation``, from the training trials of the subjects that it knows (by name)."""
    features, means, images, spreads = [], [], [], []
    device = network.head.linear.weight.device
    for name in progress(subjects, "expectation", unit="subject"):
        seen, row = np.unique(trials[name].stimulus, return_inverse=True)
        total, squares = torch.zeros(len(seen), network.config.hidden, dtype=torch.float64), 0.0
        for some in np.array_split(np.arange(len(row)), 1 + len(row) // CHUNK):
            x0 = network.embed(torch.from_numpy(subjects[name].betas(trials[name].row[some])).to(device), name).cpu().double()
            total.index_add_(0, torch.from_numpy(row[some]), x0)
            squares += float(x0.square().sum())
        spreads.append(squares / len(row) - float((total.sum(0) / len(row)).square().sum()))
        means.append((total / torch.from_numpy(np.bincount(row))[:, None]).float().numpy())
        features.append(torch.cat([said_by_head(targets.rows("tokens", some).to(device), network.head.linear).cpu()
                                   for some in np.array_split(seen, 1 + len(seen) // CHUNK)]).numpy())
        images.append(seen)
    fit = ridge_regression(*map(np.concatenate, (features, means, images)), seed)
    network.expectation = ExpectedHidden(network.config.hidden).to(device)
    for buffer, value in (("matrix", fit.weight.T), ("offset", fit.intercept), ("spread", np.mean(spreads))):
        getattr(network.expectation, buffer).copy_(torch.as_tensor(value))


@torch.no_grad()
def solve_ridge(network: BrainNetwork, base: BrainNetwork, feed: Feed, targets: Targets, seed: int) -> None:
    """Set the subject's ridge in ``network``, which stands on ``base``, in closed form: ``fit_hidden``."""
    head, expectation, stimulus = base.head.linear, base.expectation, feed.trials.stimulus
    expected = torch.cat([expectation(targets.rows("tokens", some).to(head.weight.device), head).cpu()
                          for some in np.array_split(stimulus, 1 + len(stimulus) // CHUNK)]).numpy()
    betas = feed.subject.betas(feed.trials.row) if feed.betas is None else feed.betas
    fit_hidden(expected, betas, stimulus, float(expectation.spread), seed).put_into(network.ridges[feed.name])


class HiddenRidge(NamedTuple):
    """Voxels to hidden features, ``x0 = x weight + bias``: weight (V, h), bias (h,)."""

    weight: np.ndarray
    bias: np.ndarray

    @torch.no_grad()
    def put_into(self, ridge: torch.nn.Linear) -> None:
        ridge.weight.copy_(torch.from_numpy(self.weight.T))
        ridge.bias.copy_(torch.from_numpy(self.bias))


def fit_hidden(expected: np.ndarray, betas: np.ndarray, images: np.ndarray, spread: float, seed: int) -> HiddenRidge:
    """The ridge regression from a subject's betas (n, V) to the hidden features to expect (n, h) of the images (n,) that
    it saw.

    Voxels are weighted by their ``reliability`` first: the ridge's prior is that a voxel counts as far as images drive it.
    A regression shrinks what it predicts, and the base is used to the x0 of noisy single trials, so the prediction is
    ``stretched`` until its cross-validated variance over trials is what the base knows (``spread``).
    """
    weights = reliability(expected, betas, images, seed)
    fit = ridge_regression(betas * weights, expected, images, seed)
    return stretched(weights[:, None] * fit.weight, fit.intercept, fit.predicted.var(0).sum(), spread, expected.mean(0))


def stretched(weight: np.ndarray, bias: np.ndarray, variance: float, spread: float, mean: np.ndarray) -> HiddenRidge:
    """The ridge whose x0 varies by ``spread`` around ``mean`` (h,), where it varied by ``variance``, summed over features."""
    stretch = (spread / float(variance)) ** 0.5 if variance > 0 else 1.0
    return HiddenRidge(*((stretch * weight).astype(np.float32), (mean + stretch * (bias - mean)).astype(np.float32)))
