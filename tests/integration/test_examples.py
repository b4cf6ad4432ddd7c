"""The examples draw what a study wrote."""

import json
import runpy

import pytest
from paths import ROOT
from PIL import Image

EXAMPLES = ROOT / "examples"
ROUTES = ("ridge", "lora", "skip_linear", "skip_nonlinear")


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
def test_a_study_becomes_one_picture(script, tmp_path):
    setting = {
        "subject": 1,
        "simulated_brains": True,
        "seeds": 2,
        "images": 3,
        "chance": {"image": 0.1, "brain": 0.1, "text": 0.1},
    }
    (tmp_path / "results.json").write_text(json.dumps({"setting": setting, **STUDIES[script]}))
    runpy.run_path(str(EXAMPLES / script))["main"](str(tmp_path), str(tmp_path / "study.png"))
    with Image.open(tmp_path / "study.png") as picture:
        assert picture.width > 800 and len(picture.convert("L").getcolors(256)) > 20
