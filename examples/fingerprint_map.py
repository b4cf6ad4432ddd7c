"""Draw where a fingerprint lives as one picture: what each region gives to the decoded variance, by route.

    mindtuner fingerprint TUNED DATA OUT
    python examples/fingerprint_map.py OUT regions.png

Needs matplotlib, which the package itself does not.
"""

import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ROUTES = {"ridge": "ridge", "lora": "LoRA", "skip_linear": "Skip-LoRA, linear", "skip_nonlinear": "Skip-LoRA, non-linear"}


def main(study: str, picture: str) -> None:
    study = json.loads((Path(study) / "results.json").read_text())
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
    figure.savefig(picture, dpi=100)


if __name__ == "__main__":
    main(*sys.argv[1:])
