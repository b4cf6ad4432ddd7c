"""The published table: its numbers are read as they stand, and runs stand beside it without being ranked among it."""

import csv
from importlib import resources

import numpy as np
import pytest

from mindtuner.errors import UserError
from mindtuner.evaluation import published
from mindtuner.evaluation.results import Run


def run_of(simulated, score=0.9, sessions=1, picture="corrected"):
    method = {
        "retrieval": {"image": score, "brain": 0.5, "text": 0.25},
        "reconstruction": {"pixcorr": 0.3, "two_way": 0.8},
        "picture": picture,
        "ci95": {
            "retrieval": {"image": [0.85, 0.95], "brain": [0.4, 0.6], "text": [0.2, 0.3]},
            "reconstruction": {"pixcorr": [0.25, 0.35], "two_way": [0.7, 0.9]},
        },
    }
    setting = {"simulated_brains": simulated, "subject": 1, "sessions": sessions, "n_training_trials": 450, "seed": 3}
    setting["dataset"] = None if simulated else "NSD"
    pictures = {"seen": np.zeros((4, 3, 128, 128), np.uint8), "thumbnails": np.zeros((9, 3, 8, 8), np.uint8)}
    return Run({"setting": setting, "methods": {"mindtuner": method}}, pictures, {}, {}, [])


def test_every_number_of_the_file_is_read_with_its_source():
    text = resources.files("mindtuner.evaluation").joinpath("published.csv").read_text(encoding="utf-8")
    lines = list(csv.reader(text.splitlines()))
    found = published.rows()
    assert len(found) == len(lines) - 1 == 22
    for row, line in zip(found, lines[1:], strict=True):
        cells = dict(zip(lines[0], line, strict=True))
        assert row["seen_in"] == cells["seen_in"] != ""
        assert {key: str(value) for key, value in row["scores"].items()} == {
            key: str(float(cells[key])) for key in published.COLUMNS if cells[key]
        }
    one_hour = next(row for row in found if row["method"] == "MindTuner" and row["hours"] == 1)
    assert one_hour["scores"]["image_retrieval"] == 0.831 and one_hour["scores"]["alexnet5"] == 0.936
    none = next(row for row in found if row["method"] == "ZEBRA")
    assert "image_retrieval" not in none["scores"]  # an empty cell is no number


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ("0.322,0.431", "0.322,1.431", "line 2: ssim is '1.431'"),
        ("0.322,0.431", "0.322,?", "line 2: ssim is '\\?'"),
        ("MindEye2,ICML 2024,40", "MindEye2,ICML 2024,forty", "line 2: hours is 'forty'"),
        ("MindEye2,ICML 2024,40", "MindEye2,,40", "line 2: venue is empty"),
        ("MindEye2,ICML 2024,40,mean 1 2 5 7,", "MindEye2,ICML 2024,40,mean 1 2 5 7,perhaps", "refined is 'perhaps'"),
        ("MindTuner,AAAI 2025,40", "MindEye2,ICML 2024,40", "line 3: MindEye2 at 40 hours stands there already"),
        ("method,venue", "name,venue", "columns are"),
        ("0.619,0.344,,", "0.619,0.344,", "line 2: has not 16 fields"),
    ],
)
def test_a_broken_table_is_refused(old, new, named):
    text = resources.files("mindtuner.evaluation").joinpath("published.csv").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match=named):
        published.parse(text.replace(old, new, 1))


def test_runs_stand_apart_and_are_not_sorted_by_score():
    best = run_of(True, score=0.99)
    found = published.table([best, run_of(False, 0.2, sessions=2, picture="reconstructed"), run_of(True, 0.1)])
    assert [row["group"] for row in found["rows"]] == ["published"] * 22 + ["real"] + ["simulated"] * 2
    assert [row["data"] for row in found["rows"]] == ["real"] * 23 + ["simulated"] * 2
    real, first, second = found["rows"][22:]
    assert "2 sessions (450 trials)" in real["setting"] and "not refined" in real["setting"]
    assert "9 test images" in first["setting"] and "4 pictures at 128 px" in first["setting"]
    assert (first["cells"]["image_retrieval_of_9"], second["cells"]["image_retrieval_of_9"]["value"]) == (
        {"value": 0.99, "ci": [0.85, 0.95]},
        0.1,
    )
    assert "image_retrieval" not in first["cells"]  # 1 of 9 is not 1 of 300
    assert all(cell["ci"] is not None for row in found["rows"][22:] for cell in row["cells"].values())  # no bare mean of ours
    keys = [column["key"] for column in found["columns"]]
    assert keys[: len(published.COLUMNS)] == list(published.COLUMNS)
    assert set(keys[len(published.COLUMNS) :]) == {"two_way", *(f"{d}_retrieval_of_9" for d in ("image", "brain", "text"))}
    assert all(set(row["cells"]) <= set(keys) for row in found["rows"])


@pytest.mark.parametrize("n", [300, 1000])
def test_retrieval_among_300_stands_beside_the_published(n):
    run = run_of(False)
    run.pictures["thumbnails"] = np.zeros((n, 3, 1, 1), np.uint8)
    own = run.results["methods"]["mindtuner"]
    if n > 300:
        own["retrieval_pools"] = {
            d: [{"pool": n, "top1": own["retrieval"][d]}, {"pool": 300, "top1": 0.95}] for d in ("image", "brain", "text")
        }
    cells = published.table([run])["rows"][-1]["cells"]
    expected = {"value": 0.9, "ci": [0.85, 0.95]}
    assert cells["image_retrieval"] == (expected if n == 300 else {"value": 0.95, "ci": None})
    assert cells.get("image_retrieval_of_1000") == (None if n == 300 else expected)
    assert f"text_retrieval_of_{n}" in cells and "text_retrieval" not in cells


def test_scores_that_papers_call_otherwise_stand_in_their_columns():
    run = run_of(False)
    own = run.results["methods"]["mindtuner"]
    own["reconstruction"]["efficientnet_b1"], own["ci95"]["reconstruction"]["efficientnet_b1"] = 0.6, [0.5, 0.7]
    assert published.table([run])["rows"][-1]["cells"]["effnet"] == {"value": 0.6, "ci": [0.5, 0.7]}
    assert published.label("reconstruction", "efficientnet_b1") == "EffNet-B1 (lower is better)"


def test_the_markdown_says_data_and_setting_and_neither_ranks_nor_marks():
    text = published.markdown(published.table([run_of(True)]))
    lines = text.splitlines()
    assert len({len(line) for line in lines}) == 1 and len({line.count("|") for line in lines}) == 1
    assert not set("*↑↓▲▼<") & set(text)
    assert [line.strip("| ") for line in lines].count("") == 1  # between the published and the simulated
    ours = [cell.strip() for cell in lines[-1].strip("|").split("|")]
    assert ours[1] == "simulated" and "0.900 [0.850, 0.950]" in ours and lines[-2].strip("| ") == ""
    assert all("hour" in line and "not stated" in line for line in lines[2:-2])


@pytest.mark.parametrize("dataset", [None, "Haxby 2001", "missing"])
def test_measured_runs_of_other_data_do_not_stand_under_nsds_numbers(dataset):
    other, simulated = run_of(False), run_of(True)
    other.results["setting"]["dataset"] = dataset
    if dataset == "missing":  # a run from before it was kept
        del other.results["setting"]["dataset"]
    assert not published.is_of_nsd(other) and published.is_of_nsd(run_of(False)) and published.is_of_nsd(simulated)
    with pytest.raises(UserError, match="run 2: results.json: setting.dataset is .*; expected NSD"):
        published.table([simulated, other])


def test_a_run_without_the_method_or_its_setting_is_refused():
    with pytest.raises(UserError, match="run 1: results.json: methods.ridge_only is missing; expected one of mindtuner"):
        published.table([run_of(True)], "ridge_only")
    run = run_of(True)
    del run.results["setting"]["simulated_brains"]
    with pytest.raises(UserError, match="run 1: results.json: setting.simulated_brains is missing"):
        published.table([run])
