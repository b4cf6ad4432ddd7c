"""Image files of any size: read, cropped and scaled to 224 x 224 when they are asked for; and a folder of them, written."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

import h5py
import numpy as np
from PIL import ExifTags, Image, ImageOps

from mindtuner.data import Stimuli
from mindtuner.data.lazy import get_dataset, holds, open_hdf5, open_rows
from mindtuner.data.stimuli import IMAGE_SHAPE
from mindtuner.errors import UserError
from mindtuner.files import atomic_path
from mindtuner.inputs import file_hash, open_picture, read_text, reading, refuse_odd_name
from mindtuner.runtime import progress

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
PREFIX = "recon_image-"  # before the names of the Kamitani lab's reconstructions
SIDE = IMAGE_SHAPE[1]
BYTE_AS_HALF = (np.arange(256) / 255).astype(np.float16)  # what each byte of a pixel is in 0..1
_MODES = {"1": "black and white", "L": "grey", "LA": "grey with alpha", "P": "palette", "PA": "palette", "RGBA": "RGBA"}


class FolderImages:
    """The images of a folder, also of folders in it, sorted by name: ``images[ids]`` is float16 (n, 3, 224, 224) in 0..1.

    ``names``: path below the folder, with ``/`` -> id; names that begin with a dot are passed over. ``files``: of all images.
    ``background``: red, green and blue behind transparent pictures, which are refused without it.
    """

    def __init__(self, folder: Path, background: Sequence[int] | None = None):
        paths = [path.relative_to(folder) for path in folder.rglob("*") if path.suffix.lower() in ENDINGS]
        found = sorted(path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts))
        found = [name for name in found if not (folder / name).is_dir()]
        for name in found:
            refuse_odd_name(name, folder)
        if not found:
            raise UserError(f"{folder}: holds no image; expected files that end in {', '.join(ENDINGS)}")
        self.folder, self._paths, self._background = folder, found, background
        self.names: Mapping[str, int] = {name: i for i, name in enumerate(found)}
        self.files = [folder / name for name in found]
        self.shape, self.dtype = (len(found), *IMAGE_SHAPE), np.dtype(np.float16)

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        images = np.empty((len(ids), *IMAGE_SHAPE), np.float16)
        for image, number in zip(images, ids, strict=True):
            image[:] = BYTE_AS_HALF[square(read_rgb(self.folder / self._paths[number], self._background))]
        return images

    def file_hashes(self) -> Iterator[bytes]:
        """sha256 (32 bytes) of each image's file in the order of ids, for ``Stimuli.hash``.

        Before them comes how images are made of files here. Raises UserError where a file cannot be read.
        """
        behind = "" if self._background is None else f", on {list(self._background)}"
        yield hashlib.sha256(f"upright, central square, bicubic, {SIDE}{behind}".encode()).digest()
        for name in self._paths:
            yield file_hash(self.folder / name)

    def captions(self, number: int) -> tuple[str, ...]:
        """See ``captions_beside``."""
        return captions_beside(self.folder / self._paths[number])

    def size(self, number: int) -> tuple[int, int]:
        """Width and height of an image as it is seen."""
        with open_picture(self.folder / self._paths[number]) as raw:
            return size_upright(raw)

    def changed(self, number: int) -> list[str]:
        """What is done to a picture when it is read: "turned upright", or what of its colours is converted to RGB."""
        with open_picture(self.folder / self._paths[number]) as raw:
            return (["turned upright, as EXIF says"] if is_turned(raw) else []) + (
                [] if raw.mode == "RGB" else [f"converted from {_MODES.get(raw.mode, raw.mode)} to RGB"]
            )


def captions_beside(picture: Path) -> tuple[str, ...]:
    """The lines of the ``.txt`` of a picture's name beside it that are not empty; none where there is no such file.

    Raises UserError where it is no UTF-8 text.
    """
    path = picture.with_suffix(".txt")
    if not os.path.lexists(path):
        return ()
    return tuple(line.strip() for line in read_text(path, "one caption a line").splitlines() if line.strip())


def read_picture(path: Path) -> np.ndarray:
    """A picture as uint8 (3, 224, 224), see ``read_rgb`` and ``square``."""
    return square(read_rgb(path))


def read_rgb(path: Path, background: Sequence[int] | None = None) -> Image.Image:
    """A picture in RGB, upright.

    Grey, palette and CMYK are converted, without a colour profile; EXIF's orientation is applied. Raises UserError where it
    is damaged, has more than 8 bits a channel, or is transparent somewhere and has no ``background`` (red, green, blue):
    only the lab knows what was behind it.
    """
    with open_picture(path) as raw:
        raw.load()
        deep = raw.mode.startswith("I") or raw.mode == "F"
        image = None if deep else upright_rgb(raw, background)
    if deep:
        raise UserError(f"{path}: has pixels of mode {raw.mode}; expected 8 bits a channel")
    if image is None:
        raise UserError(
            f"{path}: is transparent in places; expected the picture on the background that was shown, or that background in "
            "dataset.json"
        )
    return image


def upright_rgb(raw: Image.Image, background: Sequence[int] | None = None) -> Image.Image | None:
    """A picture in RGB as its EXIF orientation shows it; None where it is transparent somewhere, without a background."""
    turned = ImageOps.exif_transpose(raw) if is_turned(raw) else raw
    if turned.has_transparency_data:
        clear = turned.convert("RGBA")
        if clear.getchannel("A").getextrema()[0] < 255:
            if background is None:
                return None
            return Image.alpha_composite(Image.new("RGBA", clear.size, (*background, 255)), clear).convert("RGB")
    return turned.convert("RGB")


def is_turned(raw: Image.Image) -> bool:
    """Whether EXIF says that a picture is stored turned or mirrored."""
    return raw.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)


def size_upright(raw: Image.Image) -> tuple[int, int]:
    """Width and height of a picture as it is seen."""
    return raw.size[::-1] if raw.getexif().get(ExifTags.Base.Orientation, 1) in range(5, 9) else raw.size


def square(image: Image.Image) -> np.ndarray:
    """The central square of an RGB picture at 224 x 224, uint8 (3, 224, 224).

    It is what is left when the shorter side is scaled to 224 (bicubic, antialiased) and the rest cut off evenly.
    """
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    scaled = image.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    return np.asarray(scaled).transpose(2, 0, 1)


def write_reconstruction(folder: Path, name: str, picture: Path) -> Path:
    """A picture as ``recon_image-NAME.tiff`` in ``folder``, pixel by pixel, as the Kamitani lab's evaluation reads it.

    ``name`` is that of the stimulus, whose folder and ending do not count. Returns the file.
    """
    path = folder / f"{PREFIX}{PurePosixPath(name).stem}.tiff"
    with Image.open(picture) as image, atomic_path(path) as part:
        image.convert("RGB").save(part, "TIFF")
    return path


class Hdf5Images:
    """Dataset ``images`` of an HDF5 file: (N, H, W, 3) uint8, or (N, 3, H, W) uint8 or floats in 0..1.

    A trial names an image by its number in the file, from 0. ``images[ids]`` is float16 (n, 3, 224, 224). Floats of
    another size go through 8 bits when they are scaled. Captions, if any, are a dataset ``captions`` of strings, (N,) or
    (N, k).
    """

    def __init__(self, path: Path):
        self.path, self.files = path, [path]
        self._rows = open_rows(path, "images", 4, ("uint8", "float16", "float32"))
        shape = self._rows.shape
        self._last = shape[3] == 3 and shape[1] != 3
        if not (shape[1] == 3 or self._last) or self._last and self._rows.dtype != np.uint8:
            raise UserError(
                f"{path}: images have shape {shape} and dtype {self._rows.dtype}; expected (N, H, W, 3) uint8, "
                "or (N, 3, H, W) uint8 or floats in 0..1"
            )
        self.names: Mapping[str, int] = {str(i): i for i in range(shape[0])}
        self.shape, self.dtype = (shape[0], *IMAGE_SHAPE), np.dtype(np.float16)
        self._captions = self._read_captions()

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        images = np.empty((len(ids), *IMAGE_SHAPE), np.float16)
        for start in range(0, len(ids), 16):  # as stored they may be far larger than 224 x 224
            part = slice(start, start + 16)
            stored = zip(self._rows[ids[part]], ids[part], strict=True)
            images[part] = [self._convert(image, number) for image, number in stored]
        return images

    def _convert(self, image: np.ndarray, number: int) -> np.ndarray:
        if image.dtype != np.uint8:
            if not (image.min() >= 0 and image.max() <= 1):
                raise UserError(f"{self.path}: image {number} has pixels in {image.min()}..{image.max()}; expected 0..1")
            if image.shape == IMAGE_SHAPE:
                return image.astype(np.float16)
            image = np.rint(image.astype(np.float32) * 255).astype(np.uint8)
        if not self._last:
            image = image.transpose(1, 2, 0)
        return BYTE_AS_HALF[square(Image.fromarray(np.ascontiguousarray(image)))]

    def _read_captions(self) -> list[tuple[str, ...]]:
        with open_hdf5(self.path) as file:
            if not holds(file, "captions"):
                return [()] * self.shape[0]
            data = get_dataset(file, "captions")
            if (
                data is None
                or h5py.check_string_dtype(data.dtype) is None
                or len(data.shape or ()) not in (1, 2)
                or len(data) != self.shape[0]
            ):
                raise UserError(
                    f"{self.path}: captions are no strings of shape ({self.shape[0]},) or ({self.shape[0]}, k); "
                    "expected these, or no such dataset"
                )
            with reading(self.path, "captions in UTF-8"):
                table = data.asstr()[()].reshape(self.shape[0], -1)
        return [tuple(text.strip() for text in row if text.strip()) for row in table]

    def captions(self, number: int) -> tuple[str, ...]:
        """The captions of an image, none where there are none."""
        return self._captions[number]

    def size(self, number: int) -> tuple[int, int]:
        """Width and height of the images as they are stored."""
        shape = self._rows.shape
        return (shape[2], shape[1]) if self._last else (shape[3], shape[2])


def own_names(stimuli: Stimuli) -> list[str]:
    """A name of a PNG file for each image: its own, after its number where names would not sort in the order of ids.

    Images without file names have ``image-`` and their numbers.
    """
    if not stimuli.named:
        return [f"image-{i:06d}.png" for i in range(len(stimuli))]
    names = [PurePosixPath(name).with_suffix(".png").as_posix() for name in stimuli.names]
    if names == sorted(set(names)):
        return names
    return [f"{i:06d}-{PurePosixPath(name).name}" for i, name in enumerate(names)]


def write_stimuli(folder: Path, stimuli: Stimuli, names: Sequence[str] | None = None) -> list[str]:
    """Images and, beside them, captions; returns the file name of each id.

    ``names`` sort in the order of ids; by default they are ``image-`` and a number.
    """
    names = [f"image-{i:06d}.png" for i in range(len(stimuli))] if names is None else list(names)
    with atomic_path(folder) as part:
        part.mkdir()
        for number in progress(range(len(stimuli)), "stimuli"):
            pixels = np.rint(stimuli.images([number])[0].astype(np.float32) * 255).astype(np.uint8)
            picture = part / names[number]
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0))).save(picture)
            if texts := stimuli.captions[number]:
                picture.with_suffix(".txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
    return names
