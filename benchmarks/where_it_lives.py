"""Is the planted fingerprint found where it was planted?

    python benchmarks/where_it_lives.py OUT [--seed 0] [--fingerprint 0.5] [--tuning-seeds 3] [--truth FOLDER]
    python benchmarks/where_it_lives.py --table OUT [OUT ...]

On one simulated dataset and base (kept in OUT, shared with tuning_seeds.py), subject 1 is tuned, the variance of its decoded
test images is shared out to voxels and routes (``mindtuner.studies.routes``), and the map of the fingerprint's part is
scored against the planted share of each voxel. Methods: mindtuner, and shuffled_brain, tuned on permuted brains.

Simulated subjects have one planted share for each of five areas, so voxels of an area are no independent evidence: what
counts is the order of the areas, and chance is every other order (120). The null of permuted voxels, which takes them as
independent, is told beside it. With ``--fingerprint 0`` nothing was planted; ``--truth`` names the truth of a world
of the same seed where something was, the same sheet of voxels: whatever correlates there is no recovery.

Each run is a line of OUT/where-it-lives.jsonl. ``--table`` prints a row a world and method, mean (sd) over seeds.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tuning_seeds import of_world, prepare

from mindtuner.generators.compact import starting_prior
from mindtuner.runtime import progress
from mindtuner.studies import maps
from mindtuner.studies.routes import ROUTES, shares
from mindtuner.training import subject_name, tune

FILE, METHODS = "where-it-lives.jsonl", ("mindtuner", "shuffled_brain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="+")
    parser.add_argument("--seed", type=int, default=0, help="seed of simulation and pretraining")
    parser.add_argument("--fingerprint", type=float, default=0.5)
    parser.add_argument("--tuning-seeds", type=int, default=3)
    parser.add_argument("--truth", type=Path, help="default: OUT/data/truth")
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        measure(options.out[0], options)
    print(table(options.out))


def measure(out: Path, options) -> None:
    config = of_world(options.seed, options.fingerprint)
    dataset, _, targets, base = prepare(out, config)
    subject = dataset.subject(config.target_subject)
    hour, test, name = subject.sessions(config.tuning_sessions), subject.test, subject_name(subject.number)
    truth = load_file((options.truth or out / "data" / "truth") / f"{name}.safetensors")["fingerprint_share"]
    region = maps.by_itself(subject.rois)
    done = {(run["method"], run["seed"]) for run in known(out)}
    wanted = [(method, seed) for seed in range(options.tuning_seeds) for method in METHODS]
    for method, seed in progress([key for key in wanted if key not in done], "runs"):
        network = tune(base, hour, targets, config, seed, method, prior=starting_prior(config.model)).eval()
        reference = hour.betas(hour.train.row).mean(0)
        found = shares(network, name, subject.betas(test.row), test.stimulus, reference, subject.rois)
        drawn = maps.maps_of(found)["fingerprint"]
        run = {
            "method": method,
            "seed": seed,
            "fingerprint": dataset.card["simulate"]["fingerprint"],
            "residual": found.residual,
            "shares": dict(zip(ROUTES, found.voxel.sum(1).tolist(), strict=True)),
            "regions": {roi: float(drawn[mask].mean()) for roi, mask in subject.rois.items()},
            "areas": maps.recovery(drawn, truth, region, seed)["between"],
            # all voxels as one region: voxels are permuted freely
            "voxels": maps.recovery(drawn, truth, np.zeros_like(region), seed)["within"],
        }
        with (out / FILE).open("a") as file:
            file.write(json.dumps(run) + "\n")


def known(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / FILE).read_text().splitlines()] if (out / FILE).exists() else []


def table(outs: list[Path]) -> str:
    lines = [
        "| world, planted | tuned | " + " | ".join(ROUTES) + " | order of areas: Spearman | p, areas | p, voxels |",
        "|---|---|" + 7 * "---:|",
    ]
    for world, out in enumerate(outs):
        for method in METHODS:
            runs = [run for run in known(out) if run["method"] == method]
            cells = [spread([run["shares"][route] for run in runs], "+.4g") for route in ROUTES]
            cells += [
                spread([run["areas"]["spearman"] for run in runs], "+.2f"),
                *(", ".join(f"{run[null]['p']:.3f}" for run in runs) for null in ("areas", "voxels")),
            ]
            lines.append(f"| {world}, {runs[0]['fingerprint']:g} | {method} | " + " | ".join(cells) + " |")
    every = [run["residual"] for out in outs for run in known(out)]
    return "\n".join([*lines, "", f"All shares of a run add up to 1 within {max(every):.4f}."])


def spread(values: list[float], form: str) -> str:
    deviation = f" ({np.std(values, ddof=1):.1g})" if len(values) > 1 else ""
    return f"{np.mean(values):{form}}{deviation}"


if __name__ == "__main__":
    main()
