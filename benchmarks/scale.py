"""How do a training step, memory and the way to the first step grow with a dataset?

    python benchmarks/scale.py OUT [--rounds 3] [--steps 30] [--docs docs]

Datasets of 8 subjects with NSD's voxels and 1 to 40 sessions of 750 trials each, so 6,000 to 240,000 trials of 1,825 to
73,000 images: the files of the public release with every beta written, and the caches of ``quick.yaml``'s towers, random
numbers. One after the other they are made in OUT (20 GB at most), measured and removed. Each point is a process of its own
that the system has forgotten all files for. It calls ``pretrain`` as the command line does, on the config's network, and
notes

- when it has imported what it needs, opened the dataset, opened the caches (which hashes the stimuli), and done the first
  step of training; the Pivot, which trains before brains do, takes one step only;
- the median of ``--steps`` further training steps;
- the peak resident memory once the dataset is open, after these steps, and in the end, when ``pretrain`` has read all
  betas and all tokens once more, for what it expects of an image.

Points with 1 to 16 subjects are taken of the smallest dataset, where from the ninth on the same files count as another
subject's. Machines drift, so points take turns: in each round the smallest dataset is measured beside the larger one. Prints
a table in Markdown, and with ``--docs`` writes it into performance.md there and plots the points into scale.png.
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

START = time.perf_counter()

SUBJECTS, SCALES, COUNTS = 8, (2, 5, 10, 20, 40), (1, 2, 4, 8, 16)
CONFIG, WARM_UP = "quick", 3  # steps after the first that do not count
STAGES = {"imports": "imports", "dataset": "dataset opened", "caches": "caches opened, stimuli hashed",
          "first step": "the rest of the way to the first step"}


# ---- one point

def measure(root: Path, subjects: int, steps: int, seed: int) -> dict:
    """Seconds since the start at which each stage was over, seconds of each step, and peaks of memory in MB."""
    from mindtuner import runtime
    from mindtuner.config import load_config
    from mindtuner.data import load, open_cache
    from mindtuner.training import Targets, loop, remove_checkpoint
    from mindtuner.training.batches import steps_per_epoch

    training = importlib.import_module("mindtuner.training.pretrain")

    reached, peaks, ends = {"imports": time.perf_counter() - START}, {"imports": runtime.peak_memory_mb()}, []
    dataset = load(root, range(1, min(subjects, SUBJECTS) + 1))
    reached["dataset"], peaks["dataset"] = time.perf_counter() - START, runtime.peak_memory_mb()
    names = [field.name for field in dataclasses.fields(Targets)]
    targets = Targets(**{name: open_cache(root, name, {}, dataset.stimuli.hash) for name in names})
    reached["caches"] = time.perf_counter() - START
    for number in range(SUBJECTS + 1, subjects + 1):
        dataset.subjects[number] = dataclasses.replace(dataset.subjects[number - SUBJECTS], number=number)
    step = loop.take_step

    def timed(*arguments):
        norm = step(*arguments)
        ends.append(time.perf_counter() - START)
        return norm

    loop.take_step = timed
    config = load_config(CONFIG)
    feeds = [SimpleNamespace(trials=subject.train) for subject in dataset.subjects.values()]
    epochs = (1 + WARM_UP + steps) / steps_per_epoch(feeds, config.pretrain.batch_per_subject * config.pretrain.accumulate)
    config = dataclasses.replace(config, pretrain=dataclasses.replace(config.pretrain, epochs=epochs),
                                 pivot=dataclasses.replace(config.pivot, epochs=1e-9))
    learn = training.learn_expectation

    def learn_later(*arguments):
        peaks["steps"] = runtime.peak_memory_mb()
        learn(*arguments)

    training.learn_expectation = learn_later
    training.pretrain(dataset, targets, config, seed, checkpoint=root / "checkpoint")
    peaks["end"] = runtime.peak_memory_mb()
    remove_checkpoint(root / "checkpoint")
    return {"trials": sum(len(subject.trials) for subject in dataset.subjects.values()), "images": len(dataset.stimuli),
            "reached": reached | {"first step": ends[0]}, "end": time.perf_counter() - START, "peaks": peaks,
            "steps": [after - before for before, after in zip(ends[WARM_UP:], ends[WARM_UP + 1:], strict=False)]}


# ---- all points

def make(root: Path, scale: int) -> None:
    """A release of ``scale`` sessions of each subject, and caches of its stimuli."""
    import numpy as np
    import release

    from mindtuner.config import load_config
    from mindtuner.data import load
    from mindtuner.data.dataset import HASH_ALL_BYTES, HASH_SAMPLE
    from mindtuner.files import claim_folder

    def every(count):
        return np.array_split(np.arange(count), 1 + count // 256)

    def hashed(count):  # no other images are read: all of a small file, a sample of a large one
        size = count * np.dtype(np.float16).itemsize * int(np.prod(release.IMAGE))
        return every(count) if size <= HASH_ALL_BYTES else np.linspace(0, count - 1, HASH_SAMPLE).astype(np.int64)[:, None]

    claim_folder(root)
    release.make(root, release.Plan((scale,) * SUBJECTS, 25 * scale, 225 * scale, betas=every, images=hashed))
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
        command = [sys.executable, __file__, str(root), "--point", str(key["subjects"]), "--steps", str(self.steps), "--seed",
                   str(key["round"])]
        said = subprocess.run(command, capture_output=True, text=True)
        if said.returncode:
            raise SystemExit(f"{key}: {said.stderr.strip().splitlines()[-1]}")
        self.all.append({**key, **json.loads(said.stdout.splitlines()[-1])})
        with self.path.open("a") as file:
            file.write(json.dumps(self.all[-1]) + "\n")
        print(key, f"{1000 * median(self.all[-1]['steps']):.0f} ms", file=sys.stderr, flush=True)


def median(values) -> float:
    import numpy as np

    return float(np.median(values))


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
    for scale in SCALES:
        if any(points.missing(scale=scale, beside=scale, round=r) for r in range(rounds)):
            ready(scale)
        for r in range(rounds):
            points.take(scale=1, subjects=SUBJECTS, beside=scale, round=r)
            points.take(scale=scale, subjects=SUBJECTS, beside=scale, round=r)
        shutil.rmtree(points.out / str(scale), ignore_errors=True)


# ---- what they say

def fit_line(points: list[dict], rounds: int) -> dict:
    """Milliseconds of a step by the number of subjects: a line through each round's points. Means and standard deviations of
    slope and intercept over rounds, and how far the mean of a point lies off the mean line at most, in percent."""
    import numpy as np

    alone = {(p["subjects"], p["round"]): 1000 * median(p["steps"]) for p in points if not p["beside"]}
    times = np.array([[alone[n, r] for n in COUNTS] for r in range(rounds)])
    slope, intercept = np.polyfit(COUNTS, times.T, 1)
    line = intercept.mean() + slope.mean() * np.array(COUNTS)
    off = 100 * (times.mean(0) / line - 1)
    return {"times": times, "slope": slope, "intercept": intercept, "line": line, "off": off}


def pairs(points: list[dict], scale: int) -> list[tuple[dict, dict]]:
    """(smallest dataset, larger one) of each round."""
    turns = [p for p in points if p["beside"] == scale]
    return list(zip([p for p in turns if p["scale"] == 1], [p for p in turns if p["scale"] == scale], strict=True))


def of_scale(points: list[dict], scale: int) -> list[dict]:
    """All points of 8 subjects of this scale."""
    return [p for p in points if p["scale"] == scale and p["subjects"] == SUBJECTS]


def spread(values) -> str:
    import numpy as np

    return f"{np.mean(values):.0f} ({np.std(values, ddof=1):.0f})"


def table(points: list[dict], rounds: int, steps: int) -> str:
    import numpy as np
    from sides import machine

    fit = fit_line(points, rounds)
    lines = [f"`python benchmarks/scale.py OUT --rounds {rounds} --steps {steps}`, {datetime.date.today():%Y-%m-%d}, "
             f"{machine()}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads, config {CONFIG}; mean (sd) over {rounds} "
             "rounds or more",
             "", "| subjects | a step, ms | off the line |", "|---:|---:|---:|"]
    lines += [f"| {n} | {spread(t)} | {off:+.1f} % |" for n, t, off in zip(COUNTS, fit["times"].T, fit["off"], strict=True)]
    lines += ["", f"The line: {spread(fit['intercept'])} ms and {spread(fit['slope'])} ms a subject.", "",
              "| trials | images | a step beside one of 6,000 trials | peak MB: opened | after the steps | in the end | "
              "s to the first step | of them imports | dataset | caches and hash | the rest |",
              "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|"]
    for scale in (1, *SCALES):
        own = of_scale(points, scale)
        ratio = "1" if scale == 1 else "{:.3f} ({:.3f})".format(*mean_sd([ratio_of(*pair) for pair in pairs(points, scale)]))
        peaks = " | ".join(spread([p["peaks"][stage] for p in own]) for stage in ("dataset", "steps", "end"))
        first = "{:.1f} ({:.1f})".format(*mean_sd([p["reached"]["first step"] for p in own]))
        parts = " | ".join(f"{np.mean(part):.1f}" for part in stages(own))
        lines.append(f"| {own[0]['trials']:,} | {own[0]['images']:,} | {ratio} | {peaks} | {first} | {parts} |")
    return "\n".join(lines)


def mean_sd(values) -> tuple[float, float]:
    import numpy as np

    return float(np.mean(values)), float(np.std(values, ddof=1))


def ratio_of(small: dict, large: dict) -> float:
    return median(large["steps"]) / median(small["steps"])


def stages(points: list[dict]) -> list[list[float]]:
    """Seconds that each stage on the way to the first step took, of each point."""
    reached = [[0.0] + [p["reached"][name] for name in STAGES] for p in points]
    return [[r[k + 1] - r[k] for r in reached] for k in range(len(STAGES))]


def plot(points: list[dict], rounds: int, path: Path) -> None:
    import matplotlib
    import numpy as np

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, ((subjects, length), (memory, first)) = pyplot.subplots(2, 2, figsize=(10, 7.5), layout="constrained")
    fit = fit_line(points, rounds)
    subjects.plot((0, *COUNTS), fit["intercept"].mean() + fit["slope"].mean() * np.array((0, *COUNTS)), color="0.6")
    subjects.plot(COUNTS, fit["times"].T, "o", color="C0", alpha=0.6)
    subjects.set(xlabel="subjects", ylabel="ms a step", title="A step by number of subjects", ylim=(0, None), xlim=(0, None))
    scales = (1, *SCALES)
    trials = {scale: of_scale(points, scale)[0]["trials"] for scale in scales}
    for scale in SCALES:
        ratio = [ratio_of(*pair) for pair in pairs(points, scale)]
        length.plot([trials[scale]] * len(ratio), ratio, "o", color="C0", alpha=0.6)
    length.axhline(1, color="0.6")
    length.set(ylabel="ratio to a step of 6,000 trials", title="A step by length of the dataset", ylim=(0, 2))
    names = {"dataset": "dataset opened", "steps": "after training steps", "end": "in the end"}
    for color, (stage, label) in zip(("C2", "C0", "C1"), names.items(), strict=True):
        for scale in scales:
            found = [p["peaks"][stage] for p in of_scale(points, scale)]
            memory.plot([trials[scale]] * len(found), found, "o", color=color, alpha=0.6, label=label if scale == 1 else None)
    memory.set(ylabel="peak resident MB", title="Memory by length of the dataset", ylim=(0, None))
    memory.legend()
    below = np.zeros(len(scales))
    parts = np.array([[np.mean(part) for part in stages(of_scale(points, scale))] for scale in scales])
    for k, label in enumerate(STAGES.values()):
        first.bar(range(len(scales)), parts[:, k], bottom=below, label=label)
        below += parts[:, k]
    for k, scale in enumerate(scales):
        found = [p["reached"]["first step"] for p in of_scale(points, scale)]
        first.plot([k] * len(found), found, ".", color="black")
    first.axhline(10, color="0.6", linestyle="--")
    first.set(ylabel="s", title="From the start of the process to the first step", xlabel="trials", xticks=range(len(scales)),
              xticklabels=[f"{trials[scale]:,}" for scale in scales])
    first.legend(fontsize="small")
    for axis in (length, memory):
        axis.set(xscale="log", xlabel="trials (and images, 0.3 as many)", xticks=list(trials.values()),
                 xticklabels=[f"{count:,}" for count in trials.values()])
        axis.minorticks_off()
    figure.savefig(path, dpi=100)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for datasets and points; a run that was stopped goes on")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30, help="that are timed (default 30)")
    parser.add_argument("--docs", type=Path, help="folder of performance.md and scale.png")
    parser.add_argument("--point", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seed", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        print(json.dumps(measure(options.out, options.point, options.steps, options.seed)))
        return
    if options.rounds < 2:
        parser.error("--rounds: expected at least 2, to see how they spread")
    options.out.mkdir(parents=True, exist_ok=True)
    points = Points(options.out, options.steps)
    measure_all(points, options.rounds)
    text = table(points.all, options.rounds, options.steps)
    print(text)
    if options.docs:
        from sides import write_between

        write_between(options.docs / "performance.md", "scale", text)
        plot(points.all, options.rounds, options.docs / "scale.png")


if __name__ == "__main__":
    main()
