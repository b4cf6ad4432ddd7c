"""The table of finished demos, one per simulator seed.

    for seed in 0 1 2; do mindtuner demo --seed $seed --out runs/demo-$seed; done
    python benchmarks/demo_table.py runs/demo-0 runs/demo-1 runs/demo-2 [--write README.md]

Each cell is the mean over runs with the standard deviation over runs behind it. ``--write`` puts the table between the
file's ``results:begin`` and ``results:end`` comments.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from pages import markdown, spread, write_between

from mindtuner.evaluation.results import load_run

COLUMNS = {"retrieval": ("image", "brain", "text"), "reconstruction": ("pixcorr", "ssim", "two_way", "objects")}
DRAWN = ("pixcorr", "ssim", "objects")  # whose chance is that of random pairs
TITLES = ("image retrieval", "brain retrieval", "text retrieval", "PixCorr", "SSIM", "two-way", "objects")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    runs = [load_run(folder).results for folder in options.runs]
    text = table(runs)
    print(text)
    if options.write:
        write_between(options.write, "results", text)


def table(runs: list[dict]) -> str:
    """Markdown: one row a method, then chance, then what the rows were measured on."""
    rows = [
        [
            method,
            *(cell([run["methods"][method][part][key] for run in runs]) for part, keys in COLUMNS.items() for key in keys),
        ]
        for method in runs[0]["methods"]
    ]
    chance = [cell([run["chance"]["retrieval"][key] for run in runs]) for key in COLUMNS["retrieval"]]
    drawn = {key: cell([run["chance"]["reconstruction"][key]["mindtuner"] for run in runs]) for key in DRAWN}
    rows.append(["*chance*", *chance, *(drawn.get(key, "0.500") for key in COLUMNS["reconstruction"])])
    setting = runs[0]["setting"]
    seconds = [run["timing_s"]["total"] for run in runs]
    memory = max(run["peak_memory_mb"] for run in runs)
    seeds = ", ".join(str(run["setting"]["seed"]) for run in runs)
    took = f"{min(seconds):.0f} to {max(seconds):.0f}" if len(runs) > 1 else f"{seconds[0]:.0f}"
    note = (
        f"Simulator seeds {seeds}: mean (sd over seeds). Subject {setting['subject']}, {setting['sessions']} session, "
        f"{setting['n_training_trials']} training trials, {setting['voxels']} voxels; retrieval among "
        f"{setting['n_test_images']} images, pictures scored on {setting['n_pictures']}. {took} s a "
        f"run, at most {memory / 1000:.1f} GB. Brains and scenes are simulated."
    )
    return f"{markdown(['method', *TITLES], rows)}\n\n{note}"


def cell(values: list[float]) -> str:
    """Mean (sd) of the runs, or the one value that all have."""
    return spread(values if max(values) > min(values) else values[:1])


if __name__ == "__main__":
    main()
