"""Does the fingerprint win? Paired comparison of tuning methods over tuning seeds, on one simulated dataset.

    python benchmarks/tuning_seeds.py OUT [--fingerprint 0.5] [--seed 0] [--tuning-seeds 10] [--split test]

Simulates, embeds and pretrains once (kept in OUT), then tunes every method with every tuning seed and scores retrieval of the
subject's images: the shared test images (``--split test``), or, to choose settings, a fifth of its training images that is
held out of tuning (``--split validation``; another fifth for each tuning seed). One line per run goes to OUT/{split}.jsonl,
so a run that was stopped goes on; a summary with paired differences is printed at the end. ``mindtuner ablate`` compares
other parts of the method in the same way, on test images alone.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
from pages import markdown
from world import DIRECTIONS, HOLDOUT, Done, add_world, config_of, difference, mean_and_sd, open_world

from mindtuner.config import Config
from mindtuner.runtime import progress

METHODS = ("mindtuner", "ridge_only", "full_finetune", "lora_only", "skip_only")
HALVES = {"lora_only": {"skip": False}, "skip_only": {"lora": False}}  # of the fingerprint, each tuned alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_world(parser)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--tuning-seeds", type=int, default=10)
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--methods", nargs="+", default=METHODS[:3], choices=METHODS)
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=VALUE", help="settings to try, such as tune.lr=5e-4 fingerprint.rank=4"
    )
    options = parser.parse_args()
    world = open_world(options.out, config_of(options.seed, options.fingerprint, options.config))
    config, label = world.config, " ".join(sorted(options.set))
    for setting in options.set:
        config = changed(config, setting, parser)
    done = Done(options.out / f"{options.split}.jsonl", "settings", "method", "seed")
    wanted = [(label, method, seed) for seed in range(options.tuning_seeds) for method in options.methods]
    for _, method, seed in progress(done.left(wanted), "runs"):
        half = dataclasses.replace(config, fingerprint=dataclasses.replace(config.fingerprint, **HALVES.get(method, {})))
        tuned = world.tune(
            "mindtuner" if method in HALVES else method, seed, half, holdout=HOLDOUT * (options.split == "validation")
        )
        trials = tuned.held_out(world.dataset) if options.split == "validation" else None
        scores = world.top1(world.decode(tuned.decoder(), trials))
        done.add(settings=label, method=method, seed=seed, scores=scores)
    print(summary(done, label, options))


def changed(config: Config, setting: str, parser: argparse.ArgumentParser) -> Config:
    """The config with one setting, ``section.field=value``. Only what tuning reads: the base is made before."""
    name, _, value = setting.partition("=")
    section, _, field = name.partition(".")
    part = getattr(config, section) if section in ("tune", "fingerprint") else None
    if not hasattr(part, field):
        parser.error(f"--set {setting}: expected tune.FIELD=VALUE or fingerprint.FIELD=VALUE")
    kind = type(getattr(part, field))
    return dataclasses.replace(
        config, **{section: dataclasses.replace(part, **{field: value if kind is str else kind(float(value))})}
    )


def summary(done: Done, label: str, options: argparse.Namespace) -> str:
    """A table in Markdown: mean (sd over tuning seeds), and what mindtuner has more, paired, with 95 % intervals."""
    seeds = range(options.tuning_seeds)
    hits = {
        method: {d: np.array([done[label, method, seed]["scores"][d] for seed in seeds]) for d in DIRECTIONS}
        for method in options.methods
    }
    candidates = hits[options.methods[0]]["image"].shape[1]
    rows = []
    for method, scores in hits.items():
        compared = method != "mindtuner" and "mindtuner" in hits and len(seeds) > 1
        differences = [difference(hits["mindtuner"][d], scores[d]) if compared else "" for d in DIRECTIONS]
        rows.append([method, *(mean_and_sd(scores[d]) for d in DIRECTIONS), *differences])
    return (
        f"fingerprint {options.fingerprint}, split {options.split}, {candidates} candidates (chance {1 / candidates:.4f}), "
        f"simulator seed {options.seed}, {options.tuning_seeds} tuning seeds, settings: {label or 'as in the config'}\n\n"
        + markdown(["method", *DIRECTIONS, *(f"mindtuner minus it, {d}" for d in DIRECTIONS)], rows)
    )


if __name__ == "__main__":
    main()
