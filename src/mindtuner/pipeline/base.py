"""A pretrained base: what many people's brains have in common, on which a new person is tuned."""

from __future__ import annotations

import dataclasses
import functools
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mindtuner.claims import releasing
from mindtuner.config import Config, changed, load_config
from mindtuner.data import Dataset
from mindtuner.data.hold_out import category_words
from mindtuner.data.identity import FIELD, Inputs, inputs_of
from mindtuner.data.splits import split_of
from mindtuner.errors import UserError
from mindtuner.files import write_text
from mindtuner.model import BrainNetwork
from mindtuner.pipeline import hub
from mindtuner.pipeline.features import Features
from mindtuner.pipeline.model_card import base_card
from mindtuner.pipeline.run_folder import SETTINGS, claim, log_of, refuse_overlap, settings_text
from mindtuner.processes import processes
from mindtuner.training import load_network, read_card, remove_checkpoint, save_network, subject_name
from mindtuner.training import pretrain as train
from mindtuner.training.fingerprint import base_hash
from mindtuner.training.monitor import Log

if TYPE_CHECKING:
    from mindtuner.pipeline.results import Results

FILE = "base.safetensors"


@dataclasses.dataclass(frozen=True, eq=False)
class Base:
    """A network pretrained on several subjects; made by ``pretrain``, or read by ``load`` or ``from_pretrained``.

    Attributes
    ----------
    network : BrainNetwork
        Ridges of the subjects that it knows, shared backbone, heads and prior.
    config : Config
        The settings that it was trained with, and that ``tune`` goes on with.
    card : dict
        What is known of it: seed, subjects, towers, whether brains are simulated, and the category held out, if any.
    path : Path or None
        Its file, where it has one.
    log : list of dict
        An entry for each epoch of a training that was not written to a run folder.
    hub_id : str or None
        ``owner/name@commit``, where it lies on a hub.
    """

    network: BrainNetwork
    config: Config
    card: dict
    path: Path | None = None
    log: list[dict] = dataclasses.field(default_factory=list)
    hub_id: str | None = None

    def __repr__(self) -> str:
        weights = sum(weight.numel() for weight in self.network.parameters())
        return f"Base of {len(self.network.ridges)} subjects ({', '.join(self.network.ridges)}), {weights:,} weights"

    @property
    def where(self) -> object:
        """Its id on a hub, or its file, or what to call it in messages."""
        return self.hub_id or self.path or "base"

    @functools.cached_property
    def hash(self) -> str:
        """sha256 (hex) of its weights."""
        return base_hash(self.network, ())

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
            raise UserError(
                f"{self.where}: knows subject {subject} already; expected a base that has not seen it. For another person of "
                "that number set subject_offset, say 100, in the dataset.json of your data (docs/your-own-scans.md)"
            )

    @classmethod
    def load(cls, path: str | Path, config: str | Path | Mapping | Config | None = None) -> Base:
        """Read a base from its file, or from a folder that holds one.

        Parameters
        ----------
        path : path
            A run of ``mindtuner pretrain``, a folder of ``save``, or the safetensors file itself.
        config : optional
            Settings to tune with, by default those beside the file, in ``config.yaml`` or ``config.json``, else the demo's.
            The model section is the base's own.

        Raises
        ------
        UserError
            Where there is no base, it is damaged, or the settings cannot be.

        Examples
        --------
        >>> mindtuner.Base.load(base.save("shared/base").path.parent).knows(2)
        True
        """
        path = base_file(path)
        settings = load_config(settings_for(path, config))
        network = load_network(path)
        return cls(network, changed(settings, model=network.config), read_card(path), path)

    @classmethod
    def from_pretrained(cls, path: str | Path, config: str | Path | Mapping | Config | None = None) -> Base:
        """Read a base from a hub, or from a folder or file as ``load`` does.

        Parameters
        ----------
        path : str or path
            ``owner/name`` or ``owner/name@revision`` on the hub (of ``HF_ENDPOINT``), where no such path is here. What was
            fetched before is read from the hub's cache, without a network too.
        config : optional
            As in ``load``.

        Raises
        ------
        UserError
            Where neither path nor repository is there, the repository is private, it is no base, or a file is damaged.

        Examples
        --------
        >>> mindtuner.Base.from_pretrained("your-lab/base").knows(2)  # doctest: +SKIP
        True
        """
        return cls.from_hub(path, config) if hub.is_elsewhere(path) else cls.load(path, config)

    @classmethod
    def from_hub(cls, repo_id: str | Path, config: str | Path | Mapping | Config | None = None) -> Base:
        """Read a base from a hub, whatever lies here. See ``from_pretrained``."""
        found, folder = hub.fetch(repo_id, hub.BASE)
        with hub.naming(repo_id):
            return dataclasses.replace(cls.load(folder, config), hub_id=found)

    def save(self, folder: str | Path, *, results: Results | None = None, datasets: Sequence[str] = ()) -> Base:
        """Write a folder that travels: weights, settings, and a model card.

        Parameters
        ----------
        folder : path
            Empty, or written by an earlier save, which is replaced. Gets ``model.safetensors``, ``config.json`` and
            ``README.md``. The same base gives the same bytes.
        results : Results, optional
            Of a subject tuned on it: scores beside chance, for the model card.
        datasets : sequence of str
            Ids on the hub of what it was trained on, for the model card.

        Returns
        -------
        Base
            The same, with its file there.

        Raises
        ------
        UserError
            Where the folder holds anything else, or cannot be written to.

        Examples
        --------
        >>> saved = base.save("shared/base")
        >>> sorted(file.name for file in saved.path.parent.iterdir())
        ['README.md', 'config.json', 'model.safetensors']
        """
        return self._save(folder, "path/to/this/folder", results, datasets)

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, results: Results | None = None, datasets: Sequence[str] = ()
    ) -> Base:
        """Send what ``save`` writes to a hub, as one commit.

        Parameters
        ----------
        repo_id : str
            ``owner/name``; made where it is not there yet. The login is that of ``hf auth login``, or ``HF_TOKEN``.
        private : bool, optional
            Whether a new repository is private, by default as the owner's account says.
        results, datasets : optional
            As in ``save``.

        Returns
        -------
        Base
            The same, with its ``hub_id``: fingerprints that are tuned on it name it.

        Raises
        ------
        UserError
            Where the hub refuses or does not answer.

        Examples
        --------
        >>> base.push_to_hub("your-lab/base").hub_id.partition("@")[0]  # doctest: +SKIP
        'your-lab/base'
        """
        refuse_no_id(repo_id, "repo_id")
        with tempfile.TemporaryDirectory() as folder:
            self._save(folder, repo_id, results, datasets)
            return dataclasses.replace(self, hub_id=hub.push(Path(folder), repo_id, private))

    def _save(self, folder: str | Path, where: str, results: Results | None, datasets: Sequence[str]) -> Base:
        with hub.written(folder, hub.BASE, self.config) as part:
            save_network(part / hub.MODEL, self.network, self.card)
            write_text(part / hub.README, base_card(self, where, results, datasets))
        return dataclasses.replace(self, path=Path(folder) / hub.MODEL)


@releasing()
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
        Of the same stimuli, from ``embed``.
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
    config = keeping_out(dataset, config)
    dataset = held_out(dataset, config.hold_out_category)
    features.check_stimuli(dataset.stimuli)
    features.refuse_without_pictures("pretrain")
    features.check_model(config.model, "config")
    refuse_untrainable(dataset)
    inputs = inputs_of(dataset, features.folder, features.pictures)
    card = card_of(dataset, features, config, inputs, images_trained_on(dataset))
    prior = features.starting_prior(config.model)
    if out is None:
        log: list[dict] = []
        network = train(dataset, features.targets, config, config.seed, log.append, prior=prior)
        return Base(network.eval(), config, card, log=log)
    out = Path(out)
    refuse_overlap(out, dataset=dataset.root, features=features.folder)
    said = f"mindtuner.pretrain({str(dataset.root)!r}, subjects {', '.join(map(str, sorted(dataset.subjects)))})"
    claim(out, settings_text(config, command or said), force, inputs=inputs)
    return pretrain_into(out / FILE, dataset, features, config, card, log_of(out))


def images_trained_on(dataset: Dataset) -> np.ndarray:
    """Ids of the images of all subjects' training trials, ascending."""
    return np.unique(np.concatenate([subject.train.stimulus for subject in dataset.subjects.values()]))


def card_of(dataset: Dataset, features: Features, config: Config, inputs: Inputs, images: np.ndarray) -> dict:
    """What a base that is pretrained on these inputs says of itself. ``images``: ids of those that it is trained on."""
    return {
        "seed": config.seed,
        "simulated": dataset.card["simulated"],
        "zscore": dataset.card["zscore"],
        **split_of(dataset.card),
        "subjects": sorted(dataset.subjects),
        "sessions": {
            subject_name(number): len(set(subject.train.session.tolist()))
            for number, subject in sorted(dataset.subjects.items())
        },
        "hold_out_category": config.hold_out_category,
        **features.described,
        FIELD: dict(inputs.hashes),
        **features.trained_on(images),
    }


def pretrain_into(
    path: Path, dataset: Dataset, features: Features, config: Config, card: dict, log: Log | None = None
) -> Base:
    """The base of the file ``path``: trained, going on from a checkpoint beside it, or as it lies there already."""
    prior = features.starting_prior(config.model)
    made = functools.partial(train, dataset, features.targets, config, config.seed, log, prior=prior)
    return base_at(path, made, config, card)


def base_at(path: Path, made: Callable[..., BrainNetwork], config: Config, card: dict) -> Base:
    """The base of the file ``path``: ``made(checkpoint=...)``, or as it lies there already."""
    checkpoint = path.with_suffix(".checkpoint")
    if not path.exists():
        network = made(checkpoint=checkpoint)
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
    changes: dict[str, Any] = {} if seed is None else {"seed": seed}
    if hold_out_category is not None:
        changes["hold_out_category"] = category_of(hold_out_category)
    return changed(config, **changes)


def keeping_out(dataset: Dataset, config: Config) -> Config:
    """The config with the category that the dataset is without already. Raises UserError where its own is another."""
    category = dataset.stimuli.category
    if category and config.hold_out_category not in ("", category):
        raise UserError(
            f"hold_out_category: is {config.hold_out_category!r}; expected {category!r}, which the dataset is without"
        )
    return changed(config, hold_out_category=category or config.hold_out_category)


def category_of(name: str) -> str:
    """A category as configs and cards have it: its words in lower case. Raises UserError where there are none."""
    return " ".join(category_words(name))


def held_out(dataset: Dataset, category: str) -> Dataset:
    """The dataset without the category's training images, or as it is where none is held out."""
    return dataset.without_category(category) if category else dataset


def refuse_untrainable(dataset: Dataset) -> None:
    """Raise UserError where no subject is there, or no training image has a caption.

    The Pivot learns from images and captions alone.
    """
    if not dataset.subjects:
        raise UserError(f"{dataset.root}: no subject is left to pretrain on; expected at least one")
    seen = np.unique(np.concatenate([subject.train.stimulus for subject in dataset.subjects.values()]))
    if not any(dataset.stimuli.captions[image] for image in seen):
        raise UserError(
            f"{dataset.root}: captions of the {len(seen)} training images are all missing; expected some, from "
            "which a base learns words (tuning on another base needs none)"
        )


def refuse_no_id(given: str | None, field: str) -> None:
    """Raise UserError where what was given is no id on a hub."""
    if given is None or not hub.is_id(given):
        raise UserError(f"{field} is {given!r}; expected an id on the hub, such as owner/name")


def base_file(given: str | Path) -> Path:
    """The base in a folder, or the file itself. Raises UserError where there is none."""
    given = Path(given)
    path = given
    if given.is_dir():
        path = given / (hub.MODEL if hub.is_saved(given) else FILE)
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a run of mindtuner pretrain, a folder of Base.save, or the file in it")
    return path


def settings_for(base: Path, given: str | Path | Mapping | Config | None = None) -> str | Path | Mapping | Config:
    """The config to tune with on this file: ``given``, else the one beside it, else the demo's."""
    beside = base.parent / (hub.CONFIG if base.name == hub.MODEL else SETTINGS)
    return given or (beside if os.path.lexists(beside) else "demo")
