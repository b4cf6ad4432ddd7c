"""What does the closed-form start of a new subject's ridge save, and what does it win?

    python benchmarks/closed_form_start.py OUT [--seed 0] [--tuning-seeds 5] [--fingerprint 0.5]

On one simulated dataset and base (kept in OUT, shared with tuning_seeds.py), tunes from a random ridge and from the one that
is solved against the frozen base, and scores retrieval of the subject's test images. Rows:

- random, 12 epochs: the ridge starts at random; 12 epochs at a peak learning rate of 1e-3, the best found for it
  (benchmarks/results/closed_form_start.md)
- closed form alone: no step of training
- closed form, then the config's epochs: the demo's default
- voxels to tokens: the same cross-validated regression straight to the image tokens, without any base

Differences to the first row are paired over images and tuning seeds. Seconds are those of tuning alone. Where nothing
random is left (closed form alone of ridge_only, voxels to tokens) tuning seeds only choose the folds. One line per run goes
to OUT/start.jsonl, so a run that was stopped continues.
"""

from __future__ import annotations

import argparse
import dataclasses
import time

import numpy as np
from pages import markdown
from world import DIRECTIONS, Done, World, add_world, config_of, difference, mean_and_sd, open_world

from mindtuner.decoding.decoder import Predictions
from mindtuner.runtime import progress
from mindtuner.studies.bench import regression

METHODS = ("mindtuner", "ridge_only")
STARTS = {
    "random": {"start": "random", "epochs": 12, "lr": 1e-3},
    "closed form alone": {"epochs": 0, "lr": 0.0, "weight_decay": 0.0, "ridge_weight_decay": 0.0},
    "closed form": {},
}
DIRECT = "voxels to tokens"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_world(parser)
    parser.add_argument("--tuning-seeds", type=int, default=5)
    options = parser.parse_args()
    world = open_world(options.out, config_of(options.seed, options.fingerprint))
    done = Done(options.out / "start.jsonl", "start", "method", "seed")
    seeds = range(options.tuning_seeds)
    wanted = [(start, method, seed) for seed in seeds for start in STARTS for method in METHODS]
    wanted += [(DIRECT, "no base", seed) for seed in seeds]
    for start, method, seed in progress(done.left(wanted), "runs"):
        begun = time.perf_counter()
        if start == DIRECT:
            similar = world.config.tune.similar_voxels
            images, tokens, text = regression(world.hour, world.features, world.base.network, seed, similar)
            seconds, said = time.perf_counter() - begun, Predictions(images, tokens, tokens, None, text)
        else:
            fit = dataclasses.replace(world.config.tune, **STARTS[start])
            tuned = world.tune(method, seed, dataclasses.replace(world.config, tune=fit))
            seconds, said = time.perf_counter() - begun, world.decode(tuned.decoder())
        done.add(start=start, method=method, seed=seed, seconds=seconds, scores=world.top1(said))
    print(summary(done, options, world))


def summary(done: Done, options: argparse.Namespace, world: World) -> str:
    seeds = range(options.tuning_seeds)

    def hits(start: str, method: str, direction: str) -> np.ndarray:
        return np.array([done[start, method, seed]["scores"][direction] for seed in seeds])

    cold = STARTS["random"]["epochs"]
    names = {"random": f"random, {cold} epochs", "closed form": f"closed form, {world.config.tune.epochs:g} epochs"}
    rows = []
    for start, method in [*((s, m) for s in STARTS for m in METHODS), (DIRECT, "no base")]:
        seconds = np.median([done[start, method, seed]["seconds"] for seed in seeds])
        cells = [
            names.get(start, start),
            method,
            *(mean_and_sd(hits(start, method, d)) for d in DIRECTIONS),
            f"{seconds:.1f}",
        ]
        against = "mindtuner" if method == "no base" else method
        cells += [
            "" if start == "random" else difference(hits(start, method, d), hits("random", against, d)) for d in DIRECTIONS
        ]
        rows.append(cells)
    header = ["start", "method", *DIRECTIONS, "seconds", *(f"minus random, {d}" for d in DIRECTIONS)]
    return (
        f"`python benchmarks/closed_form_start.py OUT --seed {options.seed} --fingerprint {options.fingerprint:g} "
        f"--tuning-seeds {options.tuning_seeds}`: {world.subject.n_voxels} voxels, {len(world.hour.train)} trials, "
        f"{hits('random', METHODS[0], 'image').shape[1]} test images\n\n{markdown(header, rows, left=2)}"
    )


if __name__ == "__main__":
    main()
