"""
# Ablations

What is each part of the method worth? The study tunes one subject with and without it, over seeds, and compares the scores
paired over images and seeds. Red intervals exclude 0.

On the command line, at the demo's size:

    mindtuner ablate OUT
    python examples/ablation_picture.py OUT ablation.png
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import small_study

from mindtuner.studies import run_ablation

TITLES = {"image": "Image retrieval", "brain": "Brain retrieval", "text": "Text retrieval"}


def draw(study: dict) -> plt.Figure:
    names = dict.fromkeys(row["variant"] for row in study["rows"] if row["difference"])
    figure, axes = plt.subplots(1, len(TITLES), figsize=(13, 0.32 * len(names) + 1.4), sharey=True, layout="constrained")
    for axis, (score, title) in zip(axes, TITLES.items(), strict=True):
        rows = [row for row in study["rows"] if row["score"] == score and row["difference"]]
        for row in rows:
            at, found = list(names).index(row["variant"]), row["difference"]
            colour = "tab:blue" if found["verdict"] == "no difference shown" else "tab:red"
            axis.plot(found["ci"], [at, at], color=colour)
            axis.plot(found["mean"], at, "o", markersize=4, color=colour)
        axis.axvline(0, color="grey", linestyle=":")
        axis.set(title=title, xlabel="minus the full method")
    titles = {
        row["variant"]: row["title"].partition(":")[0] if len(row["title"]) > 50 else row["title"] for row in study["rows"]
    }
    axes[0].set_yticks(range(len(names)), [titles[name] for name in names], fontsize=8)
    axes[0].invert_yaxis()
    return figure


def main(study: str, picture: str) -> None:
    draw(json.loads((Path(study) / "results.json").read_text())).savefig(picture, dpi=100)


# %%
# Here, three variants and two seeds on the small study.

if __name__ == "__main__":
    if sys.argv[1:]:
        main(*sys.argv[1:])
    else:
        study = run_ablation(
            small_study.FOLDER / "ablation",
            variants=["skip", "no_text_loss", "ridge_only"],
            seeds=2,
            data=small_study.dataset().root,
            base=small_study.base().path,
        )
        print(study)
        draw(study.results)
        plt.show()
