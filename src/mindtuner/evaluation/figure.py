"""The pictures of a run folder, and a contact sheet of them for a README."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mindtuner.errors import UserError

STAGES = {"lowlevel": "Low level", "reconstructed": "Reconstructed", "corrected": "Corrected"}
MAIN_METHOD = "mindtuner"

_CELL, _GAP, _LABELS = 160, 6, 124  # pixels
_PAPER, _INK = (255, 255, 255), (60, 58, 54)


def read_pictures(run_folder: str | Path) -> dict[str, np.ndarray]:
    """Read and check ``pictures.safetensors`` of a run.

    Returns
    -------
    dict of uint8 arrays: ``seen`` (p, 3, H, W); ``"{method}/{stage}"`` (p, 3, H, W) for the stages
    ``lowlevel``, ``reconstructed`` and ``corrected`` that a method has; ``thumbnails`` (n_test, 3, h, w)

    Raises
    ------
    UserError
        where the file is missing, is not safetensors, or an array is absent or has the wrong type or shape.
    """
    path = Path(run_folder) / "pictures.safetensors"
    try:
        arrays = load_file(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; expected the pictures of a run") from error
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected a safetensors file") from error
    for needed in ("seen", "thumbnails"):
        if needed not in arrays:
            raise UserError(f"{path}: {needed} is missing; expected uint8 images (n, 3, H, W)")
    for name, array in arrays.items():
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] != 3 or 0 in array.shape:
            raise UserError(f"{path}: {name} is {array.dtype} {array.shape}; expected uint8 images (n, 3, H, W)")
        if name not in ("seen", "thumbnails"):
            method, _, stage = name.rpartition("/")
            if not method or stage not in STAGES:
                raise UserError(f"{path}: unknown array {name}; expected METHOD/STAGE with STAGE one of "
                                f"{', '.join(STAGES)}")
            if len(array) != len(arrays["seen"]):
                raise UserError(f"{path}: {name} holds {len(array)} pictures; expected {len(arrays['seen'])}, "
                                "one for each of seen")
    if not any("/" in name for name in arrays):
        raise UserError(f"{path}: no method has a picture; expected at least one array METHOD/STAGE")
    return arrays


def methods_of(pictures: dict[str, np.ndarray]) -> list[str]:
    """Names of the methods that have pictures, ``mindtuner`` first."""
    names = {name.rpartition("/")[0] for name in pictures if "/" in name}
    return sorted(names, key=lambda name: (name != MAIN_METHOD, name))


def to_image(picture: np.ndarray) -> Image.Image:
    """One picture (3, H, W) uint8 as a PIL image."""
    return Image.fromarray(np.ascontiguousarray(picture.transpose(1, 2, 0)))


def contact_sheet(run_folder: str | Path, n: int = 8, method: str = MAIN_METHOD) -> Image.Image:
    """A sheet of ``n`` columns, one per image: seen, then each stage of ``method`` below it.

    The images are evenly spaced over the run's pictures, in their order: nobody picked them.
    Raises UserError where the run has no such pictures or ``n`` is out of range.
    """
    pictures = read_pictures(run_folder)
    count = len(pictures["seen"])
    if not 1 <= n <= count:
        raise UserError(f"contact sheet: n is {n}; expected 1 to {count}, the pictures of {run_folder}")
    rows = [("Seen", pictures["seen"])]
    rows += [(label, pictures[f"{method}/{stage}"]) for stage, label in STAGES.items()
             if f"{method}/{stage}" in pictures]
    if len(rows) == 1:
        raise UserError(f"contact sheet: no pictures of method {method} in {run_folder}; expected one of "
                        f"{', '.join(methods_of(pictures))}")

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
