"""Trials as they arrive in a folder: in the order of their names, half-written ones waited for, broken ones named."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindtuner.data.zscore import LARGEST
from mindtuner.errors import UserError
from mindtuner.formats.nifti import check_grid, load_mask, open_image, read_data
from mindtuner.inputs import read_array

KINDS = (".npy", ".nii", ".nii.gz")
SETTLED_S = 0.1  # without a change, before a file counts as written
PATIENCE_S = 5.0  # without a change, before a file that cannot be read counts as broken


@dataclass(frozen=True, eq=False)
class Arrival:
    """A trial that is there.

    name : of the file · betas : float32 (V,) · seen : when the file was first seen, in seconds of ``time.monotonic``
    """

    name: str
    betas: np.ndarray
    seen: float


@dataclass(frozen=True)
class Broken:
    """A file that is no trial: its name, and why."""

    name: str
    why: str


@dataclass
class _Stamp:
    """Size and time of a file as they were last seen, since when they are so, and when it was first seen."""

    value: tuple[int, int]
    since: float
    first: float


class WatchedFolder:
    """Looks into a folder again and again.

    Files are taken in the order of their names, numbers by their value: ``trial-10.npy`` after ``trial-9.npy``. One that is
    still being written holds back those after it. One that cannot be read and does not change any more is given up, and
    tried again if it changes later. Hidden files, folders and other kinds of file are left alone.

    Parameters
    ----------
    folder : path
    read : callable
        From a path to betas float32 (V,); raises UserError where the file is no trial, or not yet.
    done : iterable of str
        Names that were taken earlier.
    settled, patience : float
        Seconds without a change until a file counts as written, and until an unreadable one counts as broken.

    Examples
    --------
    >>> folder = Path("arriving")
    >>> folder.mkdir()
    >>> watched = WatchedFolder(folder, np.load, settled=0)
    >>> for name in ("trial-10.npy", "trial-9.npy"):
    ...     np.save(folder / name, np.ones(4, np.float32))
    >>> [found.name for found in watched.look()]
    ['trial-9.npy', 'trial-10.npy']
    >>> list(watched.look())
    []
    """

    def __init__(
        self,
        folder: str | Path,
        read: Callable[[Path], np.ndarray],
        done: Iterable[str] = (),
        settled: float = SETTLED_S,
        patience: float = PATIENCE_S,
    ):
        self.folder, self._read = Path(folder), read
        self._done, self._settled, self._patience = set(done), settled, patience
        self._stamps: dict[str, _Stamp] = {}
        self._given_up: dict[str, tuple[int, int]] = {}

    def look(self) -> Iterator[Arrival | Broken]:
        """What has come since the last look. Raises UserError where the folder cannot be listed."""
        now = time.monotonic()
        for name in self._waiting():
            stamp = self._stamp(name, now)
            if stamp is None or self._given_up.get(name) == stamp.value:
                continue
            if now - stamp.since < self._settled:
                return
            try:
                betas = self._read(self.folder / name)
            except UserError as error:
                if now - stamp.since < self._patience:
                    return
                self._given_up[name] = stamp.value
                yield Broken(name, str(error))
                continue
            self._done.add(name)
            yield Arrival(name, betas, stamp.first)

    @property
    def waiting(self) -> list[str]:
        """Names of files that are there and were neither taken nor given up."""
        return [name for name in self._waiting() if name not in self._given_up]

    def _waiting(self) -> list[str]:
        try:
            names = [entry.name for entry in self.folder.iterdir()]
        except OSError as error:
            raise UserError(f"{self.folder}: cannot be listed ({error.strerror}); expected the folder to watch") from error
        kept = [name for name in names if name.endswith(KINDS) and not name.startswith(".") and name not in self._done]
        return sorted(kept, key=by_number)

    def _stamp(self, name: str, now: float) -> _Stamp | None:
        path = self.folder / name
        try:
            found = path.stat()
        except FileNotFoundError:  # renamed or taken away since it was listed
            return None
        if not path.is_file():
            return None
        value, last = (found.st_size, found.st_mtime_ns), self._stamps.get(name)
        if last is None:
            last = self._stamps[name] = _Stamp(value, now, now)
        elif last.value != value:
            last.value, last.since = value, now
        return last


def by_number(name: str) -> tuple:
    """A key that sorts names with the numbers in them by value.

    Examples
    --------
    >>> sorted(["run-2_trial-10", "run-2_trial-9", "run-10_trial-1"], key=by_number)
    ['run-2_trial-9', 'run-2_trial-10', 'run-10_trial-1']
    """
    parts = re.split(r"(\d+)", name)
    return tuple((int(part), "") if part.isdigit() else (-1, part) for part in parts), name


def trial_reader(voxels: int, mask: Path | None = None) -> Callable[[Path], np.ndarray]:
    """What reads one trial's betas from a ``.npy`` file, (V,) or (1, V), or a NIfTI volume, by a mask.

    Parameters
    ----------
    voxels : int
        V.
    mask : path, optional
        NIfTI volume whose voxels above 0 are the subject's, in C order. Without one, volumes are refused.

    Returns
    -------
    callable
        From a path to float32 (V,). Raises UserError where the file is not whole, or holds anything else.

    Raises
    ------
    UserError
        Where the mask is damaged, or holds another number of voxels.

    Examples
    --------
    >>> np.save("trial.npy", np.arange(3.0))
    >>> trial_reader(3)(Path("trial.npy"))
    array([0., 1., 2.], dtype=float32)
    """
    inside, grid = (None, None) if mask is None else load_mask(mask)
    if inside is not None and inside.sum() != voxels:
        raise UserError(f"{mask}: holds {inside.sum()} voxels; expected {voxels}, as the subject has")

    def read(path: Path) -> np.ndarray:
        if path.suffix == ".npy":
            betas = _read_npy(path)
        elif inside is None:
            raise UserError(f"{path}: is a volume, and there is no mask; expected .npy files, or a mask")
        else:
            betas = _read_volume(path, inside, grid)
        if betas.shape not in ((voxels,), (1, voxels)):
            raise UserError(f"{path}: has shape {betas.shape}; expected ({voxels},), one beta a voxel")
        betas = np.array(betas, np.float32).reshape(voxels)
        measured = np.abs(betas) <= LARGEST  # false of NaN too
        if not measured.all():
            at = int(np.argmin(measured))
            raise UserError(f"{path}: voxel {at} is {betas[at]}; expected finite betas of at most a million")
        return betas

    return read


def _read_npy(path: Path) -> np.ndarray:
    found = read_array(path, "a trial's betas as .npy")
    if found.dtype.kind not in "fiu":
        raise UserError(f"{path}: holds {found.dtype}; expected real numbers")
    return found


def _read_volume(path: Path, inside: np.ndarray, grid) -> np.ndarray:
    try:
        image = open_image(path, 3)
        check_grid(path, image, grid)
        return read_data(path, image)[inside]
    except EOFError as error:
        raise UserError(f"{path}: breaks off; expected a whole NIfTI volume") from error
