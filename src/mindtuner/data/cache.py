"""Feature cache: what a frozen tower says about each stimulus, computed once, then memory-mapped.

``NAME.bin`` holds the features, C order, one entry per stimulus; ``NAME.json`` says what they are and is written
last, so a cache without it counts as not there. While a cache is built it is called ``NAME.part.bin``, and
``NAME.part.json`` says how many stimuli are done: a build that was cut short goes on there.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from mindtuner.data.dataset import Stimuli
from mindtuner.errors import UserError
from mindtuner.files import read_json, write_json
from mindtuner.runtime import progress


def build_cache(folder: str | Path, name: str, shape: tuple[int, ...], dtype, identity: dict, stimuli: Stimuli,
                compute: Callable[..., np.ndarray], batch: int, title: str,
                inputs: Callable[[np.ndarray], object] | None = None) -> np.memmap:
    """Return the features of all stimuli, (N, *shape) read-only, computing what is not cached yet.

    ``identity`` (JSON values) says which tower with which settings. ``compute`` takes the images of ``batch``
    stimuli, (n, 3, 224, 224) in 0..1, and returns (n, *shape); ``inputs`` (ids (n,) -> anything) gives it something
    else, such as captions. Results must depend on each stimulus alone, else a resumed build would differ.

    Raises UserError where the cache on disk has another identity, stimuli, shape or dtype, where a feature is
    not finite, or where the disk is full.
    """
    folder = Path(folder)
    seal = folder / f"{name}.json"
    header = _header((len(stimuli), *shape), dtype, identity, stimuli.hash)
    if not seal.exists():
        _build(folder, name, header, compute, inputs or stimuli.images, batch, title)
    _compare(seal, read_json(seal), header)
    return _map(folder / f"{name}.bin", header)


def open_cache(folder: str | Path, name: str, identity: dict, stimuli_hash: str) -> np.memmap:
    """Open a cache that was built before, (N, *shape) read-only.

    Raises UserError where there is none, or where its identity or stimuli are others; the message names the
    field that differs.
    """
    seal = Path(folder) / f"{name}.json"
    found = read_json(seal)
    for field in ("shape", "dtype"):
        if field not in found:
            raise UserError(f"{seal}: missing field {field}; expected the description of a feature cache")
    _compare(seal, found, _header(found["shape"], found["dtype"], identity, stimuli_hash))
    return _map(seal.with_name(f"{name}.bin"), found)


def _header(shape, dtype, identity: dict, stimuli_hash: str) -> dict:
    # Through JSON and back, so that a tuple equals the list it becomes on disk.
    identity = json.loads(json.dumps(identity))
    return {"shape": list(shape), "dtype": np.dtype(dtype).name, "identity": identity, "stimuli": stimuli_hash}


def _compare(path: Path, found: dict, wanted: dict, parent: str = "") -> None:
    for key in sorted(set(found) | set(wanted)):
        field = f"{parent}{key}"
        there, here = found.get(key, "nothing"), wanted.get(key, "nothing")
        if isinstance(there, dict) and isinstance(here, dict):
            _compare(path, there, here, f"{field}.")
        elif there != here:
            raise UserError(f"{path}: {field} is {there!r}; expected {here!r} (a cache of something else: "
                            "delete it or choose another folder)")


def _map(path: Path, header: dict) -> np.memmap:
    size = _row_bytes(header) * header["shape"][0]
    if not path.is_file() or path.stat().st_size != size:
        raise UserError(f"{path}: missing or not whole; expected {size} bytes (delete its .json to build it again)")
    return np.memmap(path, header["dtype"], mode="r", shape=tuple(header["shape"]))


def _row_bytes(header: dict) -> int:
    return math.prod(header["shape"][1:]) * np.dtype(header["dtype"]).itemsize


def _build(folder: Path, name: str, header: dict, compute, inputs, batch: int, title: str) -> None:
    data, state = folder / f"{name}.part.bin", folder / f"{name}.part.json"
    count = header["shape"][0]
    done = _resumable(data, state, header)
    with _disk_errors(data):
        folder.mkdir(parents=True, exist_ok=True)
        if not done:
            data.write_bytes(b"")
    # Plain writes rather than a memory map: on a full disk they fail with an error, not with a bus error.
    with open(data, "r+b", buffering=0) as file:
        file.seek(done * _row_bytes(header))
        for start in progress(range(done, count, batch), title, unit="batch"):
            ids = np.arange(start, min(start + batch, count))
            features = _checked(compute(inputs(ids)), ids, header, data)
            with _disk_errors(data):
                if file.write(features.data) != features.nbytes:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            write_json(state, {"header": header, "done": int(ids[-1]) + 1})
    with _disk_errors(data):
        os.replace(data, folder / f"{name}.bin")
    write_json(folder / f"{name}.json", header)
    state.unlink(missing_ok=True)


@contextlib.contextmanager
def _disk_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); expected free space and "
                        "write permission") from error


def _resumable(data: Path, state: Path, header: dict) -> int:
    """How many stimuli of exactly this cache are already on disk."""
    if not (state.is_file() and data.is_file()):
        return 0
    saved = read_json(state)
    if saved.get("header") != header or data.stat().st_size < saved["done"] * _row_bytes(header):
        return 0
    return saved["done"]


def _checked(features, ids: np.ndarray, header: dict, path: Path) -> np.ndarray:
    with np.errstate(over="ignore"):  # refused below, with the stimulus named
        features = np.ascontiguousarray(features, header["dtype"])
    expected = (len(ids), *header["shape"][1:])
    if features.shape != expected:
        raise ValueError(f"{path}: compute returned shape {features.shape} for {len(ids)} stimuli, not {expected}")
    finite = np.isfinite(features).reshape(len(ids), -1).all(axis=1)
    if not finite.all():
        raise UserError(f"{path}: the features of stimulus {ids[np.argmin(finite)]} are not finite in "
                        f"{header['dtype']}; expected finite numbers")
    return features
