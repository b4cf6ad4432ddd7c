"""What becomes of bad input? Files and arguments are damaged one at a time, and every verb that reads them is called.

    python benchmarks/bad_inputs.py OUT [--cases 1000] [--seed 0]

Makes a small simulated world (kept in OUT/world): datasets of several formats, a base, a tuned subject, decoded and evaluated
runs, generator weights. Each case damages one file or one argument of a command that works, and calls it in this process.
Wanted is exit code 2 with one line on stderr that names the file or argument; 0 where the damage leaves something that is
still right, as another number among the betas does. Anything else is told: a traceback, a second line, no name, a hang. One
line per case goes to OUT/cases.jsonl, so a campaign that was stopped goes on; what was not as wanted is tried again.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import gzip
import io
import json
import math
import os
import pickle
import re
import shutil
import signal
import struct
import sys
import tarfile
import time
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import yaml
from PIL import Image

LIMIT_S = 60  # of one case
BUILT = "mindtuner_bad_inputs"  # a folder's name that stands in every path of the world
MISSING = "no-such-thing"
Damage = Callable[[Path, np.random.Generator], None]


@dataclass(frozen=True)
class Case:
    """A command, and what is damaged before it is called.

    ``names``: of these one has to stand in the line. ``strict``: whether exit code 0 is wrong.
    """

    verb: str
    kind: str
    argv: list[str]
    names: tuple[str, ...]
    strict: bool
    file: Path | None = None
    damage: Damage | None = None
    seed: int = 0

    @property
    def title(self) -> str:
        """What tells the case from others."""
        what = f"{self.file.parent.name}/{self.file.name}" if self.file else " ".join(self.names)
        return f"{self.verb}: {self.kind}: {what}: {self.seed}"


@dataclass
class Outcome:
    """What a case came to; ``fault`` is empty where all is as wanted."""

    code: object
    lines: list[str]
    seconds: float
    fault: str = ""
    trace: str = field(default="", repr=False)


class Hang(BaseException):
    """The case took too long."""


# ---- one case


def run_case(case: Case, limit_s: float = LIMIT_S) -> Outcome:
    """Damage, call, and put everything back."""
    if case.file is None:
        try:
            return judged(case, *called(case.argv, limit_s))
        finally:
            for made in (path for word in case.argv if (path := Path(word)).name == MISSING and os.path.lexists(path)):
                remove(made)
    kept = case.file.with_name(f"{case.file.name}.kept")
    case.file.rename(kept)
    try:
        shutil.copytree(kept, case.file) if kept.is_dir() else shutil.copyfile(kept, case.file)
        case.damage(case.file, np.random.default_rng(case.seed))
        return judged(case, *called(case.argv, limit_s))
    finally:
        remove(case.file)
        kept.rename(case.file)


def called(argv: list[str], limit_s: float) -> tuple[object, str, float, str]:
    """Exit code (or what was raised), stderr, seconds and traceback of a command in this process."""
    import traceback

    from mindtuner.cli import main

    out = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", "backslashreplace", write_through=True)
    start, trace, code = time.monotonic(), "", None

    def stop(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    faulthandler.dump_traceback_later(limit_s + 60, exit=True, file=sys.__stderr__)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings():
            warnings.simplefilter("always")
            for kind in (ResourceWarning, DeprecationWarning, PendingDeprecationWarning, ImportWarning):
                warnings.simplefilter("ignore", kind)  # as Python itself does
            code = main(argv)
    except SystemExit as stopped:
        code = stopped.code
    except Hang:
        code, trace = "hang", traceback.format_exc()
    except BaseException as error:
        code, trace = type(error).__name__, traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, before)
    said = err.buffer.getvalue().decode("utf-8", "replace")
    return code, said, time.monotonic() - start, trace


def judged(case: Case, code: object, said: str, seconds: float, trace: str) -> Outcome:
    """The outcome with what is wrong about it."""
    lines = [line for line in said.split("\n") if line.strip()]
    found = Outcome(code, lines[-8:], round(seconds, 2), trace=trace)
    if code not in (0, 2):
        found.fault = str(code)
    elif code == 0:
        found.fault = "accepted" if case.strict else "noise" if lines else ""
    elif len(lines) != 1 or not lines[0].startswith("mindtuner: "):
        found.fault = f"{len(lines)} lines"
    elif not any(name in lines[0] for name in case.names):
        found.fault = "no name"
    elif len(lines[0]) > 2000:
        found.fault = "long"
    return found


def remove(path: Path) -> None:
    """Whatever lies at a path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# ---- damage to any file


def absent(path, rng):
    path.unlink()


def empty(path, rng):
    path.write_bytes(b"")


def cut(path, rng):
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * rng.uniform(0.05, 0.95)))


def noise(path, rng):
    path.write_bytes(rng.bytes(min(path.stat().st_size, 4096) or 10))


def text(path, rng):
    path.write_text("<html><title>404 Not Found</title></html>\n")


def pickled(path, rng):
    path.write_bytes(pickle.dumps({"betas": [1, 2, 3]}))


def folder(path, rng):
    path.unlink()
    path.mkdir()


def fifo(path, rng):
    path.unlink()
    os.mkfifo(path)


def device(path, rng):
    path.unlink()
    path.symlink_to("/dev/zero")


def loop(path, rng):
    path.unlink()
    path.symlink_to(path.name)


def dangling(path, rng):
    path.unlink()
    path.symlink_to("nowhere-at-all")


def flipped(path, rng):
    """A few bits, half of the times near the beginning, where headers are."""
    data = bytearray(path.read_bytes())
    if not data:
        return
    end = min(len(data), 512) if rng.random() < 0.7 else len(data)
    for _ in range(int(rng.integers(1, 6))):
        data[int(rng.integers(end))] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(data))


def zeroed(path, rng):
    """A block of zeros, as a disk that lost some."""
    data = bytearray(path.read_bytes())
    start = int(rng.integers(max(1, len(data) // 2)))
    data[start : start + 512] = bytes(len(data[start : start + 512]))
    path.write_bytes(bytes(data))


STRICT = (absent, empty, noise, text, pickled, folder, fifo, device, loop, dangling)
MAYBE = (cut, flipped, zeroed)

# ---- damage to one kind of file

ODD = (None, -1, 0, 10**30, 1e300, math.inf, math.nan, "", "x", "é\u2028x", [], {}, [[]], True, {"a": {"a": []}}, "1", [None])


def _leaves(tree, at=()) -> Iterator[tuple]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield (*at, key)
            yield from _leaves(value, (*at, key))
    elif isinstance(tree, list) and tree:
        for key, value in enumerate(tree[:4]):
            yield (*at, key)
            yield from _leaves(value, (*at, key))


def _mutated(tree, rng):
    """A tree of plain values in which one is odd, or gone."""
    places = list(_leaves(tree))
    if not places:
        return [tree]
    place = places[int(rng.integers(len(places)))]
    parent = tree
    for key in place[:-1]:
        parent = parent[key]
    if rng.random() < 0.25:
        del parent[place[-1]]
    else:
        parent[place[-1]] = ODD[int(rng.integers(len(ODD)))]
    return tree


def json_odd(path, rng):
    path.write_text(json.dumps(_mutated(json.loads(path.read_text()), rng)))


def json_deep(path, rng):
    path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000)


def json_list(path, rng):
    path.write_text("[1, 2]")


def json_latin(path, rng):
    path.write_bytes(b'{"name": "\xe9\xff"}')


def json_digits(path, rng):
    path.write_text('{"a": ' + "9" * 10_000 + "}")


def lines_odd(path, rng):
    lines = path.read_text().splitlines()
    row = int(rng.integers(len(lines)))
    lines[row] = json.dumps(_mutated(json.loads(lines[row]), rng))
    path.write_text("\n".join(lines) + "\n")


def lines_latin(path, rng):
    path.write_bytes(path.read_bytes() + b'{"stage": "\xff"}\n')


def lines_deep(path, rng):
    path.write_text(path.read_text() + "[" * 100_000 + "\n")


def yaml_odd(path, rng):
    said = path.read_text()
    head = said.partition("\n")[0] + "\n" if said.startswith("#") else ""
    path.write_text(head + yaml.safe_dump(_mutated(yaml.safe_load(said), rng), sort_keys=False))


def yaml_deep(path, rng):
    path.write_text("seed: " + "[" * 20_000 + "]" * 20_000)


def yaml_bomb(path, rng):
    names = "abcdefghijkl"
    lines = [f"{names[0]}: &{names[0]} [x, x, x, x, x, x, x, x, x]"]
    lines += [f"{b}: &{b} [{', '.join(['*' + a] * 9)}]" for a, b in zip(names, names[1:], strict=False)]
    path.write_text("\n".join(lines) + "\nseed: *l\n")


def yaml_loop(path, rng):
    path.write_text("seed: &a [*a]\n")


def yaml_tag(path, rng):
    path.write_text("seed: !!python/object/apply:os.system ['true']\n")


def yaml_keys(path, rng):
    path.write_text("? [1, 2]\n: 3\nseed: {1: 2, null: 3}\n")


def _npy(path, header: bytes, body: bytes = b"", version=(1, 0)):
    size = struct.pack("<H" if version[0] == 1 else "<I", len(header))
    path.write_bytes(b"\x93NUMPY" + bytes(version) + size + header + body)


def npy_header(path, rng):
    bad = (
        b"{'descr': 'O', 'fortran_order': False, 'shape': (3,), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (-3, 5), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (10000000000000, 10000), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': 'x', }\n",
        b"{'descr': '<f4', 'fortran_order': 7, 'shape': (3,), }\n",
        b"{'descr': '<f4', 'shape': (3,), }\n",
        b"{'descr': [('a', '<f4'), ('a', '<f4')], 'fortran_order': False, 'shape': (3,), }\n",
        b"{'descr': '<Q9', 'fortran_order': False, 'shape': (3,), }\n",
        b"__import__('os').system('true')\n",
        b"(" * 5000 + b"\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (" + b"1," * 100 + b"), }\n",
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (True, 1.5), }\n",
        b"\xff\xfe\x00{",
    )
    _npy(path, bad[int(rng.integers(len(bad)))], bytes(64))


def npy_version(path, rng):
    _npy(path, b"{'descr': '<f4', 'fortran_order': False, 'shape': (3,), }\n", bytes(12), (9, 0))


def npy_objects(path, rng):
    np.save(path, np.array([{"a": 1}, None], object), allow_pickle=True)


def npy_shape(path, rng):
    array = np.load(path)
    choices = (array.reshape(-1), array[None], array[:0], array[..., None], np.float32(1), array[:-1])
    with path.open("wb") as file:
        np.save(file, choices[int(rng.integers(len(choices)))])


def npy_kind(path, rng):
    array = np.load(path)
    kinds = ("complex64", "S3", "U3", "datetime64[s]", "uint64", "bool")
    with path.open("wb") as file, np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.save(file, np.zeros(array.shape, kinds[int(rng.integers(len(kinds)))]))


FAR = (math.nan, math.inf, -math.inf, 3e38, -3e38, 1e30, 1e25)


def _spoiled(array: np.ndarray, rng) -> np.ndarray:
    """One value of a row, or all of a voxel, that is no measurement."""
    with np.errstate(all="ignore"):
        far = np.asarray(FAR[int(rng.integers(len(FAR)))], array.dtype)
    at = tuple(int(rng.integers(n)) for n in array.shape)
    if rng.random() < 0.3:
        array[..., at[-1]] = far
    else:
        array[at] = far
    return array


def npy_far(path, rng):
    array = _spoiled(np.load(path), rng)
    with path.open("wb") as file:
        np.save(file, array)


def npz_bomb(path, rng):
    member = io.BytesIO()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        header = b"{'descr': '|b1', 'fortran_order': False, 'shape': (4000000000,), }"
        header += b" " * (117 - len(header) % 64) + b"\n"
        member.write(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
        with file.open("V1.npy", "w", force_zip64=True) as part:
            part.write(member.getvalue())
            for _ in range(64):
                part.write(bytes(2**22))


def npz_odd(path, rng):
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    name = next(iter(arrays))
    odd = (arrays[name][:-1], arrays[name].astype(float) + 0.5, np.array("x"), arrays[name].astype(complex))
    np.savez(path, **{**arrays, name: odd[int(rng.integers(len(odd)))]})


def npz_objects(path, rng):
    np.savez(path, V1=np.array([{}, []], object))


def _datasets(file) -> list[str]:
    found = []
    file.visititems(lambda name, item: found.append(name) if isinstance(item, h5py.Dataset) else None)
    return found


def _replaced(make) -> Damage:
    """Damage to the largest dataset of an HDF5 file: ``make(file, name, array, path)`` writes another in its place."""

    def damage(path, rng):
        with h5py.File(path, "r+") as file:
            name = max(_datasets(file), key=lambda name: file[name].size or 0)
            array = file[name][()]
            del file[name]
            make(file, name, array, path, rng)

    damage.__name__ = make.__name__
    return damage


@_replaced
def h5_gone(file, name, array, path, rng):
    pass


@_replaced
def h5_group(file, name, array, path, rng):
    file.create_group(name)


@_replaced
def h5_far(file, name, array, path, rng):
    file[name] = _spoiled(array, rng) if array.dtype.kind == "f" else array.astype("S4")


@_replaced
def h5_kind(file, name, array, path, rng):
    kinds = ("complex64", "S8", "u8", h5py.string_dtype())
    kind = kinds[int(rng.integers(len(kinds)))]
    file.create_dataset(name, array.shape, kind)


@_replaced
def h5_null(file, name, array, path, rng):
    file[name] = h5py.Empty("f4")


@_replaced
def h5_scalar(file, name, array, path, rng):
    file[name] = np.float32(1)


@_replaced
def h5_shape(file, name, array, path, rng):
    choices = (array.reshape(-1), array[None], array[:0], array[:-1], array[..., :-1])
    file[name] = choices[int(rng.integers(len(choices)))]


@_replaced
def h5_unwritten(file, name, array, path, rng):
    file.create_dataset(name, array.shape, array.dtype)


@_replaced
def h5_huge(file, name, array, path, rng):
    file.create_dataset(name, (10**9, *array.shape[1:]), array.dtype, chunks=(1, *array.shape[1:]))


@_replaced
def h5_external_gone(file, name, array, path, rng):
    file.create_dataset(name, array.shape, array.dtype, external=[("nowhere.bin", 0, h5py.h5f.UNLIMITED)])


@_replaced
def h5_external_link_gone(file, name, array, path, rng):
    file[name] = h5py.ExternalLink("nowhere.hdf5", "/betas")


@_replaced
def h5_soft_link_gone(file, name, array, path, rng):
    file[name] = h5py.SoftLink("/nowhere")


@_replaced
def h5_virtual_gone(file, name, array, path, rng):
    layout = h5py.VirtualLayout(array.shape, array.dtype)
    layout[...] = h5py.VirtualSource("nowhere.hdf5", "betas", array.shape, array.dtype)
    file.create_virtual_dataset(name, layout)


@_replaced
def h5_reference(file, name, array, path, rng):
    file.create_dataset(name, array.shape, h5py.ref_dtype)


def nifti_header(path, rng):
    """Odd numbers in a header: dimensions, type, bits, scaling, offset."""
    data = bytearray(gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes())
    place = ((40, "<h"), (42, "<h"), (46, "<h"), (48, "<h"), (70, "<h"), (72, "<h"), (108, "<f"), (112, "<f"), (0, "<i"))
    at, kind = place[int(rng.integers(len(place)))]
    value = (-1, 0, 7, 32767, 1024)[int(rng.integers(5))]
    struct.pack_into(kind, data, at, math.nan if kind == "<f" and value == 7 else value)
    path.write_bytes(gzip.compress(bytes(data), 1) if path.suffix == ".gz" else bytes(data))


def gzip_bomb(path, rng):
    path.write_bytes(gzip.compress(bytes(2**26), 1))


def _tensors(path) -> tuple[dict, bytes]:
    data = path.read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def _put_tensors(path, header: dict, body: bytes):
    said = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(said)) + said + body)


def st_length(path, rng):
    data = path.read_bytes()
    path.write_bytes(struct.pack("<Q", (0, 1, 2**62, 2**31)[int(rng.integers(4))]) + data[8:])


def st_no_metadata(path, rng):
    header, body = _tensors(path)
    header.pop("__metadata__", None)
    _put_tensors(path, header, body)


def st_card(path, rng):
    """An odd value somewhere in what stands in the header of a file of ours."""
    header, body = _tensors(path)
    for key, value in header["__metadata__"].items():
        with contextlib.suppress(ValueError):
            tree = json.loads(value)
            if isinstance(tree, dict):
                header["__metadata__"][key] = json.dumps(_mutated(tree, rng))
    _put_tensors(path, header, body)


def st_no_card(path, rng):
    header, body = _tensors(path)
    said = json.loads(header["__metadata__"]["mindtuner"])
    said.pop(("card", "kind")[int(rng.integers(2))])
    header["__metadata__"]["mindtuner"] = json.dumps(said)
    _put_tensors(path, header, body)


def st_metadata(path, rng):
    header, body = _tensors(path)
    header["__metadata__"] = {"mindtuner": ("[", "[]", "null", "{" * 90_000, '"x"', "{}")[int(rng.integers(6))]}
    _put_tensors(path, header, body)


def st_less(path, rng):
    header, body = _tensors(path)
    names = [name for name in header if name != "__metadata__"]
    other = names[int(rng.integers(len(names)))]
    header[f"{other}_other"] = header.pop(other)
    _put_tensors(path, header, body)


def st_nan(path, rng):
    """A weight that is no number."""
    header, body = _tensors(path)
    body = bytearray(body)
    kinds = {"F32": 4, "F16": 2, "BF16": 2}
    names = [name for name in header if name != "__metadata__" and header[name]["dtype"] in kinds]
    found = header[names[int(rng.integers(len(names)))]]
    (start, stop), size = found["data_offsets"], kinds[found["dtype"]]
    spot = start + size * int(rng.integers((stop - start) // size))
    body[spot : spot + size] = b"\xff" * size  # NaN in all of them
    _put_tensors(path, header, bytes(body))


def st_bit(path, rng):
    """One bit of one weight."""
    header, body = _tensors(path)
    body = bytearray(body)
    body[int(rng.integers(len(body)))] ^= 1 << int(rng.integers(8))
    _put_tensors(path, header, bytes(body))


CELLS = ("", "n/a", "-1", "x", "1e9", "nan", "9" * 40, "\x00", "é", '"', "train", "1.5", "../x", "\u2028", "٣")


def table_cell(path, rng):
    comma = "," if path.suffix == ".csv" else "\t"
    rows = [line.split(comma) for line in path.read_text().splitlines()]
    row = int(rng.integers(len(rows)))
    rows[row][int(rng.integers(len(rows[row])))] = CELLS[int(rng.integers(len(CELLS)))]
    path.write_text("\n".join(comma.join(row) for row in rows) + "\n")


def table_ragged(path, rng):
    lines = path.read_text().splitlines()
    row = int(rng.integers(len(lines)))
    lines[row] = lines[row] + "\tx" if rng.random() < 0.5 else lines[row].rpartition("\t")[0]
    path.write_text("\n".join(lines) + "\n")


def table_latin(path, rng):
    path.write_bytes(path.read_bytes() + b"\xff\xfe\t1\ttrain\n")


def table_nul(path, rng):
    path.write_bytes(path.read_bytes() + bytes(100))


def table_field(path, rng):
    path.write_text(path.read_text() + '"' + "x" * 500_000 + "\n")


def table_no_column(path, rng):
    first, _, rest = path.read_text().partition("\n")
    path.write_text("a\t" + first.partition("\t")[2] + "\n" + rest)


def png_giant(path, rng):
    header = struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        data += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    path.write_bytes(data)


def png_large(path, rng):
    """Between Pillow's warning and its error."""
    Image.new("1", (11_000, 10_000)).save(path, "PNG")


def png_deep(path, rng):
    Image.fromarray(np.zeros((8, 8), np.uint16)).save(path, "PNG")


def png_line(path, rng):
    Image.new("RGB", (1, 3000)).save(path, "PNG")


def tar_other(path, rng):
    with tarfile.open(path, "w") as tar:
        for name in ("a/../../b.npy", "sample000000000.behav.npy", "x" * 150):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO())


def tar_objects(path, rng):
    data = io.BytesIO()
    np.save(data, np.array([None, {}], object), allow_pickle=True)
    with tarfile.open(path, "w") as tar:
        member = tarfile.TarInfo("sample000000000.behav.npy")
        member.size = len(data.getvalue())
        tar.addfile(member, io.BytesIO(data.getvalue()))


STRICT_OF = {
    ".json": (json_deep, json_list, json_latin),
    ".jsonl": (lines_latin, lines_deep),
    ".yaml": (yaml_deep, yaml_bomb, yaml_loop, yaml_tag, yaml_keys, json_latin),
    ".npy": (npy_header, npy_version, npy_objects),
    ".npz": (npz_bomb, npz_objects),
    ".hdf5": (h5_gone, h5_group, h5_null, h5_scalar, h5_unwritten, h5_huge, h5_external_gone, h5_external_link_gone,
              h5_soft_link_gone, h5_virtual_gone, h5_reference),
    ".nii.gz": (gzip_bomb,),
    ".safetensors": (st_length, st_less),
    ".tsv": (table_latin, table_no_column),
    ".png": (png_giant, png_deep),
    ".tar": (tar_other, tar_objects),
}  # fmt: skip
MAYBE_OF = {
    ".json": (json_odd, json_odd, json_digits),
    ".jsonl": (lines_odd,),
    ".yaml": (yaml_odd, yaml_odd),
    ".npy": (npy_shape, npy_kind, npy_far),
    ".npz": (npz_odd,),
    ".hdf5": (h5_far, h5_kind, h5_shape),
    ".nii.gz": (nifti_header,),
    ".safetensors": (),
    ".tsv": (table_cell, table_cell, table_ragged, table_nul, table_field),
    ".png": (png_large, png_line),
    ".tar": (),
    ".txt": (table_latin,),
}

# ---- the world, and the commands that read it

SETTINGS = {
    "base": "quick",
    "model": {"hidden": 32, "blocks": 1, "lowlevel_channels": [8, 4]},
    "pretrain": {"epochs": 1, "batch_per_subject": 8, "head_trials": 8, "dtype": "float32"},
    "tune": {"epochs": 1, "batch_per_subject": 8, "head_trials": 8, "dtype": "float32"},
    "pivot": {"epochs": 1, "batch": 16},
    "decode": {"pictures": 2, "prior_steps": 2, "generator_steps": 1, "refine_steps": 1},
}
FORMS = {"lab": "npy", "lab_hdf5": "hdf5", "lab_nifti": "nifti"}


def build(root: Path, nsd: Path, generator: Path) -> None:
    """Everything that commands read, in ``root``, from a simulated dataset of two subjects and a generator's weights."""
    from mindtuner.formats import load, write

    dataset = load(nsd)
    for name, form in FORMS.items():
        write(root / name, dataset, "lab_folder", form=form)
    write(root / "bdata", dataset, "bdata")
    shutil.copytree(nsd, root / "nsd", ignore=shutil.ignore_patterns("truth", "cache"))
    shutil.copyfile(generator, root / "generator.safetensors")
    (root / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    paints = ("--generator", str(root / "generator.safetensors"))
    for argv in (
        ("pretrain", root / "lab", root / "base", "--without", "1", "--config", root / "config.yaml", *paints),
        ("tune", root / "base", root / "lab", root / "tuned", "--subject", "1", *paints),
        ("decode", root / "tuned", root / "lab", root / "decoded", "--pictures", "2", *paints),
        ("evaluate", root / "tuned", root / "lab", root / "report", *paints),
    ):
        code, said, _, trace = called([str(word) for word in argv], 600)
        if code != 0:
            raise RuntimeError(f"{' '.join(map(str, argv))}: exit {code}: {said}{trace}")
    shutil.copytree(root / "report", root / "report_2")
    (root / "loop").symlink_to("loop")


def commands(root: Path, out: Path) -> dict[str, tuple[list[str], list[tuple[Path, bool]]]]:
    """Verb -> a command that works, and the files that it reads, each with whether it may be missing."""
    own = root / "lab" / "sub-01"
    picture = sorted((root / "lab" / "stimuli").glob("*.png"))[3]
    paints = ["--generator", str(root / "generator.safetensors")]
    cache = [(root / "lab" / "cache" / f"{name}.json", True) for name in ("tokens", "latents")]
    data = [(root / "lab" / "dataset.json", True), (own / "trials.tsv", False), (own / "betas.npy", False)]
    regions = (own / "rois.npz", True)
    base = [(root / "base" / "base.safetensors", False), (root / "base" / "config.yaml", True)]
    tuned = [(root / "tuned" / "fingerprint.safetensors", True)]
    report = [
        (root / "report" / name, False)
        for name in (
            "results.json",
            "words.json",
            "log.jsonl",
            "config.yaml",
            "pictures.safetensors",
            "per_image.safetensors",
        )
    ]
    told = {
        "check lab": (["check", root / "lab"], [*data, regions, (picture, False), (picture.with_suffix(".txt"), True)]),
        "check hdf5": (["check", root / "lab_hdf5"], _of(root / "lab_hdf5" / "sub-01", "betas.hdf5")),
        "check nifti": (
            ["check", root / "lab_nifti"],
            _of(root / "lab_nifti" / "sub-01", "betas_session-01.nii.gz", "mask.nii.gz", "rois/V1.nii.gz"),
        ),
        "check nsd": (
            ["check", root / "nsd"],
            _of(
                root / "nsd",
                "betas_all_subj01_fp32_renorm.hdf5",
                "coco_images_224_float16.hdf5",
                "COCO_73k_annots_curated.npy",
                "COCO_73k_subj_indices.hdf5",
                "brain_region_masks.hdf5",
                "shared1000.npy",
                "wds/subj01/train/0.tar",
            ),
        ),
        "check bdata": (["check", root / "bdata"], [(sorted((root / "bdata").glob("*.h5"))[0], True)]),
        "embed": (["embed", root / "lab", out, *paints], [(picture, False), (root / "generator.safetensors", False)]),
        "pretrain": (
            ["pretrain", root / "lab", out, "--without", "2", "--config", root / "config.yaml", *paints],
            [*data, (root / "config.yaml", False), *cache],
        ),
        "tune": (["tune", root / "base", root / "lab", out, "--subject", "1", *paints], [*data, *base, *cache]),
        "tune hdf5": (
            ["tune", root / "base", root / "lab_hdf5", out, "--subject", "1", "--cache", root / "lab" / "cache", *paints],
            _of(root / "lab_hdf5" / "sub-01", "betas.hdf5"),
        ),
        "tune nifti": (
            ["tune", root / "base", root / "lab_nifti", out, "--subject", "1", "--cache", root / "lab" / "cache", *paints],
            _of(root / "lab_nifti" / "sub-01", "betas_session-01.nii.gz", "mask.nii.gz"),
        ),
        "fit": (["fit", root / "lab", out, "--subject", "1", "--method", "ridge", *paints], data),
        "decode": (
            ["decode", root / "tuned", root / "lab", out, "--pictures", "0", *paints],
            [*data, *base, *tuned, cache[0], regions, (root / "generator.safetensors", True)],
        ),
        "evaluate": (
            ["evaluate", root / "tuned", root / "lab", out, "--pictures", "0", *paints],
            [*data, base[0], *tuned, (root / "tuned" / "log.jsonl", True)],
        ),
        "fingerprint": (["fingerprint", root / "tuned", root / "lab", out], [data[1], tuned[0], regions]),
        "report": (["report", root / "report", "--out", out / "report.html"], report),
        "compare": (["compare", root / "report", root / "report_2"], [report[0], report[5]]),
        "score": (
            [
                "score",
                root / "lab" / "stimuli",
                root / "lab_hdf5" / "stimuli",
                "--scores",
                "pixcorr",
                "--out",
                out / "s.json",
            ],
            [(picture, False)],
        ),
        "info": (["info", root / "config.yaml"], [(root / "config.yaml", False)]),
        "convert": (
            ["convert", "bdata", root / "bdata", out],
            [(sorted((root / "bdata").glob("*.h5"))[0], True), (root / "bdata" / "dataset.json", True)],
        ),
        "simulate": (["simulate", out, "--cutouts", root / "lab" / "stimuli"], []),
        "demo": (["demo", "--quick", "--out", out], []),
        "ablate": (["ablate", out, "--data", root / "lab", "--base", root / "base"], []),
        "curve": (["curve", out, "--data", root / "lab", "--base", root / "base"], []),
        "train-generator": (["train-generator", out / "weights.safetensors"], []),
    }
    return {name: ([str(word) for word in argv], files) for name, (argv, files) in told.items()}


def _of(folder: Path, *names: str) -> list[tuple[Path, bool]]:
    return [(folder / name, False) for name in names]


# ---- cases

FREE = ("config.yaml", "log.jsonl")  # files in which little is asked for, so that an empty or a short one may do
LONG = ("simulate", "demo", "ablate", "curve", "train-generator")  # whose arguments are only ever wrong
WHOLE = ("-1", "x", "", "1.5", "nan", "1" + "0" * 30)
REAL = ("nan", "inf", "-1", "x", "")
WORDS = ("", "x" * 300, "no\nline", "\udcff", "-")
OF_NETWORKS = (
    (st_no_metadata, st_no_card, st_metadata, st_bit, st_nan),
    (st_card, st_card),
)  # with a header of ours: strict, maybe
OPTIONAL = ("absent", "dangling", "loop")


def all_cases(root: Path, out: Path, seed: int) -> list[Case]:
    """Every damage to every file of every command, and every odd value of every argument, in a random order."""
    found, known = [], commands(root, out)
    for verb, (argv, files) in known.items():
        for file, may_lack in files:
            ending = ".hdf5" if file.suffix == ".h5" else ".nii.gz" if file.name.endswith(".gz") else file.suffix
            names = (file.name, f"{file.parent}:", *((argv[1],) if verb.startswith("check") else ()))
            own = OF_NETWORKS if file.name in ("base.safetensors", "fingerprint.safetensors") else ((), ())
            wrong = (*STRICT, *STRICT_OF.get(ending, ()), *own[0])
            for damage in (*wrong, *MAYBE, *MAYBE_OF.get(ending, ()), *own[1]):
                strict = damage in wrong
                lacking = may_lack and damage.__name__ in OPTIONAL
                strict &= not lacking
                strict &= not (file.name in FREE and damage in (empty, text))
                strict &= not (damage is st_less and file.name in ("per_image.safetensors", "generator.safetensors"))
                strict &= not (damage is empty and file.suffix == ".txt")  # no caption
                strict &= not (damage is h5_gone and file.name == "brain_region_masks.hdf5")  # a region may be missing
                told = names if strict else (*names, root.name)  # what does not fit together may be told of the other file
                found.append(Case(verb, damage.__name__, argv, told, strict, file, damage))
        found += _argument_cases(verb, argv, root)
    np.random.default_rng(seed).shuffle(found)  # type: ignore[arg-type]
    return found


def _argument_cases(verb: str, argv: list[str], root: Path) -> Iterator[Case]:
    """Odd values for what the verb's own parser takes."""
    import importlib

    word = argv[0]
    parser = argparse.ArgumentParser()
    importlib.import_module(f"mindtuner.cli.{word.replace('-', '_')}").add_arguments(parser)
    odd_paths = {
        "missing": str(root / MISSING),
        "line": str(root / "two\nlines"),
        "latin": str(root) + "/\udcff\udcfe",
        "nul": str(root) + "/a\0b",
        "long": str(root / ("n" * 300)),
        "device": "/dev/null",
        "loop": str(root / "loop"),
        "below": str(root / "config.yaml" / "x"),
        "blank": "",
    }
    for at, given in enumerate(argv[1:], 1):
        if given.startswith(str(root)) and not argv[at - 1].startswith("--"):
            for name, path in odd_paths.items():
                yield Case(
                    verb, f"place {name}", [*argv[:at], path, *argv[at + 1 :]], (root.name, "argument", path or " "), True
                )
    for action in parser._actions:
        if not action.option_strings or action.nargs == 0 or action.option_strings[-1] in argv:
            continue
        flag, kind = action.option_strings[-1], action.type
        values = WHOLE if kind is int else REAL if kind is float else tuple(odd_paths.values()) if kind is Path else WORDS
        for value in values:
            if verb in LONG and kind not in (int, float):
                continue
            if verb in LONG and (value.startswith("1") or value == "inf") and value != "1.5":
                continue
            names = (flag, flag.lstrip("-"), root.name, "argument", value or "argument")
            yield Case(verb, f"option {flag}", [*argv, flag, value], names, False)
        if action.choices:
            yield Case(verb, f"option {flag}", [*argv, flag, "no-choice"], (flag,), True)


def repeated(cases: list[Case]) -> Iterator[Case]:
    """The cases, and then those that depend on chance again and again, each time with another seed."""
    yield from cases
    by_chance = [case for case in cases if case.damage in (cut, flipped, zeroed) or "odd" in case.kind or "cell" in case.kind]
    by_chance += [case for case in cases if case.kind in ("nifti_header", "st_card", "npy_header", "h5_kind", "h5_shape")]
    for seed in range(1, 1000):
        for case in by_chance:
            yield Case(**{**case.__dict__, "seed": seed})


# ---- the campaign


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="of the order of cases")
    parser.add_argument("--only", metavar="TEXT", help="cases whose title holds it")
    options = parser.parse_args()
    root, scratch = options.out / BUILT, options.out / "scratch"
    if not (root / "whole").exists():
        remove(root)
        prepare(options.out, root)
        (root / "whole").touch()
    root, scratch = root.resolve(), scratch.resolve()
    log = options.out / "cases.jsonl"
    told_before = map(json.loads, log.read_text().splitlines() if log.exists() else ())
    done = {entry["title"]: entry for entry in told_before if not entry["fault"]}
    wanted = repeated(all_cases(root, scratch / "out", options.seed))
    told: list[dict] = []
    for case in wanted:
        if len(told) == options.cases:
            break
        if options.only and not re.search(options.only, case.title):
            continue
        if case.title not in done or options.only:
            remove(scratch)
            scratch.mkdir(parents=True)
            outcome = run_case(case)
            done[case.title] = {"title": case.title, "argv": case.argv, **outcome.__dict__}
            with log.open("a") as file:
                file.write(json.dumps(done[case.title]) + "\n")
            if outcome.fault:
                print(f"{outcome.fault}: {case.title}: {outcome.lines[-1:] or outcome.trace[-400:]}", flush=True)
        told.append(done[case.title])
    remove(scratch)
    faults = Counter(entry["fault"] for entry in told if entry["fault"])
    codes = Counter(str(entry["code"]) for entry in told)
    print(f"\n{len(told)} cases: exit codes {dict(codes)}; not as wanted: {sum(faults.values())} {dict(faults)}")
    print(f"longest {max((entry['seconds'] for entry in told), default=0):.1f} s")
    sys.exit(1 if faults else 0)


def prepare(out: Path, root: Path) -> None:
    """Simulate two subjects, and build the world from them."""
    from mindtuner.config import SimulateConfig
    from mindtuner.generators.compact import WEIGHTS
    from mindtuner.simulation.simulate import simulate
    from mindtuner.towers.compact import packaged

    tiny = SimulateConfig(subjects=2, sessions=2, trials_per_session=48, shared_images=8, repeats=2, voxel_scale=0.01)
    nsd = out / "simulated"
    if not (nsd / "dataset.json").exists():
        simulate(nsd, tiny)
    build(root, nsd, packaged(WEIGHTS))


if __name__ == "__main__":
    main()
