"""A contact sheet of a run's pictures, for a README or a talk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mindtuner.errors import UserError
from mindtuner.evaluation.results import load_run
from mindtuner.report.labels import MAIN_METHOD, STAGES, methods_of

_CELL, _GAP, _LABELS = 160, 6, 124  # pixels
_PAPER, _INK = (255, 255, 255), (60, 58, 54)


def to_image(picture: np.ndarray) -> Image.Image:
    """One picture (3, H, W) uint8 as a PIL image."""
    return Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))


def contact_sheet(run_folder: str | Path, n: int = 8, method: str = MAIN_METHOD) -> Image.Image:
    """A sheet of ``n`` columns, one per image: seen, then each stage of ``method`` below it.

    Of images that the painter was not trained on: seen, the low-level picture, and the nearest training image.

    The images are evenly spaced over the run's pictures, in their order: nobody picked them.
    Raises UserError where the run is incomplete, has no such pictures, or ``n`` is out of range.
    """
    run = load_run(run_folder)
    pictures = run.pictures
    count = len(pictures["seen"])
    if count == 0:
        raise UserError(f"contact sheet: {run_folder} painted nothing; expected a run with decode.pictures of 1 or more")
    if not 1 <= n <= count:
        raise UserError(f"contact sheet: n is {n}; expected 1 to {count}, the pictures of {run_folder}")
    rows = [("Seen", pictures["seen"])]
    stages = [(label, f"{method}/{stage}") for stage, label in STAGES.items()]
    if run.results["setting"].get("off_domain"):
        stages = [(label, name) for label, name in stages if name.endswith("/lowlevel")]
        stages.append(("Nearest image", "nearest_training_image/reconstructed"))
    rows += [(label, pictures[name]) for label, name in stages if name in pictures]
    if len(rows) == 1:
        raise UserError(
            f"contact sheet: no pictures of method {method} in {run_folder}; expected one of "
            f"{', '.join(methods_of(pictures))}"
        )

    chosen = [(2 * k + 1) * count // (2 * n) for k in range(n)]
    step = _CELL + _GAP
    sheet = Image.new("RGB", (_LABELS + n * step - _GAP, len(rows) * step - _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    for y, (label, images) in enumerate(rows):
        draw.text((_LABELS - 14, y * step + _CELL // 2), label, _INK, font, anchor="rm")
        for x, index in enumerate(chosen):
            cell = to_image(images[index]).resize((_CELL, _CELL), Image.Resampling.BICUBIC)
            sheet.paste(cell, (_LABELS + x * step, y * step))
    return sheet
