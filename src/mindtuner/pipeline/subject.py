"""A tuned subject: what one person adds to a base, by the method and by what it is compared to."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mindtuner.config import Config, changed, load_config
from mindtuner.data import Dataset, Subject, Trials
from mindtuner.decoding.words import TextBank
from mindtuner.errors import UserError
from mindtuner.files import write_text
from mindtuner.generators.painter import Painter
from mindtuner.model import BrainNetwork
from mindtuner.pipeline import hub
from mindtuner.pipeline.base import Base, refuse_no_id
from mindtuner.pipeline.decoder import SubjectDecoder
from mindtuner.pipeline.features import Features, TextEncoder
from mindtuner.pipeline.model_card import subject_card
from mindtuner.pipeline.run_folder import SETTINGS
from mindtuner.pipeline.tuned_files import (
    base_of,
    files_of,
    read_network,
    refuse_mixed,
    way_to,
    write_saved,
)
from mindtuner.training import (
    facts_of,
    read_card,
    subject_name,
)
from mindtuner.training.closed_form import learn_centre
from mindtuner.training.fingerprint import share_weights

PRETRAINED = "pretrained"

if TYPE_CHECKING:
    from mindtuner.pipeline.results import Results


@dataclasses.dataclass(frozen=True, eq=False)
class TunedSubject:
    """One person, tuned on a base; made by ``tune``, or read by ``load`` or ``from_pretrained``.

    Attributes
    ----------
    number : int
        The subject's number in its dataset.
    base : Base
        What it was tuned on.
    config : Config
        As it was tuned: ``target_subject`` and ``tuning_sessions`` are this subject's.
    networks : mapping of str to BrainNetwork
        By method; the first is the one that decodes.
    cards : mapping of str to dict
        By method: what its file says of it.
    features : Features or None
        Those that it was tuned with.
    files : mapping of str to Path
        By method, where they have one.
    log : list of dict
        An entry for each epoch of a tuning that was not written to a run folder.
    """

    number: int
    base: Base
    config: Config
    networks: Mapping[str, BrainNetwork]
    cards: Mapping[str, dict]
    features: Features | None = None
    files: Mapping[str, Path] = dataclasses.field(default_factory=dict)
    log: list[dict] = dataclasses.field(default_factory=list)

    def __repr__(self) -> str:
        voxels = next(iter(self.networks.values())).ridges[self.name].in_features
        sessions = f"{self.config.tuning_sessions} session{'s' if self.config.tuning_sessions > 1 else ''}"
        return f"Subject {self.number}, {voxels:,} voxels, tuned on {sessions}: {', '.join(self.networks)}"

    @property
    def name(self) -> str:
        """What the networks call the subject."""
        return subject_name(self.number)

    @property
    def card(self) -> dict:
        """Of the method that decodes."""
        return next(iter(self.cards.values()))

    def hour(self, dataset: Dataset) -> Subject:
        """The subject of ``dataset`` with the training trials that it was tuned on, and all its test trials."""
        return dataset.subject(self.number).sessions(self.config.tuning_sessions)

    def held_out(self, dataset: Dataset) -> Trials:
        """Training trials, of any session, of the images that tuning with ``holdout`` kept out; to choose settings by.

        Parameters
        ----------
        dataset : Dataset
            The one that it was tuned on.

        Returns
        -------
        Trials
            Empty where nothing was held out.

        Examples
        --------
        >>> tried = mindtuner.tune(base, dataset.subject(1).sessions(1), features, methods=["mindtuner"], holdout=0.2)
        >>> trials = tried.held_out(dataset)
        >>> found = tried.decoder().predict(dataset.subject(1).betas(trials.row), trials.stimulus)
        """
        trials = dataset.subject(self.number).train
        return trials.select(np.isin(trials.stimulus, self.card.get("held_out_images", ())))

    def decoder(
        self,
        method: str | None = None,
        *,
        features: Features | None = None,
        text_encoder: TextEncoder | None = None,
        generator: Painter | None = None,
        bank: TextBank | None = None,
    ) -> SubjectDecoder:
        """What reads this subject's voxels.

        Parameters
        ----------
        method : str, optional
            One of those that were tuned, by default the first.
        features : Features, optional
            Of the stimuli whose captions and pictures decoding may draw on, by default those of tuning.
        text_encoder, generator : optional
            The text tower and the generator, at full size where they have to be given.
        bank : TextBank, optional
            Captions to describe with, by default those of all training images.

        Raises
        ------
        UserError
            Where the method was not tuned.

        Examples
        --------
        >>> decoder = subject.decoder()
        >>> len(decoder.describe(voxels)) == len(voxels)
        True
        """
        method = next(iter(self.networks)) if method is None else method
        if method not in self.networks:
            raise UserError(f"method: {method!r} was not tuned; expected one of {', '.join(self.networks)}")
        features = features or self.features
        if features is not None:
            features.check_model(self.base.network.config, self.base.where)
            features.check_same(self.base.card, self.base.where)
        return SubjectDecoder(
            self.networks[method],
            self.name,
            self.config.decode,
            self.config.seed,
            features,
            category=self.config.hold_out_category,
            without=np.array(self.card.get("held_out_images", ()), np.int64),
            text_encoder=text_encoder,
            generator=generator,
            bank=bank,
        )

    @classmethod
    def of(cls, base: Base | str | Path, subject: Subject, features: Features) -> TunedSubject:
        """One of the subjects that a base was trained on, as it is: method ``pretrained``.

        Parameters
        ----------
        base : Base, path or str
            As in ``tune``.
        subject : Subject
            With the training trials that the base saw, whose mean answer is what retrieval measures from.
        features : Features
            Of the dataset's stimuli.

        Raises
        ------
        UserError
            Where the base does not know the subject, or knows it by other voxels, or features do not fit.

        Examples
        --------
        >>> mindtuner.TunedSubject.of(base, dataset.subject(2), features)
        Subject 2, 143 voxels, tuned on 2 sessions: pretrained
        """
        base, name = read_own(base, subject.number).base, subject_name(subject.number)
        if (voxels := base.network.ridges[name].in_features) != subject.n_voxels:
            raise UserError(f"{base.where}: voxels is {voxels}; expected {subject.n_voxels}, as {subject.where} has")
        features.check_model(base.network.config, base.where)
        features.check_same(base.card, base.where)
        network = share_weights(base.network).eval()
        learn_centre(network, subject, subject.train.row, features.targets, subject.train.stimulus)
        sessions = len(subject.training_sessions)
        config = changed(base.config, target_subject=subject.number, tuning_sessions=sessions)
        card = {**base.card, "method": PRETRAINED, **facts_of(subject, config)}
        return cls(subject.number, base, config, {PRETRAINED: network}, {PRETRAINED: card}, features)

    @classmethod
    def load(
        cls,
        path: str | Path,
        dataset: Dataset | None = None,
        *,
        base: Base | str | Path | None = None,
        features: Features | None = None,
    ) -> TunedSubject:
        """Read what ``tune`` wrote.

        Parameters
        ----------
        path : path
            A run of ``mindtuner tune`` or a folder of ``save``, with all methods there, or one file of it.
        dataset : Dataset, optional
            Where the subject is; then its voxels and regions must be those that were tuned on.
        base : Base, path or str, optional
            By default that which its card names: a file, or an id on a hub.
        features : Features, optional
            For decoding and evaluation.

        Raises
        ------
        UserError
            Where a file is missing, damaged, of another subject, of other voxels, or on another base.

        Examples
        --------
        >>> folder = subject.save("shared/subject").files["mindtuner"].parent
        >>> mindtuner.TunedSubject.load(folder, dataset, base=base).number
        1
        """
        found = read_tuned(path, base)
        subject = None if dataset is None else dataset.subject(found.number)
        networks = {
            method: read_network(file, found.base.network, found.number, subject) for method, file in found.files.items()
        }
        return dataclasses.replace(found, networks=networks, features=features)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        dataset: Dataset | None = None,
        *,
        base: Base | str | Path | None = None,
        features: Features | None = None,
    ) -> TunedSubject:
        """Read a fingerprint from a hub, with the base that it names; or from a folder or file as ``load`` does.

        Parameters
        ----------
        path : str or path
            ``owner/name`` or ``owner/name@revision`` on the hub (of ``HF_ENDPOINT``), where no such path is here. What was
            fetched before is read from the hub's cache, without a network too.
        dataset, base, features : optional
            As in ``load``.

        Raises
        ------
        UserError
            Where neither path nor repository is there, the repository is private, it is no fingerprint, a file is damaged, or
            the base is not the one that it was tuned on.

        Examples
        --------
        >>> subject = mindtuner.TunedSubject.from_pretrained("your-lab/subject", dataset)  # doctest: +SKIP
        >>> subject.base.hub_id.partition("@")[0]  # doctest: +SKIP
        'your-lab/base'
        """
        if not hub.is_elsewhere(path):
            return cls.load(path, dataset, base=base, features=features)
        _, folder = hub.fetch(path, hub.FINGERPRINT)
        with hub.naming(path):
            return cls.load(folder, dataset, base=base, features=features)

    def save(
        self,
        folder: str | Path,
        *,
        methods: str | Sequence[str] | None = None,
        base: str | Path | None = None,
        results: Results | None = None,
        datasets: Sequence[str] = (),
    ) -> TunedSubject:
        """Write a folder that travels: what tuning added, settings, and a model card.

        Parameters
        ----------
        folder : path
            Empty, or written by an earlier save, which is replaced. Gets ``model.safetensors`` (the first method),
            ``METHOD.safetensors`` (the others), ``config.json`` and ``README.md``. The same subject gives the same bytes.
        methods : "all" or sequence of str, optional
            Which to write, by default the one that decodes.
        base : str or path, optional
            Where a reader finds the base: an id on a hub, or a path, which is written as the way from ``folder``. By default
            where it came from. Of a base that has neither, the hash alone is written.
        results : Results, optional
            Of this subject: scores beside chance, for the model card.
        datasets : sequence of str
            Ids on the hub of what it was tuned on, for the model card.

        Returns
        -------
        TunedSubject
            Of these methods, with their files there.

        Raises
        ------
        UserError
            Where the folder holds anything else or cannot be written to, a method was not tuned, or results are another
            subject's.

        Examples
        --------
        >>> saved = subject.save("shared/subject", methods="all")
        >>> sorted(file.name for file in saved.files.values())
        ['model.safetensors', 'ridge.safetensors', 'ridge_only.safetensors', 'shuffled_brain.safetensors']
        """
        way = way_to(self.base if base is None else base, Path(folder))
        return self._save(folder, "path/to/this/folder", methods, way, results, datasets)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        methods: str | Sequence[str] | None = None,
        base: str | None = None,
        results: Results | None = None,
        datasets: Sequence[str] = (),
    ) -> str:
        """Send what ``save`` writes to a hub, as one commit. Its base goes there first: see ``Base.push_to_hub``.

        Parameters
        ----------
        repo_id : str
            ``owner/name``; made where it is not there yet. The login is that of ``hf auth login``, or ``HF_TOKEN``.
        private : bool, optional
            Whether a new repository is private, by default as the owner's account says.
        base : str, optional
            Id of the base on the hub, by default that which it has.
        methods, results, datasets : optional
            As in ``save``.

        Returns
        -------
        str
            ``owner/name@commit``

        Raises
        ------
        UserError
            Where the base has no id, or the hub refuses or does not answer.

        Examples
        --------
        >>> subject.push_to_hub("your-lab/subject", base="your-lab/base").partition("@")[0]  # doctest: +SKIP
        'your-lab/subject'
        """
        base = base or self.base.hub_id
        refuse_no_id(repo_id, "repo_id")
        refuse_no_id(base, "base")
        with tempfile.TemporaryDirectory() as folder:
            self._save(folder, repo_id, methods, {"base_id": base}, results, datasets)
            return hub.push(Path(folder), repo_id, private)

    def _save(
        self,
        folder: str | Path,
        where: str,
        methods: str | Sequence[str] | None,
        way: dict,
        results: Results | None,
        datasets: Sequence[str],
    ) -> TunedSubject:
        chosen = list(self.networks)[:1] if methods is None else list(self.networks) if methods == "all" else list(methods)
        for method in chosen:
            if method not in self.networks:
                raise UserError(f"methods: {method!r} was not tuned; expected some of {', '.join(self.networks)}")
        cards = {}
        for method in chosen:
            known = {key: value for key, value in self.cards[method].items() if key not in ("base_id", "base_path")}
            cards[method] = {**known, **way}
        names = {method: hub.MODEL if method == chosen[0] else f"{method}.safetensors" for method in chosen}
        with hub.written(folder, hub.FINGERPRINT, self.config) as part:
            for method, name in names.items():
                write_saved(part / name, method, self.networks[method], cards[method])
            write_text(part / hub.README, subject_card(self, read_card(part / hub.MODEL), where, results, datasets))
        files = {method: Path(folder) / name for method, name in names.items()}
        networks = {method: self.networks[method] for method in chosen}
        return dataclasses.replace(
            self, networks=networks, cards={method: read_card(file) for method, file in files.items()}, files=files
        )


def read_own(base: Base | str | Path, number: int) -> TunedSubject:
    """What is known of a base's own subject before its data are there; without the network.

    Raises UserError where the base is missing or does not know the subject.
    """
    base = base if isinstance(base, Base) else Base.from_pretrained(base)
    if not base.knows(number):
        known = ", ".join(str(int(one.removeprefix("subj"))) for one in base.network.ridges) or "nobody"
        raise UserError(f"subject: is {number}; expected one that {base.where} was trained on: {known}")
    return TunedSubject(number, base, changed(base.config, target_subject=number), {}, {})


def read_tuned(path: str | Path, base: Base | str | Path | None = None) -> TunedSubject:
    """All that a run of tune says, or one file of it, and the base that it goes on; without the networks.

    Raises UserError where files or base are missing or damaged.
    """
    path, files = Path(path), files_of(path)
    cards = {method: read_card(file) for method, file in files.items()}
    first, card = next(iter(files.values())), next(iter(cards.values()))
    if "subject" not in card or "config" not in card:
        raise UserError(f"{first}: is a base; expected what mindtuner tune wrote, or `subject`, one of the base's own")
    settings = path / SETTINGS
    config = load_config(settings if os.path.lexists(settings) else card["config"])
    base = base if isinstance(base, Base) else base_of(first, base)
    refuse_mixed({files[method]: one for method, one in cards.items()}, base)
    return TunedSubject(card["subject"], base, config, {}, cards, None, files)
