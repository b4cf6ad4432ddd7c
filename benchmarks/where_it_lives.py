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
from pathlib import Path

import numpy as np
from pages import markdown, spread
from world import Done, add_world, config_of, open_world

from mindtuner.runtime import progress
from mindtuner.studies import maps
from mindtuner.studies.fingerprint_maps import read_truth
from mindtuner.studies.routes import ROUTES, shares

METHODS = ("mindtuner", "shuffled_brain")
HEADER = ["world, planted", "tuned", *ROUTES, "order of areas: Spearman", "p, areas", "p, voxels"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_world(parser, several=True)
    parser.add_argument("--tuning-seeds", type=int, default=3)
    parser.add_argument("--truth", type=Path, help="default: OUT/data/truth")
    options = parser.parse_args()
    if not options.table:
        measure(options.out[0], options)
    print(table(options.out))


def measure(out: Path, options: argparse.Namespace) -> None:
    world = open_world(out, config_of(options.seed, options.fingerprint))
    subject, hour, test = world.subject, world.hour, world.subject.test
    truth = read_truth(options.truth or out / "data" / "truth", subject.number, subject.n_voxels)["fingerprint_share"]
    region, reference = maps.by_itself(subject.rois), hour.betas(hour.train.row).mean(0)
    done = known(out)
    wanted = [(method, seed) for seed in range(options.tuning_seeds) for method in METHODS]
    for method, seed in progress(done.left(wanted), "runs"):
        tuned = world.tune(method, seed)
        network = tuned.networks[method].eval()
        found = shares(network, tuned.name, subject.betas(test.row), test.stimulus, reference, subject.rois)
        drawn = maps.maps_of(found)["fingerprint"]
        done.add(
            method=method,
            seed=seed,
            fingerprint=world.config.simulate.fingerprint,
            residual=found.residual,
            shares=dict(zip(ROUTES, found.voxel.sum(1).tolist(), strict=True)),
            regions={roi: float(drawn[mask].mean()) for roi, mask in subject.rois.items()},
            areas=maps.recovery(drawn, truth, region, seed)["between"],
            # all voxels as one region: voxels are permuted freely
            voxels=maps.recovery(drawn, truth, np.zeros_like(region), seed)["within"],
        )


def known(out: Path) -> Done:
    return Done(out / "where-it-lives.jsonl", "method", "seed")


def table(outs: list[Path]) -> str:
    rows, every = [], []
    for world, out in enumerate(outs):
        done = list(known(out).runs.values())
        every += [run["residual"] for run in done]
        for method in METHODS:
            runs = [run for run in done if run["method"] == method]
            cells = [f"{world}, {runs[0]['fingerprint']:g}", method]
            cells += [spread([run["shares"][route] for run in runs], "+.4g", ".1g") for route in ROUTES]
            cells.append(spread([run["areas"]["spearman"] for run in runs], "+.2f", ".1g"))
            cells += [", ".join(f"{run[null]['p']:.3f}" for run in runs) for null in ("areas", "voxels")]
            rows.append(cells)
    return f"{markdown(HEADER, rows, left=2)}\n\nAll shares of a run add up to 1 within {max(every):.4f}."


if __name__ == "__main__":
    main()
