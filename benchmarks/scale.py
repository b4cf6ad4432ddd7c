"""How do a training step, memory and the way to the first step grow with a dataset?

    python benchmarks/scale.py OUT [--rounds 3] [--steps 30] [--write benchmarks/results/scale.md] [--picture docs/scale.png]

Datasets of 8 subjects with a quarter of NSD's voxels and 1 to 40 sessions of 750 trials each, so 6,000 to 240,000 trials of
1,825 to 73,000 images: the files of the public release with every beta written, and the caches of ``quick.yaml``'s towers,
random numbers. One after the other they are made in OUT (10 GB at most), measured and removed. Each point is a process of its
own that the system has forgotten all files for. It calls ``pretrain`` as the command line does, on the config's network, and
notes

- when it has imported what it needs, opened the dataset, opened the caches (which hashes the stimuli), and done the first
  step of training; the Pivot, which trains before brains do, takes one step only;
- the median of ``--steps`` further training steps, in seconds and in CPU seconds, which other work on the machine moves less;
- the peak resident memory once the dataset is open, after these steps, and in the end, when ``pretrain`` has read all
  betas and all tokens once more, for what it expects of an image.

Points with 1 to 16 subjects are taken of the smallest dataset, where from the ninth on the same files count as another
subject's. Machines drift, so points take turns: in each round the smallest dataset is measured beside the larger one. Prints
a table in Markdown; ``--write`` puts it between the file's ``scale:begin`` and ``scale:end`` comments, ``--picture`` plots
the points.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from pages import machine, write_between

SUBJECTS, SCALES, COUNTS = 8, (12, 40), (1, 2, 4, 8, 16)
WIDTH = 0.25  # voxels as a share of NSD's, or the largest dataset would take 14 GB of betas
CONFIG, WARM_UP = "quick", 3  # steps after the first that do not count
STAGES = {
    "imports": "imports",
    "dataset": "dataset opened",
    "caches": "caches opened, stimuli hashed",
    "first step": "the rest of the way to the first step",
}

PEAKS = {"dataset": "dataset opened", "steps": "after training steps", "end": "in the end"}


# ---- one point


def measure(root: Path, subjects: int, steps: int, seed: int, started: float) -> dict:
    """(Seconds, CPU seconds) from ``started`` to the end of each stage, medians of them over the steps, and peaks in MB."""
    from mindtuner import runtime
    from mindtuner.config import load_config
    from mindtuner.data import open_cache
    from mindtuner.formats import load
    from mindtuner.training import Targets, loop, remove_checkpoint
    from mindtuner.training.batches import steps_per_epoch

    training = importlib.import_module("mindtuner.training.pretrain")

    def now() -> tuple[float, float]:
        return time.time() - started, time.process_time()

    reached, peaks, ends = {"imports": now()}, {}, []
    dataset = load(root, range(1, min(subjects, SUBJECTS) + 1))
    reached["dataset"], peaks["dataset"] = now(), runtime.peak_memory_mb()
    names = [field.name for field in dataclasses.fields(Targets)]
    targets = Targets(**{name: open_cache(root, name, {}, dataset.stimuli.hash) for name in names})
    reached["caches"] = now()
    for number in range(SUBJECTS + 1, subjects + 1):
        dataset.subjects[number] = dataclasses.replace(dataset.subjects[number - SUBJECTS], number=number)
    step = loop.take_step

    def timed(*arguments):
        norm = step(*arguments)
        ends.append(now())
        return norm

    loop.take_step = timed
    config = load_config(CONFIG)
    feeds = [SimpleNamespace(trials=subject.train) for subject in dataset.subjects.values()]
    epochs = (1 + WARM_UP + steps) / steps_per_epoch(feeds, config.pretrain.batch_per_subject * config.pretrain.accumulate)
    config = dataclasses.replace(
        config,
        pretrain=dataclasses.replace(config.pretrain, epochs=epochs),
        pivot=dataclasses.replace(config.pivot, epochs=1e-9),
    )
    learn = training.learn_expectation

    def learn_later(*arguments):
        peaks["steps"] = runtime.peak_memory_mb()
        learn(*arguments)

    training.learn_expectation = learn_later
    training.pretrain(dataset, targets, config, seed, checkpoint=root / "checkpoint")
    peaks["end"] = runtime.peak_memory_mb()
    remove_checkpoint(root / "checkpoint")
    return {
        "trials": sum(len(subject.trials) for subject in dataset.subjects.values()),
        "images": len(dataset.stimuli),
        "reached": reached | {"first step": ends[0]},
        "end": now(),
        "peaks": peaks,
        "step": np.median(np.diff(ends[WARM_UP:], axis=0), axis=0).tolist(),
    }


# ---- all points


def make(root: Path, scale: int) -> None:
    """A release of ``scale`` sessions of each subject, and caches of its stimuli."""
    import release

    from mindtuner.claims import goes_on
    from mindtuner.config import load_config
    from mindtuner.data.stimuli import HASH_ALL_BYTES, HASH_SAMPLE
    from mindtuner.formats import load

    def every(count):
        return np.array_split(np.arange(count), 1 + count // 256)

    def hashed(count):  # no other images are read: all of a small file, a sample of a large one
        size = count * np.dtype(np.float16).itemsize * int(np.prod(release.IMAGE))
        return every(count) if size <= HASH_ALL_BYTES else np.linspace(0, count - 1, HASH_SAMPLE).astype(np.int64)[:, None]

    goes_on(root)  # refuses a folder that holds anything
    root.mkdir(parents=True, exist_ok=True)
    release.make(root, release.Plan((scale,) * SUBJECTS, 25 * scale, 225 * scale, betas=every, images=hashed, width=WIDTH))
    for tar in (root / "wds").rglob("*.tar"):
        release.as_webdataset_writes(tar)
    release.make_targets(root, load_config(CONFIG).model, load(root, [1]).stimuli)


class Points:
    """What was measured so far, in OUT/points.jsonl: a run that was stopped goes on."""

    def __init__(self, out: Path, steps: int):
        self.out, self.steps, self.path = out, steps, out / "points.jsonl"
        self.all = [json.loads(line) for line in self.path.read_text().splitlines()] if self.path.exists() else []

    def missing(self, **key) -> bool:
        return not any(all(point[name] == value for name, value in key.items()) for point in self.all)

    def take(self, **key) -> None:
        """Measure the point ``scale``, ``subjects``, ``beside`` (the scale that it takes turns with), ``round``."""
        import release

        if not self.missing(**key):
            return
        root = self.out / str(key["scale"])
        release.forget(root)
        command = [
            sys.executable,
            __file__,
            str(root),
            "--point",
            str(key["subjects"]),
            "--steps",
            str(self.steps),
            "--seed",
            str(key["round"]),
            "--started",
            str(time.time()),
        ]
        said = subprocess.run(command, capture_output=True, text=True)
        if said.returncode:
            raise SystemExit(f"{key}: {said.stderr.strip().splitlines()[-1]}")
        self.all.append({**key, **json.loads(said.stdout.splitlines()[-1])})
        with self.path.open("a") as file:
            file.write(json.dumps(self.all[-1]) + "\n")
        print(key, self.all[-1]["step"], file=sys.stderr, flush=True)


def measure_all(points: Points, rounds: int) -> None:
    def ready(scale: int) -> None:
        if not (points.out / str(scale) / "made").exists():
            shutil.rmtree(points.out / str(scale), ignore_errors=True)
            make(points.out / str(scale), scale)
            (points.out / str(scale) / "made").touch()

    ready(1)
    for r in range(rounds):
        for count in COUNTS:
            points.take(scale=1, subjects=count, beside=0, round=r)
    for scale in reversed(SCALES):  # a run that is cut short has the largest
        if any(points.missing(scale=scale, beside=scale, round=r) for r in range(rounds)):
            ready(scale)
        for r in range(rounds):
            points.take(scale=1, subjects=SUBJECTS, beside=scale, round=r)
            points.take(scale=scale, subjects=SUBJECTS, beside=scale, round=r)
        shutil.rmtree(points.out / str(scale), ignore_errors=True)


# ---- what they say


def fit_line(points: list[dict], rounds: int) -> dict:
    """CPU milliseconds of a step by the number of subjects: a line through each round's points, and how far the mean of a
    point lies off the mean line, in percent."""
    wall, cpu = (
        np.array(
            [
                [
                    next(1000 * p["step"][k] for p in points if (p["beside"], p["subjects"], p["round"]) == (0, n, r))
                    for n in COUNTS
                ]
                for r in range(rounds)
            ]
        )
        for k in range(2)
    )
    slope, intercept = np.polyfit(COUNTS, cpu.T, 1)
    line = intercept.mean() + slope.mean() * np.array(COUNTS)
    return {"wall": wall, "cpu": cpu, "slope": slope, "intercept": intercept, "off": 100 * (cpu.mean(0) / line - 1)}


def ratios(points: list[dict], scale: int) -> np.ndarray:
    """Of each round: CPU time of a step with this dataset beside that with the smallest."""
    turns = [p for p in points if p["beside"] == scale]
    small, large = ([p["step"][1] for p in turns if p["scale"] == which] for which in (1, scale))
    return np.array(large) / small


def of_scale(points: list[dict], scale: int) -> list[dict]:
    """All points of 8 subjects of this scale."""
    return [p for p in points if p["scale"] == scale and p["subjects"] == SUBJECTS]


def stages(points: list[dict], kind: int) -> np.ndarray:
    """Seconds (``kind`` 0) or CPU seconds (1) of each stage on the way to the first step, (points, stages)."""
    return np.diff([[0.0] + [p["reached"][name][kind] for name in STAGES] for p in points], axis=1)


def spread(values, digits: int = 0) -> str:
    return f"{np.mean(values):.{digits}f} ({np.std(values, ddof=1):.{digits}f})"


def table(points: list[dict], rounds: int, steps: int) -> str:
    fit = fit_line(points, rounds)
    lines = [
        f"`python benchmarks/scale.py OUT --rounds {rounds} --steps {steps}`, {datetime.date.today():%Y-%m-%d}, "
        f"{machine()}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads, config {CONFIG}; CPU time and memory are "
        "means (sd) over rounds, seconds those of the quietest round",
        "",
        "| subjects | a step, CPU ms | off the line | ms |",
        "|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {n} | {spread(fit['cpu'][:, k])} | {fit['off'][k]:+.1f} % | {fit['wall'][:, k].min():.0f} |"
        for k, n in enumerate(COUNTS)
    ]
    lines += [
        "",
        f"The line: {spread(fit['intercept'])} CPU ms and {spread(fit['slope'], 1)} a subject.",
        "",
        "| trials | images | CPU time of a step beside 6,000 trials | peak MB, opened | after steps | in the end |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    sizes = {
        scale: f"{of_scale(points, scale)[0]['trials']:,} | {of_scale(points, scale)[0]['images']:,}"
        for scale in (1, *SCALES)
    }
    for scale, size in sizes.items():
        ratio = "1" if scale == 1 else spread(ratios(points, scale), 2)
        peaks = " | ".join(spread([p["peaks"][at] for p in of_scale(points, scale)]) for at in PEAKS)
        lines.append(f"| {size} | {ratio} | {peaks} |")
    lines += [
        "",
        f"| trials | images | s to the first step | CPU s | of them: {' | '.join(STAGES.values())} |",
        "|---:|---:|---:|---:|" + "---:|" * len(STAGES),
    ]
    for scale, size in sizes.items():
        wall, cpu = (stages(of_scale(points, scale), kind) for kind in range(2))
        parts = " | ".join(f"{part:.1f}" for part in cpu.mean(0))
        lines.append(f"| {size} | {wall.sum(1).min():.1f} | {spread(cpu.sum(1), 1)} | {parts} |")
    return "\n".join(lines)


def plot(points: list[dict], rounds: int, path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7.5), layout="constrained")
    (subjects, length), (memory, first) = figure.subplots(2, 2)
    fit = fit_line(points, rounds)
    subjects.plot((0, *COUNTS), fit["intercept"].mean() + fit["slope"].mean() * np.array((0, *COUNTS)), color="0.6")
    subjects.plot(COUNTS, fit["cpu"].T, "o", color="C0", alpha=0.6)
    subjects.set(xlabel="subjects", ylabel="CPU ms", title="A step by number of subjects", ylim=(0, None), xlim=(0, None))
    scales = (1, *SCALES)
    trials = {scale: of_scale(points, scale)[0]["trials"] for scale in scales}
    for scale in SCALES:
        ratio = ratios(points, scale)
        length.plot([trials[scale]] * len(ratio), ratio, "o", color="C0", alpha=0.6)
    length.plot(trials[1], 1, "o", color="0.6")
    length.axhline(1, color="0.6")
    length.set(ylabel="CPU time beside that of 6,000 trials", title="A step by length of the dataset", ylim=(0, 2))
    for color, (stage, label) in zip(("C2", "C0", "C1"), PEAKS.items(), strict=True):
        for scale in scales:
            found = [p["peaks"][stage] for p in of_scale(points, scale)]
            memory.plot([trials[scale]] * len(found), found, "o", color=color, alpha=0.6, label=label if scale == 1 else None)
    memory.set(ylabel="peak resident MB", title="Memory by length of the dataset", ylim=(0, None))
    memory.legend()
    below = np.zeros(len(scales))
    parts = np.array([stages(of_scale(points, scale), 1).mean(0) for scale in scales])
    for k, label in enumerate(STAGES.values()):
        first.bar(range(len(scales)), parts[:, k], bottom=below, label=label)
        below += parts[:, k]
    first.axhline(10, color="0.6", linestyle="--")
    first.set(
        ylabel="CPU s",
        title="To the first step",
        xlabel="trials",
        xticks=range(len(scales)),
        xticklabels=[f"{trials[scale]:,}" for scale in scales],
        ylim=(0, 1.6 * below.max()),
    )
    first.legend(fontsize="small", loc="upper left")
    for axis in (length, memory):
        axis.set(
            xscale="log",
            xlabel="trials (and images, 0.3 as many)",
            xticks=list(trials.values()),
            xticklabels=[f"{count:,}" for count in trials.values()],
        )
        axis.minorticks_off()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for datasets and points; a run that was stopped goes on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help="that are timed (default 30)")
    parser.add_argument("--write", type=Path, metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="PNG")
    parser.add_argument("--point", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--started", type=float, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        print(json.dumps(measure(options.out, options.point, options.steps, options.seed, options.started)))
        return
    if options.rounds < 2:
        parser.error("--rounds: expected at least 2, to see how they spread")
    options.out.mkdir(parents=True, exist_ok=True)
    points = Points(options.out, options.steps)
    measure_all(points, options.rounds)
    text = table(points.all, options.rounds, options.steps)
    print(text)
    if options.write:
        write_between(options.write, "scale", text)
    if options.picture:
        plot(points.all, options.rounds, options.picture)


if __name__ == "__main__":
    main()
