"""What does a new subject cost, from betas to an equal score: by the public recipe, and by this project's?

    python benchmarks/compute_to_score.py OUT [--seeds 0 1 2 3 4] [--write FILE]
    python benchmarks/compute_to_score.py OUT --table [--seeds ...] [--write FILE] [--picture PNG]

For each simulator seed, subject 1 is tuned to one session on the same base (kept in OUT/seed-N, shared with other
benchmarks), a fifth of its training images held out. The public recipe is the paper's: 150 epochs from a random ridge, the
whole network trained, the published losses and schedule (``paper.yaml``, with the public code's 24 trials a step). It has two
learning rates: the published one, and the best found here for a random ridge. Ours is the config's ``mindtuner``.

The score is what training validates by: the mean of log(1 + rank) of the held-out images' right image, brain and caption
among those of all training images, lower is better. The score to reach is the best of the public recipe in any epoch, at
either learning rate; it is charged up to the first epoch that has it, and ours up to the first epoch that is at least as
good. Validation is charged to neither.

FLOPs are those of matrix products, convolutions and attention, counted by torch over a few steps, times the steps. What is
solved in closed form is charged with the CPU seconds that it took, as if every one had been spent at the machine's best rate
of matrix products: an upper bound. One line per run goes to OUT/seed-N/compute.jsonl, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
import torch
from pages import markdown, write_between
from torch.utils.flop_counter import FlopCounterMode
from world import HOLDOUT, Done, World, config_of, open_world

from mindtuner.config import Config, load_config
from mindtuner.runtime import progress
from mindtuner.training import tune
from mindtuner.training.batches import make_feeds, subject_name, training_trials
from mindtuner.training.closed_form import solve_ridge
from mindtuner.training.tune import starting_network

OURS, ALONE = "mindtuner", "closed form alone"
PUBLIC = {"public, lr 3e-4": 3e-4, "public, lr 1e-3": 1e-3}
ARMS = (*PUBLIC, OURS, ALONE)
PUBLIC_BATCH = 24  # MindEye2's single-subject default
COUNTED = 12  # steps whose FLOPs are counted, with the schedule of them all
TIMED = 60  # steps whose seconds are taken


def arm_config(config: Config, arm: str) -> tuple[str, Config]:
    """The method and settings of an arm."""
    if arm in PUBLIC:
        published = dataclasses.replace(
            load_config("paper").tune, batch_per_subject=PUBLIC_BATCH, head_trials=PUBLIC_BATCH, lr=PUBLIC[arm]
        )
        return "full_finetune", dataclasses.replace(config, full_finetune=published)
    if arm == ALONE:
        still = dataclasses.replace(config.tune, epochs=0, least_steps=0, lr=0.0, weight_decay=0.0, ridge_weight_decay=0.0)
        return OURS, dataclasses.replace(config, tune=still)
    return OURS, config


def shortened(config: Config, method: str, steps: int) -> Config:
    """The same settings for so many steps."""
    fitting = dataclasses.replace(config.fitting(method), epochs=0, least_steps=steps)
    return dataclasses.replace(config, **{"full_finetune" if method == "full_finetune" else "tune": fitting})


def measure(world: World, arm: str) -> dict:
    """An arm's score after each epoch, steps of an epoch, what a step costs, and what comes before the first."""
    method, config = arm_config(world.config, arm)
    network, targets, seed, log = world.base.network, world.features.targets, world.config.seed, []
    tune(network, world.hour, targets, config, seed, method, log.append, HOLDOUT)
    scores = [{name: round(value, 4) for name, value in entry["validation"].items()} for entry in log]
    with FlopCounterMode(display=False) as counter:
        tune(network, world.hour, targets, shortened(config, method, COUNTED), seed, method)
    flops = counter.get_total_flops() / COUNTED
    seconds = [tuned_in(world, shortened(config, method, steps), method) for steps in (1, 1 + TIMED)]
    return {
        "scores": scores,
        "steps": [entry["step"] for entry in log],
        "step_flops": flops,
        "step_s": (seconds[1] - seconds[0]) / TIMED,
        "start_s": start_seconds(world, config, method),
    }


def tuned_in(world: World, config: Config, method: str) -> float:
    """CPU seconds of a tuning."""
    begun = time.process_time()
    tune(world.base.network, world.hour, world.features.targets, config, world.config.seed, method)
    return time.process_time() - begun


def start_seconds(world: World, config: Config, method: str) -> float:
    """CPU seconds of the closed form, 0 where the ridge starts at random."""
    fitting, base, hour, targets = config.fitting(method), world.base.network, world.hour, world.features.targets
    if fitting.start != "closed_form":
        return 0.0
    name = subject_name(hour.number)
    feed = make_feeds({name: hour}, {name: training_trials(hour, len(targets))}, world.config.seed)[0]
    network = starting_network(base, name, hour.n_voxels, config, method)
    begun = time.process_time()
    solve_ridge(network, base, feed, targets, world.config.seed, fitting.similar_voxels)
    return time.process_time() - begun


def matmul_rate() -> float:
    """FLOPs a CPU second of float32 products of 1,024 x 1,024: the best of a few."""
    a, rates = torch.randn(1024, 1024), []
    for _ in range(20):
        begun = time.process_time()
        for _ in range(10):
            a @ a
        rates.append(10 * 2 * 1024**3 / (time.process_time() - begun))
    return max(rates)


# ---- the table


def reached(run: dict, score: float) -> int | None:
    """Steps to the first epoch at least as good as ``score``; None where there is none."""
    good = [step for step, entry in zip(run["steps"], run["scores"], strict=True) if entry["ranks"] <= score]
    return good[0] if good else None


def cost(run: dict, steps: int) -> tuple[float, float]:
    """FLOPs and CPU seconds of the start and of so many steps."""
    return (
        run["start_s"] * run["rate"] + steps * run["step_flops"],
        run["start_s"] + steps * run["step_s"],
    )


def table(options: argparse.Namespace) -> str:
    rows, ratios, ends, epochs = [], [], [], []
    for seed in options.seeds:
        done = known(options.out, seed)
        runs = {arm: done[arm] for arm in ARMS}
        best = {arm: min(entry["ranks"] for entry in runs[arm]["scores"]) for arm in PUBLIC}
        rival = min(best, key=best.get)
        theirs = cost(runs[rival], reached(runs[rival], best[rival]))
        # The closed form alone is our recipe after no step: the first point of its curve.
        alone = runs[ALONE]["scores"][-1]["ranks"]
        steps = 0 if alone <= best[rival] else reached(runs[OURS], best[rival])
        ours = None if steps is None else cost(runs[OURS], steps)
        ends.append((best[rival], runs[OURS]["scores"][-1]["ranks"]))
        epochs.append(1 + int(np.argmin([entry["ranks"] for entry in runs[rival]["scores"]])))
        whole = cost(runs[OURS], runs[OURS]["steps"][-1])
        if ours:
            ratios.append((theirs[0] / ours[0], theirs[1] / ours[1]))
        rows.append(
            [
                str(seed),
                *(f"{best[arm]:.3f}" for arm in PUBLIC),
                f"{alone:.3f}",
                f"{runs[OURS]['scores'][-1]['ranks']:.3f}",
                f"{theirs[0] / 1e12:.2f}",
                f"{theirs[1]:.0f}",
                *([""] * 5 if ours is None else [str(steps), f"{ours[0] / 1e12:.3f}", f"{ours[1]:.1f}"]),
                *([] if ours is None else [f"{theirs[0] / ours[0]:.0f}", f"{theirs[1] / ours[1]:.0f}"]),
                f"{theirs[0] / whole[0]:.1f}",
            ]
        )
    header = [
        "world",
        *(f"best of {arm}" for arm in PUBLIC),
        "closed form alone",
        "ours at the end",
        "public TFLOP",
        "public CPU s",
        "our steps to that score",
        "our TFLOP",
        "our CPU s",
        "times fewer FLOPs",
        "times less CPU time",
        "times fewer FLOPs, our whole recipe",
    ]
    text = markdown(header, rows)
    public, own = np.mean(ends, 0)
    text += f"\n\nMean over worlds: the public recipe's best {public:.3f}, after {np.median(epochs):.0f} epochs (median; "
    text += f"{min(epochs)} to {max(epochs)}); ours at the end {own:.3f}."
    if ratios:
        middle = [f"{np.median(each):.0f} ({min(each):.0f} to {max(each):.0f})" for each in zip(*ratios, strict=True)]
        text += f"\n\nMedian of {len(ratios)} worlds (range): {middle[0]} times fewer FLOPs, {middle[1]} times less CPU time."
    return text


def draw(options: argparse.Namespace) -> None:
    """The score by what was spent to get there: a curve for each world and recipe."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axis = figure.subplots()
    for seed in options.seeds:
        done = known(options.out, seed)
        for arm, colour in zip((*PUBLIC, OURS), ("tab:gray", "tab:orange", "tab:blue"), strict=True):
            run = done[arm]
            steps, scores = run["steps"], [entry["ranks"] for entry in run["scores"]]
            if arm == OURS:  # the closed form is where its curve starts
                steps, scores = [0, *steps], [done[ALONE]["scores"][-1]["ranks"], *scores]
            spent = [cost(run, step)[0] / 1e12 for step in steps]
            axis.plot(spent, scores, color=colour, alpha=0.7, label=arm if seed == options.seeds[0] else None)
            if arm == OURS:
                axis.plot(spent[:1], scores[:1], "o", color=colour, label=ALONE if seed == options.seeds[0] else None)
    axis.set(xscale="log", xlabel="TFLOP from betas to a tuned subject", ylabel="mean log(1 + rank) of held-out images")
    axis.set_title("lower is better", fontsize=9, loc="left")
    axis.legend()
    figure.savefig(options.picture, dpi=110)


def known(out: Path, seed: int) -> Done:
    return Done(out / f"seed-{seed}" / "compute.jsonl", "arm")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of the worlds")
    parser.add_argument("--table", action="store_true", help="of what was measured")
    parser.add_argument("--write", type=Path, metavar="FILE")
    parser.add_argument("--picture", type=Path, metavar="PNG", help="of the curves; needs matplotlib")
    options = parser.parse_args()
    for seed in [] if options.table else options.seeds:
        done = known(options.out, seed)
        if left := done.left(ARMS):
            world, rate = open_world(options.out / f"seed-{seed}", config_of(seed)), matmul_rate()
            for arm in progress(left, f"world {seed}", unit="run"):
                done.add(arm=arm, rate=rate, **measure(world, arm))
    text = table(options)
    print(text)
    if options.write:
        write_between(options.write, "compute", text)
    if options.picture:
        draw(options)


if __name__ == "__main__":
    main()
