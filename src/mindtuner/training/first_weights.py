"""Where pretraining starts, in closed form: principal components of image tokens, and regressions of them on voxels.

From random weights most of pretraining goes into finding which tokens go together, and which voxels tell of them. Both are
linear problems. Each subject's ridge starts as the regression from its betas to the coordinates of the images' tokens along
their principal directions. The token head starts as the regression from what all ridges say of trials whose image they were
not fitted to, back to these coordinates (stacking, Wolpert 1992), and the residual blocks as the identity. Training goes on
from there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from mindtuner.data import Subject, Trials
from mindtuner.data.splits import image_folds
from mindtuner.model import BrainNetwork
from mindtuner.model.backbone import head_projection
from mindtuner.runtime import derive_seed, device, progress
from mindtuner.training.ridge import PENALTIES
from mindtuner.training.targets import Targets

HIDDEN_RMS = 0.577  # of x0 of trials whose image was left out: what random ridges make of z-scored betas, sqrt(1/3)
ALMOST_NONE = 1e-3  # penalty, in units of a hidden feature's sum of squares, with which tokens are read from them
FOLDS = 3
PER_FEATURE = 8  # training images that the directions are found in, for each hidden feature
POWER = 3  # iterations of the randomised decomposition (Halko, Martinsson and Tropp 2011, algorithm 4.4)
CHUNK = 256  # images or trials at a time
ROWS = 2**16  # of the head, turned at a time
SMALLEST = 1e-5  # share of the largest direction's sd below which one is rounding
JUDGED = 64  # coordinates that a penalty is judged by, those of most variance


@torch.no_grad()
def start_in_closed_form(
    network: BrainNetwork, subjects: dict[str, Subject], trials: dict[str, Trials], targets: Targets, seed: int
) -> None:
    """Give a network's token head, ridges and residual blocks their first weights, in place.

    Of hidden features beyond the rank of the tokens the head starts by reading nothing.

    Parameters
    ----------
    network : BrainNetwork
        Fresh, with a ridge for each subject; its random weights decide where the decomposition begins.
    subjects : dict of str to Subject
    trials : dict of str to Trials
        Training trials of each subject.
    targets : Targets
    seed : int
        Decides which images are looked at, and which are held out to choose a penalty.

    Examples
    --------
    >>> from mindtuner.config import load_config
    >>> from mindtuner.training.batches import training_trials
    >>> network = BrainNetwork(load_config("quick").model, {"subj02": dataset.subject(2).n_voxels})
    >>> trials = {"subj02": training_trials(dataset.subject(2), len(features.targets))}
    >>> start_in_closed_form(network, {"subj02": dataset.subject(2)}, trials, features.targets, seed=0)
    >>> network.blocks[0].mlp[-1].weight.any().item()
    False
    """
    network.to(device())
    head, images = network.head.linear, np.unique(np.concatenate([trials[name].stimulus for name in subjects]))
    rank = principal_head(network, targets, images, seed)
    coordinates = _coordinates(network, targets, images, rank)
    squares, products = (torch.zeros(rank, rank, dtype=torch.float64, device=head.weight.device) for _ in range(2))
    count = 0
    for name in progress(subjects, "first ridges", unit="subject"):
        stimulus = trials[name].stimulus
        betas = torch.from_numpy(subjects[name].betas(trials[name].row)).to(head.weight.device)
        wanted = coordinates[torch.from_numpy(np.searchsorted(images, stimulus)).to(coordinates.device)]
        fit = cross_fitted_ridge(betas, wanted, stimulus, seed)
        squares += fit.predicted.T @ fit.predicted
        products += fit.predicted.T @ wanted.double()
        count += len(wanted)
        network.ridges[name].weight[:rank] = fit.weight.T.to(head.weight)
        network.ridges[name].bias[:rank] = fit.intercept.to(head.weight)
    scale = HIDDEN_RMS / max(float(squares.trace() / (count * rank)) ** 0.5, 1e-12)
    for name in subjects:
        network.ridges[name].weight[:rank] *= scale
        network.ridges[name].bias[:rank] *= scale
    squares.diagonal().add_(ALMOST_NONE * max(float(squares.trace()) / rank, 1e-12))
    read = torch.linalg.solve(squares, products) / scale  # of coordinates from hidden features
    for some in head.weight.split(ROWS):
        some[:, :rank] = some[:, :rank] @ read.T.to(some)
    for block in network.blocks:
        block.mlp[-1].weight.zero_()
        block.mlp[-1].bias.zero_()


@torch.no_grad()
def principal_head(network: BrainNetwork, targets: Targets, images: np.ndarray, seed: int) -> int:
    """Make the token head's weights the principal directions of the tokens of training images (n,), its bias their mean.

    In place; they are orthonormal, the first of most variance. Their number, at most the hidden features, is returned.

    Tokens are read chunk by chunk, ``PER_FEATURE`` images for each hidden feature at most: nothing but the head itself
    is of the tokens' size. The decomposition is randomised, and begins with the head's random weights.
    """
    head = network.head.linear
    most = PER_FEATURE * network.config.hidden
    if len(images) > most:
        images = np.sort(np.random.default_rng(derive_seed(seed, "principal")).permutation(images)[:most])
    chunks = np.array_split(images, -(-len(images) // CHUNK))
    head.bias.zero_()
    for ids in chunks:
        head.bias += targets.rows("tokens", ids).to(head.bias).flatten(1).sum(0) / len(images)
    rank = max(1, min(network.config.hidden, len(images) - 1, head.out_features))
    for _ in range(1 + POWER):
        said = torch.cat([head_projection(targets.rows("tokens", ids).to(head.weight), head)[:, :rank] for ids in chunks])
        basis = torch.linalg.qr(said)[0]
        directions = head.weight[:, :rank]  # a view: what is written to it is the head's
        directions.zero_()
        for ids, rows in zip(chunks, basis.split([len(ids) for ids in chunks]), strict=True):
            directions.addmm_((targets.rows("tokens", ids).to(head.weight).flatten(1) - head.bias).T, rows)
        values, vectors = torch.linalg.eigh((directions.T @ directions).double())
        lengths = values.flip(0).clamp_min(0).sqrt()
        found = max(1, int((lengths > SMALLEST * lengths[0]).sum()))
        turned = (vectors.flip(1)[:, :found] / lengths[:found].clamp_min(1e-30)).to(directions)
        for some in directions.split(ROWS):
            some[:, :found] = some @ turned
        rank = found
    head.weight[:, rank:] = 0
    return rank


def _coordinates(network: BrainNetwork, targets: Targets, images: np.ndarray, rank: int) -> torch.Tensor:
    """Coordinates of the tokens of images (n,) along the head's first directions, (n, rank)."""
    head = network.head.linear
    chunks = np.array_split(images, -(-len(images) // CHUNK))
    return torch.cat([head_projection(targets.rows("tokens", ids).to(head.weight), head)[:, :rank] for ids in chunks])


class CrossFitted(NamedTuple):
    """``y = x weight + intercept``, float64.

    Attributes
    ----------
    weight : tensor (p, q)
    intercept : tensor (q,)
    penalty : float
        In units of the mean square of a row.
    predicted : tensor (n, q)
        For each row by a fit that has not seen its image.
    """

    weight: torch.Tensor
    intercept: torch.Tensor
    penalty: float
    predicted: torch.Tensor


def cross_fitted_ridge(x: torch.Tensor, y: torch.Tensor, images: np.ndarray, seed: int) -> CrossFitted:
    """Ridge regression with one penalty, that does best on a third of the images, held out.

    min over weight of ||y - x weight||² + penalty ||weight||², both centred, by Cholesky decompositions in the smaller of
    the two dimensions. What ``ridge.ridge_regression`` asks of eigenvalues, fold by fold, costs many times as much, which
    seven subjects of forty hours would feel. With a single image the largest penalty is taken, and the mean predicted.

    Parameters
    ----------
    x : tensor (n, p)
    y : tensor (n, q)
        The first columns judge.
    images : array (n,)
        Which image each row is of.
    seed : int
        Decides the folds.

    Returns
    -------
    CrossFitted

    Examples
    --------
    >>> x = torch.randn(60, 3, generator=torch.Generator().manual_seed(0))
    >>> fit = cross_fitted_ridge(x, x @ torch.tensor([[1.0], [2.0], [3.0]]) + 5, np.arange(60), seed=0)
    >>> fit.weight.round(decimals=2).ravel().tolist(), round(float(fit.intercept), 2)
    ([1.0, 2.0, 3.0], 5.0)
    """
    y, every, penalty = y.double(), torch.arange(len(x), device=x.device), PENALTIES[-1]
    predicted = y.mean(0).expand_as(y).clone()
    count = min(FOLDS, len(np.unique(images)))
    folds = image_folds(images, count, derive_seed(seed, "first ridges")) if count > 1 else []
    for number, fold in enumerate(folds):
        rest, held = (torch.from_numpy(rows).to(x.device) for rows in fold)
        products = _Products(x, y, rest)
        if number == 0:
            penalty = min(PENALTIES, key=lambda one: _error(products, one, x, y, held))
        weight, intercept = products.solved(penalty)
        for some in held.split(CHUNK):
            predicted[some] = x[some].double() @ weight + intercept
    return CrossFitted(*_Products(x, y, every).solved(penalty), float(penalty), predicted)


def _error(products: _Products, penalty: float, x: torch.Tensor, y: torch.Tensor, held: torch.Tensor) -> float:
    """Summed squared error of the first outputs on the rows ``held``, which the products are without."""
    weight, intercept = products.solved(penalty, JUDGED)
    return sum(float((x[some].double() @ weight + intercept - y[some, :JUDGED]).square().sum()) for some in held.split(CHUNK))


class _Products:
    """The products of some rows that ridge regressions with any penalty are solved from, float64.

    Of trials where they are fewer than voxels; else of voxels, summed up trial by trial.
    """

    def __init__(self, x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor) -> None:
        chunks = rows.split(CHUNK)
        self.x_mean = sum(x[some].double().sum(0) for some in chunks) / len(rows)
        self.y_mean, self.dual = y[rows].mean(0), len(rows) < x.shape[1]
        if self.dual:
            self.x = x[rows].double() - self.x_mean
            self.gram, self.right = self.x @ self.x.T, y[rows] - self.y_mean
        else:
            self.gram, self.right = (x.new_zeros(x.shape[1], n, dtype=torch.float64) for n in (x.shape[1], y.shape[1]))
            for some in chunks:
                own = x[some].double() - self.x_mean
                self.gram.addmm_(own.T, own)
                self.right.addmm_(own.T, y[some] - self.y_mean)
        self.scale = max(float(self.gram.trace()) / len(rows), 1e-12)  # the mean square of a row

    def solved(self, penalty: float, outputs: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Weight (p, q) and intercept (q,), of the first ``outputs`` or of all."""
        gram = self.gram.clone()
        gram.diagonal().add_(penalty * self.scale)
        solution = torch.cholesky_solve(self.right[:, :outputs], torch.linalg.cholesky(gram))
        weight = self.x.T @ solution if self.dual else solution
        return weight, self.y_mean[:outputs] - self.x_mean @ weight
