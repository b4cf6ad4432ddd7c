"""What do the adapters carry? Test images of worlds that chose no setting.

    python benchmarks/adapters.py OUT [--seeds 10 11 12 13 14 15] [--tuning-seeds 3] [--rows NAME ...]
    python benchmarks/adapters.py OUT --table [--seeds ...] [--tuning-seeds ...] [--write FILE]

For each simulator seed a world is made once (kept in OUT/seed-N, shared with other benchmarks). Subject 1 is tuned on one
session and on all, and its 300 test images are retrieved in three directions. Settings are those of the config, which
``benchmarks/recipe.py`` chose in other worlds. Rows:

- ``mindtuner``, ``ridge_only``, ``full_finetune``, and the control ``shuffled_brain``
- adapters off: the tuned network without its adapters. The ridge is frozen where the closed form puts it, so this is the
  closed form alone, and is tuned as that
- by published tokens: ``mindtuner`` and ``ridge_only`` looked up by C as it is, not by what an image changes in B and C

Differences are paired by image and seed, with 95 % intervals over worlds. The adapters' share of the decoded variance
(``mindtuner.studies.routes``) is that of the first tuning seed. One line per run goes to OUT/seed-N/adapters.jsonl, so a run
that was stopped goes on, and worlds can be measured by several processes. ``--write`` puts the tables between the file's
``adapters:begin`` and ``adapters:end`` comments.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from pages import markdown, write_between
from world import DIRECTIONS, Done, World, config_of, open_world, over_worlds

from mindtuner.config import Config, load_config
from mindtuner.model.lora import LoRALinear, SkipLoRA
from mindtuner.pipeline import TunedSubject
from mindtuner.runtime import progress
from mindtuner.studies.routes import ROUTES, TOKENS, shares
from mindtuner.training.sizes import count_trained

OURS, RIDGE, FULL, SHUFFLED, OFF = "mindtuner", "ridge_only", "full_finetune", "shuffled_brain", "adapters off"
PUBLISHED = ", by published tokens"
TUNED = {OURS: OURS, RIDGE: RIDGE, FULL: FULL, SHUFFLED: SHUFFLED, OFF: RIDGE}  # rows, and the method that makes each
HOUR, ALL = "one hour", "all hours"
AT = {HOUR: tuple(TUNED), ALL: (OURS, RIDGE, FULL)}
COMPARED = [
    (OURS, RIDGE, HOUR),
    (OURS + PUBLISHED, RIDGE + PUBLISHED, HOUR),
    (OURS, OFF, HOUR),
    (OURS, FULL, HOUR),
    (OURS, RIDGE, ALL),
    (OURS, FULL, ALL),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12, 13, 14, 15], help="of the worlds")
    parser.add_argument("--tuning-seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=TUNED, default=list(TUNED))
    parser.add_argument("--table", action="store_true", help="of what was measured")
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    for seed in [] if options.table else options.seeds:
        measure(options.out, seed, options.tuning_seeds, options.rows)
    if options.table:
        text = tables(options)
        print(text)
        if options.write:
            write_between(options.write, "adapters", text)


def known(out: Path, seed: int) -> Done:
    return Done(out / f"seed-{seed}" / "adapters.jsonl", "row", "hours", "seed")


def measure(out: Path, seed: int, tuning_seeds: int, rows: list[str]) -> None:
    world, done = open_world(out / f"seed-{seed}", config_of(seed)), known(out, seed)
    wanted = [
        (row, hours, tuning) for tuning in range(tuning_seeds) for hours in (HOUR, ALL) for row in rows if row in AT[hours]
    ]
    for row, hours, tuning in progress(done.left(wanted), f"world {seed}", unit="run"):
        config = load_config(world.config, ridge_only={"train_ridge": False}) if row == OFF else world.config
        tuned = world.tune(TUNED[row], tuning, config, world.hour if hours == HOUR else world.subject)
        found = {"numbers": numbers(tuned)}
        if row == OURS and tuning == 0:
            found["shares"] = routed(world, tuned)
        if row in (OURS, RIDGE):  # first: a run is done when the row itself is there
            scores = world.top1(world.decode(by_published(tuned).decoder()))
            done.add(row=row + PUBLISHED, hours=hours, seed=tuning, scores=scores)
        done.add(row=row, hours=hours, seed=tuning, scores=world.top1(world.decode(tuned.decoder())), **found)


def by_published(tuned: TunedSubject) -> TunedSubject:
    """The same network, looked up by C alone."""
    config: Config = load_config(tuned.config, decode={"retrieval_tokens": "projected"})
    return dataclasses.replace(tuned, config=config)


def numbers(tuned: TunedSubject) -> int:
    """How many numbers trained beyond the ridge."""
    [network] = tuned.networks.values()
    return count_trained(network) - count_trained(network.ridges)


def routed(world: World, tuned: TunedSubject) -> dict[str, dict[str, float]]:
    """The share of each route in the variance of B and of C over the test images."""
    subject, [network] = world.subject, tuned.networks.values()
    test, reference = subject.test, world.hour.betas(world.hour.train.row).mean(0)
    found = {}
    for tokens in TOKENS:
        each = shares(network.eval(), tuned.name, subject.betas(test.row), test.stimulus, reference, subject.rois, tokens)
        found[tokens] = dict(zip(ROUTES, each.voxel.sum(1).tolist(), strict=True))
    found["changed"] = changed(world, tuned)
    return found


def changed(world: World, tuned: TunedSubject) -> dict[str, float]:
    """Variance over test images of what the adapters change in B and in C, as a share of the variance of these."""
    [network] = tuned.networks.values()
    published = by_published(tuned)
    on = world.decode(published.decoder())
    adapters = [part for part in network.modules() if isinstance(part, LoRALinear | SkipLoRA)]
    scales = [part.scale for part in adapters]
    for part in adapters:
        part.scale = 0.0
    off = world.decode(published.decoder())
    for part, scale in zip(adapters, scales, strict=True):
        part.scale = scale
    return {
        tokens: float((getattr(on, tokens) - getattr(off, tokens)).var(0).sum() / getattr(on, tokens).var(0).sum())
        for tokens in TOKENS
    }


def tables(options: argparse.Namespace) -> str:
    worlds = [known(options.out, seed) for seed in options.seeds]
    seeds = range(options.tuning_seeds)

    def hits(row: str, hours: str, direction: str) -> np.ndarray:  # a mean for each world
        return np.array([np.mean([world[row, hours, s]["scores"][direction] for s in seeds]) for world in worlds])

    def numbers_of(row: str) -> str:
        count = worlds[0][row, HOUR, 0].get("numbers")
        return "" if count is None else f"{count:,}"

    rows = [
        [hours, row, *(f"{hits(row, hours, d).mean():.3f} ({hits(row, hours, d).std(ddof=1):.3f})" for d in DIRECTIONS)]
        + [numbers_of(row) if hours == HOUR else ""]
        for hours in (HOUR, ALL)
        for row in (OURS, RIDGE, OFF, FULL, SHUFFLED, OURS + PUBLISHED, RIDGE + PUBLISHED)
        if row.removesuffix(PUBLISHED) in AT[hours]
    ]
    scores = markdown(["trials of", "method", *DIRECTIONS, "numbers beyond the ridge"], rows, left=2)
    rows = []
    for one, other, hours in COMPARED:
        rows.append([hours, one, other, *(over_worlds(hits(one, hours, d) - hits(other, hours, d)) for d in DIRECTIONS)])
    differences = markdown(["trials of", "method", "minus", *DIRECTIONS], rows, left=3)
    rows = []
    for row in (OURS, RIDGE, FULL):
        each = [hits(row, HOUR, d).mean() / hits(row, ALL, d).mean() for d in DIRECTIONS]
        rows.append([row, *(f"{share:.0%}" for share in each)])
    hour = markdown(["one hour of all hours", *DIRECTIONS], rows)
    rows = []
    for tokens in TOKENS:
        cells = [tokens]
        for found in (lambda shares, t=tokens: shares["changed"][t], lambda shares, t=tokens: shares[t]["lora"]):
            for hours in (HOUR, ALL):
                cells.append(over_worlds([found(world[OURS, hours, 0]["shares"]) for world in worlds], ".1%"))
        rows.append(cells)
    header = [f"{what}, {hours}" for what in ("variance that the adapters change", "LoRA's route") for hours in (HOUR, ALL)]
    carried = markdown(["of the decoded variance", *header], rows)
    count = len(worlds[0][OURS, HOUR, 0]["scores"]["image"])
    said = (
        f"{len(worlds)} worlds (simulator seeds {', '.join(map(str, options.seeds))}), {len(seeds)} tuning seeds each, "
        f"{count} test images, chance {1 / count:.4f}. Means (sd over worlds); differences [95 % interval over worlds]."
    )
    return "\n\n".join(
        [f"    python benchmarks/adapters.py OUT --tuning-seeds {len(seeds)}", said, scores, differences, hour, carried]
    )


if __name__ == "__main__":
    main()
