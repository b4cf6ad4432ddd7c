"""BData against bdpy's own answers, which benchmarks/parity/bdata.py has stored."""

import json

import pytest
from release import script

parity = script("parity/bdata")
TOLD = json.loads((parity.FIXTURES / "bdpy.json").read_text())["answers"]


@pytest.mark.parametrize("name", parity.FILES)
def test_files_of_both_forms_are_read_as_bdpy_reads_them(name):
    kinds = {}
    for question, answer in TOLD[name]:
        assert parity.ours(parity.FIXTURES / name, question) == answer, question
        kinds[question[0]] = kinds.get(question[0], 0) + 1
    assert kinds["select"] > 100 and kinds["column"] == 5 and kinds["rows"] == 2
    assert kinds.get("labels", 0) == (name == "new.h5")


def test_another_answer_would_be_seen():
    wrong = [
        question
        for question, answer in TOLD["new.h5"]
        if parity.ours(parity.FIXTURES / "new.h5", ["select", "ROI_V1"]) != answer
    ]
    assert len(wrong) > 100
