"""Feature cache: what a frozen tower says about each stimulus, computed once, then read row by row.

``NAME.bin`` holds the features, C order, one entry per stimulus; ``NAME.json`` says what they are and is written
last, so a cache without it counts as not there. How it comes to be, in one process or many: ``build.py``.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from mindtuner.data.cache.build import Part, cache_bytes
from mindtuner.data.cache.half_rows import HalfRows
from mindtuner.data.lazy import FileRows
from mindtuner.data.stimuli import Stimuli
from mindtuner.errors import UserError
from mindtuner.files import read_json
from mindtuner.processes import processes


def build_cache(
    folder: str | Path,
    name: str,
    shape: tuple[int, ...],
    dtype,
    identity: dict,
    stimuli: Stimuli,
    compute: Callable[..., object],
    batch: int,
    title: str,
    inputs: Callable[[np.ndarray], object] | None = None,
) -> FileRows | HalfRows:
    """Return the features of all stimuli, (N, *shape) read-only, computing what is not cached yet.

    ``dtype`` is one of NumPy's, or "bfloat16"; both formats of 16 bits come back as ``HalfRows``, others as ``FileRows``.
    ``identity`` (JSON values) says which tower with which settings. ``compute`` takes the images of ``batch``
    stimuli, (n, 3, 224, 224) in 0..1, and returns (n, *shape), array or tensor; ``inputs`` (ids (n,) -> anything) gives
    it something else, such as captions. Results must depend on each stimulus alone, else a resumed build would differ.

    Where several processes were launched together (``processes.py``) all of them call this, and each computes its share.

    Raises UserError where the cache on disk has another identity, stimuli, shape or dtype, where a feature is
    not finite, where the disk is full, or where another launch is building the same cache.
    """
    folder = Path(folder)
    header = cache_header((len(stimuli), *shape), dtype, identity, stimuli.hash)
    inputs = inputs or stimuli.images
    part = Part(folder, name, header, batch)
    if not _is_whole(folder, name, header):
        part.build(lambda ids: compute(inputs(ids)), title)
    elif processes().index == 0:
        part.tidy()
    return open_cache(folder, name, identity, stimuli.hash)


def bytes_to_write(
    folder: str | Path, name: str, shape: tuple[int, ...], dtype, identity: dict, stimuli: Stimuli, batch: int
) -> tuple[int, int]:
    """Size of the file that ``build_cache`` would make of the same arguments, and how much of it still needs room.

    Raises UserError where the cache on disk is of something else.
    """
    header = cache_header((len(stimuli), *shape), dtype, identity, stimuli.hash)
    missing = 0 if _is_whole(Path(folder), name, header) else Part(Path(folder), name, header, batch).bytes_to_write()
    return cache_bytes(header), missing


def open_cache(folder: str | Path, name: str, identity: dict, stimuli_hash: str) -> FileRows | HalfRows:
    """Open a cache that was built before, (N, *shape) read-only, without reading any of its features.

    Raises UserError where there is none, or where its identity or stimuli are others; the message names the
    field that differs.
    """
    seal = Path(folder) / f"{name}.json"
    found = read_json(seal)
    for field in ("shape", "dtype"):
        if field not in found:
            raise UserError(f"{seal}: missing field {field}; expected the description of a feature cache")
    try:
        wanted = cache_header(found["shape"], found["dtype"], identity, stimuli_hash)
    except TypeError as error:
        raise UserError(f"{seal}: dtype is {found['dtype']!r}; expected one of NumPy's, or bfloat16") from error
    _compare(seal, found, wanted)
    return _open(seal.with_name(f"{name}.bin"), found)


def cache_header(shape, dtype, identity: dict, stimuli_hash: str) -> dict:
    """What ``NAME.json`` says of a cache of ``shape`` (N, ...)."""
    # Through JSON and back, so that a tuple equals the list it becomes on disk.
    identity = json.loads(json.dumps(identity))
    name = dtype if isinstance(dtype, str) and dtype == "bfloat16" else np.dtype(dtype).name
    return {"shape": list(shape), "dtype": name, "identity": identity, "stimuli": stimuli_hash}


def _is_whole(folder: Path, name: str, header: dict) -> bool:
    seal = folder / f"{name}.json"
    if not seal.exists():
        return False
    _compare(seal, read_json(seal), header)
    return True


def _compare(path: Path, found: dict, wanted: dict, parent: str = "") -> None:
    for key in sorted(set(found) | set(wanted)):
        field = f"{parent}{key}"
        there, here = found.get(key, "nothing"), wanted.get(key, "nothing")
        if isinstance(there, dict) and isinstance(here, dict):
            _compare(path, there, here, f"{field}.")
        elif there != here:
            what = "pictures or captions are others, or have changed" if field == "stimuli" else "a cache of something else"
            raise UserError(f"{path}: {field} is {there!r}; expected {here!r} ({what}: delete it or choose another folder)")


def _open(path: Path, header: dict) -> FileRows | HalfRows:
    size, shape = cache_bytes(header), tuple(header["shape"])
    if not path.is_file() or path.stat().st_size != size:
        raise UserError(f"{path}: missing or not whole; expected {size} bytes (delete its .json to build it again)")
    if header["dtype"] in ("bfloat16", "float16"):
        return HalfRows(path, shape, header["dtype"])
    return FileRows(path, shape, header["dtype"])
