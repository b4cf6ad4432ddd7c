"""One subject by itself: its own models, without a base."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mindtuner.claims import releasing
from mindtuner.config import Config
from mindtuner.data import Dataset, Subject
from mindtuner.errors import UserError
from mindtuner.pipeline.base import FILE, Base, base_at, card_of, refuse_untrainable
from mindtuner.pipeline.base import settled as settled_config
from mindtuner.pipeline.features import Features
from mindtuner.pipeline.run_folder import claim, log_of, refuse_overlap, settings_text
from mindtuner.pipeline.stopwatch import Stopwatch
from mindtuner.pipeline.subject import TunedSubject
from mindtuner.pipeline.tuning import fit_methods, session_count, without_category
from mindtuner.training import WITHOUT_BASE
from mindtuner.training.monitor import Log
from mindtuner.training.pretrain import before_brains


@releasing()
def fit(
    subject: Subject,
    features: Features,
    config: str | Path | Mapping | Config = "demo",
    *,
    methods: Sequence[str] = WITHOUT_BASE,
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
    methods : sequence of str
        Out of ``ridge``, one cross-validated regression from voxels to tokens; ``from_scratch``, the whole network trained on
        this subject; and ``shuffled_brain``, the regression on permuted brains, a control.
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
    for method in methods:
        if method not in WITHOUT_BASE:
            raise UserError(f"method: {method!r} is not fitted without a base; expected some of {', '.join(WITHOUT_BASE)}")
    if not np.array_equal(subject.is_shared, features.stimuli.is_shared):
        raise UserError(f"features: are of other stimuli ({features.folder}); expected those that the subject saw")
    config = settled(subject, config, seed)
    subject = without_category(subject, features, config.hold_out_category)
    features.check_model(config.model, "config")
    alone = Dataset(features.folder, {subject.number: subject}, features.stimuli, features.card)
    refuse_untrainable(alone)
    prior = features.starting_prior(config.model)
    entries: list[dict] = []
    log: Log = entries.append
    out = None if out is None else Path(out)
    if out is not None:
        refuse_overlap(out, features=features.folder)
        claim(out, settings_text(config, command or f"mindtuner.fit(subject {subject.number})"), force)
        log = log_of(out)
    card = card_of(dataclasses.replace(alone, subjects={}), features, config)
    made = functools.partial(
        before_brains, {}, subject.train.stimulus, features.targets, config, config.seed, log, prior=prior
    )
    base = Base(made().eval(), config, card) if out is None else base_at(out / FILE, made, config, card)
    return fit_methods(base, subject, features, config, methods, log, out, watch, entries)


def settled(subject: Subject, config: str | Path | Mapping | Config, seed: int | None = None) -> Config:
    """The settings to fit a subject with. Raises UserError where there is no such config, or no training trial."""
    found = settled_config(config, seed=seed)
    return dataclasses.replace(found, target_subject=subject.number, tuning_sessions=session_count(subject))
