"""The notebook of the whole path runs, in an empty folder, and leaves what it says."""

import json

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient
from paths import ROOT

NOTEBOOK = ROOT / "examples" / "whole_path.ipynb"


def text_of(cell):
    """What a cell printed or returned."""
    return "".join(
        output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.get("outputs", [])
    )


def test_it_is_kept_without_outputs():
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"] == [] and cell["execution_count"] is None)


@pytest.mark.slow
def test_it_runs_from_the_first_cell_to_the_last(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": tmp_path}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    said = " ".join(map(text_of, cells))
    assert "Dataset mystudy: 3 simulated subjects" in said and "Subject 1" in said
    decoded = pd.read_csv(tmp_path / "scores" / "decoded.csv")
    first, confidence = (decoded["rank"] == 1).mean(), decoded["confidence"].mean()
    assert f"found first: {first:.2f}, by the confidence: {confidence:.2f}" in said
    assert set(decoded["stimulus"]) == {
        line.split("\t")[0]
        for line in (tmp_path / "mystudy" / "sub-01" / "trials.tsv").read_text().splitlines()
        if line.endswith("\ttest")
    }
    scores = pd.read_csv(tmp_path / "scores" / "scores.csv")
    means = scores.groupby("method")["retrieval_image"].mean()
    results = json.loads((tmp_path / "scores" / "results.json").read_text())
    for method, own in results["methods"].items():
        assert np.isclose(means[method], own["retrieval"]["image"], atol=1e-5)
    assert (tmp_path / "maps" / "voxels.csv").is_file() and (tmp_path / "scores" / "report.html").is_file()
