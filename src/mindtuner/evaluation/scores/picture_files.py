"""Folders of picture files, as pairs to be scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import ImageOps

from mindtuner.errors import UserError
from mindtuner.formats.image_files import ENDINGS, PREFIX
from mindtuner.inputs import open_picture


def read_pairs(seen: Path, painted: Path) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Names (p,) and pictures of two folders, each uint8 (p, 3, H, W), a seen and a painted one by the same name.

    A file's name counts without its ending, and without ``recon_image-`` before it, as the Kamitani lab calls
    reconstructions; all are of one size. Each file is decoded once, upright as its EXIF orientation says.
    Raises UserError naming the file where a folder lacks one that the other has, a file is no picture, of another size, or
    not in RGB: a grey picture or one with transparency is not converted, since others would do it in other ways.
    """
    files = [_by_name(folder) for folder in (seen, painted)]
    for own, other, where in ((*files, painted), (*files[::-1], seen)):
        if lacking := [name for name in own if name not in other]:
            counts = f"{len(files[0])} are in {seen}, {len(files[1])} in {painted}"
            raise UserError(
                f"{where}: no picture {lacking[0]} ({counts}); "
                "expected a painted one for each that was seen, by the same name"
            )
    originals, pictures = (_stacked(own[name] for name in files[0]) for own in files)
    if originals.shape != pictures.shape:
        size, wanted = (f"{shape[3]} x {shape[2]}" for shape in (pictures.shape, originals.shape))
        raise UserError(f"{painted}: pictures of {size} pixels; expected {wanted}, as in {seen}")
    return list(files[0]), originals, pictures


def _by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UserError(f"{folder}: is no folder; expected one of pictures")
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.name.removeprefix(PREFIX)):
        if path.suffix.lower() in ENDINGS:
            name = path.stem.removeprefix(PREFIX)
            if name in found:
                raise UserError(f"{path}: is the second picture named {name}; expected one of each name")
            found[name] = path
    if not found:
        raise UserError(f"{folder}: holds no picture; expected files *{', *'.join(ENDINGS)}")
    return found


def _stacked(paths) -> np.ndarray:
    pictures = []
    for path in paths:
        pictures.append(_read(path))
        if pictures[-1].shape != pictures[0].shape:
            size, first = (f"{shape[2]} x {shape[1]}" for shape in (pictures[-1].shape, pictures[0].shape))
            raise UserError(f"{path}: has {size} pixels; expected {first}, as the first of its folder has")
    return np.stack(pictures)


def _read(path: Path) -> np.ndarray:
    with open_picture(path) as image:
        if image.mode != "RGB":
            kind = {"L": "grey", "LA": "grey with transparency", "RGBA": "with transparency"}.get(image.mode, image.mode)
            raise UserError(f"{path}: is {kind}; expected three channels, RGB")
        upright = ImageOps.exif_transpose(image)
        return np.ascontiguousarray(np.asarray(upright).transpose(2, 0, 1))  # once, not at each use
