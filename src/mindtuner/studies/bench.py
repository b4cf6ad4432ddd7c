"""Many tunings of one subject, each done once: in processes of their own, with one small file each to go on from."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from mindtuner.claims import join
from mindtuner.config import Config, changed, load_config
from mindtuner.data import Dataset, Subject, Trials
from mindtuner.data.identity import Inputs, inputs_of
from mindtuner.decoding.training_images import TrainingTokens, most_similar
from mindtuner.decoding.words import TextBank
from mindtuner.errors import UserError
from mindtuner.files import file_digest, read_json, write_json, write_text
from mindtuner.formats import load
from mindtuner.generators.compact import CompactGenerator
from mindtuner.model import BrainNetwork
from mindtuner.pipeline.base import (
    Base,
    base_file,
    card_of,
    held_out,
    images_trained_on,
    pretrain_into,
    refuse_untrainable,
    settings_for,
)
from mindtuner.pipeline.demo import simulate
from mindtuner.pipeline.features import Features, check_towers, embed
from mindtuner.pipeline.known import refuse_known
from mindtuner.pipeline.run_folder import claim, hold_inputs, refuse_overlap, settings_text
from mindtuner.pipeline.stages import Scoring, TestSet, decode_all, paint_all, read_all, retrieval, score_all
from mindtuner.pipeline.subject import TunedSubject
from mindtuner.pipeline.tuning import fit_methods
from mindtuner.pipeline.words import phrase_reader
from mindtuner.runtime import progress
from mindtuner.simulation.simulate import check_inputs
from mindtuner.threads import PINNED
from mindtuner.training import read_card
from mindtuner.training.closed_form import mean_token
from mindtuner.training.ridge import voxel_regression

RETRIEVAL = ("image", "brain", "text")
REGRESSION = "regression"  # the method that tunes nothing: voxels -> tokens by one ridge regression
RUNS, BASES = "runs", "bases"

Scores = dict[str, np.ndarray]  # score -> one value an image; of text, an image that has captions; of pictures, a painted one
Chance = dict[str, float]


@dataclass(frozen=True)
class Run:
    """One tuning.

    ``sessions``: so many, or below 1 a share of the first. ``base``: pretraining subjects. ``pivot``: whether words come by
    the Adaptive Projector, and correct pictures.
    """

    variant: str
    seed: int
    config: Config
    sessions: float
    method: str
    base: int
    pivot: bool = True

    @property
    def name(self) -> str:
        """Variant and seed, as in the name of its file."""
        return f"{self.variant}.seed{self.seed}"


@dataclass(frozen=True)
class Bench:
    """What all runs of a study share.

    out : the study's folder · base : file of a given base of all other subjects, None where the study pretrains it ·
    paints : whether pictures are painted and scored too
    """

    dataset: Dataset
    features: Features
    config: Config
    out: Path
    base: Path | None
    paints: bool = False

    @property
    def subject(self) -> Subject:
        """The subject that is tuned."""
        return self.dataset.subject(self.config.target_subject)

    @property
    def others(self) -> list[int]:
        """Numbers of all other subjects, ascending."""
        return sorted(set(self.dataset.subjects) - {self.config.target_subject})

    def base_file(self, count: int) -> Path:
        """That of ``count`` pretraining subjects, those with the lowest numbers."""
        given = self.base is not None and count == len(self.others)
        return self.base if given else self.out / BASES / f"{count}.safetensors"

    def run_file(self, run: Run) -> Path:
        """The file of a run's scores."""
        return self.out / RUNS / f"{run.name}.json"


def first_part(subject: Subject, sessions: float) -> Subject:
    """The subject with the training trials of so many sessions; below 1, of that share of the first one's, from its start.

    Raises UserError where there are not so many sessions, or no trial is left.
    """
    if sessions >= 1:
        return subject.sessions(int(sessions))
    first = subject.sessions(1)
    training = np.flatnonzero(~first.trials.is_test)
    training = training[np.argsort(first.trials.row[training], kind="stable")]  # rows are in the order of scanning
    kept = training[: int(sessions * len(training))]
    if len(kept) == 0:
        raise UserError(f"sessions: {sessions:g} of the {len(training)} training trials of session 1 is none; expected more")
    chosen = np.sort(np.concatenate([kept, np.flatnonzero(first.trials.is_test)]))
    return replace(first, trials=first.trials.select(chosen))


def work(bench: Bench, run: Run, base: Base) -> tuple[Scores, Chance]:
    """Tune, and score the retrieval of all test images, top-1 (ties share), and pictures where the bench paints.

    The same numbers as those of ``pipeline.tune`` and ``pipeline.evaluate`` with this config and seed.
    """
    subject, stimuli, caches = bench.subject, bench.dataset.stimuli, bench.features.caches
    hour = first_part(subject, run.sessions)
    pictures: tuple[Scores, Chance] = {}, {}
    less = None
    if run.method == REGRESSION:
        images, tokens, text = regression(hour, bench.features, base.network, run.seed, run.config.tune.similar_voxels)
        backbone = tokens
        if run.config.decode.retrieval_tokens == "centred":  # around its mean answer, as the networks'
            tokens = tokens - np.asarray(caches["tokens"][hour.train.stimulus], np.float32).mean(0)
            less = mean_token(bench.features.targets, hour.train.stimulus).numpy()
    else:
        tuned = fit_methods(base, hour, bench.features, run.config, (run.method,))
        found = tuned.decoder(run.method).predict(subject.betas(subject.test.row), subject.test.stimulus)
        images, tokens, backbone, text = found.images, found.retrieval_tokens, found.backbone_tokens, found.text
        less = found.mean_token
        if bench.paints:
            pictures = score_pictures(bench, run, tuned)
    if not run.pivot:
        training = stimuli.training_images
        nearest = most_similar(backbone, TrainingTokens(caches["tokens"], training), 1)[:, 0]
        text = np.asarray(caches["text"][training[nearest]], np.float32)
    scores = {score: one.top1 for score, one in retrieval(images, tokens, text, stimuli, caches, less).items()}
    return {**scores, **pictures[0]}, {**{score: 1 / len(top1) for score, top1 in scores.items()}, **pictures[1]}


def score_pictures(bench: Bench, run: Run, tuned: TunedSubject) -> tuple[Scores, Chance]:
    """Scores of the pictures that ``evaluate`` paints, before the semantic correction where the run is without the Pivot."""
    features, stimuli = bench.features, bench.dataset.stimuli
    test = TestSet.of(bench.subject, stimuli, features.caches, run.config.decode.pictures)
    decoded = decode_all(tuned.networks, tuned.base.network, test, run.config)
    decoded = {run.method: decoded[run.method]}
    generator = CompactGenerator(run.config.decode, run.seed, features.weights)
    bank = TextBank.of(stimuli, stimuli.training_images, features.text_encoder)
    reader = phrase_reader(stimuli, features.caches, stimuli.training_images, features.text_encoder)
    painted = paint_all(decoded, generator, read_all(decoded, bank, reader), test)
    if not run.pivot:
        painted[run.method].stages.pop("corrected", None)
    found = score_all(decoded, painted, test, run.seed, Scoring())[run.method]
    return found.reconstruction, {"two_way": 0.5, **found.chance}


def regression(
    hour: Subject, features: Features, base: BrainNetwork, seed: int, similar: int, asked: Trials | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What one cross-validated ridge regression from the hour's voxels says: images, their tokens, their text.

    Images (n,) are those of the trials ``asked``, by default the test trials. Tokens (n, T, D) are regressed with what
    ``similar`` voxels add there as in tuning. Text (n, d) is made of these by the base's projector, the only part of the base
    that is used.
    """
    train, asked = hour.train, hour.test if asked is None else asked
    tokens = np.asarray(features.caches["tokens"][train.stimulus], np.float32)
    fit = voxel_regression(hour.betas(train.row), tokens.reshape(len(train), -1), train.stimulus, seed, similar)
    images, row = np.unique(asked.stimulus, return_inverse=True)
    total = np.zeros((len(images), fit.weight.shape[1]), np.float32)
    np.add.at(total, row, hour.betas(asked.row) @ fit.weight + fit.intercept)
    said = (total / np.bincount(row)[:, None]).astype(np.float32).reshape(-1, *tokens.shape[1:])
    with torch.no_grad():
        return images, said, base.projector(torch.from_numpy(said)).numpy()


# ---- from a dataset to a bench


def settled(
    config: str | Path | Config | None = None,
    base: str | Path | None = None,
    *,
    subject: int | None = None,
    sessions: int | None = None,
    seed: int | None = None,
) -> tuple[Config, Path | None]:
    """The settings of a study, and the file of the base where one is given.

    Raises UserError where there is no such base or config, or the base knows the subject.
    """
    path = None if base is None else base_file(base)
    found = load_config((config or "demo") if path is None else settings_for(path, config))
    given = {"seed": seed, "target_subject": subject, "tuning_sessions": sessions}
    found = changed(found, **{name: value for name, value in given.items() if value is not None})
    if path is not None:
        loaded = Base.load(path, found)
        loaded.refuse_known(found.target_subject)
        found = replace(found, model=loaded.network.config, hold_out_category=loaded.category)
    return found, path


def prepare(
    out: Path,
    config: Config,
    base: Path | None,
    *,
    data: Path | None = None,
    cache: Path | None = None,
    weights: Path | None = None,
    pictures: bool = False,
    force: bool = False,
    command: str,
) -> tuple[Bench, Callable[[], Bench]]:
    """The bench of a study in ``out``, and how a process opens it for itself; data are simulated where none are given.

    Raises UserError where ``out`` holds another run, or data, towers, base and config do not fit.
    """
    own = out / "data"
    data, cache, weights = (None if given is None else Path(given) for given in (data, cache, weights))
    if data is None:
        check_inputs(config.simulate)
    refuse_overlap(out, **{name: path for name, path in (("DATA", data), ("BASE", base)) if path})
    goes_on = claim(out, settings_text(config, command), force)
    if data is None:
        simulate(own, config.simulate)
    data = data or own
    opens = functools.partial(open_bench, data, cache or data / "cache", config, out, base, weights, pictures)
    bench = opens()
    inputs = inputs_of(bench.dataset, bench.features.folder, bench.features.pictures, test=True)
    if base is not None:
        inputs |= Inputs({"base": file_digest(base)}, {"base": str(base)})
    hold_inputs(out, inputs, goes_on and (out / RUNS).exists())
    return bench, opens


def open_bench(
    data: Path, cache: Path, config: Config, out: Path, base: Path | None, weights: Path | None, pictures: bool
) -> Bench:
    """Raises UserError where data, towers, base and config do not fit."""
    dataset = held_out(load(data), config.hold_out_category)
    subject = dataset.subject(config.target_subject)
    if len(subject.test) == 0:
        raise UserError(f"{subject.where}: subject {subject.number} has no test trial; expected trials of test images")
    if base is None:
        if len(dataset.subjects) == 1:
            raise UserError(f"{data}: holds subject {subject.number} alone; expected others to pretrain on, or `base`")
        refuse_untrainable(dataset.without(subject.number))
    check_towers(config.model, base or cache, cache)
    features = embed(dataset, cache, weights=weights)
    if pictures and features.full_size:
        raise UserError(
            f"{cache}: is of towers of full size, whose pictures are too dear to paint in a study; expected no `pictures`"
        )
    if base is not None:
        card = read_card(base)
        features.check_same(card, base)
        refuse_known({str(base): card}, dataset.stimuli, np.unique(subject.test.stimulus), features.pictures)
    return Bench(dataset, features, config, out, base, pictures)


# ---- processes

_opened: list[Bench] = []  # of this worker
_bases: dict[Path, Base] = {}  # likewise


def do(bench: Bench, runs: Sequence[Run], jobs: int, opens: Callable[[], Bench]) -> tuple[dict[str, Scores], Chance]:
    """Do those of ``runs`` that are not done yet, the bases that they stand on first. Then ``collect``.

    They are done in ``jobs`` processes of one thread each, which open the bench for themselves; so the numbers do not depend
    on ``jobs``.

    Raises UserError where a process was killed; what was done stays.
    """
    todo = [run for run in runs if not bench.run_file(run).exists()]
    bases = [count for count in sorted({run.base for run in todo}, reverse=True) if not bench.base_file(count).exists()]
    if todo:
        with _one_thread(), ProcessPoolExecutor(jobs, _processes(), _open, (opens,)) as pool:
            try:
                for title, task, items in (("bases", _pretrain, bases), ("runs", _work, todo)):
                    waiting = [pool.submit(task, item) for item in items]
                    for done in progress(as_completed(waiting), title, len(waiting), "run", lines=True):
                        done.result()
            except BrokenProcessPool as error:
                raise UserError(
                    f"{bench.out}: a process was killed, by lack of memory perhaps; expected fewer `jobs` (the "
                    "same command goes on)"
                ) from error
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
    return collect(bench, runs)


def _processes() -> multiprocessing.context.BaseContext:
    """Processes that know nothing of this one. Where the system can, they come of one that has done the imports."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """What processes started here inherit: linear algebra in one thread."""
    before = {name: os.environ.get(name) for name in PINNED}
    os.environ.update(dict.fromkeys(PINNED, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _open(opens: Callable[[], Bench]) -> None:
    torch.set_num_threads(1)
    _opened[:] = [opens()]
    join(_opened[0].out)


def _pretrain(count: int) -> None:
    bench = _opened[0]
    kept, path = bench.others[:count], bench.base_file(count)
    dataset = replace(bench.dataset, subjects={number: bench.dataset.subjects[number] for number in kept})
    features, images = bench.features, images_trained_on(dataset)
    card = card_of(dataset, features, bench.config, inputs_of(dataset, features.folder, features.pictures), images)
    pretrain_into(path, dataset, features, bench.config, card)


def _work(run: Run) -> None:
    bench, begun = _opened[0], time.perf_counter()
    path = bench.base_file(run.base)
    if path not in _bases:
        _bases[path] = Base.load(path, bench.config)
    scores, chance = work(bench, run, _bases[path])
    values = {score: [None if np.isnan(value) else round(float(value), 6) for value in one] for score, one in scores.items()}
    write_json(
        bench.run_file(run),
        {
            "variant": run.variant,
            "seed": run.seed,
            "scores": values,
            "chance": chance,
            "seconds": round(time.perf_counter() - begun, 2),
        },
    )


# ---- what came out


def collect(bench: Bench, runs: Sequence[Run]) -> tuple[dict[str, Scores], Chance]:
    """Variant -> score -> values (S, n), a row a seed and NaN where a score is undefined; and chance by score.

    Chance is that of the first variant, mean over its seeds. Writes ``results.csv``, a row a variant, seed and score: the
    mean over images.

    Raises UserError where a run's file is damaged.
    """
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    chances: dict[str, list[float]] = {}
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("variant", "seed", "score", "value", "chance", "images"))
    for run in runs:
        path = bench.run_file(run)
        content = read_json(path)
        scores, chance = content.get("scores"), content.get("chance")
        if not (isinstance(scores, dict) and isinstance(chance, dict) and set(RETRIEVAL) <= set(scores)):
            raise UserError(
                f"{path}: scores and chance are not what a run writes; expected a whole file (delete it, and the "
                "same command makes it again)"
            )
        for score, values in scores.items():
            values = np.array(values, float)
            found.setdefault(run.variant, {}).setdefault(score, []).append(values)
            rows.writerow(
                (
                    run.variant,
                    run.seed,
                    score,
                    f"{np.nanmean(values):.6f}",
                    f"{chance[score]:.6f}",
                    np.count_nonzero(~np.isnan(values)),
                )
            )
            if run.variant == runs[0].variant:
                chances.setdefault(score, []).append(chance[score])
    write_text(bench.out / "results.csv", table.getvalue())
    return (
        {variant: {score: np.stack(values) for score, values in scores.items()} for variant, scores in found.items()},
        {score: float(np.mean(values)) for score, values in chances.items()},
    )
