"""Is BData read as bdpy itself reads it: columns of expressions, labels, and files in both their forms?

    python benchmarks/parity/bdata.py                 compare with the stored fixtures
    python benchmarks/parity/bdata.py --peer CLONE    let bdpy write the files, and what it selects of them, anew

CLONE is a checkout of KamitaniLab/bdpy. Its BData class makes the files and answers every question: what its ``select``
chooses for expressions of random names and operators, and what ``get_labels`` calls each sample. With CLONE, files that this
package writes are read by bdpy as well. Expressions have at most one level of parentheses: within two, bdpy 0.26 ends the
outer one where the inner one ends, and this package does not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import h5py
import numpy as np

from mindtuner.data import Dataset, Stimuli, Subject, Trials
from mindtuner.formats.bdata import write as writer
from mindtuner.formats.bdata.file import BDataFile

FIXTURES = Path(__file__).parents[2] / "tests" / "fixtures" / "bdata"
FILES = ("new.h5", "old.h5")
REGIONS = ("ROI_V1", "ROI_V2", "ROI_V3", "ROI_hV4", "ROI_LOC", "hcp180_r_lh.V1")
SAMPLES, VOXELS, EXPRESSIONS = 12, 15, 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, metavar="CLONE")
    options = parser.parse_args()
    if options.peer:
        write_fixtures(options.peer)
    told = json.loads((FIXTURES / "bdpy.json").read_text())
    print(f"KamitaniLab/bdpy {told['commit'][:7]}\n\n| file | questions | answered alike |\n|---|---:|---:|")
    for name in FILES:
        found = [ours(FIXTURES / name, question) == answer for question, answer in told["answers"][name]]
        print(f"| {name} | {len(found)} | {sum(found)} |")
    if options.peer:
        print(f"\nwritten here and read by bdpy: {'the same' if bdpy_reads_ours(options.peer) else 'NOT THE SAME'}")


def ours(path: Path, question: list[str]) -> object:
    """What this package answers: ["select", expression], ["labels", key], ["column", key] or ["rows", expression]."""
    file = BDataFile(path)
    kind, about = question
    if kind == "select":
        return np.flatnonzero(file.select(about)).tolist()
    if kind == "labels":
        return ["n/a" if label is None else label for label in file.labels(about)]
    if kind == "column":
        return [None if number != number else number for number in file.column(about).tolist()]
    return np.asarray(file.rows[np.arange(len(file))])[:, file.select(about)].tolist()


def theirs(data, question: list[str]) -> object:
    """What bdpy answers."""
    kind, about = question
    if kind == "select":
        return np.flatnonzero(data.select(about, return_index=True)[1]).tolist()
    if kind == "labels":
        return data.get_labels(about)
    found = data.select(about)
    return [None if number != number else number for number in found.ravel().tolist()] if kind == "column" else found.tolist()


def write_fixtures(clone: Path) -> None:
    bdpy = imported(clone)
    FIXTURES.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(27)
    data = made(bdpy, rng)
    data.save(str(FIXTURES / "new.h5"))
    with h5py.File(FIXTURES / "new.h5", "r+") as file:
        del file["header"]  # names the machine and holds the code that called
    with h5py.File(FIXTURES / "new.h5") as new, h5py.File(FIXTURES / "old.h5", "w") as old:
        old["dataSet"] = new["dataset"][()]  # as BrainDecoderToolbox2's save_data calls them
        for name in ("key", "description", "value"):
            old[f"metaData/{name}"] = new[f"metadata/{name}"][()]
    expressions = [expression(rng) for _ in range(EXPRESSIONS)]
    expressions += ["ROI_V*", "ROI_*", "*", "VoxelData", '"ROI_V1" + ROI_V2', "ROI_V1+ROI_V2-ROI_V3", "VoxelData = 0"]
    answers = {}
    for name in FILES:
        read = bdpy.BData(str(FIXTURES / name))
        questions = [["select", text] for text in expressions]
        questions += [["column", key] for key in ("Session", "Run", "stimulus_name", "image_index", "DataType")]
        questions += [["rows", "ROI_V1 + ROI_V2"], ["rows", "VoxelData"]]
        questions += [["labels", "stimulus_name"]] if name == "new.h5" else []
        kept = [(question, theirs(read, question)) for question in questions]
        answers[name] = [(question, answer) for question, answer in kept if answer != []]  # no column at all is refused here
    commit = subprocess.run(["git", "-C", clone, "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    commit = commit or "unknown"
    (FIXTURES / "bdpy.json").write_text(json.dumps({"commit": commit, "answers": answers}) + "\n")


def imported(clone: Path):
    sys.path.insert(0, str(clone))
    warnings.simplefilter("ignore")
    import bdpy

    return bdpy


def made(bdpy, rng: np.random.Generator):
    """Samples as bdpy's own tools make them from fMRIPrep: voxels and regions, sessions, runs, labels with a vmap."""
    data = bdpy.BData()
    data.add(rng.standard_normal((SAMPLES, VOXELS)).round(3), "VoxelData")
    data.add(np.repeat([1, 2], SAMPLES // 2).astype(float), "Session")
    data.add(np.tile([1, 2, 3], SAMPLES // 3).astype(float), "Run")
    data.add(np.tile([1, 1, 2, 3], SAMPLES // 4).astype(float), "DataType")
    shown = np.array([1, 2, 3, 4] * (SAMPLES // 4), float)
    shown[5] = np.nan  # rest
    data.add(shown, "stimulus_name")
    data.add(1518878 + np.arange(SAMPLES) / 1e6, "image_index")
    for name in REGIONS:
        inside = rng.random(VOXELS) < 0.5
        data.add_metadata(name, np.where(rng.random(VOXELS) < 0.1, np.nan, inside.astype(float)), where="VoxelData")
    data.add_metadata("voxel_i", np.arange(VOXELS, dtype=float), where="VoxelData")
    data.add_vmap("stimulus_name", {1: "n01443537_22563", 2: "n01621127_19020", 3: "cat", 4: "été"})
    return data


def expression(rng: np.random.Generator) -> str:
    """One that bdpy's parser reads as it is written."""
    pick = lambda things: things[int(rng.integers(len(things)))]
    term = lambda: pick(REGIONS) + pick(["", "", "", " = 1", " = 0"])
    grouped = lambda: f"({term()} {pick('+|&-')} {term()})" if rng.random() < 0.3 else term()
    text = grouped()
    for _ in range(int(rng.integers(0, 4))):
        text += f"{pick(['', ' '])}{pick('+|&-')}{pick(['', ' '])}{grouped()}"
    return text


def bdpy_reads_ours(clone: Path) -> bool:
    """A dataset written by this package gives bdpy the same betas, regions, labels and sessions."""
    rng = np.random.default_rng(1)
    betas, v1 = rng.standard_normal((6, 5)).astype(np.float32), np.array([True, False, True, False, False])
    stimuli = Stimuli(rng.random((3, 3, 224, 224)).astype(np.float16), [()] * 3, np.array([False, False, True]), "here")
    trials = Trials(np.arange(6), [0, 1, 2, 0, 1, 2], [1, 1, 1, 2, 2, 2], [0, 0, 0, 1, 1, 1], [False, False, True] * 2)
    subject = Subject(1, trials, {"V1": v1}, betas, stimuli.is_shared, "here")
    with tempfile.TemporaryDirectory() as folder:
        writer.write(folder, Dataset(Path(folder), {1: subject}, stimuli, {"zscore": "publisher"}))
        data = imported(clone).BData(str(Path(folder) / "sub-01.h5"))
    return (
        np.array_equal(data.select("VoxelData"), betas)
        and np.array_equal(data.select("ROI_V1"), betas[:, v1])
        and data.get_labels("stimulus_name") == [f"image-{i:06d}.png" for i in trials.stimulus]
        and np.array_equal(data.select("Session").ravel(), trials.session)
        and np.array_equal(data.select("DataType").ravel() == 2, trials.is_test)
    )


if __name__ == "__main__":
    main()
