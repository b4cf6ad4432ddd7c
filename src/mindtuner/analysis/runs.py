"""Many tunings of one subject, each done once: in processes of their own, with one small file each to go on from."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mindtuner.config import Config
from mindtuner.data import Dataset, Subject, Trials
from mindtuner.decoding.compact import starting_prior
from mindtuner.decoding.decoder import Decoder
from mindtuner.decoding.recall import Rows, most_similar
from mindtuner.errors import UserError
from mindtuner.evaluation.scores.retrieval import brain_retrieval, image_retrieval, text_retrieval
from mindtuner.files import read_json, write_json, write_text
from mindtuner.model import BrainNetwork
from mindtuner.runtime import progress
from mindtuner.training import Targets, load_network, pretrain, save_network, subject_name, tune
from mindtuner.training.start import ridge_regression

SCORES = ("image", "brain", "text")
REGRESSION = "regression"  # the method that is no tuning: voxels -> tokens by one ridge regression
RUNS, BASES = "runs", "bases"
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Bench:
    """What all runs of a study share.

    out : the study's folder · base : file of a given base of all other subjects, None where the study pretrains it
    """

    dataset: Dataset
    targets: Targets
    config: Config
    out: Path
    base: Path | None
    generator: Path | None = None  # weights whose prior pretraining starts from, None for the package's

    def base_file(self, count: int) -> Path:
        """That of ``count`` pretraining subjects, those with the lowest numbers."""
        return self.base if self.base is not None and count == len(self.others) else self.out / BASES / f"{count}.safetensors"

    @property
    def others(self) -> list[int]:
        return sorted(set(self.dataset.subjects) - {self.config.target_subject})


@dataclass(frozen=True)
class Run:
    """One tuning. ``sessions``: a number of them, or a share of the first below 1."""

    variant: str
    seed: int
    config: Config
    sessions: float
    method: str = "mindtuner"
    base: int = 0  # pretraining subjects
    pivot: bool = True

    @property
    def name(self) -> str:
        return f"{self.variant}.seed{self.seed}"


def first_part(subject: Subject, sessions: float) -> Subject:
    """The subject with the training trials of so many sessions; below 1, that share of the first one's, from its start.

    Raises UserError where there are not so many sessions, or no trial is left.
    """
    if sessions >= 1:
        if sessions != int(sessions):
            raise UserError(f"sessions: is {sessions:g}; expected a whole number, or a share of the first")
        return subject.sessions(int(sessions))
    first = subject.sessions(1)
    training = np.flatnonzero(~first.trials.is_test)
    kept = training[: int(sessions * len(training))]
    if len(kept) == 0:
        raise UserError(f"sessions: {sessions:g} of the {len(training)} training trials of session 1 is none; expected more")
    chosen = np.sort(np.concatenate([kept, np.flatnonzero(first.trials.is_test)]))
    return dataclasses.replace(first, trials=first.trials.select(chosen))


def work(bench: Bench, run: Run, base: BrainNetwork) -> dict[str, list[float]]:
    """Tune, and score the retrieval of all test images: score -> top-1 of each (ties share), images ascending; of text, those
    that have captions. The same as the verbs ``tune`` and ``evaluate`` with this config and seed."""
    subject = bench.dataset.subject(run.config.target_subject)
    hour = first_part(subject, run.sessions)
    if run.method == REGRESSION:
        images, said, text = _regression(hour, subject.test, bench.targets, base, run.seed)
        retrieved, backbone = said, said
    else:
        prior = None
        if run.method == "from_scratch" and base.prior is not None:
            prior = starting_prior(base.config, bench.generator)
        network = tune(base, hour, bench.targets, run.config, run.seed, run.method, prior=prior)
        p = Decoder(network, subject_name(subject.number), run.config.decode, run.seed).predict(
            subject.betas(subject.test.row), subject.test.stimulus)
        images, retrieved, backbone, text = p.images, p.retrieval_tokens, p.backbone_tokens, p.text
    stimuli = bench.dataset.stimuli
    if not run.pivot:
        training = stimuli.training_images
        nearest = most_similar(backbone, Rows(bench.targets.tokens, training), 1)[:, 0]
        text = bench.targets.rows("text", training[nearest]).numpy()
    tokens = bench.targets.rows("tokens", images).numpy()
    captioned = np.flatnonzero([bool(stimuli.captions[k]) for k in images])
    captioned = captioned if len(captioned) else np.arange(len(images))
    found = {"image": image_retrieval(retrieved, tokens), "brain": brain_retrieval(retrieved, tokens),
             "text": text_retrieval(text[captioned], bench.targets.rows("text", images[captioned]).numpy())}
    return {score: [round(float(v), 6) for v in found[score].top1] for score in SCORES}


def _regression(hour: Subject, test: Trials, targets: Targets, base: BrainNetwork,
                seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images (n,), tokens (n, T, D) and text (n, d) by one cross-validated ridge regression; the projector is the base's."""
    train = hour.train
    tokens = targets.rows("tokens", train.stimulus).numpy()
    fit = ridge_regression(hour.betas(train.row), tokens.reshape(len(train), -1), train.stimulus, seed)
    images, row = np.unique(test.stimulus, return_inverse=True)
    total = np.zeros((len(images), fit.weight.shape[1]), np.float32)
    np.add.at(total, row, hour.betas(test.row) @ fit.weight + fit.intercept)
    said = (total / np.bincount(row)[:, None]).astype(np.float32).reshape(-1, *tokens.shape[1:])
    with torch.no_grad():
        return images, said, base.projector(torch.from_numpy(said)).numpy()


def chance(hits: dict[str, np.ndarray]) -> dict[str, float]:
    """Of each score, one in the number of its candidates."""
    return {score: 1 / values.shape[-1] for score, values in hits.items()}


# ---- processes

_opened: list[Bench] = []  # of this worker
_bases: dict[Path, BrainNetwork] = {}


def _open(opens: Callable[[], Bench]) -> None:
    torch.set_num_threads(1)
    _opened[:] = [opens()]


def _pretrain(count: int) -> int:
    bench = _opened[0]
    left = set(bench.others[count:])
    dataset = dataclasses.replace(bench.dataset.without(subject=bench.config.target_subject))
    for number in left:
        dataset = dataset.without(subject=number)
    base = pretrain(dataset, bench.targets, bench.config, bench.config.seed,
                    prior=starting_prior(bench.config.model, bench.generator))
    save_network(bench.base_file(count), base, {"seed": bench.config.seed, "subjects": bench.others[:count]})
    return count


def _work(run: Run) -> str:
    bench, begun = _opened[0], time.perf_counter()
    path = bench.base_file(run.base)
    if path not in _bases:
        _bases[path] = load_network(path)
    hits = work(bench, run, _bases[path])
    write_json(bench.out / RUNS / f"{run.name}.json", {"variant": run.variant, "seed": run.seed, "top1": hits,
                                                       "seconds": round(time.perf_counter() - begun, 2)})
    return run.name


def do(bench: Bench, runs: Sequence[Run], jobs: int, opens: Callable[[], Bench]) -> dict[str, dict[str, np.ndarray]]:
    """Do what is not done yet of ``runs``, the bases that they stand on first, in ``jobs`` processes of one thread each, which
    open the bench for themselves. So the numbers do not depend on ``jobs``.

    Returns variant -> score -> (seeds, images).
    """
    bases = [count for count in sorted({run.base for run in runs}, reverse=True) if not bench.base_file(count).exists()]
    todo = [run for run in runs if not (bench.out / RUNS / f"{run.name}.json").exists()]
    if bases or todo:
        with _one_thread(), ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _open, (opens,)) as pool:
            try:
                for title, task, items in (("bases", _pretrain, bases), ("runs", _work, todo)):
                    waiting = [pool.submit(task, item) for item in items]
                    for done in progress(as_completed(waiting), title, len(waiting), "run", lines=True):
                        done.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    return collect(bench.out, runs)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """What workers inherit: linear algebra in one thread."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.__setitem__(name, value)


def collect(out: Path, runs: Sequence[Run]) -> dict[str, dict[str, np.ndarray]]:
    """Variant -> score -> top-1 (seeds, images), from the runs' files, and ``results.csv``: a row a variant, seed and score.

    Raises UserError where a run's file is damaged.
    """
    found: dict[str, dict[str, list]] = {}
    table = io.StringIO()
    rows = csv.writer(table, lineterminator="\n")
    rows.writerow(("variant", "seed", "score", "value", "candidates"))
    for run in runs:
        path = out / RUNS / f"{run.name}.json"
        top1 = read_json(path).get("top1")
        if not isinstance(top1, dict) or set(top1) != set(SCORES):
            raise UserError(f"{path}: top1 is not the scores {', '.join(SCORES)}; expected a finished run (delete the file)")
        for score in SCORES:
            found.setdefault(run.variant, {}).setdefault(score, []).append(top1[score])
            rows.writerow((run.variant, run.seed, score, f"{np.mean(top1[score]):.6f}", len(top1[score])))
    write_text(out / "results.csv", table.getvalue())
    return {variant: {score: np.array(v) for score, v in scores.items()} for variant, scores in found.items()}
