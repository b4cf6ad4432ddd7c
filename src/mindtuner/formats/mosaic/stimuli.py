"""Stimulus files of MOSAIC: found by name, told apart by content, read only when they are asked for.

MOSAIC publishes no stimuli. A folder holds what the user fetched from each dataset's own source, in one of two forms, the
first of which is looked at first:

- ``FOLDER/NSD/...``: a folder for each dataset, by MOSAIC's short name, with any folders inside;
- ``FOLDER/raw`` and, for videos, ``FOLDER/frames_middle``, as MOSAIC's own preprocessing lays them out, or ``FOLDER`` itself.

A video is shown by one picture, its middle frame, called ``VIDEO.jpg`` or, as MOSAIC's tools call it,
``VIDEO_frame-0030_0061.jpg`` or ``VIDEO_45_90.jpg``.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mindtuner.data.stimuli import IMAGE_SHAPE
from mindtuner.errors import UserError
from mindtuner.formats.image_files import BYTE_AS_HALF, read_rgb, size_upright, square
from mindtuner.inputs import open_picture
from mindtuner.runtime import progress

VIDEOS = (".mp4", ".webm", ".avi", ".mov")
PICTURES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp")
ENDINGS = PICTURES + VIDEOS
FRAME = re.compile(r"(_frame-?\d+_\d+|_\d+_\d+)$")


class StimulusFolder:
    """Where each dataset's stimuli lie under ``root``. Raises UserError where ``root`` is no folder."""

    def __init__(self, root: Path):
        if not root.is_dir():
            raise UserError(f"{root}: not found; expected a folder of stimuli")
        self.root = root
        self._names: dict[Path, dict[str, list[Path]]] = {}

    def find(self, dataset: str, names: Iterable[str], where: str) -> Path:
        """The picture of a stimulus that goes by any of ``names``, the first of which wins.

        ``where`` names file and key in messages. Raises UserError where there is none, or more than one.
        """
        names = list(names)
        for places in ([self.root / dataset], [self.root / "raw", self.root / "frames_middle", self.root]):
            for name in names:
                found = [path for place in places for path in self._listed(place, deep=len(places) == 1).get(name, [])]
                if len(found) > 1:
                    raise UserError(f"{where}: stimulus {name} is both {found[0]} and {found[1]}; expected one picture of it")
                if found:
                    return found[0]
        raise UserError(
            f"{where}: no picture of stimulus {names[0]} in {self.root / dataset} or {self.root}; expected "
            f"{'one frame of the video' if names[0].lower().endswith(VIDEOS) else 'that file'}"
        )

    def _listed(self, folder: Path, deep: bool) -> dict[str, list[Path]]:
        """Name -> pictures in ``folder``. A picture also goes by the name of the video that it may be a frame of."""
        if folder in self._names:
            return self._names[folder]
        names: dict[str, list[Path]] = {}
        for parent, folders, files in os.walk(folder):
            folders[:] = sorted(folders) if deep else []
            for name in sorted(files):
                stem, ending = os.path.splitext(name)
                if ending.lower() in PICTURES:
                    videos = {base + video for base in {stem, FRAME.sub("", stem)} for video in VIDEOS}
                    for known in (name, *videos):
                        names.setdefault(known, []).append(Path(parent) / name)
        self._names[folder] = names
        return names


class ImageFiles:
    """Picture files as images: ``images[ids]`` is float16 (n, 3, 224, 224) in 0..1, read at that moment.

    The central square is taken and scaled, see ``image_files.square``.
    """

    def __init__(self, paths: list[Path]):
        self._paths = paths
        self.shape, self.dtype = (len(paths), *IMAGE_SHAPE), np.dtype(np.float16)

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        images = np.empty((len(ids), *IMAGE_SHAPE), np.float16)
        for image, number in zip(images, ids, strict=True):
            image[:] = BYTE_AS_HALF[square(read_rgb(self._paths[number]))]
        return images


def number_by_content(shown: dict[Path, set[str]]) -> dict[Path, int]:
    """Path -> number, from 0 in order; two paths have the same one where size and pixels are the same, whatever their names.

    ``shown``: path -> datasets that show it. Within one dataset the file counts. Across datasets only pictures whose size
    occurs in another dataset are decoded, which spares most of them. Raises UserError where a picture is damaged.
    """
    several = len(set().union(*shown.values())) > 1
    sizes = {path: _size(path) for path in shown} if several else {}
    datasets: dict[tuple[int, int], set[str]] = {}
    for path, size in sizes.items():
        datasets.setdefault(size, set()).update(shown[path])
    doubtful = [path for path, size in sizes.items() if len(datasets[size]) > 1]
    identity = {path: str(path) for path in shown}
    for path in progress(doubtful, "compare stimuli", unit="image"):
        picture = read_rgb(path)
        identity[path] = hashlib.sha256(repr(picture.size).encode() + picture.tobytes()).hexdigest()
    numbers: dict[str, int] = {}
    return {path: numbers.setdefault(identity[path], len(numbers)) for path in shown}


def _size(path: Path) -> tuple[int, int]:
    with open_picture(path) as raw:
        return size_upright(raw)
