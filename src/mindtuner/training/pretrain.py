"""Phase 1: one network for several subjects, and the Pivot."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mindtuner.config import Config
from mindtuner.data import Dataset
from mindtuner.errors import UserError
from mindtuner.model import BrainNetwork
from mindtuner.model.prior import DiffusionPrior
from mindtuner.runtime import derive_seed, seed_everything
from mindtuner.training.batches import make_feeds, split_holdout, subject_name, training_trials
from mindtuner.training.checkpoint import pivot_checkpoint
from mindtuner.training.closed_form import learn_expectation
from mindtuner.training.first_weights import start_in_closed_form
from mindtuner.training.loop import fit, freeze_without_loss
from mindtuner.training.monitor import Log
from mindtuner.training.pivot import train_pivot
from mindtuner.training.targets import Targets


def pretrain(
    dataset: Dataset,
    targets: Targets,
    config: Config,
    seed: int,
    log: Log | None = None,
    holdout: float = 0.0,
    prior: DiffusionPrior | None = None,
    checkpoint: str | Path | None = None,
) -> BrainNetwork:
    """Train a network on every subject of a dataset, and the projector on their training images.

    With ``start: closed_form`` it begins where ``first_weights.start_in_closed_form`` puts it, else at random. With the
    network is kept what hidden features to expect of an image, from which a new subject's ridge starts. The same seed gives
    the same weights on the same machine.

    Parameters
    ----------
    dataset : Dataset
        Without the target subject (``dataset.without(subject=1)``).
    targets : Targets
    config : Config
    seed : int
    log : callable, optional
        As for ``fit``.
    holdout : float
        Share of the training images kept for validation scores in the log.
    prior : DiffusionPrior, optional
        What the network's prior starts from.
    checkpoint : path, optional
        A file from which the same call goes on after it was stopped (see ``fit``); give it to ``remove_checkpoint`` when the
        network is saved.

    Returns
    -------
    BrainNetwork

    Raises
    ------
    UserError
        Where a training trial shows a test image, targets and config do not fit, or the checkpoint is of another run.
    """
    if not dataset.subjects:
        raise UserError("dataset: holds no subject; expected at least one to pretrain on")
    targets.check(config.model)
    subjects = {subject_name(number): subject for number, subject in sorted(dataset.subjects.items())}
    trials = {name: training_trials(s, len(targets)) for name, s in subjects.items()}
    trials, held_out = split_holdout(trials, holdout, seed)
    voxels = {name: s.n_voxels for name, s in subjects.items()}
    seen = np.concatenate([t.stimulus for t in trials.values()])
    network = before_brains(voxels, seen, targets, config, seed, log, prior, checkpoint)
    if config.pretrain.start == "closed_form":
        start_in_closed_form(network, subjects, trials, targets, seed)
    freeze_without_loss(network, config.pretrain)
    feeds = make_feeds(subjects, trials, seed)
    fit(network, feeds, targets, config.pretrain, seed, "pretrain", log, held_out, checkpoint)
    learn_expectation(network, subjects, trials, targets, seed)
    return network


def before_brains(
    voxels: dict[str, int],
    images: np.ndarray,
    targets: Targets,
    config: Config,
    seed: int,
    log: Log | None = None,
    prior: DiffusionPrior | None = None,
    checkpoint: str | Path | None = None,
) -> BrainNetwork:
    """A network for subjects of so many voxels that has seen training images (n,) and their captions, and no brain.

    Of nobody's voxels it is a base without brains, which ``ridge`` and ``from_scratch`` need no more of. Other arguments as
    in ``pretrain``.
    """
    seed_everything(derive_seed(seed, "pretrain"))
    network = BrainNetwork(config.model, voxels)
    if prior is not None:
        network.prior.load_state_dict(prior.state_dict())
    pivot = None if checkpoint is None else pivot_checkpoint(checkpoint)
    train_pivot(network.projector, targets, images, config.pivot, seed, log, pivot)
    # Brains never move the projector: it stays what images and captions made it.
    network.projector.requires_grad_(False)
    return network
