"""The encoding model: image features -> voxels, fitted on a subject's training trials.

It says what a picture would do to the brain that saw the original.

One ridge regression a voxel, on the betas of training images averaged over their trials:

    w_v = argmin  |X w + b - y_v|^2 + alpha_v |w|^2

X are the features, standardised over training images and divided by the root of their number; where they come in G groups
(early and late maps, say), each group by the root of G times its own number, so that groups count alike. alpha_v is the
one of ALPHAS whose predictions of left-out images have the smallest squared error, over 5 folds of images.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mindtuner.data import Subject
from mindtuner.data.splits import image_folds
from mindtuner.errors import UserError
from mindtuner.evaluation.scores.brain import VoxelNoise
from mindtuner.evaluation.scores.inputs import as_array
from mindtuner.runtime import device

ALPHAS = np.logspace(-2, 4, 13)
FOLDS = 5
TOGETHER, ALPHAS_TOGETHER = 1000, 4  # voxels, and penalties, solved at a time
BLOCK_BYTES = 2**26  # of betas read at a time


@dataclass(frozen=True)
class Responses:
    """A subject's responses to the images of some trials."""

    images: np.ndarray  # (m,) stimulus ids, ascending
    repeats: np.ndarray  # (m,) trials of each
    betas: np.ndarray  # float32 (m, V), mean over them
    noise: VoxelNoise | None  # by images seen twice or more; None where there is none


def responses(subject: Subject, trials) -> Responses:
    """Read the betas of ``trials`` once, in the order of the file, a block at a time: memory holds the averages and a block.

    Raises UserError where there is no trial, or a beta is not finite.
    """
    if len(trials) == 0:
        raise UserError(f"{subject.where}: subject {subject.number} has no such trials; expected some to average")
    images, position, repeats = np.unique(trials.stimulus, return_inverse=True, return_counts=True)
    sums = np.zeros((len(images), subject.n_voxels), np.float32)
    squares, total = np.zeros(subject.n_voxels), np.zeros(subject.n_voxels)
    again = repeats > 1
    order = np.argsort(trials.row, kind="stable")
    for block in np.array_split(order, -(-len(order) * subject.n_voxels * 4 // BLOCK_BYTES)):
        betas = subject.betas(trials.row[block])
        for k, beta in zip(position[block], betas, strict=True):
            sums[k] += beta
        used = betas[again[position[block]]].astype(np.float64)
        squares += (used**2).sum(0)
        total += used.sum(0)
    noise = None
    if again.any():
        between = np.zeros(subject.n_voxels)
        for k in np.flatnonzero(again):
            between += sums[k].astype(np.float64) ** 2 / repeats[k]
        noise = VoxelNoise.of_sums(int(repeats[again].sum()), int(again.sum()), squares, between, total)
    sums /= repeats[:, None].astype(np.float32)
    return Responses(images, repeats, sums, noise)


@dataclass(frozen=True)
class EncodingModel:
    """A fitted model; ``fit`` makes it."""

    mean: np.ndarray  # float32 (F,) of training features
    scale: np.ndarray  # float32 (F,), what standardises; 0 for a feature that never varies
    weights: np.ndarray  # float32 (F, V)
    intercept: np.ndarray  # float32 (V,)
    alphas: np.ndarray  # float32 (V,), the penalty of each voxel

    @classmethod
    def fit(cls, features, betas, images, seed: int, groups: tuple[int, ...] | None = None) -> EncodingModel:
        """Fit on n rows: ``features`` (n, F) and ``betas`` (n, V) of training images, ``images`` (n,) their ids.

        ``groups`` are the widths of groups of features, F in all, or None for one.

        Rows are images, or single trials: all rows of one image are in one fold, so no image is predicted by itself.
        The seed decides the folds, and nothing else is random. Computed in float32 by himalaya's RidgeCV, ``TOGETHER`` voxels
        at a time, on the CPU or, where there is CUDA, there.

        Raises UserError for NaN, unequal lengths, groups that do not fit, or fewer images than folds.
        """
        from himalaya.backend import set_backend
        from himalaya.ridge import RidgeCV

        x, y = (as_array(a, name, 2).astype(np.float32, copy=False) for a, name in ((features, "features"), (betas, "betas")))
        if not len(x) == len(y) == len(images):
            raise UserError(f"features: {len(x)} rows for {len(y)} of betas and {len(images)} images; expected as many")
        widths = groups or (x.shape[1],)
        if sum(widths) != x.shape[1]:
            raise UserError(f"features: {x.shape[1]} an image; expected {sum(widths)}, the sum of their groups {widths}")
        mean, sd = x.mean(0, dtype=np.float64), x.std(0, dtype=np.float64)
        roots = np.repeat(np.sqrt(np.multiply(widths, len(widths))), widths)
        scale = np.divide(1, sd * roots, out=np.zeros_like(sd), where=sd > 1e-6 * np.abs(mean))
        mean, scale = mean.astype(np.float32), scale.astype(np.float32)
        x = (x - mean) * scale
        axes = None
        if x.shape[1] > len(x):  # the same solution, found among as many principal components as there are rows
            left, values, axes = np.linalg.svd(x, full_matrices=False)
            x = left * values
        backend = set_backend(himalaya_backend())
        ridge = RidgeCV(
            ALPHAS,
            fit_intercept=True,
            cv=image_folds(images, FOLDS, seed),
            solver_params={
                "n_targets_batch": TOGETHER,
                "n_targets_batch_refit": TOGETHER,
                "n_alphas_batch": ALPHAS_TOGETHER,
                "warn": False,
            },
        )
        ridge.fit(x, y)
        weights, intercept, alphas = map(backend.to_numpy, (ridge.coef_, ridge.intercept_, ridge.best_alphas_))
        return cls(mean, scale, weights if axes is None else axes.T @ weights, intercept, alphas)

    def predict(self, features) -> np.ndarray:
        """Voxels that images with these features (n, F) should drive: float32 (n, V). UserError for NaN or another F."""
        x = as_array(features, "features", 2).astype(np.float32, copy=False)
        if x.shape[1] != len(self.mean):
            raise UserError(f"features: {x.shape[1]} an image; expected {len(self.mean)}, as the model was fitted on")
        return (x - self.mean) * self.scale @ self.weights + self.intercept


def himalaya_backend() -> str:
    """The library that himalaya computes with on this device."""
    return "torch_cuda" if device().type == "cuda" else "numpy"
