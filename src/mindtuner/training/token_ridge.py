"""A plain regression from a subject's voxels to image tokens: what no base is needed for, and what a base has to beat."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from mindtuner.model import BrainNetwork
from mindtuner.runtime import device
from mindtuner.training.batches import Feed
from mindtuner.training.ridge import ridge_regression
from mindtuner.training.targets import Targets

PARTS = ("lowlevel", "prior", "retrieval")  # that a regression has not
COLUMNS = 32768  # turned to float64 at a time
SMALLEST = 1e-6  # share of the largest principal component's sd below which one is rounding


@torch.no_grad()
def regress_tokens(base: BrainNetwork, feed: Feed, targets: Targets, seed: int) -> BrainNetwork:
    """One ridge regression from betas x (V,) to an image's tokens Z (T·D,), as a network.

        Z = (x W + b) P + mean Z        W (V, r), P (r, T·D)

    The rows of P are the principal directions of the training images' tokens, in which all of them lie. They are orthonormal,
    so that this is the regression on the tokens themselves, with r numbers an image, at most one fewer than images, in the
    place of T·D. One penalty, chosen by cross-validation over images (``ridge.ridge_regression``). B and C are both Z.

    ``feed.shift`` becomes what a fit without a trial's image says otherwise of the trial, as in ``closed_form.solve_ridge``.

    Parameters
    ----------
    base : BrainNetwork
        Whose projector, which knows images and captions only, makes text of tokens. Nothing else of it is used.
    feed : Feed
        The subject's training trials.
    targets : Targets
    seed : int
        Decides the folds.

    Returns
    -------
    BrainNetwork
        Affine, of r hidden features.
    """
    images, which = np.unique(feed.trials.stimulus, return_inverse=True)
    mean, coordinates, directions = principal(targets.rows("tokens", images).numpy().reshape(len(images), -1))
    betas = feed.subject.betas(feed.trials.row) if feed.betas is None else feed.betas
    fit = ridge_regression(betas, coordinates[which], feed.trials.stimulus, seed)
    config = dataclasses.replace(base.config, hidden=coordinates.shape[1], blocks=0, backbone="affine")
    network = BrainNetwork(config, {feed.name: betas.shape[1]}, PARTS)
    ridge, head = network.ridges[feed.name], network.head.linear
    for parameter, values in (
        (ridge.weight, fit.weight.T),
        (ridge.bias, fit.intercept),
        (head.weight, directions.T),
        (head.bias, mean),
    ):
        parameter.copy_(torch.from_numpy(np.ascontiguousarray(values)))
    network.projector.load_state_dict(base.projector.state_dict())
    feed.shift = (fit.predicted - (betas @ fit.weight + fit.intercept)).astype(np.float32)
    return network.requires_grad_(False).to(device()).eval()


def principal(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean (p,), coordinates (m, r) and orthonormal directions (r, p) of rows (m, p): ``mean + coordinates @ directions``.

    Examples
    --------
    >>> mean, coordinates, directions = principal(np.array([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0]]))
    >>> mean.tolist(), coordinates.shape, (mean + coordinates @ directions).round(6).tolist()
    ([2.0, 2.0, 0.0], (2, 1), [[1.0, 2.0, 0.0], [3.0, 2.0, 0.0]])
    """
    mean = rows.mean(0, dtype=np.float64).astype(rows.dtype)
    centred, gram = rows - mean, np.zeros((len(rows), len(rows)))
    for some in range(0, rows.shape[1], COLUMNS):  # p is 425,984 at full size; in single precision rounding has a direction
        block = centred[:, some : some + COLUMNS].astype(np.float64)
        gram += block @ block.T
    values, vectors = np.linalg.eigh(gram)
    sd = np.sqrt(np.maximum(values[::-1], 0))
    rank = max(1, min(len(rows) - 1, int((sd > SMALLEST * sd[0]).sum())))  # what is centred has one direction fewer
    vectors = vectors[:, ::-1][:, :rank].astype(rows.dtype)
    directions = vectors.T @ centred / np.maximum(sd[:rank, None], np.finfo(rows.dtype).tiny).astype(rows.dtype)
    return mean, vectors * sd[:rank].astype(rows.dtype), directions
