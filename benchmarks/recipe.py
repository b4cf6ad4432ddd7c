"""How should a new subject be tuned? Ranks of held-out training images, over worlds and splits; no test image is looked at.

    python benchmarks/recipe.py OUT [--seeds 0 1 2 3 4] [--splits 3] [--arms NAME ...] [--write FILE]
    python benchmarks/recipe.py OUT --table [--seeds ...] [--splits ...] [--write FILE]

For each simulator seed a world is made once (kept in OUT/seed-N, shared with other benchmarks), and subject 1 is tuned on
one session without a fifth of its training images, another fifth for each split. The right one of each held-out image is
ranked (``mindtuner.training.validation.ranks_of``): the image among all training images of the world, the caption among all
their distinct captions, the brain among the subject's brains of all its training images, decoded from sessions that no arm is
tuned on. The table gives the mean of log(1 + rank), lower is better, and its difference to ``ridge_only``, paired by image,
with 95 % intervals over worlds; beside it how often the right one would be first among 300.

Arms are the config's methods, and settings beside theirs; most were tried at rank 64, before the rank was chosen. One line
per run goes to OUT/seed-N/recipe.jsonl, so a run that was stopped goes on, and worlds can be measured by several processes.
``--write`` puts the table between the file's ``recipe:begin`` and ``recipe:end`` comments.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from pages import markdown, write_between
from scipy.special import gammaln
from world import DIRECTIONS, HOLDOUT, Done, config_of, open_world, over_worlds

from mindtuner.config import Config, load_config
from mindtuner.runtime import progress

POOL = 300  # candidates of the published evaluation
OURS, RIDGE, FULL = "mindtuner", "ridge_only", "full_finetune"
SKIP = {"skip": True, "rank": 8, "alpha": 8.0}
WIDE = {"skip": True, "skip_blocks": 0, "skip_rank": 32, "skip_alpha": 2560.0}  # the scale at which it learns what is planted


def at_64(tune: dict | None = None, **fingerprint) -> dict:
    """Changes that leave rank 64, at which one thing at a time was tried before the rank was chosen."""
    return {"fingerprint": {"rank": 64, "alpha": 128.0, **fingerprint}, "tune": tune or {}}


ARMS: dict[str, tuple[str, dict[str, dict | str]]] = {
    RIDGE: (RIDGE, {}),
    "closed form alone": (RIDGE, {"ridge_only": {"train_ridge": False}}),
    "ridge_only, with L_text": (RIDGE, {"ridge_only": {"text_weight": 1.0, "mixco_share": 0, "prior_weight": 0}}),
    OURS: (OURS, {}),
    "rank 128": (OURS, {"fingerprint": {"rank": 128, "alpha": 256.0}}),
    "rank 64": (OURS, at_64()),
    "rank 16": (OURS, {"fingerprint": {"rank": 16, "alpha": 32.0}}),
    "rank 64, without L_text": (OURS, at_64(tune={"text_weight": 0})),
    "rank 64, without cross-fitting": (OURS, at_64(tune={"cross_fitted": 0})),
    "rank 64, all cross-fitted": (OURS, at_64(tune={"cross_fitted": 1})),
    "rank 64, 64 epochs": (OURS, at_64(tune={"epochs": 64})),
    "rank 64, LoRA on the blocks too": (OURS, at_64(lora_blocks=True)),
    "rank 64, Skip-LoRA too": (OURS, at_64(skip=True)),
    "rank 64, the ridge trained too": (OURS, at_64(tune={"train_ridge": True})),
    "rank 64, with BiMixCo": (OURS, at_64(tune={"mixco_share": 0.33})),
    "Skip-LoRA at x0 too, as in controls.py": (OURS, {"fingerprint": WIDE, "tune": {"skip_weight": 0}}),
    "Skip-LoRA at x0 alone, as in controls.py": (OURS, {"fingerprint": {"lora": False, **WIDE}, "tune": {"skip_weight": 0}}),
    "Skip-LoRA alone": (OURS, {"fingerprint": {"lora": False, **SKIP}}),
    "as published, 2 epochs": (OURS, {"fingerprint": {"lora_blocks": True, **SKIP, "alpha": 2.0}, "tune": "ridge_only"}),
    FULL: (FULL, {}),
    "full_finetune, lr 1e-4, 32 epochs": (FULL, {"full_finetune": {"epochs": 32, "lr": 1e-4}}),
    "full_finetune, lr 1e-4, 16 epochs": (FULL, {"full_finetune": {"epochs": 16, "lr": 1e-4}}),
    "full_finetune, lr 1e-4, the ridge too": (FULL, {"full_finetune": {"train_ridge": True, "lr": 1e-4}}),
    "full_finetune, as ridge_only trains": (FULL, {"full_finetune": "ridge_only"}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="of the worlds")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--table", action="store_true", help="of what was measured")
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    arms = dict.fromkeys([RIDGE, *options.arms])  # the first is what all are compared to
    wanted = [(arm, split) for split in range(options.splits) for arm in arms]
    for seed in [] if options.table else options.seeds:
        if known(options.out, seed).left(wanted):
            measure(options.out, seed, wanted)
    text = table(options)
    print(text)
    if options.write:
        write_between(options.write, "recipe", text)


def known(out: Path, seed: int) -> Done:
    return Done(out / f"seed-{seed}" / "recipe.jsonl", "arm", "split")


def config_of_arm(config: Config, changes: dict[str, dict | str]) -> Config:
    """``config`` with changes of its sections, or with another section in the place of one."""
    for section, change in changes.items():
        change = vars(getattr(config, change)) if isinstance(change, str) else change
        config = load_config(config, **{section: change})
    return config


def measure(out: Path, seed: int, wanted: list[tuple[str, int]]) -> None:
    world, done = open_world(out / f"seed-{seed}", config_of(seed)), known(out, seed)
    for arm, split in progress(done.left(wanted), f"world {seed}", unit="run"):
        method, changes = ARMS[arm]
        ranks = world.held_out_ranks(world.tune(method, split, config_of_arm(world.config, changes), holdout=HOLDOUT))
        logs = {direction: np.round(values, 4).tolist() for direction, values in ranks.log.items()}
        done.add(arm=arm, split=split, among=ranks.among, **logs)


def first_among(log_rank: np.ndarray, candidates: int, pool: int = POOL) -> np.ndarray:
    """The chance that the right one, of this rank among all, is first among itself and ``pool`` - 1 drawn from the others."""
    ahead, others, drawn = np.expm1(log_rank) - 1, candidates - 1, pool - 1
    behind = others - ahead  # those that may be drawn: C(behind, drawn) / C(others, drawn)
    can = behind >= drawn
    behind = np.where(can, behind, drawn)
    ways = gammaln(behind + 1) - gammaln(behind - drawn + 1) - gammaln(others + 1) + gammaln(others - drawn + 1)
    return np.where(can, np.exp(ways), 0)


def table(options: argparse.Namespace) -> str:
    worlds = {seed: known(options.out, seed) for seed in options.seeds}
    runs = [(seed, split) for seed in options.seeds for split in range(options.splits)]
    rows = []
    for arm in ARMS:
        if any((arm, split) not in worlds[seed] for seed, split in runs):
            continue
        cells = [arm]
        for direction in DIRECTIONS:
            own, ridge = (
                np.array([[np.mean(worlds[s][name, p][direction]) for p in range(options.splits)] for s in options.seeds])
                for name in (arm, RIDGE)
            )
            cells += [f"{own.mean():.3f}", "" if arm == RIDGE else over_worlds((own - ridge).mean(1))]
        for direction in DIRECTIONS:
            found = [worlds[s][arm, p] for s, p in runs]
            first = [first_among(np.array(one[direction]), one["among"][direction]).mean() for one in found]
            cells.append(f"{np.mean(first):.3f}")
        rows.append(cells)
    header = [
        "arm",
        *(w for d in DIRECTIONS for w in (d, "minus ridge_only")),
        *(f"first of {POOL}, {d}" for d in DIRECTIONS),
    ]
    seeds = " ".join(map(str, options.seeds))
    return f"{markdown(header, rows)}\n\n    python benchmarks/recipe.py OUT --seeds {seeds} --splits {options.splits}"


if __name__ == "__main__":
    main()
