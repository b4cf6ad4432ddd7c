"""A pretrained base: what many people's brains have in common, on which a new person is tuned."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mindtuner.config import Config, load_config
from mindtuner.data import Dataset
from mindtuner.data.hold_out import category_words
from mindtuner.errors import UserError
from mindtuner.model import BrainNetwork
from mindtuner.pipeline.features import Features
from mindtuner.pipeline.run_folder import SETTINGS, claim, log_of, settings_text
from mindtuner.processes import processes
from mindtuner.training import load_network, read_card, remove_checkpoint, save_network, subject_name
from mindtuner.training import pretrain as train
from mindtuner.training.monitor import Log

FILE = "base.safetensors"


@dataclasses.dataclass(frozen=True, eq=False)
class Base:
    """A network pretrained on several subjects; made by :func:`pretrain`, or read by :meth:`load`.

    Attributes
    ----------
    network : BrainNetwork
        Ridges of the subjects that it knows, shared backbone, heads and prior.
    config : Config
        The settings that it was trained with, and that :func:`tune` goes on with.
    card : dict
        What is known of it: seed, subjects, towers, whether brains are simulated, and the category held out, if any.
    path : Path or None
        Its file, where it has one.
    log : list of dict
        An entry for each epoch of a training that was not written to a run folder.
    """

    network: BrainNetwork
    config: Config
    card: dict
    path: Path | None = None
    log: list[dict] = dataclasses.field(default_factory=list)

    def __repr__(self) -> str:
        weights = sum(weight.numel() for weight in self.network.parameters())
        return f"Base of {len(self.network.ridges)} subjects ({', '.join(self.network.ridges)}), {weights:,} weights"

    @property
    def where(self) -> object:
        """Its file, or what to call it in messages."""
        return self.path or "base"

    @property
    def category(self) -> str:
        """The category that it never saw, "" for none."""
        return self.card.get("hold_out_category", "")

    def knows(self, subject: int) -> bool:
        """Whether it was pretrained on this subject."""
        return subject_name(subject) in self.network.ridges

    def refuse_known(self, subject: int) -> None:
        """Raise UserError where the base has seen the subject to tune."""
        if self.knows(subject):
            raise UserError(f"{self.where}: knows subject {subject} already; expected a base that has not seen it")

    @classmethod
    def load(cls, path: str | Path, config: str | Path | Mapping | Config | None = None) -> Base:
        """Read a base from its file, or from a folder that holds one.

        Parameters
        ----------
        path : path
            A run of ``mindtuner pretrain``, a folder of :meth:`save`, or the safetensors file itself.
        config : optional
            Settings to tune with, by default those in ``config.yaml`` beside the file, else the demo's. The model section is
            the base's own.

        Raises
        ------
        UserError
            Where there is no base, it is damaged, or the settings cannot be.
        """
        path = base_file(path)
        settings = load_config(settings_for(path, config))
        network = load_network(path)
        return cls(network, dataclasses.replace(settings, model=network.config), read_card(path), path)


def pretrain(
    dataset: Dataset,
    features: Features,
    config: str | Path | Mapping | Config = "demo",
    *,
    seed: int | None = None,
    hold_out_category: str | None = None,
    out: str | Path | None = None,
    force: bool = False,
    command: str | None = None,
) -> Base:
    """Pretrain one network on all subjects of a dataset.

    Leave out the subject that is to be tuned later: ``dataset.without(subject=1)``.

    Parameters
    ----------
    dataset : Dataset
        Its subjects' training trials are learned; trials of shared images never are.
    features : Features
        Of the same stimuli, from :func:`embed`.
    config : str, path, mapping or Config
        ``"demo"``, ``"quick"``, ``"paper"``, a YAML file, or the settings that differ from the demo's.
    seed : int, optional
        Of weights and order, by default the config's.
    hold_out_category : str, optional
        Train on no image whose captions name it; by default the config's.
    out : path, optional
        Run folder to write: ``base.safetensors``, ``config.yaml`` and ``log.jsonl``. A run that was stopped goes on there.
    force : bool
        Replace an earlier run in ``out``.
    command : str, optional
        What stands in the first line of ``config.yaml``; a run goes on only where it is the same.

    Returns
    -------
    Base

    Raises
    ------
    UserError
        Where no subject is left, no training image has a caption, dataset, features and config do not fit, or ``out`` holds
        another run.

    Notes
    -----
    Phase 1 of the MindTuner paper; losses and schedule as in MindEye2 (section 3 of ``docs/method.md``).

    Examples
    --------
    >>> base = mindtuner.pretrain(dataset.without(subject=1), features, config="quick")
    >>> base.knows(2), base.knows(1)
    (True, False)
    """
    config = settled(config, seed=seed, hold_out_category=hold_out_category)
    dataset = held_out(dataset, config.hold_out_category)
    features.check_model(config.model, "config")
    refuse_untrainable(dataset)
    card = {
        "seed": config.seed,
        "simulated": dataset.card["simulated"],
        "zscore": dataset.card["zscore"],
        "subjects": sorted(dataset.subjects),
        "hold_out_category": config.hold_out_category,
        **features.described,
    }
    prior = features.starting_prior(config.model)
    if out is None:
        log: list[dict] = []
        network = train(dataset, features.targets, config, config.seed, log.append, prior=prior)
        return Base(network.eval(), config, card, log=log)
    out = Path(out)
    claim(out, settings_text(config, command or "mindtuner.pretrain"), force)
    return pretrain_into(out / FILE, dataset, features, config, card, log_of(out))


def pretrain_into(
    path: Path, dataset: Dataset, features: Features, config: Config, card: dict, log: Log | None = None
) -> Base:
    """The base of the file ``path``: trained, going on from a checkpoint beside it, or as it lies there already."""
    prior, checkpoint = features.starting_prior(config.model), path.with_suffix(".checkpoint")
    if not path.exists():
        network = train(dataset, features.targets, config, config.seed, log, prior=prior, checkpoint=checkpoint)
        if processes().index == 0:
            save_network(path, network, card)
    processes().wait()
    if processes().index == 0:
        remove_checkpoint(checkpoint)
    return Base(load_network(path), config, read_card(path), path)


def settled(
    config: str | Path | Mapping | Config, *, seed: int | None = None, hold_out_category: str | None = None
) -> Config:
    """The config, with what is given besides. Raises UserError where there is no such config."""
    config = config if isinstance(config, Config) else load_config(config)
    changes = {} if seed is None else {"seed": seed}
    if hold_out_category is not None:
        changes["hold_out_category"] = category_of(hold_out_category)
    return dataclasses.replace(config, **changes)


def category_of(name: str) -> str:
    """A category as configs and cards have it: its words in lower case. Raises UserError where there are none."""
    return " ".join(category_words(name))


def held_out(dataset: Dataset, category: str) -> Dataset:
    """The dataset without the category's training images, or as it is where none is held out."""
    return dataset.without_category(category) if category else dataset


def refuse_untrainable(dataset: Dataset) -> None:
    """Raise UserError where no subject is there, or no training image has a caption: the Pivot learns from images and
    captions alone."""
    if not dataset.subjects:
        raise UserError(f"{dataset.root}: no subject is left to pretrain on; expected at least one")
    seen = np.unique(np.concatenate([subject.train.stimulus for subject in dataset.subjects.values()]))
    if not any(dataset.stimuli.captions[image] for image in seen):
        raise UserError(
            f"{dataset.root}: captions of the {len(seen)} training images are all missing; expected some, from "
            "which a base learns words (tuning on another base needs none)"
        )


def base_file(given: str | Path) -> Path:
    """The base in a folder, or the file itself. Raises UserError where there is none."""
    given = Path(given)
    path = given / FILE if given.is_dir() else given
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a run of mindtuner pretrain, or its {FILE}")
    return path


def settings_for(base: Path, given: object = None) -> object:
    """The config to tune with on this file: ``given``, else the one beside it, else the demo's."""
    beside = base.parent / SETTINGS
    return given or (beside if beside.is_file() else "demo")
