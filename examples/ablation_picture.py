"""Draw a study of ablations as one picture: what each variant has more or less than the full method.

    mindtuner ablate OUT
    python examples/ablation_picture.py OUT ablation.png

Needs matplotlib, which the package itself does not.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TITLES = {"image": "Image retrieval", "brain": "Brain retrieval", "text": "Text retrieval"}


def main(study: str, picture: str) -> None:
    study = json.loads((Path(study) / "results.json").read_text())
    names = dict.fromkeys(row["variant"] for row in study["rows"] if row["difference"])
    figure, axes = plt.subplots(1, len(TITLES), figsize=(13, 0.32 * len(names) + 1.4), sharey=True, layout="constrained")
    for axis, (score, title) in zip(axes, TITLES.items(), strict=True):
        rows = [row for row in study["rows"] if row["score"] == score and row["difference"]]
        for row in rows:
            at, found = list(names).index(row["variant"]), row["difference"]
            shown = found["verdict"] != "no difference shown"
            axis.plot(found["ci"], [at, at], color="tab:red" if shown else "tab:blue")
            axis.plot(found["mean"], at, "o", markersize=4, color="tab:red" if shown else "tab:blue")
        axis.axvline(0, color="grey", linestyle=":")
        axis.set(title=title, xlabel="minus the full method")
    titles = {
        row["variant"]: row["title"].partition(":")[0] if len(row["title"]) > 50 else row["title"] for row in study["rows"]
    }
    axes[0].set_yticks(range(len(names)), [titles[name] for name in names], fontsize=8)
    axes[0].invert_yaxis()
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    main(*sys.argv[1:])
