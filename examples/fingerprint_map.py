"""
# Where the fingerprint lives

Which regions does the decoder draw on, and by which route: the ridge, LoRA, or Skip-LoRA? The variance of the decoded tokens
is shared out to voxels and routes.

On the command line, for a subject of your own:

    mindtuner fingerprint TUNED DATA OUT
    python examples/fingerprint_map.py OUT regions.png
"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import small_study

from mindtuner.studies import map_fingerprint

ROUTES = {"ridge": "ridge", "lora": "LoRA", "skip_linear": "Skip-LoRA, linear", "skip_nonlinear": "Skip-LoRA, non-linear"}


def draw(study: dict) -> plt.Figure:
    names = list(dict.fromkeys(row["region"] for row in study["regions"]))
    figure, axes = plt.subplots(1, len(ROUTES), figsize=(13, 0.4 * len(names) + 1.6), sharey=True, layout="constrained")
    for axis, (route, title) in zip(axes, ROUTES.items(), strict=True):
        for row in study["regions"]:
            if row["route"] == route:
                at = names.index(row["region"])
                axis.plot(row["ci"], [at, at], color="tab:blue")
                axis.plot(row["share"], at, "o", markersize=4, color="tab:blue")
        axis.axvline(0, color="grey", linestyle=":")
        axis.ticklabel_format(axis="x", style="sci", scilimits=(-2, 2))
        axis.locator_params(axis="x", nbins=4)
        axis.set_title(f"{title}\nall voxels {study['shares'][route]:+.1e}", fontsize=10)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.supxlabel("share of the decoded variance, 95 % over images", fontsize=10)
    what = "simulated brain" if study["setting"]["simulated_brains"] else "measured brain"
    setting = study["setting"]
    figure.suptitle(f"Subject {setting['subject']}, {what}, {setting['images']} images; the scales differ")
    return figure


def main(study: str, picture: str) -> None:
    draw(json.loads((Path(study) / "results.json").read_text())).savefig(picture, dpi=100)


# %%
# Here, subject 1 of the small study.

if __name__ == "__main__":
    if sys.argv[1:]:
        main(*sys.argv[1:])
    else:
        maps = map_fingerprint(small_study.subject(), small_study.dataset(), small_study.FOLDER / "fingerprint", force=True)
        draw(maps.results)
        plt.show()
