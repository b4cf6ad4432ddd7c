"""Phase 2: a new subject, and the controls that tell what the method adds."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

from mindtuner.config import Config, FingerprintConfig
from mindtuner.data import Subject
from mindtuner.errors import UserError
from mindtuner.model import BrainNetwork
from mindtuner.model.prior import DiffusionPrior
from mindtuner.runtime import derive_seed, seed_everything
from mindtuner.training.batches import Feed, make_feeds, split_holdout, subject_name, training_trials
from mindtuner.training.checkpoint import pivot_checkpoint
from mindtuner.training.closed_form import learn_centre, solve_ridge
from mindtuner.training.fingerprint import share_weights
from mindtuner.training.first_weights import start_in_closed_form
from mindtuner.training.loop import fit, freeze_without_loss
from mindtuner.training.monitor import Log
from mindtuner.training.pivot import train_pivot
from mindtuner.training.targets import Targets
from mindtuner.training.token_ridge import regress_tokens

METHODS = ("mindtuner", "ridge_only", "ridge", "full_finetune", "from_scratch", "shuffled_brain")
WITHOUT_BASE = ("ridge", "from_scratch", "shuffled_brain")  # what a base of nobody is enough for
RIDGE_ALONE = FingerprintConfig(lora=False, skip=False)


def tune(
    base: BrainNetwork,
    subject: Subject,
    targets: Targets,
    config: Config,
    seed: int,
    method: str = "mindtuner",
    log: Log | None = None,
    holdout: float = 0.0,
    prior: DiffusionPrior | None = None,
    checkpoint: str | Path | None = None,
    then: Callable[[BrainNetwork, Feed], None] | None = None,
) -> BrainNetwork:
    """Fit a new subject on a base, which itself is never changed; where its weights stay frozen, they are shared with it.

    What each method trains:

    - ``mindtuner``: new ridge and the fingerprint that ``config.fingerprint`` asks for; everything else, the prior too, is
      frozen (MindTuner paper, fingerprint of a new subject). L_prior still reaches them through the prior. With
      ``tune_projector`` the projector first trains on, on images and captions of the subject's trials.
    - ``ridge_only``: new ridge on the frozen base.
    - ``ridge``: no base. One cross-validated regression from voxels to tokens (``token_ridge``); the projector is the base's.
    - ``full_finetune``: new ridge, and everything but the projector, and parts whose losses weigh 0, trains on from the base.
    - ``from_scratch``: the same architecture with fresh weights, trained as pretraining trains; the projector, which needs no
      brain, is the base's, and the prior starts from ``prior`` where pretraining did.
    - ``shuffled_brain``: as ``mindtuner``, with the betas permuted over the training trials: a control at chance. On a base
      of nobody (``pretrain.before_brains``) as ``ridge``.

    ``Config.fitting`` says by which settings each trains. With ``start: closed_form`` the new ridge begins where
    ``closed_form.solve_ridge`` puts it, and with ``train_ridge: false`` it stays there.

    Parameters
    ----------
    base : BrainNetwork
    subject : Subject
        Already cut to the sessions that count (``subject.sessions(1)``).
    targets : Targets
    config : Config
    seed : int
    method : str
    log : callable, optional
        As for ``fit``.
    holdout : float
        Share of the training images kept for validation scores in the log.
    prior : DiffusionPrior, optional
        What ``from_scratch`` starts from.
    checkpoint : path, optional
        A file from which the same call goes on after it was stopped (see ``fit``), another one for each method; give it to
        ``remove_checkpoint`` when the network is saved.

    then : callable, optional
        Called at the end with the network and the feed of the trials that it was tuned on, to learn more of them.

    Returns
    -------
    BrainNetwork

    Raises
    ------
    UserError
        Where the method is unknown, the base already knows the subject, a training trial shows a test image, targets and
        config do not fit, or the checkpoint is of another run.
    """
    if method not in METHODS:
        raise UserError(f"method: {method!r} is unknown; expected one of {', '.join(METHODS)}")
    targets.check(config.model)
    name, fitting = subject_name(subject.number), config.fitting(method)
    trials, held_out = split_holdout({name: training_trials(subject, len(targets))}, holdout, seed)
    seed_everything(derive_seed(seed, "tune"))
    without_base = not base.ridges
    if without_base and method not in WITHOUT_BASE:
        raise UserError(f"method: {method} needs a base, which this one of nobody is not; expected {', '.join(WITHOUT_BASE)}")
    if method == "ridge" or (without_base and method == "shuffled_brain"):
        feed = make_feeds({name: subject}, trials, seed)[0]
        if method == "shuffled_brain":
            feed.permute_brains(seed)
        return finished(regress_tokens(base, feed, targets, seed), subject, feed, targets, then)
    network = starting_network(base, name, subject.n_voxels, config, method, prior)
    if network.projector.matrix.weight.requires_grad:
        train_pivot(
            network.projector,
            targets,
            trials[name].stimulus,
            config.pivot,
            seed,
            log,
            None if checkpoint is None else pivot_checkpoint(checkpoint),
        )
        network.projector.requires_grad_(False)  # brains never move it
    feeds = make_feeds({name: subject}, trials, seed)
    if method == "shuffled_brain":
        feeds[0].permute_brains(seed)
    if fitting.start == "closed_form" and method == "from_scratch":
        start_in_closed_form(network, {name: subject}, trials, targets, seed)
    elif fitting.start == "closed_form":
        if base.expectation is None:
            section = method if fitting is not config.tune else "tune"
            raise UserError(
                "base: does not hold what hidden features to expect of an image, which pretrain adds; expected "
                f"such a base, or start: random in the config's {section} section"
            )
        solve_ridge(network, base, feeds[0], targets, seed, fitting.similar_voxels)
    if network.trainable_parameters():
        fit(network, feeds, targets, fitting, seed, method, log, held_out, checkpoint)
    return finished(network, subject, feeds[0], targets, then)


def finished(
    network: BrainNetwork,
    subject: Subject,
    feed: Feed,
    targets: Targets,
    then: Callable[[BrainNetwork, Feed], None] | None,
) -> BrainNetwork:
    """The tuned network with what is learned last, from the trials that it was tuned on."""
    learn_centre(network, subject, feed.trials.row, targets, feed.trials.stimulus)
    if then is not None:
        then(network, feed)
    return network


def starting_network(
    base: BrainNetwork, name: str, n_voxels: int, config: Config, method: str, prior: DiffusionPrior | None = None
) -> BrainNetwork:
    """The network before tuning, with what ``method`` trains requiring gradients and nothing else."""
    if method == "from_scratch":
        network = BrainNetwork(base.config, {name: n_voxels}, base.without)
        network.projector.load_state_dict(base.projector.state_dict())
        network.projector.requires_grad_(False)
        if prior is not None and network.prior is not None:
            network.prior.load_state_dict(prior.state_dict())
        freeze_without_loss(network, config.fitting(method))
        return network
    if name in base.ridges:
        raise UserError(f"base: knows {name} already; expected a base that has not seen the subject to tune")
    if base.fingerprint_subject is not None:
        raise UserError(f"base: is tuned to {base.fingerprint_subject}; expected a pretrained base")
    projector = {name for name, _ in base.named_parameters() if name.startswith("projector.")}  # may be tuned
    network = copy.deepcopy(base) if method == "full_finetune" else share_weights(base, but=projector)
    adapters = config.fingerprint if method in ("mindtuner", "shuffled_brain") else RIDGE_ALONE
    network.add_fingerprint(name, n_voxels, adapters)
    if method == "full_finetune":
        for part in (network.blocks, network.head, network.retrieval, network.prior, network.lowlevel):
            if part is not None:
                part.requires_grad_(True)
    network.ridges[name].requires_grad_(config.fitting(method).train_ridge)
    freeze_without_loss(network, config.fitting(method))
    return network
