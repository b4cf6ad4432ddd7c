"""Behaviour of trials in the tars of the NSD release: small members by the hundred thousand, read in one pass over each file.

``tarfile`` would make an object of every member, which at NSD's size takes minutes. What ``webdataset`` and most others
write is plain enough to be read here as one table of headers; for anything else, and to say what is damaged, ``tarfile`` is
asked.
"""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mindtuner.errors import UserError
from mindtuner.inputs import one_line, reading

COLUMNS = 17
_BLOCK = tarfile.BLOCKSIZE
_OCTAL = 8 ** np.arange(10, -1, -1)
_BEHAVIOUR = np.frombuffer(b".behav.npy\0", np.uint8)
# Extended headers, which webdataset writes for fractions of a second, may also rename or resize a member: not these.
_TIMES_AND_OWNERS = re.compile(rb"(\d+ (?:[acm]time|[ug]id|[ug]name)=[^\n]*\n)+")


class Members(NamedTuple):
    """The files of a tar in its order: names (m,), as bytes; where their data begin, and their sizes in bytes, int64 (m,)."""

    name: np.ndarray
    start: np.ndarray
    size: np.ndarray

    def select(self, which: np.ndarray) -> Members:
        """The files that ``which`` picks, a mask bool (m,) or positions."""
        return Members(*(array[which] for array in self))


def read_behaviour(path: Path) -> np.ndarray:
    """The ``behav.npy`` of each sample of a tar in its order, float64 (n, 17); of two of a sample the last.

    Raises UserError where the file is missing or is no whole tar, or a sample has no such array of finite numbers.
    """
    with reading(path, "a tar of behaviour arrays"):
        data = path.read_bytes()
    members = _plain_members(data) or _all_members(path, data)
    sample, is_behaviour = _samples(members.name)
    first = np.flatnonzero(np.r_[True, sample[1:] != sample[:-1]][: len(sample)])  # members of a sample follow one another
    without = () if np.array_equal(sample[first], sample[is_behaviour]) else np.setdiff1d(sample[first], sample[is_behaviour])
    for name in without:
        raise UserError(f"{path}: {name.decode('utf-8', 'replace')} has no behav.npy; expected one of shape (1, {COLUMNS})")
    found, sample = members.select(is_behaviour), sample[is_behaviour]
    if (sample[1:] <= sample[:-1]).any():  # so one may come twice
        places = {name: at for at, name in enumerate(sample.tolist())}
        found = found.select(np.array(list(places.values())))
    return _as_table(path, data, found)


def _plain_members(data: bytes) -> Members | None:
    """Members of a whole tar of plain files with short names; None where it is not whole or not as plain as that."""
    count = len(data) // _BLOCK
    blocks = np.frombuffer(data, np.uint8, count * _BLOCK).reshape(-1, _BLOCK)
    # A header says "ustar". Data may say so too, but each header must lie where the one before it says that its data end.
    at = np.flatnonzero(np.ndarray((count,), "S5", data, 257, (_BLOCK,)) == b"ustar") if count else np.empty(0, np.int64)
    headers = blocks[at]
    sizes, sums = _octal(headers[:, 124:135]), _octal(headers[:, 148:154])
    if sizes is None or sums is None or len(at) and at[0] != 0:
        return None
    ends = at + 1 + (sizes + _BLOCK - 1) // _BLOCK
    end = int(ends[-1]) if len(at) else 0
    if (ends[:-1] != at[1:]).any() or end >= len(blocks) or blocks[end].any():
        return None
    kinds = headers[:, 156]
    counted = headers.sum(axis=1, dtype=np.uint32) - headers[:, 148:156].sum(axis=1, dtype=np.uint32) + 8 * ord(" ")
    if not np.isin(kinds, list(b"0\0x")).all() or headers[:, 345].any() or (counted != sums).any():
        return None
    extended = kinds == ord("x")
    if not _times_and_owners_alone(blocks[at[extended] + 1], sizes[extended]):
        return None
    names = np.ascontiguousarray(headers[:, :100]).view("S100")[:, 0]
    return Members(names, (at + 1) * _BLOCK, sizes).select(~extended)


def _times_and_owners_alone(records: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether extended headers of these sizes (k,), each in a block of its own (k, 512), say nothing else of a member."""
    if len(sizes) == 0:
        return True
    width = int(sizes.max())
    if sizes.min() == 0 or width > _BLOCK or (records[np.arange(len(sizes)), sizes - 1] != ord("\n")).any():
        return False
    records = np.where(np.arange(width) < sizes[:, None], records[:, :width], np.uint8(0))
    records[(records >= ord("0")) & (records <= ord("9"))] = ord("0")  # so that few differ
    return all(map(_TIMES_AND_OWNERS.fullmatch, np.unique(records.view(f"S{width}")).tolist()))


def _octal(digits: np.ndarray) -> np.ndarray | None:
    """Numbers (m,) that are written as octal digits (m, k); None where one is written otherwise."""
    digits = digits.astype(np.int64) - ord("0")
    return None if ((digits < 0) | (digits > 7)).any() else digits @ _OCTAL[-digits.shape[1] :]


def _all_members(path: Path, data: bytes) -> Members:
    """Members of any tar, slowly. Raises UserError where it is not whole."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            members = [(member.name.encode("utf-8", "surrogateescape"), member.offset_data, member.size) for member in tar]
            end = tar.offset
    except Exception as error:
        raise UserError(f"{path}: not a whole tar ({one_line(error)}); expected a tar of behaviour arrays") from error
    # tarfile takes a file that was cut between two members for whole; only the closing zero block tells.
    if data[end : end + _BLOCK] != bytes(_BLOCK):
        trials = sum(name.partition(b".")[2] == b"behav.npy" for name, _, _ in members)
        raise UserError(f"{path}: not a whole tar (it breaks off after {trials} trials); expected a tar of behaviour arrays")
    names, starts, sizes = zip(*members, strict=True) if members else ((), (), ())
    return Members(np.array(names, "S"), np.array(starts, np.int64), np.array(sizes, np.int64))


def _samples(names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each member's sample, which is its name up to the first dot (m,), and whether it is the ``behav.npy``, bool (m,)."""
    width = names.dtype.itemsize
    letters = np.zeros((len(names), width + len(_BEHAVIOUR)), np.uint8)
    letters[:, :width] = np.ascontiguousarray(names).view(np.uint8).reshape(len(names), width)
    letters[:, width] = ord(".")  # behind a name without one
    dot = (letters == ord(".")).argmax(axis=1)[:, None]
    letters[:, width] = 0
    rest = np.take_along_axis(letters, dot + np.arange(len(_BEHAVIOUR)), axis=1)
    samples = np.where(np.arange(width) < dot, letters[:, :width], np.uint8(0))
    return samples.view(names.dtype)[:, 0], (rest == _BEHAVIOUR).all(axis=1)


def _as_table(path: Path, data: bytes, found: Members) -> np.ndarray:
    """The arrays (1, 17) in these files as one, float64 (n, 17)."""
    if len(found.name) == 0:
        return np.empty((0, COLUMNS))
    first = _read_array(path, data, found, 0)
    size = int(found.size[0])
    begin = size - first.nbytes
    if (found.size == size).all():
        arrays = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, np.uint8), size)[found.start]
        if (arrays[:, :begin] == arrays[0, :begin]).all():  # so one header reads all
            table = np.ascontiguousarray(arrays[:, begin:]).view(first.dtype)
            if np.isfinite(table).all():
                return table.astype(np.float64)
    return np.concatenate([_read_array(path, data, found, k) for k in range(len(found.name))]).astype(np.float64)


def _read_array(path: Path, data: bytes, found: Members, k: int) -> np.ndarray:
    start, name = int(found.start[k]), found.name[k].decode("utf-8", "replace")
    try:
        array = np.load(io.BytesIO(data[start : start + int(found.size[k])]), allow_pickle=False)
    except Exception as error:
        raise UserError(f"{path}: {name} is not a .npy array ({one_line(error)}); expected one of numbers") from error
    if array.shape != (1, COLUMNS) or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise UserError(
            f"{path}: {name} has shape {array.shape} and dtype {array.dtype}; expected (1, {COLUMNS}) finite numbers"
        )
    return array
