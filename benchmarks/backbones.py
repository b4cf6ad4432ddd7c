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
import json
from pathlib import Path

import numpy as np
from tuning_seeds import difference, mean_and_sd, prepare, retrieval

from mindtuner.config import load_config
from mindtuner.runtime import progress
from mindtuner.training import tune

BACKBONES = ("residual", "affine")
FINGERPRINTS = {
    "ridge only": {"lora": False, "skip": False},
    "+ LoRA": {"skip": False},
    "+ Skip-LoRA": {"lora": False},
    "+ both": {},
}
Key = tuple[float, str, str, str, int]  # strength, backbone, sessions, fingerprint, tuning seed


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
    done = read(options.out / "runs.jsonl")
    for strength in options.strengths:
        for backbone in BACKBONES:
            run(options, strength, backbone, done)
    summarise(done, options)


def read(path: Path) -> dict[Key, list[float]]:
    if not path.exists():
        return {}
    return {tuple(entry["key"]): entry["hits"] for entry in map(json.loads, path.read_text().splitlines())}


def run(options: argparse.Namespace, strength: float, backbone: str, done: dict[Key, list[float]]) -> None:
    """All runs of one base that are not done yet."""
    config = load_config(options.config)
    blocks = config.model.blocks if backbone == "residual" else 0
    config = dataclasses.replace(
        config,
        seed=options.seed,
        model=dataclasses.replace(config.model, backbone=backbone, blocks=blocks),
        simulate=dataclasses.replace(config.simulate, seed=options.seed, fingerprint=strength),
    )
    keys = [
        (strength, backbone, sessions, fingerprint, seed)
        for sessions in ("one", "all")
        for fingerprint in FINGERPRINTS
        for seed in range(options.tuning_seeds)
    ]
    missing = [key for key in keys if key not in done]
    if not missing:
        return
    folder = options.out / f"strength {strength:g}"
    (folder / backbone).mkdir(parents=True, exist_ok=True)
    if not (folder / backbone / "data").exists():  # both backbones see the same brains
        (folder / "data").mkdir(exist_ok=True)
        (folder / backbone / "data").symlink_to(Path("..") / "data")
    dataset, caches, targets, base = prepare(folder / backbone, config)
    subject = dataset.subject(config.target_subject)
    for key in progress(missing, f"{backbone}, {strength:g}"):
        _, _, sessions, fingerprint, seed = key
        adapters = dataclasses.replace(config.fingerprint, **FINGERPRINTS[fingerprint])
        hour = subject if sessions == "all" else subject.sessions(1)
        tuned = tune(base, hour, targets, dataclasses.replace(config, fingerprint=adapters), seed)
        scores = retrieval(tuned, subject, subject.test, caches, config)
        done[key] = [round(float(v), 4) for v in np.mean([scores[d] for d in ("image", "brain", "text")], 0)]
        with (options.out / "runs.jsonl").open("a") as file:
            file.write(json.dumps({"key": key, "hits": done[key]}) + "\n")


def summarise(done: dict[Key, list[float]], options: argparse.Namespace) -> None:
    def hits(*key) -> np.ndarray:
        return np.array([done[(*key, seed)] for seed in range(options.tuning_seeds)])

    print(f"config {options.config}, simulator seed {options.seed}, {options.tuning_seeds} tuning seeds\n")
    print(
        "| strength | sessions | fingerprint | residual (sd) | affine (sd) | residual − affine | − ridge only, residual "
        "| − ridge only, affine |\n|---:|---|---|" + 5 * "---:|"
    )
    for strength in options.strengths:
        for sessions in ("one", "all"):
            for name in FINGERPRINTS:
                both = [hits(strength, backbone, sessions, name) for backbone in BACKBONES]
                cells = [mean_and_sd(h) for h in both] + [difference(*both)]
                cells += [
                    "" if name == "ridge only" else difference(h, hits(strength, backbone, sessions, "ridge only"))
                    for backbone, h in zip(BACKBONES, both, strict=True)
                ]
                print(f"| {strength:g} | {sessions} | {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
