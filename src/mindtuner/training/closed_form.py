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

from mindtuner.data import Subject, Trials
from mindtuner.data.splits import image_folds
from mindtuner.model import BrainNetwork
from mindtuner.model.backbone import Centre, ExpectedHidden, head_projection
from mindtuner.runtime import derive_seed, progress
from mindtuner.training.batches import Feed, subject_name
from mindtuner.training.ridge import PENALTIES, FoldSums, fold_count, voxel_regression
from mindtuner.training.targets import Targets

CHUNK = 256  # trials or images at a time
NUMBERS = 2**24  # and at most so many numbers of their tokens: 39 trials at paper size
SHARED = 0.05  # of the mean square of image tokens, above which their mean is taken off in retrieval
IMAGES = 128  # at a time, with all of a subject's trials of them


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
    fold, count = np.zeros(len(images), np.int64), fold_count(images)
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
    """Set the subject's ridge in ``network``, which stands on ``base``, in closed form: ``fit_hidden``.

    ``feed.shift`` becomes what the ridge as fitted without a trial's image says otherwise of the trial. The ridge knows its
    own trials better than it will know any other: what stands behind it learns from such answers what to expect of it
    (stacking, Wolpert 1992). Which voxels are ``similar`` is told from all trials.
    """
    expected, spread, stimulus = _expected(base, feed.trials.stimulus, targets), base.expectation.spread, feed.trials.stimulus
    betas = feed.subject.betas(feed.trials.row) if feed.betas is None else feed.betas
    fit = fit_hidden(expected, betas, stimulus, float(spread), seed, similar)
    fit.put_into(network.ridges[feed.name])
    feed.shift = fit.cross_fitted - (betas @ fit.weight + fit.bias)


@torch.no_grad()
def held_out_hidden(base: BrainNetwork, feed: Feed, targets: Targets, seed: int, similar: int = 0) -> np.ndarray:
    """x0 of each training trial by a ridge that knows nothing of the trial's image, float32 (n, h).

    ``feed.shift`` does not do where a network is to be judged: which voxels are ``similar`` is told from all trials there,
    and in small data that alone tells images apart. Here each fold of images has a fit of its own, from the beginning.
    """
    expected, stimulus = _expected(base, feed.trials.stimulus, targets), feed.trials.stimulus
    betas = feed.subject.betas(feed.trials.row) if feed.betas is None else feed.betas
    found = np.empty((len(stimulus), expected.shape[1]), np.float32)
    for rest, held in image_folds(stimulus, fold_count(stimulus), derive_seed(seed, "held out")):
        fit = fit_hidden(expected[rest], betas[rest], stimulus[rest], float(base.expectation.spread), seed, similar)
        found[held] = betas[held] @ fit.weight + fit.bias
    return found


def _expected(base: BrainNetwork, stimulus: np.ndarray, targets: Targets) -> np.ndarray:
    """The hidden features to expect of the images (n,) of trials, float32 (n, h)."""
    head, expectation = base.head.linear, base.expectation
    some = np.array_split(stimulus, 1 + len(stimulus) // CHUNK)
    found = [expectation(targets.rows("tokens", ids).to(head.weight.device), head).cpu() for ids in some]
    return torch.cat(found).numpy()


class HiddenRidge(NamedTuple):
    """Voxels to hidden features, ``x0 = x weight + bias``.

    Attributes
    ----------
    weight : array (V, h)
    bias : array (h,)
    cross_fitted : array (n, h), optional
        x0 of the rows that it was fitted on, each by a fit without the row's image.
    """

    weight: np.ndarray
    bias: np.ndarray
    cross_fitted: np.ndarray | None = None

    @torch.no_grad()
    def put_into(self, ridge: torch.nn.Linear) -> None:
        """Copy weight and bias into a subject's ridge, in place."""
        ridge.weight.copy_(torch.from_numpy(self.weight.T))
        ridge.bias.copy_(torch.from_numpy(self.bias))


def fit_hidden(
    expected: np.ndarray, betas: np.ndarray, images: np.ndarray, spread: float, seed: int, similar: int = 0
) -> HiddenRidge:
    """The ridge regression from a subject's betas (n, V) to the hidden features to expect of the images it saw.

    These are (n, h) of the images (n,). See ``voxel_regression``.

    A regression shrinks what it predicts, and the base is used to the x0 of noisy single trials, so the prediction is
    ``stretched`` until its cross-validated variance over trials is what the base knows (``spread``).
    """
    fit = voxel_regression(betas, expected, images, seed, similar)
    return stretched(fit.weight, fit.intercept, fit.predicted.var(0).sum(), spread, expected.mean(0), fit.predicted)


def stretched(
    weight: np.ndarray,
    bias: np.ndarray,
    variance: float,
    spread: float,
    mean: np.ndarray,
    cross_fitted: np.ndarray | None = None,
) -> HiddenRidge:
    """The ridge whose x0 varies by ``spread`` around ``mean`` (h,), where it varied by ``variance``, summed over features."""
    stretch = (spread / float(variance)) ** 0.5 if variance > 0 else 1.0
    around = [mean + stretch * (x0 - mean) for x0 in (bias, cross_fitted) if x0 is not None]
    return HiddenRidge(*((values.astype(np.float32)) for values in (stretch * weight, *around)))


@torch.no_grad()
def learn_centre(
    network: BrainNetwork,
    subject: Subject,
    rows: np.ndarray,
    targets: Targets | None = None,
    images: np.ndarray | None = None,
) -> None:
    """Give a network its ``centre``: the means of B and C over the trials of a subject with these rows (n,) of betas.

    In place, on the network's device. Nothing but betas is looked at, and, where ``targets`` are given, the tokens of the
    training ``images`` (m,), for what is taken off image tokens: ``mean_token``.
    """
    device, name = network.projector.matrix.weight.device, subject_name(subject.number)
    tokens, width = network.config.tokens, network.config.width
    centre, count = Centre(tokens, width).to(device), 0
    network.eval()
    for some in np.array_split(rows, -(-len(rows) // max(1, min(CHUNK, NUMBERS // (tokens * width))))):
        said = network(torch.from_numpy(subject.betas(some)).to(device), name, lowlevel=False)
        count += len(some)
        for mean, answers in ((centre.backbone, said.backbone_tokens), (centre.retrieval, said.retrieval_tokens)):
            mean += (answers.float() - mean).sum(0) / count
    if targets is not None and images is not None:
        centre.target += mean_token(targets, images).to(device)
    network.centre = centre


def mean_token(targets: Targets, images: np.ndarray) -> torch.Tensor:
    """What retrieval takes off the tokens of images, float32 (T, D), by those of the training ``images`` (m,).

    It is their mean where that holds more than ``SHARED`` of their mean square, and else 0. In photographs it holds a third
    (``benchmarks/real/human_it.py``), and to leave it there hides what tells them apart; in drawn scenes next to nothing.
    """
    total, squares, images = 0.0, 0.0, np.unique(images)
    for some in np.array_split(images, 1 + len(images) // CHUNK):
        tokens = targets.rows("tokens", some).double()
        total, squares = total + tokens.sum(0), squares + float(tokens.square().sum())
    mean = torch.as_tensor(total / len(images))
    return (mean * float(len(images) * mean.square().sum() > SHARED * squares)).float()
