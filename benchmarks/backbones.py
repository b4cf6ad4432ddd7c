"""Does a backbone that really is non-linear help? Residual against affine, and what the fingerprint adds to each.

    python benchmarks/backbones.py OUT [--strengths 0 0.5 1 2] [--tuning-seeds 5] [--config demo] [--seed 0]

For every strength of the simulated fingerprint: simulates, pretrains one base for each backbone, and tunes four fingerprints
(a new ridge alone, with LoRA, with Skip-LoRA, with both) from one session and from all, with every tuning seed. Scores are
the retrieval of the subject's shared test images. One line a run goes to OUT/runs.jsonl, so a run that was stopped goes on.
Prints a table in Markdown: the mean over seeds of the mean of the three directions, and paired differences (residual minus
affine; each fingerprint minus the ridge alone) with 95 % intervals over images and seeds.

On an affine base LoRA has the token head and the retrieval projector to sit on, and Skip-LoRA enters at x0 only: LoRA on
blocks and skips behind them are void there.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from pages import markdown
from world import DIRECTIONS, Done, config_of, difference, mean_and_sd, open_world

from mindtuner.config import Config
from mindtuner.runtime import progress

BACKBONES, SESSIONS = ("residual", "affine"), ("one", "all")
FINGERPRINTS = {
    "ridge only": {"lora": False, "skip": False},
    "+ LoRA": {"skip": False},
    "+ Skip-LoRA": {"lora": False},
    "+ both": {},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0, 0.5, 1, 2])
    parser.add_argument("--seed", type=int, default=0, help="seed of simulation and pretraining")
    parser.add_argument("--tuning-seeds", type=int, default=5, help="at least 2, to measure their spread")
    options = parser.parse_args()
    if options.tuning_seeds < 2:
        parser.error(f"--tuning-seeds is {options.tuning_seeds}; expected at least 2")
    done = Done(options.out / "runs.jsonl", "strength", "backbone", "sessions", "fingerprint", "seed")
    for strength in options.strengths:
        for backbone in BACKBONES:
            measure(options, strength, backbone, done)
    print(summary(done, options))


def measure(options: argparse.Namespace, strength: float, backbone: str, done: Done) -> None:
    """All runs of one base that are not done yet; both backbones see the same brains."""
    seeds = range(options.tuning_seeds)
    missing = done.left(
        (strength, backbone, some, name, seed) for some in SESSIONS for name in FINGERPRINTS for seed in seeds
    )
    if not missing:
        return
    config = config_of(options.seed, strength, options.config)
    blocks = config.model.blocks if backbone == "residual" else 0
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, backbone=backbone, blocks=blocks))
    world = open_world(options.out / f"strength {strength:g}", config, backbone)
    for _, _, sessions, fingerprint, seed in progress(missing, f"{backbone}, {strength:g}"):
        subject = world.subject if sessions == "all" else world.subject.sessions(1)
        tuned = world.tune("mindtuner", seed, with_adapters(config, fingerprint), subject)
        scores = world.top1(world.decode(tuned.decoder()))
        hits = np.mean([scores[d] for d in DIRECTIONS], 0).round(4).tolist()
        done.add(strength=strength, backbone=backbone, sessions=sessions, fingerprint=fingerprint, seed=seed, hits=hits)


def with_adapters(config: Config, fingerprint: str) -> Config:
    return dataclasses.replace(config, fingerprint=dataclasses.replace(config.fingerprint, **FINGERPRINTS[fingerprint]))


def summary(done: Done, options: argparse.Namespace) -> str:
    def hits(*key) -> np.ndarray:
        return np.array([done[(*key, seed)]["hits"] for seed in range(options.tuning_seeds)])

    rows = []
    for strength in options.strengths:
        for sessions in SESSIONS:
            for name in FINGERPRINTS:
                both = [hits(strength, backbone, sessions, name) for backbone in BACKBONES]
                cells = [mean_and_sd(h) for h in both] + [difference(*both)]
                cells += [
                    "" if name == "ridge only" else difference(h, hits(strength, backbone, sessions, "ridge only"))
                    for backbone, h in zip(BACKBONES, both, strict=True)
                ]
                rows.append([f"{strength:g}", sessions, name, *cells])
    header = ["strength", "sessions", "fingerprint", "residual (sd)", "affine (sd)", "residual − affine"]
    header += ["− ridge only, residual", "− ridge only, affine"]
    return (
        f"config {options.config}, simulator seed {options.seed}, {options.tuning_seeds} tuning seeds\n\n"
        f"{markdown(header, rows, left=3)}"
    )


if __name__ == "__main__":
    main()
