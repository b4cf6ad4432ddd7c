"""
# Scores by hours of scanning

How much data does a new subject need? The study tunes on more and more sessions, and trains from scratch for comparison.

On the command line, at the demo's size:

    mindtuner curve OUT
    python examples/curve_picture.py OUT curve.png
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import small_study

from mindtuner.studies import run_curve

TITLES = {"image": "Image retrieval", "brain": "Brain retrieval", "text": "Text retrieval"}
METHODS = {
    "mindtuner": "tuned",
    "from_scratch": "from scratch",
    "full_finetune": "full fine-tuning",
    "regression": "ridge regression, no base",
}


def draw(study: dict) -> plt.Figure:
    figure, axes = plt.subplots(1, len(TITLES), figsize=(11, 3.6), layout="constrained")
    for axis, (score, title) in zip(axes, TITLES.items(), strict=True):
        for method, label in METHODS.items():
            rows = [row for row in study["rows"] if (row["score"], row["method"]) == (score, method)]
            mean = [row["mean"] for row in rows]
            spread = [
                [m - row["ci"][0] for m, row in zip(mean, rows, strict=True)],
                [row["ci"][1] - m for m, row in zip(mean, rows, strict=True)],
            ]
            axis.errorbar([row["hours"] for row in rows], mean, spread, label=label, marker="o", markersize=4, capsize=2)
        axis.axhline(study["setting"]["chance"][score], color="grey", linestyle=":", label="chance")
        axis.set(title=title, xlabel="hours of scanning", xscale="log", xticks=study["hours"], ylim=(0, 1))
        axis.set_xticklabels([f"{hours:g}" for hours in study["hours"]])
        axis.minorticks_off()
    axes[0].set_ylabel("found first")
    axes[-1].legend(fontsize=8)
    what = "simulated brains" if study["setting"]["simulated_brains"] else "measured brains"
    figure.suptitle(f"Subject {study['setting']['subject']}, {what}, {study['setting']['seeds']} tuning seeds")
    return figure


def main(study: str, picture: str) -> None:
    draw(json.loads((Path(study) / "results.json").read_text())).savefig(picture, dpi=110)


# %%
# Here, two seeds on the small study.

if __name__ == "__main__":
    if sys.argv[1:]:
        main(*sys.argv[1:])
    else:
        study = run_curve(
            small_study.FOLDER / "curve", seeds=2, data=small_study.dataset().root, base=small_study.base().path
        )
        print(study)
        draw(study.results)
        plt.show()
