"""Behaviour of trials in the tars of Layout A: small members by the hundred thousand, read in one pass over each file.

``tarfile`` would make an object of every member, which at NSD's size takes minutes. What ``webdataset`` and most others
write is plain enough to be walked here; for anything else, and to say what is damaged, ``tarfile`` is asked.
"""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path

import numpy as np

from mindtuner.errors import UserError

COLUMNS = 17
_BLOCK = tarfile.BLOCKSIZE
_OCTAL = 8 ** np.arange(5, -1, -1)
# Extended headers, which webdataset writes for fractions of a second, may also rename or resize a member: not these.
_TIMES_AND_OWNERS = re.compile(rb"(\d+ (?:[acm]time|[ug]id|[ug]name)=[^\n]*\n)+")

Members = list[tuple[str, int, int]]  # name, where its data begin, how many bytes


def read_behaviour(path: Path) -> np.ndarray:
    """The ``behav.npy`` of each sample of a tar in its order, float64 (n, 17).

    Raises UserError where the file is missing or is no whole tar, or a sample has no such array of finite numbers.
    """
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a tar of behaviour arrays")
    data = path.read_bytes()
    members = _plain_members(data)
    if members is None:
        members = _all_members(path, data)
    samples: dict[str, None] = {}  # a set that keeps their order
    found: dict[str, tuple[str, bytes]] = {}
    for name, start, size in members:
        sample, _, kind = name.partition(".")
        samples[sample] = None
        if kind == "behav.npy":
            found[sample] = name, data[start:start + size]
    for sample in sorted(samples.keys() - found.keys()):
        raise UserError(f"{path}: {sample} has no behav.npy; expected one of shape (1, {COLUMNS})")
    return _as_table(path, list(found.values()))


def _plain_members(data: bytes) -> Members | None:
    """Members of a whole tar of plain files with short names; None where it is not whole or not as plain as that."""
    starts, sizes, at = [], [], 0
    while data[at:at + 1] not in (b"", b"\0"):
        try:
            sizes.append(int(data[at + 124:at + 135], 8))
        except ValueError:
            return None
        starts.append(at)
        at += _BLOCK + (sizes[-1] + _BLOCK - 1) // _BLOCK * _BLOCK
    if data[at:at + _BLOCK] != bytes(_BLOCK):
        return None
    blocks = np.frombuffer(data, np.uint8, at).reshape(-1, _BLOCK)
    headers = blocks[np.array(starts, np.int64) // _BLOCK]
    kinds, digits = headers[:, 156], headers[:, 148:154].astype(np.int64) - ord("0")
    sums = headers.sum(axis=1, dtype=np.int64) - headers[:, 148:156].sum(axis=1, dtype=np.int64) + 8 * ord(" ")
    if not np.isin(kinds, list(b"0\0x")).all() or headers[:, 345].any() or (digits @ _OCTAL != sums).any():
        return None
    names = np.ascontiguousarray(headers[:, :100]).view("S100")[:, 0].tolist()
    members = []
    for name, kind, start, size in zip(names, kinds.tolist(), starts, sizes, strict=True):
        if kind != ord("x"):
            members.append((name.decode("utf-8", "replace"), start + _BLOCK, size))
        elif not _TIMES_AND_OWNERS.fullmatch(data, start + _BLOCK, start + _BLOCK + size):
            return None
    return members


def _all_members(path: Path, data: bytes) -> Members:
    """Members of any tar, slowly. Raises UserError where it is not whole."""
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            members = [(member.name, member.offset_data, member.size) for member in tar]
            end = tar.offset
    except tarfile.TarError as error:
        raise UserError(f"{path}: not a whole tar ({error}); expected a tar of behaviour arrays") from error
    # tarfile takes a file that was cut between two members for whole; only the closing zero block tells.
    if data[end:end + _BLOCK] != bytes(_BLOCK):
        trials = sum(name.partition(".")[2] == "behav.npy" for name, _, _ in members)
        raise UserError(f"{path}: not a whole tar (it breaks off after {trials} trials); expected a tar of behaviour arrays")
    return members


def _as_table(path: Path, found: list[tuple[str, bytes]]) -> np.ndarray:
    """The arrays (1, 17) of (name, .npy file) as one, float64 (n, 17)."""
    if not found:
        return np.empty((0, COLUMNS))
    first = _read_array(path, *found[0])
    begin = len(found[0][1]) - first.nbytes
    header = found[0][1][:begin]
    if all(len(data) == begin + first.nbytes and data.startswith(header) for _, data in found):  # so one header reads all
        table = np.frombuffer(b"".join(data[begin:] for _, data in found), first.dtype).reshape(-1, COLUMNS)
        if np.isfinite(table).all():
            return table.astype(np.float64)
    return np.concatenate([_read_array(path, name, data) for name, data in found]).astype(np.float64)


def _read_array(path: Path, name: str, data: bytes) -> np.ndarray:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: {name} is not a .npy array ({' '.join(str(error).split())})") from error
    if array.shape != (1, COLUMNS) or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise UserError(f"{path}: {name} has shape {array.shape} and dtype {array.dtype}; "
                        f"expected (1, {COLUMNS}) finite numbers")
    return array
