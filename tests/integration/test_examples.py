"""The examples of the gallery run, one after the other on one small study, and each draws a picture."""

import json
import os
import runpy
import subprocess
import sys

import pytest
from paths import ROOT
from PIL import Image

EXAMPLES = ROOT / "examples"
SCRIPTS = sorted(path.name for path in EXAMPLES.glob("*.py") if path.name != "small_study.py")
ROUTES = ("ridge", "lora", "skip_linear", "skip_nonlinear")
# Runs all scripts in one process, as the gallery does, but every figure that they show goes to a file.
SHOWN = """
import pathlib, runpy, sys
import matplotlib
matplotlib.use("Agg")
import matplotlib.pyplot as plt

folder, *scripts = sys.argv[1:]
for script in scripts:
    sys.argv = [script]
    name = pathlib.Path(script).stem
    plt.show = lambda: [plt.figure(n).savefig(f"{folder}/{name}-{n}.png") for n in plt.get_fignums()]
    runpy.run_path(script, run_name="__main__")
    plt.close("all")
"""


def check_picture(path):
    with Image.open(path) as picture:
        assert picture.width > 800 and len(picture.convert("L").getcolors(256)) > 20


@pytest.mark.slow
def test_each_example_draws_a_picture(tmp_path):
    assert len(SCRIPTS) >= 8
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    search = os.pathsep.join([str(EXAMPLES), *filter(None, [os.environ.get("PYTHONPATH")])])
    found = subprocess.run(
        [sys.executable, "-c", SHOWN, pictures, *(EXAMPLES / script for script in SCRIPTS)],
        env={**os.environ, "PYTHONPATH": search, "MINDTUNER_EXAMPLES": str(tmp_path / "study")},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    assert sorted(path.name for path in pictures.iterdir()) == [script.replace(".py", "-1.png") for script in SCRIPTS]
    for path in pictures.iterdir():
        check_picture(path)


def entry(variant, score, difference):
    return {
        "variant": variant,
        "title": f"variant {variant}",
        "score": score,
        "mean": 0.5,
        "sd": 0.01,
        "ci": [0.4, 0.6],
        "difference": difference,
    }


STUDIES = {
    "curve_picture.py": {
        "hours": [0.5, 1.0],
        "rows": [
            {"method": method, "hours": hours, "score": score, "mean": 0.4, "ci": [0.3, 0.5]}
            for method in ("mindtuner", "from_scratch", "full_finetune", "regression")
            for hours in (0.5, 1.0)
            for score in ("image", "brain", "text")
        ],
    },
    "ablation_picture.py": {
        "rows": [
            entry(variant, score, None if variant == "full" else {"mean": -0.1, "ci": [-0.2, 0.0], "verdict": verdict})
            for variant, verdict in (("full", ""), ("lora", "lower"), ("skip", "no difference shown"))
            for score in ("image", "brain", "text")
        ]
    },
    "fingerprint_map.py": {
        "shares": dict.fromkeys(ROUTES, 0.25),
        "regions": [
            {"region": region, "route": route, "share": 0.1, "ci": [0.05, 0.2]}
            for region in ("V1", "higher_vis")
            for route in ROUTES
        ],
    },
}


@pytest.mark.parametrize("script", STUDIES)
def test_a_study_becomes_one_picture(script, tmp_path, monkeypatch):
    setting = {
        "subject": 1,
        "simulated_brains": True,
        "seeds": 2,
        "images": 3,
        "chance": {"image": 0.1, "brain": 0.1, "text": 0.1},
    }
    (tmp_path / "results.json").write_text(json.dumps({"setting": setting, **STUDIES[script]}))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.syspath_prepend(EXAMPLES)
    runpy.run_path(str(EXAMPLES / script))["main"](str(tmp_path), str(tmp_path / "study.png"))
    check_picture(tmp_path / "study.png")
