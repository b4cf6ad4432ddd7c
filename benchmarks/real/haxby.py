"""Which of eight categories did a person see? Haxby's experiment, one slice, labels without pictures.

    git clone https://github.com/PyMVPA/PyMVPA CLONE
    python benchmarks/real/haxby.py CLONE OUT [--write benchmarks/results/haxby.md]

Haxby et al. (Science 2001) showed a person faces, houses, cats, bottles, scissors, shoes, chairs and scrambled pictures, one
block of each in each of 12 runs. ``mvpa2/data`` of CLONE holds the posterior half of one axial slice, and the label of each
volume. Which pictures a block showed is not among it, so the text of the label is what is decoded.

Each run's volumes are freed of a line in time and z-scored by those of its rest; a trial is the mean of a block's volumes.
OUT/data is then a lab's folder without pictures (docs/your-own-scans.md). Each run in turn is left out:

    mindtuner fit OUT/data OUT/fit --leave run
    mindtuner evaluate OUT/fit OUT/data OUT/report

Beside it stands ``nearest mean pattern``: the category whose mean over the training blocks correlates best with the block,
much as the paper compared patterns, and computed here without the package. ``shuffled_brain`` was fitted to permuted blocks.
Chance is one eighth. p pairs answers and blocks of a run at random; intervals resample runs, and blocks in them.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import nibabel
import numpy as np
from scipy.signal import detrend

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pages import markdown, write_between

import mindtuner
from mindtuner.evaluation.scores.categories import category_block
from mindtuner.files import write_json, write_text
from mindtuner.pipeline import Results

FOLDER = Path("mvpa2/data")
BOLD, LABELS = FOLDER / "bold.nii.gz", FOLDER / "attributes_literal.txt"
REST = "rest"
NAMES = {"scrambledpix": "scrambled picture"}  # what else a label is called in words
BASELINE = "nearest mean pattern"
METHODS = ("ridge", "shuffled_brain")


def read(clone: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Volumes (n, voxels) where there is signal, their labels (n,) and their runs (n,), from 0."""
    for name in (BOLD, LABELS):
        if not (clone / name).is_file():
            raise SystemExit(f"{clone / name}: not found; expected a clone of PyMVPA/PyMVPA")
    volumes = np.asarray(nibabel.load(clone / BOLD).dataobj, np.float64)
    volumes = volumes.reshape(-1, volumes.shape[-1]).T
    labels, runs = np.array([line.split() for line in (clone / LABELS).read_text().splitlines() if line]).T
    if len(labels) != len(volumes):
        raise SystemExit(f"{clone / LABELS}: {len(labels)} lines; expected {len(volumes)}, as {BOLD.name} has volumes")
    return volumes[:, volumes.std(0) > 0], labels, runs.astype(int)


def blocks(volumes: np.ndarray, labels: np.ndarray, runs: np.ndarray) -> tuple[np.ndarray, list[str], np.ndarray]:
    """A trial of each block: its mean response (b, voxels), its label, and its run.

    >>> volumes = np.array([[0.0], [2.0], [9.0], [11.0], [0.0], [2.0], [5.0]])
    >>> found = blocks(volumes, np.array(["rest", "rest", "cat", "cat", "rest", "rest", "dog"]), np.zeros(7, int))
    >>> found[1], found[2].tolist()
    (['cat', 'dog'], [0, 0])
    """
    clean = np.empty_like(volumes)
    for run in np.unique(runs):
        own = detrend(volumes[runs == run], axis=0)
        rest = own[labels[runs == run] == REST]
        clean[runs == run] = (own - rest.mean(0)) / np.maximum(rest.std(0), 1e-9)
    changes = np.flatnonzero((labels[1:] != labels[:-1]) | (runs[1:] != runs[:-1])) + 1
    parts = [part for part in np.split(np.arange(len(labels)), changes) if labels[part[0]] != REST]
    return (
        np.stack([clean[part].mean(0) for part in parts]),
        [NAMES.get(labels[part[0]], str(labels[part[0]])) for part in parts],
        runs[[part[0] for part in parts]],
    )


def nearest_mean_pattern(betas: np.ndarray, labels: list[str], runs: np.ndarray) -> list[str]:
    """The label whose mean over the other runs correlates best with each block."""
    labels = np.array(labels)
    names, said = np.unique(labels), np.empty(len(labels), labels.dtype)
    for run in np.unique(runs):
        train, test = runs != run, runs == run
        centre = betas[train].mean(0)
        means = np.stack([(betas[train & (labels == name)] - centre).mean(0) for name in names])
        close = np.corrcoef(np.vstack([betas[test] - centre, means]))[: test.sum(), test.sum() :]
        said[test] = names[close.argmax(1)]
    return said.tolist()


def folder_of(clone: Path, out: Path) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Write the lab's folder where it is missing; the blocks."""
    betas, labels, runs = blocks(*read(clone))
    folder = out / "data"
    if not (folder / "dataset.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        rows = [f"{label}\t1\t{run + 1}" for label, run in zip(labels, runs, strict=True)]
        write_text(folder / "trials.tsv", "\n".join(["label\tsession\trun", *rows]) + "\n")
        np.save(folder / "betas.npy", betas.astype(np.float32))
        write_json(folder / "dataset.json", {"dataset": "Haxby 2001, one slice"})
    return betas, labels, runs


def measure(out: Path, seed: int) -> Results:
    dataset = mindtuner.load(out / "data")
    features = mindtuner.embed(dataset, out / "cache")
    fitted = mindtuner.fit_folds(dataset, 1, features, "run", methods=METHODS, seed=seed, out=out / "fit")
    if (out / "report" / "results.json").is_file():
        return Results.load(out / "report")
    return mindtuner.evaluate_folds(fitted, dataset, features, out=out / "report")


def table(results: Results, betas: np.ndarray, labels: list[str], runs: np.ndarray, seed: int) -> str:
    """A row a method with its accuracy, and one a category with that of each method."""
    plain = category_block(labels, nearest_mean_pattern(betas, labels, runs), runs, seed)
    found = {name: results.run.results["categories"][name] for name in METHODS} | {BASELINE: plain}
    rows = [
        [
            name,
            "{:.3f} [{:.3f}, {:.3f}]".format(one["accuracy"]["value"], *one["accuracy"]["ci95"]),
            f"{one['accuracy']['chance']:.3f}",
            f"{one['accuracy']['p']:.4f}",
        ]
        for name, one in found.items()
    ]
    by_category = [
        [name, f"{plain['own'][name]['images']}", *(f"{one['own'][name]['accuracy']:.2f}" for one in found.values())]
        for name in plain["names"]
    ]
    ridge = found["ridge"]
    confusions = [
        [name, *(f"{count}" for count in row)] for name, row in zip(ridge["names"], ridge["confusion"], strict=True)
    ]
    return "\n\n".join(
        [
            f"{len(labels)} blocks of {betas.shape[1]} voxels, {len(np.unique(runs))} runs.",
            markdown(["method", "accuracy [95 %]", "chance", "p"], rows),
            markdown(["category", "blocks", *found], by_category),
            "What `ridge` said (columns) of each category (rows):",
            markdown(["", *ridge["names"]], confusions),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clone", type=Path, metavar="CLONE", help="of PyMVPA/PyMVPA")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, metavar="FILE", help="a page with marks for the table")
    options = parser.parse_args()
    trials = folder_of(options.clone, options.out)
    text = table(measure(options.out, options.seed), *trials, options.seed)
    print(text)
    if options.write:
        write_between(options.write, "haxby", text)


if __name__ == "__main__":
    main()
