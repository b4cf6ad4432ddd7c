"""Does pretraining that starts in closed form need fewer epochs? Ranks of held-out training images, then test images.

    python benchmarks/pretrain_start.py OUT [--seeds 0 1 2 3 4] [--tunings 2] [--arms NAME ...] [--write FILE]
    python benchmarks/pretrain_start.py OUT --table [--seeds ...] [--tunings ...] [--write FILE]

For each simulator seed a world is made once (kept in OUT/seed-N, shared with other benchmarks), and seven subjects are
pretrained on as each arm says (a base of its own, OUT/seed-N/base-ARM). Then subject 1 is tuned on one session.

- By ``mindtuner`` and by ``ridge_only``, a fifth of its training images held out, another fifth for each tuning: the mean of
  log(1 + rank) of their right image, brain and caption, as in recipe.py. Lower is better. By this arms are chosen.
- By ``mindtuner`` on all of its trials: top-1 retrieval of the test images among themselves, which chose nothing.

Differences are to pretraining without L_text, for as many epochs as the default has, paired by world, with 95 % intervals
over worlds. One line per run goes to OUT/seed-N/pretrain_start.jsonl, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path

import numpy as np
from pages import markdown, write_between
from world import DIRECTIONS, HOLDOUT, Done, config_of, open_world, over_worlds

from mindtuner.config import Config, load_config

THIRD = 14 / 3  # epochs, of the default's 14
SILENT, FAST = {"text_weight": 0.0}, {"lr": 3.0e-3}
DEFAULT, PLAIN = "default", "without L_text"
ARMS: dict[str, dict] = {
    PLAIN: SILENT,
    "a third, without L_text": {"epochs": THIRD, **SILENT},
    "a third, lr 3e-3": {"epochs": THIRD, **FAST},
    "closed form, a third": {"start": "closed_form", "epochs": THIRD, **FAST},
    "closed form, a half": {"start": "closed_form", "epochs": 7.0, **FAST},
    DEFAULT: {},
}
METHODS = ("mindtuner", "ridge_only")
HELD, TEST = "held out", "test"
WANTED = [(HELD, method) for method in METHODS] + [(TEST, "mindtuner")]


def folder(arm: str) -> str:
    """Of the base of an arm; the default's is the one that other benchmarks use."""
    return "base" if arm == DEFAULT else "base-" + "".join(c if c.isalnum() else "-" for c in arm)


def config_of_arm(config: Config, arm: str) -> Config:
    return load_config(config, pretrain=dataclasses.asdict(config.pretrain) | ARMS[arm])


def known(out: Path, seed: int) -> Done:
    return Done(out / f"seed-{seed}" / "pretrain_start.jsonl", "arm", "where", "method", "tuning")


def measure(out: Path, seed: int, arm: str, tunings: int) -> None:
    done = known(out, seed)
    left = done.left((arm, *one, tuning) for one in WANTED for tuning in range(tunings))
    if not left:
        return
    begun = time.process_time()
    world = open_world(out / f"seed-{seed}", config_of_arm(config_of(seed), arm), folder(arm))
    seconds = time.process_time() - begun
    for _, where, method, tuning in left:
        if where == HELD:
            ranks = world.held_out_ranks(world.tune(method, tuning, holdout=HOLDOUT))
            found = {direction: round(float(values.mean()), 4) for direction, values in ranks.log.items()}
        else:
            said = world.decode(world.tune(method, tuning).decoder())
            found = {direction: float(np.mean(values)) for direction, values in world.top1(said).items()}
        done.add(arm=arm, where=where, method=method, tuning=tuning, seconds=round(seconds), **found)


def table(options: argparse.Namespace) -> str:
    worlds = {seed: known(options.out, seed) for seed in options.seeds}

    def values(arm: str, where: str, method: str, direction: str) -> np.ndarray | None:
        """(worlds,), None where not all were measured."""
        runs = [[(arm, where, method, tuning) for tuning in range(options.tunings)] for _ in options.seeds]
        if any(run not in worlds[seed] for seed, some in zip(options.seeds, runs, strict=True) for run in some):
            return None
        return np.array(
            [np.mean([worlds[s][run][direction] for run in some]) for s, some in zip(options.seeds, runs, strict=True)]
        )

    parts = []
    for where, method in WANTED:
        rows = []
        for arm in ARMS:
            cells = [arm]
            for direction in DIRECTIONS:
                own, plain = (values(name, where, method, direction) for name in (arm, PLAIN))
                if own is None:
                    break
                minus = "" if arm == PLAIN or plain is None else over_worlds(own - plain)
                cells += [f"{own.mean():.3f}", minus]
            else:
                rows.append(cells)
        header = ["pretraining", *(word for d in DIRECTIONS for word in (d, f"minus {PLAIN}"))]
        measured = "mean log(1 + rank), held-out training images" if where == HELD else "top-1, test images"
        parts.append(f"`{method}`, {measured}:\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of the worlds")
    parser.add_argument("--tunings", type=int, default=2)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--table", action="store_true", help="of what was measured")
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    for arm in [] if options.table else options.arms:
        for seed in options.seeds:
            measure(options.out, seed, arm, options.tunings)
    text = table(options)
    print(text)
    if options.write:
        write_between(options.write, "pretrain_start", text)


if __name__ == "__main__":
    main()
