"""benchmarks/real/haxby.py: trials of blocks, a folder of labels, and what it refuses."""

import runpy
import sys

import nibabel
import numpy as np
import pytest
from paths import ROOT

import mindtuner

SCRIPT = ROOT / "benchmarks" / "real" / "haxby.py"
LABELS, RUNS, VOLUMES = ("face", "scrambledpix", "cat"), 3, 6


@pytest.fixture(scope="module")
def script():
    before = list(sys.path)
    yield runpy.run_path(str(SCRIPT))
    sys.path[:] = before


@pytest.fixture
def clone(script, tmp_path):
    """Made-up volumes in the form of the files: a block of each label in each run between rests, on a drift."""
    rng, lines, volumes = np.random.default_rng(0), [], []
    for run in range(RUNS):
        for label in (*np.repeat(["rest", LABELS[0], "rest", LABELS[1], "rest", LABELS[2], "rest"], VOLUMES),):
            drift = 3.0 * len(lines)
            effect = LABELS.index(label) * 40 if label in LABELS else 0
            volumes.append(1000 + drift + rng.normal(size=(4, 5, 1)) + effect * (np.arange(20) < 10).reshape(4, 5, 1))
            lines.append(f"{label} {run}")
    bold = np.stack(volumes, -1)
    bold[0, 0] = 7  # no signal
    (tmp_path / script["FOLDER"]).mkdir(parents=True)
    nibabel.save(nibabel.Nifti1Image(bold.astype(np.float32), np.eye(4)), tmp_path / script["BOLD"])
    (tmp_path / script["LABELS"]).write_text("\n".join(lines) + "\n")
    return tmp_path


def test_each_block_is_a_trial_of_its_run(script, clone, tmp_path):
    betas, labels, runs = script["folder_of"](clone, tmp_path / "out")
    assert labels == ["face", "scrambled picture", "cat"] * RUNS and runs.tolist() == np.repeat(range(RUNS), 3).tolist()
    assert betas.shape == (len(labels), 19)  # without the voxel that has no signal
    dataset = mindtuner.load(tmp_path / "out" / "data")
    assert dataset.subject(1).trials.run.tolist() == (runs + 1).tolist() and not dataset.stimuli.pictured
    assert {group[0] for group in dataset.stimuli.captions} == set(labels)


def test_the_nearest_mean_pattern_is_that_of_other_runs(script):
    rng = np.random.default_rng(1)
    labels, runs = ["a", "b", "c"] * 4, np.repeat(range(4), 3)
    means = rng.normal(size=(3, 50))
    betas = means[np.arange(12) % 3] + 0.1 * rng.normal(size=(12, 50))
    assert script["nearest_mean_pattern"](betas, labels, runs) == labels
    moved = betas.copy()
    moved[0] = betas[1]  # a block that looks like another category is taken for it
    assert script["nearest_mean_pattern"](moved, labels, runs)[0] == "b"


def test_what_is_no_clone_is_refused(script, tmp_path):
    with pytest.raises(SystemExit, match="bold.nii.gz: not found; expected a clone of PyMVPA/PyMVPA"):
        script["read"](tmp_path)
