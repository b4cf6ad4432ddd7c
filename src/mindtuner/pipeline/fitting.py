"""One subject by itself: its own models, without a base."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from mindtuner.claims import releasing
from mindtuner.config import Config, changed
from mindtuner.data import Stimuli, Subject
from mindtuner.data.identity import inputs_of
from mindtuner.errors import UserError
from mindtuner.model import BrainNetwork
from mindtuner.pipeline.base import FILE, Base, base_at, card_of, images_trained_on, refuse_untrainable
from mindtuner.pipeline.base import settled as settled_config
from mindtuner.pipeline.features import Features
from mindtuner.pipeline.run_folder import claim, log_of, refuse_overlap, settings_text
from mindtuner.pipeline.stopwatch import Stopwatch
from mindtuner.pipeline.subject import TunedSubject
from mindtuner.pipeline.tuning import alone, fit_methods, session_count, without_category
from mindtuner.training import WITHOUT_BASE
from mindtuner.training.monitor import Log
from mindtuner.training.pretrain import before_brains
from mindtuner.training.token_ridge import PARTS


@releasing()
def fit(
    subject: Subject,
    features: Features,
    config: str | Path | Mapping | Config = "demo",
    *,
    methods: Sequence[str] | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    force: bool = False,
    command: str | None = None,
    watch: Stopwatch | None = None,
) -> TunedSubject:
    """Fit one subject's own models, from its own trials alone.

    Parameters
    ----------
    subject : Subject
        Cut to the sessions to train on: ``dataset.subject(1).sessions("all")``. Its test trials are not used.
    features : Features
        Of the dataset's stimuli, from ``embed``.
    config : optional
        As in ``pretrain``.
    methods : sequence of str, optional
        Out of ``ridge``, one cross-validated regression from voxels to tokens; ``from_scratch``, the whole network trained on
        this subject; and ``shuffled_brain``, the regression on permuted brains, a control. By default all of them; of stimuli
        without pictures all but ``from_scratch``, and the regression is to the text of the labels.
    seed, out, force, command, watch : optional
        As in ``tune``. In ``out`` also lies ``base.safetensors``, which knows the training images and their captions, and no
        brain.

    Returns
    -------
    TunedSubject
        On a base of nobody. It decodes, saves and is evaluated like any other; the first method decodes.

    Raises
    ------
    UserError
        Where a method is unknown or needs a base, no training image has a caption, subject, features and config do not
        fit, or ``out`` holds another run.

    Examples
    --------
    >>> alone = mindtuner.fit(dataset.subject(1).sessions(1), features, base.config, methods=["ridge"])
    >>> list(alone.networks), len(alone.base.network.ridges)
    (['ridge'], 0)
    """
    methods = methods_for(features.stimuli) if methods is None else methods
    for method in methods:
        if method not in WITHOUT_BASE:
            raise UserError(f"method: {method!r} is not fitted without a base; expected some of {', '.join(WITHOUT_BASE)}")
    if not np.array_equal(subject.is_shared, features.stimuli.is_shared):
        raise UserError(f"features: are of other stimuli ({features.folder}); expected those that the subject saw")
    config = settled(subject, config, seed, features.stimuli.pictured)
    if "from_scratch" in methods:
        features.refuse_without_pictures("from_scratch")
    subject = without_category(subject, features, config.hold_out_category)
    features.check_model(config.model, "config")
    own = alone(subject, features)
    refuse_untrainable(own)
    prior = features.starting_prior(config.model) if features.stimuli.pictured else None
    entries: list[dict] = []
    log: Log = entries.append
    out = None if out is None else Path(out)
    inputs = inputs_of(own, features.folder, features.pictures)
    if out is not None:
        refuse_overlap(out, features=features.folder)
        claim(out, settings_text(config, command or f"mindtuner.fit(subject {subject.number})"), force, inputs=inputs)
        log = log_of(out)
    card = card_of(dataclasses.replace(own, subjects={}), features, config, inputs, images_trained_on(own))
    made: Callable[..., BrainNetwork] = functools.partial(_of_labels, config)
    if features.stimuli.pictured:
        images, targets = subject.train.stimulus, features.targets
        made = functools.partial(before_brains, {}, images, targets, config, config.seed, log, prior=prior)
    base = Base(made().eval(), config, card) if out is None else base_at(out / FILE, made, config, card)
    return fit_methods(base, subject, features, config, methods, log, out, watch, entries)


def methods_for(stimuli: Stimuli) -> tuple[str, ...]:
    """What is fitted by default."""
    return tuple(method for method in WITHOUT_BASE if stimuli.pictured or method != "from_scratch")


def _of_labels(config: Config, checkpoint: Path | None = None) -> BrainNetwork:
    """A base of nobody where tokens are the text of labels: its projector has nothing to learn. Nothing is checkpointed."""
    network = BrainNetwork(config.model, {}, PARTS)
    torch.nn.init.eye_(network.projector.matrix.weight)
    return network.requires_grad_(False)


def settled(
    subject: Subject, config: str | Path | Mapping | Config, seed: int | None = None, pictured: bool = True
) -> Config:
    """The settings to fit a subject with; without pictures an image's tokens are one, the text of its label.

    Raises UserError where there is no such config, or no training trial.
    """
    found = settled_config(config, seed=seed)
    if not pictured:
        found = dataclasses.replace(found, model=dataclasses.replace(found.model, tokens=1, width=found.model.text_width))
    return changed(found, target_subject=subject.number, tuning_sessions=session_count(subject))
