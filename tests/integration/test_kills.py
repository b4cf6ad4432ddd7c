"""Verbs killed at any write go on to the same files; the long form is benchmarks/kills.py."""

import subprocess
import sys

import pytest
from paths import ROOT

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform not in ("linux", "darwin"), reason="forks"),
]


def test_a_killed_verb_goes_on_to_the_same_files_and_leaves_nothing(tmp_path):
    words = [ROOT / "benchmarks" / "kills.py", tmp_path, "--kills", 7, "--verbs", "simulate", "evaluate"]
    ran = subprocess.run([sys.executable, *map(str, words)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in ran.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["simulate", "evaluate", "all"]
    assert all(int(row[1]) > 20 for row in rows[:-1])  # places where a kill may fall
    failures = (tmp_path / "failures.jsonl").read_text()
    assert int(rows[-1][2]) >= 7 and rows[-1][4:] == ["0"] * 4, failures
