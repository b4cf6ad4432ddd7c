"""Feature caches while they are built: by one process or several, in one go or many.

``NAME.part.bin`` has room for all features from the start, ``NAME.part.done`` one byte for each batch, 1 once its features
are on disk, and ``NAME.part.json`` says of what. Batches are the same for any number of processes, so who computed them
makes no difference to the bytes, and a build may go on with another number than it began with.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from mindtuner.claims import drop_lock, record, take_lock
from mindtuner.errors import UserError
from mindtuner.files import read_json, write_json
from mindtuner.processes import processes
from mindtuner.runtime import progress


class Part:
    """A cache that is not whole yet: ``header`` as in its seal ``NAME.json``, computed in batches of ``batch``."""

    def __init__(self, folder: Path, name: str, header: dict, batch: int):
        self.whole, self.seal = folder / f"{name}.bin", folder / f"{name}.json"
        self.data, self.done = folder / f"{name}.part.bin", folder / f"{name}.part.done"
        self.state, self.lock = folder / f"{name}.part.json", folder / f"{name}.part.lock"
        self.header, self.batch = header, batch
        self.plan = {"header": header, "batch": batch}
        self.batches = math.ceil(header["shape"][0] / batch)

    def build(self, compute: Callable[[np.ndarray], object], title: str) -> None:
        """Compute what is missing and seal the cache; in a launch of several processes all of them come here.

        ``compute``: ids (n,) -> features (n, *shape). Raises UserError as ``build_cache`` does.
        """
        group = processes()
        with self._alone() if group.index == 0 else contextlib.nullcontext():
            if group.index == 0:
                self._prepare()
            group.wait()
            self._fill(compute, group.share(self.batches), title if group.index == 0 else None)
            group.wait()
            if group.index == 0:
                self._seal()
        group.wait()

    def bytes_to_write(self) -> int:
        """How much the disk still has to give."""
        there = _on_disk(self.data) if self._goes_on() else 0
        return max(0, cache_bytes(self.header) - there)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other launches out; whoever holds the lock loses it when it ends, however it ends."""
        with disk_errors(self.data):
            self.lock.parent.mkdir(parents=True, exist_ok=True)
            record(self.lock)
            lock = take_lock(self.lock, f"{self.data}: is being written by another process")
        try:
            if self.seal.exists():
                raise UserError(f"{self.seal}: another process has just finished it; give the same command again")
            yield
        finally:
            drop_lock(lock)

    def _goes_on(self) -> bool:
        """Whether what is on disk is a part of exactly this cache."""
        return (
            self.state.is_file()
            and read_json(self.state) == self.plan
            and _size(self.data) == cache_bytes(self.header)
            and _size(self.done) == self.batches
        )

    def _prepare(self) -> None:
        with disk_errors(self.data):
            record(self.whole, self.data, self.done)
            if not self.data.exists() and self.done.is_file() and 0 not in self.done.read_bytes():
                with contextlib.suppress(FileNotFoundError):
                    os.replace(self.whole, self.data)  # killed between the two steps of sealing
            if self._goes_on():
                return
            # New files, so that a process of an earlier launch that still lives writes into none of them.
            for path in (self.state, self.done, self.data):
                path.unlink(missing_ok=True)
            with open(self.data, "xb") as file:
                _allocate(file, cache_bytes(self.header))
            self.done.write_bytes(bytes(self.batches))
        write_json(self.state, self.plan)  # last: without it the others count as not there

    def _fill(self, compute, share: range, title: str | None) -> None:
        count = self.header["shape"][0]
        with disk_errors(self.data):
            done = self.done.read_bytes()
            data, marks = (open(path, "r+b", buffering=0) for path in (self.data, self.done))
        missing = [k for k in share if not done[k]]
        # Plain writes rather than a memory map: on a full disk they fail with an error, not with a bus error.
        with data, marks:
            for k in missing if title is None else progress(missing, title, unit="batch"):
                ids = np.arange(k * self.batch, min((k + 1) * self.batch, count))
                features = _checked(compute(ids), ids, self.header, self.data)
                with disk_errors(self.data):
                    _write(data, features.data.cast("B"), int(ids[0]) * row_bytes(self.header))
                    os.fsync(data.fileno())  # a power cut must not leave a mark without its features
                    _write(marks, memoryview(b"\x01"), k)

    def _seal(self) -> None:
        if 0 in self.done.read_bytes():
            raise UserError(f"{self.data}: not whole though every process is done; expected one folder that all share")
        with disk_errors(self.whole):
            os.replace(self.data, self.whole)
        write_json(self.seal, self.header)
        self._remove_marks()

    def _remove_marks(self) -> None:
        for path in (self.state, self.done):
            path.unlink(missing_ok=True)

    def tidy(self) -> None:
        """Remove what a process that was killed right after the seal left, if none is about to."""
        if any(path.exists() for path in (self.state, self.done, self.lock)):
            with contextlib.suppress(UserError), disk_errors(self.lock):
                lock = take_lock(self.lock, f"{self.data}: is being written by another process")
                self._remove_marks()
                drop_lock(lock)


def storage(dtype: str) -> np.dtype:
    """How numbers of a header's ``dtype`` lie on disk: as NumPy has them, bfloat16 as its 16 bits."""
    return np.dtype(np.uint16 if dtype == "bfloat16" else dtype)


def row_bytes(header: dict) -> int:
    """Size of one stimulus's features."""
    return math.prod(header["shape"][1:]) * storage(header["dtype"]).itemsize


def cache_bytes(header: dict) -> int:
    """Size of the whole ``NAME.bin``."""
    return row_bytes(header) * header["shape"][0]


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """An OSError inside the block becomes a UserError that names ``path``."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror or error}); expected free space and write permission"
        ) from error


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _on_disk(path: Path) -> int:
    """Bytes that the disk has given to a file; all of them where the system does not tell."""
    found = path.stat()
    return found.st_blocks * 512 if hasattr(found, "st_blocks") else found.st_size


def _allocate(file, size: int) -> None:
    """Make the file ``size`` bytes long, of which the disk has promised every one where the system can ask for that."""
    if hasattr(os, "posix_fallocate") and size:
        os.posix_fallocate(file.fileno(), 0, size)
    file.truncate(size)


def _write(file, left: memoryview, offset: int) -> None:
    while left:  # a write cut short says why when it is asked to go on
        file.seek(offset)
        written = file.write(left)  # unbuffered
        left, offset = left[written:], offset + written


def _checked(features, ids: np.ndarray, header: dict, path: Path) -> np.ndarray:
    """Features as they go to disk. They may come as a tensor, on any device."""
    if isinstance(features, torch.Tensor):
        features = features.detach().cpu()
        features = (features.float() if features.dtype == torch.bfloat16 else features).numpy()
    expected = (len(ids), *header["shape"][1:])
    if np.shape(features) != expected:
        raise ValueError(f"{path}: compute returned shape {np.shape(features)} for {len(ids)} stimuli, not {expected}")
    if header["dtype"] == "bfloat16":
        rounded = torch.from_numpy(np.array(features)).to(torch.bfloat16)
        finite, stored = rounded.isfinite().numpy(), rounded.view(torch.int16).numpy().view(np.uint16)
    else:
        with np.errstate(over="ignore"):  # refused below, with the stimulus named
            stored = np.ascontiguousarray(features, header["dtype"])
        finite = np.isfinite(stored)
    whole = finite.reshape(len(ids), -1).all(axis=1)
    if not whole.all():
        raise UserError(
            f"{path}: the features of stimulus {ids[np.argmin(whole)]} are not finite in "
            f"{header['dtype']}; expected finite numbers"
        )
    return stored
