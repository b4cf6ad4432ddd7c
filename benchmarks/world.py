"""Simulated worlds, each in a folder that several benchmarks share; runs that are done once; and what is said of them."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from scipy import stats

import mindtuner
from mindtuner.config import Config, load_config
from mindtuner.data import Dataset, Subject, Trials
from mindtuner.decoding.decoder import Predictions
from mindtuner.decoding.phrases import side_by_side, split
from mindtuner.evaluation.statistics import bootstrap_ci, over_seeds, paired_difference, paired_over_seeds
from mindtuner.pipeline import Base, Features, SubjectDecoder, TunedSubject
from mindtuner.pipeline.stages import retrieval
from mindtuner.training.validation import Ranks, ranks_of

DIRECTIONS = ("image", "brain", "text")
HOLDOUT = 0.2  # of the training images, where settings are chosen by those


@dataclasses.dataclass(frozen=True)
class World:
    """A simulated dataset, its features, and a base of all subjects but the one to tune."""

    config: Config
    dataset: Dataset
    features: Features
    base: Base

    @property
    def subject(self) -> Subject:
        return self.dataset.subject(self.config.target_subject)

    @property
    def hour(self) -> Subject:
        """The subject with the training trials that tuning takes."""
        return self.subject.sessions(self.config.tuning_sessions)

    def tune(
        self, method: str, seed: int, config: Config | None = None, subject: Subject | None = None, holdout: float = 0.0
    ) -> TunedSubject:
        return mindtuner.tune(
            self.base,
            subject or self.hour,
            self.features,
            config or self.config,
            methods=(method,),
            seed=seed,
            holdout=holdout,
        )

    def decode(self, decoder: SubjectDecoder, trials: Trials | None = None, subject: Subject | None = None) -> Predictions:
        """What these trials' voxels say of their images, by default the test trials'."""
        subject = subject or self.subject
        trials = subject.test if trials is None else trials
        return decoder.predict(subject.betas(trials.row), trials.stimulus)

    def true_phrases(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return true_phrases(self.dataset, self.features, images)

    def held_out_ranks(self, tuned: TunedSubject) -> Ranks:
        """Of the images that tuning held out: among all training images of the world and their captions, and brains among
        the subject's own of all its training images, from sessions that it was not tuned on."""
        held, decoder, every = tuned.held_out(self.dataset), tuned.decoder(), self.subject.train
        said = self.decode(decoder, held)
        later = every.select((every.session > self.config.tuning_sessions) & ~np.isin(every.stimulus, held.stimulus))
        others = torch.from_numpy(self.decode(decoder, later).retrieval_tokens) if len(later) else None
        tokens, text = torch.from_numpy(said.retrieval_tokens), torch.from_numpy(said.text)
        pool = self.dataset.stimuli.training_images
        less = None if said.mean_token is None else torch.from_numpy(said.mean_token)
        return ranks_of(tokens, text, said.images, self.features.targets, pool, others, less)

    def top1(self, said: Predictions) -> dict[str, list[float]]:
        """Top-1 hit (ties share) of every image among all that were decoded, in three directions."""
        caches, stimuli = self.features.caches, self.dataset.stimuli
        found = retrieval(said.images, said.retrieval_tokens, said.text, stimuli, caches, said.mean_token)
        return {direction: np.round(one.top1, 4).tolist() for direction, one in found.items()}


def config_of(seed: int, fingerprint: float | None = None, config: str = "demo") -> Config:
    """The settings of a world: seed of simulation, pretraining and tuning, and the strength of what is planted."""
    found = load_config(config)
    simulated = dataclasses.replace(found.simulate, seed=seed)
    if fingerprint is not None:
        simulated = dataclasses.replace(simulated, fingerprint=fingerprint)
    return dataclasses.replace(found, seed=seed, simulate=simulated)


def open_world(out: Path, config: Config, base: str = "base", without: Iterable[int] | None = None) -> World:
    """The world in a folder, whose parts are made where they are missing: ``data``, and the run of pretraining ``base``, on
    all subjects but those ``without``, by default the one to tune."""
    dataset, features = open_dataset(out, config)
    without = {config.target_subject} if without is None else set(without)
    others = {number: subject for number, subject in dataset.subjects.items() if number not in without}
    trained = mindtuner.pretrain(dataclasses.replace(dataset, subjects=others), features, config, out=out / base)
    return World(config, dataset, features, trained)


def open_dataset(out: Path, config: Config) -> tuple[Dataset, Features]:
    """The simulated dataset in a folder, made where it is missing, and its features."""
    dataset = mindtuner.simulate(out / "data", config)
    if dataset.card["simulate"] != json.loads(json.dumps(dataclasses.asdict(config.simulate))):
        raise SystemExit(f"{out / 'data'}: is simulated with other settings; expected another OUT for these")
    return dataset, mindtuner.embed(dataset)


def true_phrases(dataset: Dataset, features: Features, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings of the phrases of each image's first caption (n, P, d), and which places hold one."""
    encoder, captions = features.text_encoder, dataset.stimuli.captions
    return side_by_side([encoder.embed(split(captions[int(image)][0])) for image in images], encoder.width)


class Done:
    """Runs that were done, a line of JSON each, so that a benchmark that was stopped goes on.

    path : the file, whose folder is made · fields : those that tell a run, as a tuple where they are several
    """

    def __init__(self, path: Path, *fields: str):
        self.path, self.fields, self.runs = path, fields, {}
        for line in path.read_text().splitlines() if path.exists() else ():
            entry = json.loads(line)
            self.runs[self._key(entry)] = entry

    def __contains__(self, key) -> bool:
        return key in self.runs

    def __getitem__(self, key) -> dict:
        return self.runs[key]

    def left(self, keys: Iterable) -> list:
        """Those of ``keys`` that were not done."""
        return [key for key in keys if key not in self.runs]

    def add(self, **entry) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        self.runs[self._key(entry)] = entry

    def _key(self, entry: dict):
        key = tuple(entry[field] for field in self.fields)
        return key if len(key) > 1 else key[0]


# ---- command lines


def add_world(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """OUT, or, with ``several``, one for each world of a table; and what a world is made with."""
    parser.add_argument("out", type=Path, nargs="+" if several else None)
    parser.add_argument("--seed", type=int, default=0, help="seed of simulation and pretraining")
    parser.add_argument("--fingerprint", type=float, default=0.5)
    if several:
        parser.add_argument("--table", action="store_true")


def add_seeds(parser: argparse.ArgumentParser) -> None:
    """OUT with a world for each seed, and the page of the table."""
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of simulation, pretraining and tuning")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a page with marks for the table")


def in_worlds(description: str, measure: Callable, table: Callable, draw: Callable | None = None) -> None:
    """The command line of a benchmark that ``measure(out, seed, fingerprint)`` makes in one world, and whose
    ``table(outs)``, and ``draw(outs, file)`` if there is one, go over several."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_world(parser, several=True)
    if draw:
        parser.add_argument("--picture", type=Path, metavar="PNG", help="with --table: draw it too")
    options = parser.parse_args()
    if not options.table:
        measure(options.out[0], options.seed, options.fingerprint)
    print(table(options.out))
    if draw and options.picture:
        draw(options.out, options.picture)


# ---- cells of tables, of values (seeds, images) or of images alone


def mean_and_sd(values: np.ndarray) -> str:
    """Mean, and sd over seeds where there are several."""
    return f"{values.mean():.3f} ({over_seeds(values, 0)['sd']:.3f})" if len(values) > 1 else f"{values.mean():.3f}"


def level(values: np.ndarray) -> str:
    """Mean over images of the values that are no NaN, with its 95 % interval over images."""
    known = values[~np.isnan(values)]
    return "{:.3f} [{:.3f}, {:.3f}]".format(known.mean(), *bootstrap_ci(known, 0))


def over_worlds(values: Iterable[float], form: str = "+.3f") -> str:
    """Mean of a value a world, with its 95 % interval over worlds, by Student's t."""
    x = np.array(list(values))
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / len(x) ** 0.5
    return f"{x.mean():{form}} [{x.mean() - half:{form}}, {x.mean() + half:{form}}]"


def difference(a: np.ndarray, b: np.ndarray) -> str:
    """a - b, paired by image and seed, with its 95 % interval over images, and over seeds where there are several."""
    several = a.ndim > 1 and len(a) > 1
    found = paired_over_seeds(a, b, 0) if several else paired_difference(a.reshape(-1), b.reshape(-1), 0)
    return "{:+.3f} [{:+.3f}, {:+.3f}]".format(found["mean"], *found["ci"])
