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
import json
import time
from pathlib import Path

import numpy as np
import torch
from tuning_seeds import difference, mean_and_sd, prepare, retrieval

from mindtuner.config import load_config
from mindtuner.evaluation.scores.retrieval import brain_retrieval, image_retrieval, text_retrieval
from mindtuner.runtime import progress
from mindtuner.training import tune
from mindtuner.training.ridge import voxel_regression

METHODS = ("mindtuner", "ridge_only")
STARTS = {
    "random": {"start": "random", "epochs": 12, "lr": 1e-3},
    "closed form alone": {"epochs": 0, "lr": 0.0, "weight_decay": 0.0, "ridge_weight_decay": 0.0},
    "closed form": {},
}
DIRECT = "voxels to tokens"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="seed of simulation and pretraining")
    parser.add_argument("--fingerprint", type=float, default=0.5)
    parser.add_argument("--tuning-seeds", type=int, default=5)
    options = parser.parse_args()
    config = load_config("demo")
    config = dataclasses.replace(
        config,
        seed=options.seed,
        simulate=dataclasses.replace(config.simulate, seed=options.seed, fingerprint=options.fingerprint),
    )
    dataset, caches, targets, base = prepare(options.out, config)
    subject = dataset.subject(config.target_subject)
    hour = subject.sessions(config.tuning_sessions)
    path = options.out / "start.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    known = {(entry["start"], entry["method"], entry["seed"]): entry for entry in done}
    wanted = [(start, method, seed) for seed in range(options.tuning_seeds) for start in STARTS for method in METHODS]
    wanted += [(DIRECT, "no base", seed) for seed in range(options.tuning_seeds)]
    for key in progress([key for key in wanted if key not in known], "runs"):
        start, method, seed = key
        begun = time.perf_counter()
        if start == DIRECT:
            scores = straight(subject, hour, caches, base, seed, config.tune.similar_voxels)
        else:
            changed = dataclasses.replace(config, tune=dataclasses.replace(config.tune, **STARTS[start]))
            network = tune(base, hour, targets, changed, seed, method)
        seconds = time.perf_counter() - begun
        if start != DIRECT:
            scores = retrieval(network, subject, subject.test, caches, config)
        known[key] = {"start": start, "method": method, "seed": seed, "seconds": seconds, "scores": scores}
        with path.open("a") as file:
            file.write(json.dumps(known[key]) + "\n")
    print(summary(known, options, len(hour.train), subject.n_voxels, config))


def straight(subject, hour, caches, base, seed: int, similar: int) -> dict[str, list[float]]:
    """Voxels -> image tokens by one ridge regression on the hour's trials; text through the base's projector."""
    images, said = direct_ridge(subject, hour.train, subject.test, caches, seed, similar)
    tokens = np.asarray(caches["tokens"], np.float32)
    with torch.no_grad():
        text = base.projector(torch.from_numpy(said)).numpy()
    hits = {
        "image": image_retrieval(said, tokens[images]),
        "brain": brain_retrieval(said, tokens[images]),
        "text": text_retrieval(text, np.asarray(caches["text"][images])),
    }
    return {name: [round(float(v), 4) for v in hit.top1] for name, hit in hits.items()}


def direct_ridge(subject, train, asked, caches, seed: int, similar: int) -> tuple[np.ndarray, np.ndarray]:
    """Fitted on the trials ``train``: the images of the trials ``asked``, and their tokens, averaged over their trials."""
    tokens = np.asarray(caches["tokens"], np.float32)
    fit = voxel_regression(
        subject.betas(train.row), tokens[train.stimulus].reshape(len(train), -1), train.stimulus, seed, similar
    )
    images, row = np.unique(asked.stimulus, return_inverse=True)
    total = np.zeros((len(images), fit.weight.shape[1]), np.float32)
    np.add.at(total, row, subject.betas(asked.row) @ fit.weight + fit.intercept)
    return images, (total / np.bincount(row)[:, None]).astype(np.float32).reshape(-1, *tokens.shape[1:])


def summary(known: dict, options, trials: int, voxels: int, config) -> str:
    directions, seeds = ("image", "brain", "text"), range(options.tuning_seeds)

    def hits(start: str, method: str, direction: str) -> np.ndarray:
        return np.array([known[start, method, seed]["scores"][direction] for seed in seeds])

    cold = STARTS["random"]["epochs"]
    names = {"random": f"random, {cold} epochs", "closed form": f"closed form, {config.tune.epochs:g} epochs"}
    lines = [
        f"`python benchmarks/closed_form_start.py OUT --seed {options.seed} --fingerprint {options.fingerprint:g} "
        f"--tuning-seeds {options.tuning_seeds}`: {voxels} voxels, {trials} trials, "
        f"{hits('random', METHODS[0], 'image').shape[1]} test images",
        "",
        "| start | method | "
        + " | ".join(directions)
        + " | seconds | "
        + " | ".join(f"minus random, {d}" for d in directions)
        + " |",
        "|---|---|" + 7 * "---:|",
    ]
    for start, method in [*((s, m) for s in STARTS for m in METHODS), (DIRECT, "no base")]:
        seconds = np.median([known[start, method, seed]["seconds"] for seed in seeds])
        cells = [mean_and_sd(hits(start, method, d)) for d in directions] + [f"{seconds:.1f}"]
        against = "mindtuner" if method == "no base" else method
        cells += [
            "" if start == "random" else difference(hits(start, method, d), hits("random", against, d)) for d in directions
        ]
        lines.append(f"| {names.get(start, start)} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
