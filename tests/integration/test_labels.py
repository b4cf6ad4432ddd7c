"""Labels without pictures: a lab's folder of categories alone, from check to decoded words, and what needs pictures."""

import numpy as np
import pandas as pd
import pytest
from commands import call, refused
from sklearn.metrics import confusion_matrix

import mindtuner
from mindtuner.evaluation.results import load_run
from mindtuner.training.ridge import ridge_regression

pytestmark = pytest.mark.slow
LABELS, RUNS, EACH, VOXELS = ("face", "house", "cat", "shoe"), 6, 2, 30


def write(root, table, seed=0, noise=2.0):
    """Responses to four labels; each run shows each of them twice."""
    rng = np.random.default_rng(seed)
    root.mkdir()
    labels = np.tile(np.repeat(LABELS, EACH), RUNS)
    runs = np.repeat(np.arange(RUNS) + 1, len(LABELS) * EACH)
    means = dict(zip(LABELS, rng.normal(size=(len(LABELS), VOXELS)), strict=True))
    betas = np.stack([means[label] for label in labels]) + noise * rng.normal(size=(len(labels), VOXELS))
    np.save(root / "betas.npy", betas.astype(np.float32))
    lines = [
        table["header"],
        *(table["row"].format(label=a, run=b, k=k) for k, (a, b) in enumerate(zip(labels, runs, strict=True))),
    ]
    (root / "trials.tsv").write_text("\n".join(lines) + "\n")
    return labels, runs, betas


BY_LABEL = {"header": "onset\ttrial_type\tsession\trun", "row": "{k}\t{label}\t1\t{run}"}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    root = tmp_path_factory.mktemp("labels") / "study"
    found = write(root, BY_LABEL)
    assert call("fit", root, root.parent / "fit", "--leave", "run") == 0
    assert call("evaluate", root.parent / "fit", root, root.parent / "report") == 0
    return root, *found


def test_check_accepts_labels_and_says_what_they_allow(study, capsys):
    root, *_ = study
    assert call("check", root) == 0
    said = capsys.readouterr().out
    assert "48 stimuli of 4 labels, without pictures: cat, face, house and 1 more" in said
    assert "pretrain, tune and all that paints need pictures" in said and "no such column: all trials train" in said
    assert "runs of 48 trials" in said


def test_each_trial_is_a_stimulus_of_its_own_and_is_tested_once(study):
    root, labels, *_ = study
    dataset = mindtuner.load(root)
    assert len(dataset.stimuli) == len(labels) == len(set(dataset.stimuli.names)) and not dataset.stimuli.pictured
    for row, stimulus in enumerate(dataset.subject(1).trials.stimulus):
        assert dataset.stimuli.captions[stimulus] == (labels[row],)
        assert dataset.stimuli.names[stimulus] == f"{labels[row]}-{row + 2:04d}"
    assert sorted(load_run(root.parent / "report").per_image["images"].tolist()) == list(range(len(labels)))


def test_categories_are_those_of_a_regression_to_the_text_of_the_labels(study):
    """A second way: betas z-scored by hand, a ridge onto the embeddings, the nearest centred label."""
    root, labels, runs, betas = study
    text = dict(zip(LABELS, mindtuner.towers.compact.CompactTextEncoder().embed(list(LABELS)), strict=True))
    wanted, said = np.stack([text[label] for label in labels]).astype(np.float64), np.empty(len(labels), "U9")
    for run in np.unique(runs):
        train, test = runs != run, runs == run
        x = (betas - betas[train].mean(0)) / betas[train].std(0)
        ids = np.argsort(np.argsort([f"{label}-{k + 2:04d}" for k, label in enumerate(labels)]))
        fit = ridge_regression(x[train], wanted[train], ids[train], 0)
        centre = wanted[train].mean(0)
        decoded = x[test] @ fit.weight + fit.intercept - (x[train] @ fit.weight + fit.intercept).mean(0)
        other = np.stack([text[name] - centre for name in LABELS])
        close = decoded @ other.T / np.linalg.norm(other, axis=1)
        said[test] = np.array(LABELS)[close.argmax(1)]
    found = load_run(root.parent / "report").results["categories"]["ridge"]
    expected = confusion_matrix(labels, said, labels=found["names"])
    assert np.abs(np.array(found["confusion"]) - expected).sum() <= 2  # of what is all but a tie
    assert found["accuracy"]["value"] > 0.6 > found["accuracy"]["chance"] == pytest.approx(0.25)
    assert found["accuracy"]["p"] < 0.01
    shuffled = load_run(root.parent / "report").results["categories"]["shuffled_brain"]
    assert shuffled["accuracy"]["value"] < 0.5


def test_tables_and_page_say_words_and_confusions(study):
    root, labels, *_ = study
    table = pd.read_csv(root.parent / "report" / "decoded.csv")
    right = (table["category"] == table["seen"]).mean()
    found = load_run(root.parent / "report").results["categories"]["ridge"]
    assert right == pytest.approx(found["accuracy"]["value"], abs=1e-6)
    assert set(table["caption"]) <= set(LABELS) and (table["caption"] == table["seen"]).mean() > 0.5
    counts = pd.read_csv(root.parent / "report" / "confusion.csv")
    own = counts[counts["method"] == "ridge"].pivot(index="seen", columns="decoded", values="images")
    np.testing.assert_array_equal(own.to_numpy(), found["confusion"])
    page = (root.parent / "report" / "report.html").read_text(encoding="utf-8")
    assert "Captions are categories here" in page and "confusion.csv" in page and "<dt>of images found" in page


def test_a_split_of_the_table_is_fitted_evaluated_and_decoded(tmp_path):
    table = {"header": "stimulus\tlabel\tsession\tsplit", "row": "{label}_{k}\t{label}\t{run}\t"}
    labels, runs, _ = write(tmp_path / "study", table)
    lines = (tmp_path / "study" / "trials.tsv").read_text().splitlines()
    split = ["test" if run > 4 else "train" for run in runs]
    (tmp_path / "study" / "trials.tsv").write_text("\n".join([lines[0], *map(str.__add__, lines[1:], split)]) + "\n")
    assert call("fit", tmp_path / "study", tmp_path / "fit") == 0
    assert call("evaluate", tmp_path / "fit", tmp_path / "study", tmp_path / "report") == 0
    assert call("decode", tmp_path / "fit", tmp_path / "study", tmp_path / "decoded") == 0
    table = pd.read_csv(tmp_path / "decoded" / "decoded.csv")
    assert len(table) == split.count("test") and (table["caption"] == table["seen"]).mean() > 0.5
    assert load_run(tmp_path / "report").results["categories"]["ridge"]["accuracy"]["value"] > 0.5


def test_what_needs_pictures_says_so_in_one_line(study, tmp_path, capsys):
    root, *_ = study
    for argv in (
        ["pretrain", root, tmp_path / "out"],
        ["fit", root, tmp_path / "out", "--method", "from_scratch"],
        ["evaluate", root.parent / "fit", root, tmp_path / "out", "--pictures", 3],
        ["train-generator", tmp_path / "out", "--stimuli", root],
    ):
        refused(capsys, argv, "pictures" if argv[0] != "train-generator" else "", "expected")


def test_labels_that_cannot_be_used_are_one_line(tmp_path, capsys):
    table = {"header": "stimulus\tlabel\tsession", "row": "one\t{label}\t1"}
    write(tmp_path / "two", table)
    refused(capsys, ["fit", tmp_path / "two", tmp_path / "out"], "line 4, label is 'house'; expected 'face', as 'one' has")
    write(tmp_path / "none", {"header": "stimulus\tsession", "row": "one\t1"})
    refused(capsys, ["fit", tmp_path / "none", tmp_path / "out"], "holds neither stimuli/ nor stimuli.hdf5", "a column label")
