"""Every script of benchmarks/ starts, names the command that its page of results quotes, and goes on where it was stopped."""

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from children import free_port
from paths import ROOT
from worlds import tiny_config

from mindtuner.config import as_dict

FOLDER = ROOT / "benchmarks"
SHARED = ("pages", "planted", "release", "sides", "world")  # what scripts share, no commands
SCRIPTS = sorted(path for path in FOLDER.rglob("*.py") if path.stem not in SHARED)

HELP = """
import contextlib, io, json, pathlib, runpy, sys
from mindtuner import runtime  # torch's threads and the rest once, as every script has them
found, first = {}, list(sys.path)
for path in sys.argv[1:]:
    said, sys.argv[:], sys.path[:] = io.StringIO(), [path, "--help"], [str(pathlib.Path(path).parent), *first]
    try:
        with contextlib.redirect_stdout(said):
            runpy.run_path(path, run_name="__main__")
        found[path] = "ran on"
    except SystemExit as stop:
        found[path] = said.getvalue() if stop.code == 0 else f"exit {stop.code}"
    except Exception as error:
        found[path] = repr(error)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_every_script_starts_and_has_the_options_that_pages_quote():
    """All of them in one process: importing takes most of the time."""
    words = [sys.executable, "-c", HELP, *map(str, SCRIPTS)]
    ran = subprocess.run(words, capture_output=True, text=True, env={**os.environ, "COLUMNS": "120"})
    assert ran.returncode == 0, ran.stderr
    said = {Path(path).relative_to(FOLDER).as_posix(): text for path, text in json.loads(ran.stdout.splitlines()[-1]).items()}
    assert len(said) == len(SCRIPTS) > 30
    for name, text in said.items():  # its first lines say how to call it
        assert text.startswith("usage: ") and f"python benchmarks/{name}" in text, f"{name}: {text}"
    quoted = {}
    for page in (FOLDER / "results").glob("*.md"):
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        for name, words in re.findall(r"python benchmarks/(\S+\.py)([^`\n;]*)", text):
            quoted.setdefault(name, set()).update(word.split("=")[0] for word in shlex.split(words) if word.startswith("--"))
    assert len(quoted) > 20
    for name, options in quoted.items():
        assert {option for option in options if option not in said[name]} == set(), name


@pytest.mark.slow
def test_a_benchmark_goes_on_where_it_was_stopped(simulated, tmp_path, monkeypatch, capsys):
    """tuning_seeds on the smallest world: the base is made once, and no run twice."""
    config, out = tmp_path / "tiny.yaml", tmp_path / "out"
    config.write_text(yaml.safe_dump(as_dict(tiny_config())))
    shutil.copytree(simulated, out / "data")
    monkeypatch.syspath_prepend(FOLDER)
    script = importlib.import_module("tuning_seeds")

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["tuning_seeds.py", str(out), "--config", str(config), *words])
        script.main()
        return capsys.readouterr().out

    shorter = ["--split", "validation", "--methods", "mindtuner", "ridge_only", "--tuning-seeds"]
    run(*shorter, "1")
    lines = (out / "validation.jsonl").read_text().splitlines()
    base = (out / "base" / "base.safetensors").stat().st_mtime_ns
    table = run(*shorter, "2")
    after = (out / "validation.jsonl").read_text().splitlines()
    assert after[:2] == lines and len(after) == 4
    assert (out / "base" / "base.safetensors").stat().st_mtime_ns == base
    entry = json.loads(after[0])
    held = len(entry["scores"]["image"])
    assert held and all(len(hits) == held for hits in entry["scores"].values()) and f", {held} candidates " in table
    assert len([line for line in table.splitlines() if line.startswith("| mindtuner |")]) == 1
    with pytest.raises(SystemExit, match="is simulated with other settings"):
        run("--fingerprint", "1")


# ---- what scripts share


@pytest.fixture
def shared(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("world"), importlib.import_module("pages")


def test_runs_that_were_done_are_read_again(shared, tmp_path):
    world, _ = shared
    done = world.Done(tmp_path / "new" / "runs.jsonl", "method", "seed")
    done.add(method="a", seed=0, hits=[1.0])
    again = world.Done(done.path, "method", "seed")
    assert again["a", 0]["hits"] == [1.0] and again.left([("a", 0), ("a", 1)]) == [("a", 1)]
    assert world.Done(done.path, "method").left(["a", "b"]) == ["b"]


def test_cells(shared):
    world, pages = shared
    assert pages.markdown(["a", "b"], [["x", "1"]]) == "| a | b |\n|---|---:|\n| x | 1 |"
    assert pages.spread([0.5]) == "0.500" and pages.spread([1, 3], "+.1f", ".1f") == "+2.0 (1.4)"
    ones = np.ones((2, 5))
    assert world.mean_and_sd(ones) == "1.000 (0.000)" and world.mean_and_sd(ones[:1]) == "1.000"
    for a in (ones, ones[:1], ones[0]):
        assert world.difference(a, a - 1) == "+1.000 [+1.000, +1.000]"


def test_a_table_goes_between_its_marks(shared, tmp_path):
    _, pages = shared
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- x:begin -->\nold\n<!-- x:end -->\nafter\n")
    pages.write_between(page, "x", "new")
    assert page.read_text() == "before\n<!-- x:begin -->\nnew\n<!-- x:end -->\nafter\n"
    with pytest.raises(SystemExit, match="expected one pair of y:begin and y:end comments"):
        pages.write_between(page, "y", "new")


@pytest.mark.slow
def test_the_script_for_a_gpu_runs_through_at_tiny_sizes():
    """Its every part, on the CPU, of which the numbers are then those of the CPU."""
    words = [sys.executable, "benchmarks/gpu.py", "--device", "cpu", "--small"]
    environment = {**os.environ, "MASTER_PORT": str(free_port())}
    ran = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert ran.returncode == 0, ran.stderr
    parts = dict(part.split("\n", 1) for part in ran.stdout.split("## ")[1:])
    assert list(parts) == ["parity", "steps", "decode", "pictures", "fsdp"]
    rows = [
        line.split("|")[2:6] for line in parts["parity"].splitlines() if re.match(r"\| (pretraining|tuning|decoding)", line)
    ]
    names = {name.strip() for name, *_ in rows}
    assert {"weights of skips", "weights of prior", "loss clip", "loss skip", "image tokens", "reconstructed"} <= names
    assert all(float(largest) > 0 and float(apart) == float(share) == 0 for _, largest, apart, share in rows)
