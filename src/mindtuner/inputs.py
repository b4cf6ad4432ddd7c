"""Files that others wrote: whatever is wrong with one becomes a UserError of one line that names it.

Libraries raise almost anything over a damaged file, and some believe it: they wait for a pipe, allocate what a header
claims, or follow a tree until Python's stack ends. Each kind of file is therefore opened here, behind the same checks.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import stat
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from mindtuner.errors import UserError, is_odd

if TYPE_CHECKING:
    from PIL import Image


class Pickled(UserError):
    """A file that holds Python objects, which are never loaded: that would run what is in them."""


MOST_UNPACKED = 2**30  # bytes of all arrays of an .npz
MOST_TEXT = 2**29  # bytes of a file of text; COCO's captions have 92 million
MOST_VALUES = 10_000  # in a YAML file, counted where an alias repeats them
SAID = 160  # characters of a library's own message
_SPECIAL = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def one_line(error: object) -> str:
    """At most 160 characters of somebody else's message or name, on one line; of an empty one its type."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= SAID else f"{text[: SAID - 3]}..."


def refuse_special(path: Path, expected: str) -> None:
    """Raise UserError where ``path`` is missing or no regular file: a pipe would be waited for, a device never ends."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; expected {expected}") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({reason}); expected {expected}") from error
    for is_kind, what in _SPECIAL:
        if is_kind(mode):
            raise UserError(f"{path}: is {what}; expected {expected}")


@contextlib.contextmanager
def reading(path: str | Path, expected: str) -> Iterator[None]:
    """Within the block a library reads ``path``; whatever it raises becomes a UserError that names the file.

    Only what reads the file belongs into the block. ``expected`` says what the file should be.

    Raises UserError before the block where the file is missing or no regular file.
    """
    path = Path(path)
    refuse_special(path, expected)
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of NumPy's headers alone come six kinds of error
        raise UserError(f"{path}: cannot be read ({one_line(error)}); expected {expected}") from error


def refuse_odd_name(name: str, folder: Path) -> None:
    """Raise UserError where a file's name has a control character or is no UTF-8: tables and settings could not hold it."""
    if is_odd(name):
        raise UserError(f"{folder}: holds {name!r}; expected a name in UTF-8, without line breaks")


def file_hash(path: str | Path) -> bytes:
    """sha256 (32 bytes) of a file's content."""
    with reading(path, "a whole file"):
        return hashlib.sha256(Path(path).read_bytes()).digest()


# ---- text


def read_text(path: str | Path, expected: str) -> str:
    """UTF-8 text, with or without a byte order mark. Raises UserError where it is none, or far too long."""
    path = Path(path)
    with reading(path, expected):
        if (size := path.stat().st_size) > MOST_TEXT:
            raise UserError(f"{path}: has {size:,} bytes; expected {expected}, of at most {MOST_TEXT:,}")
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise UserError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); expected {expected}") from error
    if "\0" in text:  # as a disk leaves a block that it lost
        raise UserError(f"{path}: not text (a zero at character {text.index(chr(0))}); expected {expected}")
    return text


def parse_json(text: str, where: str, expected: str) -> Any:
    """The value of JSON text. Raises UserError, which begins with ``where``, for text that is none or is nested too deep."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
        raise UserError(f"{where}: not valid JSON ({one_line(error)}); expected {expected}") from error


def read_json(path: str | Path, expected: str) -> Any:
    """The value in a JSON file, of any kind. Raises UserError as ``read_text`` and ``parse_json`` do."""
    return parse_json(read_text(path, expected), str(path), expected)


def parse_yaml(text: str, where: str, expected: str) -> Any:
    """Plain values of YAML text. Raises UserError for text that is none, is nested too deep, or grows by its aliases."""
    try:
        value = yaml.safe_load(text)
        _count(value, 0)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid YAML ({one_line(error)}); expected {expected}") from error
    return value


def _count(value: object, so_far: int) -> int:
    """``so_far`` and all values of a tree, an alias counting each time that it stands. Raises ValueError for too many."""
    so_far += 1
    if so_far > MOST_VALUES:
        raise ValueError(f"more than {MOST_VALUES:,} values, or an alias that holds itself")
    parts = [*value, *value.values()] if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for part in parts:
        so_far = _count(part, so_far)
    return so_far


# ---- arrays and pictures


def read_array(path: str | Path, expected: str) -> np.ndarray:
    """The array of an .npy file, mapped: its numbers stay on disk.

    Raises UserError where the file is no whole array of numbers or text, or is pickled, which is never loaded.
    """
    path = Path(path)
    with reading(path, expected):
        with path.open("rb") as file:
            _refuse_unfit(file, path.stat().st_size, path, expected)
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array


def read_arrays(path: str | Path, expected: str) -> dict[str, np.ndarray]:
    """The arrays of an .npz file by name.

    Raises UserError where the file is none, holds what is pickled, or would unpack to more than ``MOST_UNPACKED`` bytes.
    """
    path = Path(path)
    found = {}
    with reading(path, expected), zipfile.ZipFile(path) as file:
        members = [member for member in file.infolist() if member.filename.endswith(".npy")]
        if (size := sum(member.file_size for member in members)) > MOST_UNPACKED:
            raise UserError(f"{path}: unpacks to {size:,} bytes; expected {expected}, of at most {MOST_UNPACKED:,}")
        for member in members:
            name = member.filename.removesuffix(".npy")
            with file.open(member) as stream:
                _refuse_unfit(stream, member.file_size, f"{path}: {name}", expected)
            with file.open(member) as stream:
                found[name] = np.lib.format.read_array(stream, allow_pickle=False)
    return found


def _refuse_unfit(file, size: int, where: object, expected: str) -> None:
    """Raise UserError where the header of an .npy claims other than the ``size`` bytes of the whole, or Python objects."""
    magic = file.read(1)
    if magic == b"\x80":
        raise Pickled(f"{where}: is pickled, which is never loaded; expected {expected}")
    file.seek(0)
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"version {version} of the .npy format")
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = header(file)
    if dtype.hasobject:
        raise Pickled(f"{where}: is pickled, which is never loaded; expected {expected}")
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"shape {shape}")
    wanted = file.tell() + math.prod(shape) * dtype.itemsize
    if wanted != size:
        raise UserError(f"{where}: has {size:,} bytes; expected {wanted:,} by its header, {expected}")


@contextlib.contextmanager
def open_picture(path: str | Path) -> Iterator[Image.Image]:
    """A picture of any kind that Pillow reads, its pixels still in the file. The block may read them.

    Raises UserError where it is damaged, or so large that it would fill the memory.
    """
    from PIL import Image

    with reading(path, "a whole picture"), warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path) as raw:
                yield raw
        except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
            raise UserError(f"{path}: is too large; expected at most {Image.MAX_IMAGE_PIXELS:,} pixels") from error


# ---- tensors


@contextlib.contextmanager
def open_tensors(path: str | Path, expected: str, framework: str = "pt") -> Iterator[Any]:
    """A safetensors file, whose tensors are read when the block asks for them. Raises UserError where it is damaged."""
    from safetensors import safe_open

    with reading(path, expected), safe_open(path, framework) as file:
        yield file
