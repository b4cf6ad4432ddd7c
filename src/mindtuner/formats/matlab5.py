"""Tables of numbers from a MATLAB 5 file, read strictly.

SciPy's reader trusts the types and sizes that a file gives: one damaged byte ends the whole process (segmentation fault,
SciPy 1.17). Tests hold this one against it on whole files. The format is MathWorks' "MAT-File Format", level 5.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Collection, Iterator
from pathlib import Path

import numpy as np

_HEADER, _LITTLE_ENDIAN_5 = 128, b"\x00\x01IM"
_INT8, _INT32, _UINT32, _MATRIX, _COMPRESSED = 1, 5, 6, 14, 15  # kinds of element
_NUMBERS = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_NUMERIC_CLASSES = range(6, 16)  # double, single, and integers of 8 to 64 bits
_COMPLEX = 0x800


def read_tables(path: Path, names: Collection[str]) -> dict[str, np.ndarray]:
    """The variables ``names``, as far as the file has them: 2-D arrays, of the number format in which the file holds them.

    Other variables are passed over. Raises ValueError where the file is damaged, of another format, or one of ``names`` is no
    table of real numbers; OSError where it cannot be read.
    """
    data = path.read_bytes()
    if data[_HEADER - 4 : _HEADER] != _LITTLE_ENDIAN_5:
        raise ValueError("no header of a little-endian MATLAB 5 file")
    found = {}
    for kind, content in _elements(data[_HEADER:]):
        if kind == _COMPRESSED:
            try:
                content = zlib.decompress(content)
            except zlib.error as error:
                raise ValueError(f"cannot be unpacked: {error}") from error
            kind, content = _next(_elements(content))
        if kind != _MATRIX:
            raise ValueError(f"an element is of type {kind}, not an array")
        parts = _elements(content)
        about = [_next(parts) for _ in range(3)]
        name = _name_of(about)
        if name in names:
            found[name] = _table(name, about, _next(parts))
    return found


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Type and content of one element after the other."""
    at = 0
    while at < len(data):
        if len(data) < at + 8:
            raise ValueError("ends within an element")
        kind, size = struct.unpack_from("<II", data, at)
        if kind >> 16:  # a small element: size and type share four bytes, the content has the other four
            kind, size, start, at = kind & 0xFFFF, kind >> 16, at + 4, at + 8
            if size > 4:
                raise ValueError(f"a small element has {size} bytes")
        else:
            start = at + 8
            at = start + size + (0 if kind == _COMPRESSED else -size % 8)
        if len(data) < start + size:
            raise ValueError("ends within an element")
        yield kind, data[start : start + size]


def _next(parts: Iterator[tuple[int, bytes]]) -> tuple[int, bytes]:
    for part in parts:
        return part
    raise ValueError("ends within an array")


def _name_of(parts: list[tuple[int, bytes]]) -> str:
    """What an array is called, of its first three parts: flags, dimensions, name."""
    (flags, about), (dimensions, _), (text, name) = parts
    if (flags, dimensions, text) != (_UINT32, _INT32, _INT8) or len(about) != 8:
        raise ValueError("an array without flags, dimensions and name")
    return name.decode("latin-1")


def _table(name: str, parts: list[tuple[int, bytes]], numbers: tuple[int, bytes]) -> np.ndarray:
    """The array of these parts (see ``_name_of``) and numbers, in MATLAB's order."""
    flags = struct.unpack_from("<I", parts[0][1])[0]
    shape = np.frombuffer(parts[1][1], "<i4")
    kind, content = numbers
    if flags & 0xFF not in _NUMERIC_CLASSES or flags & _COMPLEX or kind not in _NUMBERS or len(shape) != 2:
        raise ValueError(f"{name} is no table of real numbers")
    values = np.frombuffer(content, _NUMBERS[kind])
    if (shape < 0).any() or int(shape[0]) * int(shape[1]) != len(values):
        raise ValueError(f"{name} has {len(values)} numbers, but dimensions {shape[0]} x {shape[1]}")
    return values.reshape(shape, order="F")
