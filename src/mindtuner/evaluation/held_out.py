"""The scores of a run on the test images of a category that no training saw, and on the others."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from tabulate import tabulate

from mindtuner.evaluation.published import label
from mindtuner.evaluation.results import rounded
from mindtuner.evaluation.schema import HELD_OUT_SIDES
from mindtuner.evaluation.statistics import bootstrap_ci


def held_out_scores(
    per_image: Mapping[str, np.ndarray], category: str, of_category: np.ndarray, left_out: int, seed: int
) -> dict:
    """The block ``held_out`` of results.json.

    per_image: arrays of per_image.safetensors. of_category: bool (n,) over its "images". left_out: how many training images
    were. Every score is that of the whole run, candidates of retrieval included: only the mean is over fewer images. A score
    that is defined on fewer than two images of a side is left out of it.

    Returns {"category", "left_out", "images": [ids of the test images that show it], "of_category": {method: {part: {score:
    {"mean", "ci", "n"}}}}, "others": likewise}.
    """
    images = per_image["images"]
    found: dict = {"category": category, "left_out": left_out, "images": images[of_category], "of_category": {}, "others": {}}
    for side, chosen in zip(HELD_OUT_SIDES, (of_category, ~of_category), strict=True):
        for key, values in per_image.items():
            method, _, rest = key.partition("/")
            part, _, score = rest.partition("/")
            if not score:
                continue
            some = values[chosen[positions(per_image, part, score)]]
            some = some[np.isfinite(some)]
            if len(some) > 1:
                found[side].setdefault(method, {}).setdefault(part, {})[score] = {
                    "mean": float(some.mean(dtype=np.float64)),
                    "ci": bootstrap_ci(some, seed),
                    "n": len(some),
                }
    return rounded(found)


def positions(per_image: Mapping[str, np.ndarray], part: str, score: str) -> np.ndarray:
    """Of which test images, as positions in "images", the values of a score are."""
    if part != "retrieval" and len(per_image["shown"]):  # of pictures, of captions and of the brain that pictures predict
        return per_image["shown"]
    texts = part == "retrieval" and score.startswith("text")
    return per_image["texts"] if texts else np.arange(len(per_image["images"]))


def held_out_text(held_out: Mapping, method: str) -> str:
    """The block of one method in a few aligned lines, with intervals; a dash where fewer than two images have the score."""
    shown, left_out = len(held_out["images"]), held_out["left_out"]
    lines = []
    for part, scores in held_out["others"].get(method, {}).items():
        for score in scores:
            cells = [held_out[side].get(method, {}).get(part, {}).get(score) for side in HELD_OUT_SIDES]
            lines.append(
                [
                    label(part, score),
                    *(
                        "-" if cell is None else "{:.3f} [{:.3f}, {:.3f}] ({})".format(cell["mean"], *cell["ci"], cell["n"])
                        for cell in cells
                    ),
                ]
            )
    head = ["", f"{shown} test images that show it", "the others"]
    table = tabulate(lines, head, "plain", colalign=("left", "right", "right"), disable_numparse=True)
    return f"{method}, {held_out['category']!r} held out of training ({left_out} images):\n{table}"
