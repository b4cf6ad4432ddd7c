"""Draw a study of data efficiency as one picture: scores against hours of scanning.

    mindtuner curve OUT
    python examples/curve_picture.py OUT curve.png

Needs matplotlib, which the package itself does not.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TITLES = {"image": "Image retrieval", "brain": "Brain retrieval", "text": "Text retrieval"}
METHODS = {
    "mindtuner": "tuned",
    "from_scratch": "from scratch",
    "full_finetune": "full fine-tuning",
    "regression": "ridge regression, no base",
}


def main(study: str, picture: str) -> None:
    study = json.loads((Path(study) / "results.json").read_text())
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
    figure.savefig(picture, dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:])
