"""How long does a training step wait for its data? And what memory does a cache far larger than memory take?

    python benchmarks/data_wait.py OUT [--config quick] [--stimuli 2000] [--trials 3000] [--voxels 4000] [--subjects 2]
                                       [--steps 40] [--runs 5] [--paces S ...]
    python benchmarks/data_wait.py OUT --config paper --subjects 7 --voxels 15724 --trials 800 --stimuli 3000
                                       --steps 10 --runs 3 --paces 0 0.2 0.5 1

Targets are random rows of caches (image tokens in bfloat16, the rest in float32), betas random rows of HDF5 files, none of
them held in memory. Every run trains ``--steps`` steps of the config's pretraining; "from disk" asks the system to forget
all files first, "from memory" does not. Waiting is what the loop spends in asking for the next batch or for rows of
targets; reading that goes on beside a step costs it nothing. The aim is a share of at most 5 %. The first batch of a run,
which nothing can hide, counts.

The second command is of the paper's sizes in all that is read: 63 trials a step with 256 x 1664 tokens. Such a step keeps a
CPU far too long, so nothing is trained: how much would a step of so many seconds (``--paces``) wait that leaves the CPU free,
as one on a GPU does? It sleeps. Here the first batch is told apart. Pace 0 is how long a batch takes to read.

Then a cache of 73,000 x 256 x 1664 bfloat16 (62 GB), a hole on disk that takes no room: opened, 50 batches of 63 random
rows read, in a process of its own. Prints two tables in Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import torch
from release import forget, make_targets

from mindtuner import runtime
from mindtuner.claims import goes_on
from mindtuner.config import load_config
from mindtuner.data import HalfRows, Subject, Trials, open_cache
from mindtuner.data.cache import cache_header
from mindtuner.data.lazy import open_rows
from mindtuner.files import write_json
from mindtuner.model import BrainNetwork
from mindtuner.training import Targets, batches, loop

FULL = (73_000, 256, 1664)


class Count:
    """As many stimuli as asked for, as far as a cache wants to know."""

    images = None

    def __init__(self, count: int):
        self.count, self.hash = count, f"{count} of random numbers"

    def __len__(self) -> int:
        return self.count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for caches and betas, new or empty")
    parser.add_argument("--config", default="quick")
    for name, default in (("stimuli", 2000), ("trials", 3000), ("voxels", 4000), ("subjects", 2), ("steps", 40), ("runs", 5)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default {default}")
    parser.add_argument("--paces", type=float, nargs="+", metavar="S", help="seconds of steps that sleep; none is trained")
    options = parser.parse_args()
    if min(options.steps, options.runs) < 2:
        parser.error("--steps and --runs: expected at least 2, to see how they spread")
    config = load_config(options.config)
    goes_on(options.out)  # refuses a folder that holds anything
    options.out.mkdir(parents=True, exist_ok=True)
    targets = make_targets(options.out, config.model, Count(options.stimuli))
    subjects = {f"subj{n:02d}": make_subject(options.out, n, options) for n in range(1, options.subjects + 1)}
    print(
        f"config {options.config}, {options.subjects} subjects of {options.voxels} voxels, {options.stimuli} stimuli, "
        f"{options.runs} runs of {options.steps} steps, {torch.get_num_threads()} threads, {runtime.device()}\n"
    )
    if options.paces:
        sleeping(subjects, targets, config, options)
    else:
        training(subjects, targets, config, options)
    full_size(options.out)


def repeated(options: argparse.Namespace, where: str, run) -> np.ndarray:
    """What ``run(seed)`` returns of each run, (runs, values); all files are forgotten first where data come from the disk."""
    found = []
    for seed in range(options.runs):
        if where == "from disk":
            forget(options.out)
        found.append(run(seed))
    return np.array(found)


def training(subjects: dict[str, Subject], targets: Targets, config, options: argparse.Namespace) -> None:
    """Print how long steps of training wait."""
    print("| data come | step, ms | wait, ms | share (lowest to highest run) | peak memory |\n|---|---:|---:|---:|---:|")
    for where in ("from disk", "from memory"):
        step, wait = repeated(options, where, lambda seed: train(subjects, targets, config, options.steps, seed)).T
        share = 100 * wait / step
        print(
            f"| {where} | {1000 * step.mean():.1f} ({1000 * step.std(ddof=1):.1f}) | {1000 * wait.mean():.2f} "
            f"({1000 * wait.std(ddof=1):.2f}) | {share.mean():.2f} % ({share.min():.2f} to {share.max():.2f}) "
            f"| {runtime.peak_memory_mb():.0f} MB |",
            flush=True,
        )


def sleeping(subjects: dict[str, Subject], targets: Targets, config, options: argparse.Namespace) -> None:
    """Print how long steps wait that take so many seconds and no CPU."""
    print("| a step takes | data come | first batch, ms | wait, ms | share (lowest to highest run) |")
    print("|---|---|---:|---:|---:|")
    for pace in options.paces:
        for where in ("from disk", "from memory"):
            first, wait = (
                1000
                * repeated(
                    options, where, lambda seed, pace=pace: sleep(subjects, targets, config, options.steps, seed, pace)
                ).T
            )
            share = 100 * wait / (wait + 1000 * pace)
            print(
                f"| {pace} s | {where} | {first.mean():.0f} ({first.std(ddof=1):.0f}) | {wait.mean():.1f} "
                f"({wait.std(ddof=1):.1f}) | {share.mean():.2f} % ({share.min():.2f} to {share.max():.2f}) |",
                flush=True,
            )


def make_subject(folder: Path, number: int, options: argparse.Namespace) -> Subject:
    """A subject whose betas are random numbers in an HDF5 file, as the release's are, and who never saw an image twice."""
    rng = np.random.default_rng(number)
    path = folder / f"betas{number}.hdf5"
    with h5py.File(path, "w") as file:
        rows = file.create_dataset("betas", (options.trials, options.voxels), np.float32)
        for start in range(0, options.trials, 256):
            size = min(256, options.trials - start)
            rows[start : start + size] = rng.standard_normal((size, options.voxels), np.float32)
    order, none = np.arange(options.trials), np.zeros(options.trials)
    trials = Trials(order, rng.integers(0, options.stimuli, options.trials), none + 1, none, none)
    return Subject(number, trials, {}, open_rows(path, "betas", 2, ("float32",)), np.zeros(options.stimuli, bool), str(path))


def train(subjects: dict[str, Subject], targets: Targets, config, steps: int, seed: int) -> tuple[float, float]:
    """Mean seconds of a step, and of them those in which the loop waits for data."""
    waited = 0.0

    def timed(act):
        def acting(*args):
            nonlocal waited
            start = time.perf_counter()
            try:
                return act(*args)
            finally:
                if threading.current_thread() is threading.main_thread():
                    waited += time.perf_counter() - start

        return acting

    def stream(*args):
        source = make(*args)
        following = timed(lambda: next(source, None))
        while (batch := following()) is not None:
            yield batch

    runtime.seed_everything(seed)
    network = BrainNetwork(config.model, {name: subject.n_voxels for name, subject in subjects.items()})
    network.projector.requires_grad_(False)
    feeds = feeds_of(subjects, seed)
    per_epoch = batches.steps_per_epoch(feeds, config.pretrain.batch_per_subject * config.pretrain.accumulate)
    fit = dataclasses.replace(config.pretrain, epochs=steps / per_epoch)
    make, read = loop.batches, Targets.rows
    loop.batches, Targets.rows = stream, timed(read)
    start = time.perf_counter()
    try:
        loop.fit(network, feeds, targets, fit, seed, "data wait")
    finally:
        loop.batches, Targets.rows = make, read
    return (time.perf_counter() - start) / steps, waited / steps


def feeds_of(subjects: dict[str, Subject], seed: int) -> list[batches.Feed]:
    return batches.make_feeds(subjects, {name: subject.trials for name, subject in subjects.items()}, seed)


def sleep(subjects: dict[str, Subject], targets: Targets, config, steps: int, seed: int, pace: float) -> tuple[float, float]:
    """Seconds until the first batch, and mean seconds that each later step of ``pace`` seconds waits for its batch."""
    stream = batches.batches(
        feeds_of(subjects, seed), config.pretrain.batch_per_subject, 1 + steps, targets, ("tokens", *loop.LOWLEVEL)
    )
    waits = []
    for _ in range(1 + steps):
        start = time.perf_counter()
        next(stream)
        waits.append(time.perf_counter() - start)
        time.sleep(pace)
    return waits[0], float(np.mean(waits[1:]))


def full_size(folder: Path) -> None:
    header = cache_header(FULL, "bfloat16", {}, "a hole")
    path = folder / "hole.bin"
    with open(path, "wb") as file:
        file.truncate(2 * int(np.prod(FULL)))
    write_json(folder / "hole.json", header)
    try:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            before, opened, seconds, peak = pool.apply(read_hole, (folder,))
        print(f"\n| {' x '.join(f'{n:,}' for n in FULL)} bfloat16, {path.stat().st_size / 1e9:.1f} GB | |\n|---|---:|")
        print(f"| on disk | {path.stat().st_blocks * 512 / 1e6:.1f} MB |\n| opened in | {1000 * opened:.1f} ms |")
        print(f"| 63 random rows as float32 | {1000 * seconds.mean():.0f} ms (sd {1000 * seconds.std(ddof=1):.0f}) |")
        print(f"| peak memory before opening | {before:.0f} MB |\n| peak memory after 50 batches | {peak:.0f} MB |")
    finally:
        path.unlink()


def read_hole(folder: Path) -> tuple[float, float, np.ndarray, float]:
    """Peak memory before, seconds to open, seconds of each batch, and peak memory after."""
    before, start = runtime.peak_memory_mb(), time.perf_counter()
    cache = open_cache(folder, "hole", {}, "a hole")
    opened = time.perf_counter() - start
    assert isinstance(cache, HalfRows)
    rng, seconds = np.random.default_rng(0), []
    for _ in range(50):
        start = time.perf_counter()
        assert cache.rows(rng.integers(0, FULL[0], 63)).float().shape == (63, *FULL[1:])
        seconds.append(time.perf_counter() - start)
    return before, opened, np.array(seconds), runtime.peak_memory_mb()


if __name__ == "__main__":
    main()
