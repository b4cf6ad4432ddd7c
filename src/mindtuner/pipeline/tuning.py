"""Tuning a base to one subject, by the method and by what it is compared to."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mindtuner.claims import releasing
from mindtuner.config import Config, changed, load_config
from mindtuner.data import Dataset, Subject
from mindtuner.data.identity import Inputs, inputs_of
from mindtuner.data.nsd import TRIALS
from mindtuner.errors import UserError
from mindtuner.model import BrainNetwork
from mindtuner.model.backbone import Confidence
from mindtuner.pipeline.base import Base
from mindtuner.pipeline.confidence import learned_sharpness
from mindtuner.pipeline.decoder import training_images
from mindtuner.pipeline.features import Features
from mindtuner.pipeline.run_folder import claim, log_of, refuse_overlap, settings_text
from mindtuner.pipeline.stopwatch import Stopwatch
from mindtuner.pipeline.subject import TunedSubject
from mindtuner.pipeline.tuned_files import FILES, REPORTED, base_field, card_of, read_network, write
from mindtuner.pipeline.words import learn_sureness, phrase_reader
from mindtuner.processes import processes
from mindtuner.runtime import device
from mindtuner.training import METHODS, read_card, remove_checkpoint, subject_name
from mindtuner.training import tune as train
from mindtuner.training.batches import Feed, split_holdout
from mindtuner.training.fingerprint import base_hash
from mindtuner.training.monitor import Log


@releasing()
def tune(
    base: Base | str | Path,
    subject: Subject,
    features: Features,
    config: str | Path | Mapping | Config | None = None,
    *,
    methods: Sequence[str] = REPORTED,
    seed: int | None = None,
    holdout: float = 0.0,
    out: str | Path | None = None,
    force: bool = False,
    command: str | None = None,
    watch: Stopwatch | None = None,
) -> TunedSubject:
    """Tune a base to one subject, from as little as one session.

    Parameters
    ----------
    base : Base, path or str
        It must not have seen the subject. It is never changed. An id on a hub is one too, see ``Base.from_pretrained``.
    subject : Subject
        Cut to the sessions to train on: ``dataset.subject(1).sessions(1)``. Its test trials are not used.
    features : Features
        Of the dataset's stimuli, from ``embed``.
    config : optional
        As in ``pretrain``; by default the base's. The model section is always the base's.
    methods : sequence of str
        Out of ``mindtuner``, ``ridge_only``, ``ridge``, ``full_finetune``, ``from_scratch`` and ``shuffled_brain``. By
        default the method, the ridge without adapters, a plain regression, and the control with shuffled brains, which a
        report needs.
    seed : int, optional
        Of weights and order, by default the config's.
    holdout : float
        Share in [0, 1) of the subject's training images that no trial is tuned on, chosen by the seed: see
        ``TunedSubject.held_out``. Settings are chosen by these, never by test images.
    out : path, optional
        Run folder to write: a file for each method, ``config.yaml`` and ``log.jsonl``. A run that was stopped goes on there.
    force : bool
        Replace an earlier run in ``out``.
    command : str, optional
        What stands in the first line of ``config.yaml``; a run goes on only where it is the same.
    watch : Stopwatch, optional
        Measures each method.

    Returns
    -------
    TunedSubject

    Raises
    ------
    UserError
        Where a method is unknown, the base knows the subject, subject, features and base do not fit, or ``out`` holds another
        run.

    Notes
    -----
    Phase 2 of the MindTuner paper: a new ridge, LoRA and Skip-LoRA on a frozen base.

    Examples
    --------
    >>> subject = mindtuner.tune(base, dataset.subject(1).sessions(1), features)
    >>> list(subject.networks)
    ['mindtuner', 'ridge_only', 'ridge', 'shuffled_brain']
    """
    refuse_unknown_methods(methods)
    base = base if isinstance(base, Base) else Base.from_pretrained(base)
    base.refuse_known(subject.number)
    if not np.array_equal(subject.is_shared, features.stimuli.is_shared):
        raise UserError(f"features: are of other stimuli ({features.folder}); expected those that the subject saw")
    features.refuse_without_pictures("tune")
    subject = without_category(subject, features, base.category)
    config = settled(base, subject, config, seed)
    features.check_model(config.model, base.where)
    features.check_same(base.card, base.where)
    split_holdout({subject_name(subject.number): subject.train}, holdout, config.seed)  # refuses what cannot be
    if base.network.prior is not None and "from_scratch" in methods:
        features.starting_prior(config.model)  # likewise, before a folder is claimed
    out = None if out is None else Path(out)
    entries: list[dict] = []
    log = entries.append
    if out is not None:
        refuse_overlap(out, features=features.folder, **({} if base.path is None else {"base": base.path}))
        kept = f"# holdout: {holdout:g}\n" if holdout else ""
        said = command or f"mindtuner.tune({base.path or base_hash(base.network, ())}, subject {subject.number})"
        claim(out, settings_text(config, said) + kept, force, inputs=inputs_for(base, subject, features))
        log = log_of(out)
    return fit_methods(base, subject, features, config, methods, log, out, watch, entries, holdout)


def fit_methods(
    base: Base,
    subject: Subject,
    features: Features,
    config: Config,
    methods: Sequence[str],
    log: Log | None = None,
    run: Path | None = None,
    watch: Stopwatch | None = None,
    entries: Sequence[dict] = (),
    holdout: float = 0.0,
) -> TunedSubject:
    """The subject tuned by each method; where there is a folder ``run``, gone on from checkpoints, or as it lies there."""
    prior = None
    if base.network.prior is not None and "from_scratch" in methods:
        prior = features.starting_prior(config.model)
    watch, kept_out = watch or Stopwatch(), {}
    pool = training_images(features.stimuli, config.hold_out_category)
    if holdout:
        name = subject_name(subject.number)
        images = np.unique(split_holdout({name: subject.train}, holdout, config.seed)[1][name].stimulus)
        kept_out = {"holdout": holdout, "held_out_images": images.tolist()}
        pool = np.setdiff1d(pool, images)
    reader = phrase_reader(features.stimuli, features.caches, pool, None)
    inputs = inputs_for(base, subject, features)
    seen = np.setdiff1d(subject.train.stimulus, kept_out.get("held_out_images", ()))

    known: dict[tuple, float | None] = {}  # methods with one ridge are sure alike

    def learn(network: BrainNetwork, feed: Feed, method: str) -> None:
        """How sure the tuned network may be of phrases, and of what it retrieves."""
        learn_sureness(network, feed, reader, config.decode, config.seed)
        key = (network.without, method == "shuffled_brain", config.fitting(method).similar_voxels, feed.shift is None)
        if key not in known:
            known[key] = learned_sharpness(network, base.network, feed, features.targets, config, method)
        sharpness = known[key]
        network.confidence = None if sharpness is None else Confidence(sharpness).to(device())

    networks, cards, files = {}, {}, {}
    for method in methods:
        path = None if run is None else run / FILES[method]
        checkpoint = None if run is None else run / f"{method}.checkpoint"
        card = card_of(method, base, config, features, subject, run, inputs, seen) | kept_out
        with watch.stage(method):
            if path is None or not path.exists():
                networks[method] = train(
                    base.network,
                    subject,
                    features.targets,
                    config,
                    config.seed,
                    method,
                    log,
                    holdout,
                    prior=prior,
                    checkpoint=checkpoint,
                    then=functools.partial(learn, method=method),
                )
                if path is not None and processes().index == 0:
                    write(path, method, networks[method], subject, config, card)
                networks[method].cpu()  # a GPU holds one network of full size
            processes().wait()
            if path is not None and checkpoint is not None:
                if method not in networks:
                    networks[method] = read_network(path, base.network, subject.number, subject)
                files[method] = path
                if processes().index == 0:
                    remove_checkpoint(checkpoint)
        cards[method] = card if path is None else read_card(path)
    return TunedSubject(subject.number, base, config, networks, cards, features, files, list(entries))


def inputs_for(base: Base, subject: Subject, features: Features) -> Inputs:
    """What a subject's tuning is made of: its training trials, the stimuli, and the base."""
    own = inputs_of(alone(subject, features), features.folder, features.pictures)
    return own | Inputs({"base": base_field(base)}, {"base": str(base.where)})


def alone(subject: Subject, features: Features) -> Dataset:
    """The subject by itself, with the stimuli of its features."""
    return Dataset(features.folder, {subject.number: subject}, features.stimuli, features.card)


def refuse_unknown_methods(methods: Sequence[str]) -> None:
    """Raise UserError naming the first that is no method."""
    for method in methods:
        if method not in METHODS:
            raise UserError(f"method: {method!r} is unknown; expected some of {', '.join(METHODS)}")


def settled(
    base: Base, subject: Subject, config: str | Path | Mapping | Config | None = None, seed: int | None = None
) -> Config:
    """The settings to tune a subject with: by default the base's; its model and the category that it never saw always."""
    given = base.config if config is None else config if isinstance(config, Config) else load_config(config)
    if given.hold_out_category not in ("", base.category):
        raise UserError(
            f"hold_out_category: is {given.hold_out_category!r}; expected {base.category!r}, which the base never saw"
        )
    return changed(
        given,
        model=base.network.config,
        target_subject=subject.number,
        tuning_sessions=session_count(subject),
        seed=given.seed if seed is None else seed,
        hold_out_category=base.category,
    )


def session_count(subject: Subject) -> int:
    """How many sessions have training trials. Raises UserError where the subject has none."""
    if len(subject.training_sessions) == 0:
        raise UserError(f"subject {subject.number}: has no training trial; expected at least one")
    return len(subject.training_sessions)


def sessions_to_tune(subject: Subject, config: Config) -> int:
    """How many sessions to tune on where nobody says: all that hold no more trials than one of NSD's, or the config's."""
    return session_count(subject) if len(subject.train) <= TRIALS else config.tuning_sessions


def without_category(subject: Subject, features: Features, category: str) -> Subject:
    """The subject without the training trials of a category that the base never saw, or as it is where there is none."""
    if not category:
        return subject
    return alone(subject, features).without_category(category).subject(subject.number)
