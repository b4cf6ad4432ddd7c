"""What is written here beside the library that does the same: the same values, as fast, in as much memory?

    pip install statsmodels torchmetrics pytorch-msssim rich typer
    python benchmarks/libraries.py [--repeats 20] [--seed 0] [--write benchmarks/results/libraries.md]

For each item the largest difference of values, the library's time over ours (process time, the best of ``--repeats``), and
its peak of memory over ours: of what NumPy allocates, for the running average of what is held between steps. Where the
package has taken the library, "ours" is the hand-made function that it replaced, and stands here. ``--write`` puts the table
between the file's ``libraries:begin`` and ``libraries:end`` comments.
"""

from __future__ import annotations

import argparse
import datetime
import platform
import subprocess
import sys
import time
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from pages import machine, write_between
from tabulate import tabulate

from mindtuner.evaluation import statistics
from mindtuner.evaluation.scores import pictures
from mindtuner.training.optimiser import one_cycle, update_average

HEADS = ("item", "library", "largest difference", "time, library / ours", "memory, library / ours", "verdict")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=20, metavar="N", help="default 20")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default 0")
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(options.seed)
    rows = [
        row
        for item in (learning_rate, running_average, bootstrap, sign_flips, holm, ssim, tables, command_line)
        for row in item(rng, options.repeats)
    ]
    text = tabulate(rows, HEADS, tablefmt="pipe", disable_numparse=True)
    now = datetime.datetime.now(datetime.timezone.utc).date().isoformat()
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, SciPy {scipy.__version__}"
    command = f"python benchmarks/libraries.py --repeats {options.repeats} --seed {options.seed}"
    text += f"\n\n    {command}\n\n{now}, {machine()}, one thread; {versions}."
    print(text)
    if options.write:
        write_between(options.write, "libraries", text)


# ---- one item each: rows of (item, library, difference, time, memory, verdict)


def learning_rate(rng: np.random.Generator, repeats: int) -> list[tuple]:
    def ours(steps: int, warmup: float) -> np.ndarray:
        return np.array([one_cycle(step, steps, 3e-4, warmup) for step in range(steps)])

    def library(steps: int, warmup: float) -> np.ndarray:
        optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, 3e-4, steps, pct_start=warmup, div_factor=25, final_div_factor=1000, cycle_momentum=False
        )
        rates = []
        for _ in range(steps):
            rates.append(schedule.get_last_lr()[0])
            optimiser.step()
            if len(rates) < steps:
                schedule.step()
        return np.array(rates)

    rows = []
    for name, steps, warmup in (("1,000 steps", 1000, 0.05), ("16 steps: a warm-up of less than one", 16, 0.05)):
        a, b = ours(steps, warmup), library(steps, warmup)
        difference = f"{np.abs(b / a - 1).max():.1e} of the rate"
        seconds = ratio(lambda: library(steps, warmup), lambda: ours(steps, warmup), repeats)
        rows.append(("learning rate, " + name, "torch OneCycleLR", difference, seconds, "", "ours"))
    try:
        library(10, 0.1)
        found = "none"
    except ZeroDivisionError:
        found = "ZeroDivisionError"
    rows.append(("learning rate, 10 steps: a warm-up of exactly one", "torch OneCycleLR", found, "", "", "ours"))
    return rows


def running_average(rng: np.random.Generator, repeats: int) -> list[tuple]:
    """A frozen base with a small part that trains, as tuning has it: one parameter in ten."""
    from diffusers.training_utils import EMAModel

    torch.manual_seed(0)
    network = torch.nn.Sequential(*(torch.nn.Linear(512, 512) for _ in range(10)))
    network[:9].requires_grad_(False)
    trains = [p for p in network.parameters() if p.requires_grad]
    steps, decay = 50, 0.999

    def walk(update: Callable[[int], None]) -> None:
        source = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for step in range(steps):
                for parameter in trains:
                    parameter.add_(torch.randn(parameter.shape, generator=source), alpha=0.01)
                update(step)

    def start() -> None:
        with torch.no_grad():
            for parameter, value in zip(trains, first, strict=True):
                parameter.copy_(value)

    first = [p.detach().clone() for p in trains]
    average = {str(k): p.detach().clone() for k, p in enumerate(trains)}
    walk(lambda step: update_average(average, trains, decay, step))
    ours = list(average.values())

    start()
    shadow = EMAModel(trains, decay=decay, foreach=True)
    walk(lambda step: shadow.step(trains))
    start()
    averaged = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(decay), device="cpu"
    )
    walk(lambda step: averaged.update_parameters(network))
    theirs = [p for p, own in zip(averaged.module.parameters(), network.parameters(), strict=True) if own.requires_grad]

    rows = []
    held = bytes_of(ours)
    for name, found, update, size in (
        ("diffusers EMAModel", shadow.shadow_params, lambda: shadow.step(trains), bytes_of(shadow.shadow_params)),
        (
            "torch AveragedModel",
            theirs,
            lambda: averaged.update_parameters(network),
            bytes_of(averaged.module.parameters()),
        ),
    ):
        difference = max((a - b).abs().max().item() for a, b in zip(ours, found, strict=True))
        with torch.no_grad():
            seconds = ratio(update, lambda: update_average(average, trains, decay, steps), repeats)
        rows.append(("running average, 50 steps", name, f"{difference:.1e}", seconds, f"{size / held:.1f}", "ours"))
    return rows


def bootstrap(rng: np.random.Generator, repeats: int) -> list[tuple]:
    def ours(values: np.ndarray, seed: int, of: Callable) -> tuple[float, float]:
        draws, chunk = np.random.default_rng(seed), 500
        means = [of(values[draws.integers(len(values), size=(chunk, len(values)))], axis=1) for _ in range(2000 // chunk)]
        return tuple(np.percentile(np.concatenate(means), (2.5, 97.5)))

    rows = []
    for count in (60, 1000):
        values = rng.normal(size=count)
        for of in (np.mean, np.median):
            pairs = [
                (ours(values, seed, of), statistics.bootstrap_ci(values, seed, of=of)) for seed in range(min(repeats, 10))
            ]
            difference = max(np.abs(np.subtract(a, b)).max() for a, b in pairs)
            mine, theirs = lambda: ours(values, 0, of), lambda: statistics.bootstrap_ci(values, 0, of=of)
            rows.append(
                (
                    f"bootstrap interval of the {of.__name__} of {count:,} images",
                    "SciPy bootstrap",
                    f"{difference:.1e}",
                    ratio(theirs, mine, repeats),
                    memory_ratio(theirs, mine),
                    "SciPy",
                )
            )
    return rows


def sign_flips(rng: np.random.Generator, repeats: int) -> list[tuple]:
    def library(difference: np.ndarray, seed: int) -> float:
        return scipy.stats.permutation_test(
            (difference,),
            lambda x, axis: np.abs(x.mean(axis)),
            permutation_type="samples",
            vectorized=True,
            n_resamples=4999,
            batch=500,
            alternative="greater",
            rng=np.random.default_rng(seed),
        ).pvalue

    rows = []
    for count, what in ((10, "all 1,024 of them"), (60, "4,999 drawn"), (1000, "4,999 drawn")):
        sets = [rng.normal(0.1, 1, count) for _ in range(5)]
        difference = max(abs(statistics.sign_flips(x, 0) - library(x, 0)) for x in sets)
        mine, theirs = lambda: statistics.sign_flips(sets[0], 0), lambda: library(sets[0], 0)
        rows.append(
            (
                f"sign flips of {count:,} images, {what}",
                "SciPy permutation_test",
                f"{difference:.1e}",
                ratio(theirs, mine, min(repeats, 5)),
                memory_ratio(theirs, mine),
                "ours",
            )
        )
    return rows


def holm(rng: np.random.Generator, repeats: int) -> list[tuple]:
    multipletests = optional("statsmodels.stats.multitest").multipletests
    p = rng.random(20)
    difference = np.abs(multipletests(p, method="holm")[1] - statistics.holm(p)).max()
    seconds = ratio(lambda: multipletests(p, method="holm"), lambda: statistics.holm(p), repeats)
    imported = seconds_of("import statsmodels.stats.multitest") - seconds_of("import scipy.stats")
    return [
        (
            "Holm, 20 tests",
            "statsmodels multipletests",
            f"{difference:.1e}",
            f"{seconds}, and {imported:.1f} s to import",
            "",
            "ours",
        )
    ]


def ssim(rng: np.random.Generator, repeats: int) -> list[tuple]:
    from skimage.color import rgb2gray
    from skimage.metrics import structural_similarity

    torchmetrics, msssim = optional("torchmetrics.functional.image"), optional("pytorch_msssim")
    a = rng.random((50, 3, 256, 256), dtype=np.float32)
    b = np.clip(a + rng.normal(0, 0.2, a.shape).astype(np.float32), 0, 1)

    def grey(x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(rgb2gray(x, channel_axis=1))[:, None]

    def scikit_image() -> np.ndarray:
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
        return np.array(
            [
                structural_similarity(rgb2gray(x, channel_axis=0), rgb2gray(y, channel_axis=0), **options)
                for x, y in zip(a, b, strict=True)
            ]
        )

    def torchmetrics_ssim() -> np.ndarray:
        score = torchmetrics.structural_similarity_index_measure
        return score(grey(a), grey(b), sigma=1.5, data_range=1.0, reduction="none").numpy()

    def pytorch_msssim() -> np.ndarray:
        return msssim.ssim(grey(a), grey(b), data_range=1.0, size_average=False).numpy()

    ours = pictures.ssim(a, b)
    rows = []
    for name, library in (
        ("scikit-image", scikit_image),
        ("torchmetrics", torchmetrics_ssim),
        ("pytorch-msssim", pytorch_msssim),
    ):
        difference, few = np.abs(library() - ours).max(), min(repeats, 3)
        seconds = ratio(library, lambda: pictures.ssim(a, b), few)
        memory = memory_ratio(library, lambda: pictures.ssim(a, b)) if name == "scikit-image" else ""
        rows.append(("SSIM, 50 pictures of 256 x 256", name, f"{difference:.1e}", seconds, memory, "ours"))
    return rows


def tables(rng: np.random.Generator, repeats: int) -> list[tuple]:
    head = ["score", "A", "B", "in words"]
    table = [[f"score {k}", f"{x:.3f}", f"{x + 1:.3f}", "no clear difference"] for k, x in enumerate(rng.random(20))]

    def ours() -> str:
        widths = [max(map(len, column)) for column in zip(head, *table, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if k in (0, 3) else cell.rjust(width)
                for k, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in [head, *table]
        )

    def library() -> str:
        return tabulate(table, head, tablefmt="plain", colalign=("left", "right", "right", "left"), disable_numparse=True)

    same = [line.rstrip() for line in library().splitlines()] == ours().splitlines()
    base = seconds_of("pass")
    cost = ", ".join(f"{name} {1000 * (seconds_of(f'import {name}') - base):.0f} ms" for name in ("tabulate", "rich.table"))
    return [
        (
            "a table of 20 rows",
            "tabulate",
            "the same text" if same else "another text",
            f"{ratio(library, ours, repeats)}; to import: {cost}",
            "",
            "tabulate",
        )
    ]


def command_line(rng: np.random.Generator, repeats: int) -> list[tuple]:
    base = seconds_of("pass")
    ours = seconds_of("import argparse; argparse.ArgumentParser().parse_args([])") - base
    optional("typer")
    library = (
        seconds_of("import typer, typer.main; app = typer.Typer(); app.command()(lambda: None); typer.main.get_command(app)")
        - base
    )
    return [
        (
            "a command's start",
            "typer",
            "",
            f"{library / ours:.0f} ({1000 * library:.0f} ms for {1000 * ours:.0f})",
            "",
            "argparse",
        )
    ]


# ---- measuring


def ratio(library: Callable, ours: Callable, repeats: int) -> str:
    theirs, mine = best(library, repeats), best(ours, repeats)
    return f"{theirs / mine:.2g} ({1000 * theirs:.2g} ms for {1000 * mine:.2g})"


def best(work: Callable, repeats: int, clock: Callable[[], float] = time.process_time) -> float:
    seconds = []
    for _ in range(repeats + 1):  # the first warms up
        start = clock()
        work()
        seconds.append(clock() - start)
    return min(seconds[1:])


def memory_ratio(library: Callable, ours: Callable) -> str:
    return f"{peak(library) / peak(ours):.2g}"


def peak(work: Callable) -> int:
    tracemalloc.start()
    work()
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def seconds_of(code: str, repeats: int = 5) -> float:
    """A new interpreter that runs ``code``, the best of a few."""
    return best(lambda: subprocess.run([sys.executable, "-c", code], check=True), repeats, time.perf_counter)


def bytes_of(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def optional(name: str):
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise SystemExit(f"{error}; expected the packages in the first line of this script's help") from error


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    main()
