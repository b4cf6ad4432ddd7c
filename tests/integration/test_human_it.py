"""benchmarks/real/human_it.py: responses from correlations, folders of a lab from their files, and what it refuses."""

import runpy
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from paths import ROOT
from scipy import stats
from scipy.io import savemat

from mindtuner.decoding.decoder import Predictions

SCRIPT = ROOT / "benchmarks" / "real" / "human_it.py"
IMAGES = 92


@pytest.fixture(scope="module")
def script():
    before = list(sys.path)
    yield runpy.run_path(str(SCRIPT))
    sys.path[:] = before


@pytest.fixture(scope="module")
def clone(script, tmp_path_factory):
    """Made-up brains and pictures in the form of the files; and the correlations."""
    root, rng = tmp_path_factory.mktemp("clone"), np.random.default_rng(0)
    (root / script["FOLDER"]).mkdir(parents=True)
    found = np.array([[np.corrcoef(rng.normal(size=(IMAGES, 200))) for _ in range(2)] for _ in range(4)])
    brains = np.empty((1, 4, 2), [("RDM", object), ("name", object)])
    for person in range(4):
        for session in range(2):
            brains[0, person, session] = (1 - found[person, session], "hIT")
    shown = np.empty((1, IMAGES), [("category", object), ("image", object)])
    for k in range(IMAGES):
        shown[0, k] = (f"category {k % 6}", rng.integers(0, 256, (175, 175, 3), np.uint8))
    savemat(root / script["BRAINS"], {"RDMs": brains})
    savemat(root / script["PICTURES"], {"stimuli_92objs": shown})
    return root, found


def test_a_folder_holds_responses_with_the_inner_products_that_were_measured(script, clone, tmp_path):
    root, correlations = clone
    dataset = script["folder_of"](root, tmp_path, 1, 5)
    assert sorted(dataset.subjects) == [1, 2, 3, 4] and dataset.card["zscore"] == "train_trials"
    for person in range(4):
        subject = dataset.subject(person + 1)
        assert subject.n_voxels == 2 * IMAGES and len(subject.test) == 20 and len(subject.train) == 72
        stored = np.load(tmp_path / "split-1" / f"sub-{person + 1:02d}" / "betas.npy").astype(float)
        for session in range(2):
            half = stored[:, session * IMAGES : (session + 1) * IMAGES]
            np.testing.assert_allclose(half @ half.T, correlations[person, session], atol=1e-5)
    assert dataset.stimuli.captions[7] == ("category 1",)
    tested = [set(np.flatnonzero(script["split"](k, 5, IMAGES))) for k in range(5)]
    assert all(len(one) == 20 for one in tested) and set.union(*tested) == set(range(IMAGES))
    assert tested[1] == set(np.unique(dataset.subject(1).test.stimulus))


def test_two_way_is_the_share_of_others_that_are_less_alike(script):
    tokens = np.eye(3)[:, None]
    said = np.array([[1.0, 0.5, 0.0], [0.9, 0.5, 0.1], [1.0, 1.0, 1.0]])[:, None]
    found = Predictions(np.arange(3), said, said, None, np.zeros((3, 1)))
    assert script["two_way"](found, tokens) == [1.0, 0.5, 0.5]  # ties count half
    shifted = Predictions(np.arange(3), said, said, None, np.zeros((3, 1)), np.full((1, 3), 5.0))
    assert script["two_way"](shifted, tokens + 5) == [1.0, 0.5, 0.5]


def test_what_is_no_clone_is_refused(script, tmp_path):
    with pytest.raises(SystemExit, match="92_brainRDMs.mat: not found; expected a clone of rsagroup/rsatoolbox"):
        script["read"](tmp_path)


def test_a_permutation_counts_once_for_all_people(script, tmp_path):
    """Two splits, three permutations each, that people share: six numbers; a mean over two splits varies by sd/sqrt(2)."""
    options = SimpleNamespace(out=tmp_path, config="demo", splits=2)
    rng = np.random.default_rng(0)
    drawn = rng.normal(0.5, 0.1, (2, 3))
    done, chance = script["results"](tmp_path, options), script["shuffles"](tmp_path, options)
    for person in ("BE", "KO"):
        for split in range(2):
            scores = {"shuffled_brain": [0.6, 0.6], "mindtuner": [0.9, 0.9], "ridge": [0.8, 0.8]}
            done.add(person=person, split=split, images=[2 * split, 2 * split + 1], scores={"raw": scores, "centred": scores})
            for seed in range(3):
                value = drawn[split, seed] + (0.1 if person == "BE" else -0.1)
                for method in ("shuffled_brain", "shuffled_ridge"):
                    chance.add(person=person, split=split, method=method, seed=seed, two_way=value)
    row = script["over_shuffles"](done, ["BE", "KO"], options).splitlines()[2]
    spread = drawn.std(ddof=1) / np.sqrt(2)
    low, high = stats.ttest_1samp(drawn.ravel(), 0).confidence_interval()
    p = [stats.t.sf((value - 0.5) / spread, 5) for value in (0.6, 0.9)]
    numbers = ["6", f"{drawn.mean():.3f} [{low:.3f}, {high:.3f}]", f"{spread:.3f}", f"{p[0]:.3f}", f"{p[1]:.0e}"]
    assert [cell.strip() for cell in row.split("|")[1:-1]] == ["shuffled_brain", *numbers]
