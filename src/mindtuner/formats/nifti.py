"""NIfTI files: opened, read one volume after the other, written, and how damage is told.

Betas in one 4-D file a session, (X, Y, Z, trials), are seen through a mask as rows (trials, voxels). Voxels come in the order
of ``volume[mask]`` in NumPy, which is that of nilearn's ``apply_mask``.
"""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

import nibabel
import numpy as np

from mindtuner.data.lazy import LazyArray
from mindtuner.errors import UserError
from mindtuner.files import atomic_path
from mindtuner.inputs import reading
from mindtuner.runtime import progress

AFFINE_TOLERANCE = 1e-2  # mm

WHOLE = "a NIfTI file that was copied to its end"


def open_nifti(path: Path) -> nibabel.spatialimages.SpatialImage:
    """An image whose data stay on disk. Raises UserError where there is none."""
    with reading(path, WHOLE):
        return nibabel.load(path, mmap=False)


def read_data(path: Path, image: nibabel.spatialimages.SpatialImage) -> np.ndarray:
    """All of an image's numbers, scaled as its header says. Raises UserError where they are not whole."""
    with reading(path, WHOLE):
        return np.asarray(image.dataobj)


def stream_volumes(file: BinaryIO, offset: int, dtype: np.dtype, voxels: int, count: int) -> Iterator[np.ndarray]:
    """The first ``count`` volumes of the data that begin at byte ``offset``.

    Each is as stored, ``dtype`` (voxels,) in Fortran order. A file that ends before raises EOFError.
    """
    _exactly(file, offset)
    for _ in range(count):
        yield np.frombuffer(_exactly(file, voxels * dtype.itemsize), dtype)


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError("it breaks off")
    return data


def open_image(path: Path, ndim: int) -> nibabel.Nifti1Image:
    """A NIfTI image whose data stay on disk. Raises UserError where there is none or it has other dimensions."""
    image = open_nifti(path)
    if not isinstance(image, nibabel.Nifti1Pair) or len(image.shape) != ndim or 0 in image.shape:
        raise UserError(f"{path}: {type(image).__name__} of shape {image.shape}; expected NIfTI with {ndim} dimensions")
    if image.dataobj.dtype.kind not in "iuf":
        raise UserError(f"{path}: holds {image.dataobj.dtype}; expected whole or real numbers")
    return image


def load_mask(
    path: Path, like: nibabel.Nifti1Image | None = None, values: Sequence[float] | None = None
) -> tuple[np.ndarray, nibabel.Nifti1Image]:
    """A mask, bool (X, Y, Z), and the image, whose grid others can be held to.

    It is true where the file is above 0, or holds one of ``values``. Raises UserError where the file is damaged, holds NaN,
    is empty, or lies on another grid than ``like``.
    """
    held, image = _read_mask(path, like)
    return held > 0 if values is None else np.isin(held, values), image


def say_mask(path: Path, values: Sequence[float] | None = None) -> str:
    """What a mask's file holds and what of it is taken, in words; nothing where it holds 0 and 1 and the latter is taken."""
    held = np.unique(_read_mask(path, None)[0])
    taken = held[held > 0] if values is None else held[np.isin(held, values)]
    if set(held.tolist()) <= {0, 1} and set(taken.tolist()) <= {1} and 1 in held:
        return ""
    return f"holds {_some_values(held)}; taken: {_some_values(taken)}{' (all above 0)' if values is None else ''}"


def none_taken(path: Path, values: Sequence[float], held: np.ndarray) -> UserError:
    """What is said where a mask holds none of the ``values`` that were asked for."""
    return UserError(
        f"mask_values: are {_some_values(values)}, and {path} holds {_some_values(np.unique(held))}; expected one of these"
    )


def _some_values(values: Sequence[float] | np.ndarray) -> str:
    if len(values) > 10:
        return f"{len(values)} values from {values[0]:g} to {values[-1]:g}"
    return ", ".join(f"{value:g}" for value in values) or "none"


def _read_mask(path: Path, like: nibabel.Nifti1Image | None) -> tuple[np.ndarray, nibabel.Nifti1Image]:
    image = open_image(path, 3)
    if like is not None:
        check_grid(path, image, like)
    held = read_data(path, image)
    if held.dtype.kind == "f" and not np.isfinite(held).all():
        raise UserError(f"{path}: holds a value that is not finite; expected numbers, above 0 inside the mask")
    return held, image


def check_grid(path: Path, image: nibabel.Nifti1Image, mask: nibabel.Nifti1Image) -> None:
    """Raise UserError where an image lies on another grid than the mask: other size, or other affine."""
    if image.shape[:3] != mask.shape[:3]:
        raise UserError(f"{path}: volumes of {image.shape[:3]}; expected {mask.shape[:3]} as in {mask.get_filename()}")
    if not np.allclose(image.affine, mask.affine, atol=AFFINE_TOLERANCE):
        raise UserError(f"{path}: affine differs from that of {mask.get_filename()}; expected the same grid")


def no_room(path: Path, error: OSError) -> UserError:
    """What is said where a file's temporary copy finds no place."""
    return UserError(
        f"{path}: cannot be unpacked into {tempfile.gettempdir()} ({error.strerror}); expected free space there, or another "
        "TMPDIR"
    )


class NiftiSession:
    """One session's betas: ``session[rows]`` is float32 (n, V).

    An uncompressed file is read in place. A compressed one cannot be entered in the middle: when it is first asked for
    it is unpacked, once per run, into a temporary file (in ``TMPDIR``) of its masked rows, which goes with the process.

    Raises UserError where the file is damaged or lies on another grid than the mask.
    """

    def __init__(self, path: Path, mask: np.ndarray, mask_image: nibabel.Nifti1Image):
        self.path, self._mask = path, mask
        image = open_image(path, 4)
        check_grid(path, image, mask_image)
        data = image.dataobj
        self.shape, self.dtype = (image.shape[3], int(mask.sum())), np.dtype(np.float32)
        self.stored, self._offset, self._slope, self._inter = data.dtype, data.offset, data.slope, data.inter
        self._rows: np.ndarray | None = None
        self._volumes = None if path.suffix == ".gz" else self._map()

    def _map(self) -> np.ndarray:
        expected = self._offset + self.shape[0] * self._mask.size * self.stored.itemsize
        if (size := self.path.stat().st_size) != expected:
            raise UserError(f"{self.path}: has {size} bytes; expected {expected} for {self.shape[0]} volumes")
        return np.memmap(self.path, self.stored, "r", self._offset, (*self._mask.shape, self.shape[0]), order="F")

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        if self._volumes is not None:
            return np.stack([self._masked(self._volumes[..., row]) for row in rows]) if len(rows) else self._empty()
        if self._rows is None:
            self._rows = self._unpack()
        return self._rows[rows]

    def _empty(self) -> np.ndarray:
        return np.empty((0, self.shape[1]), np.float32)

    def _masked(self, volume: np.ndarray) -> np.ndarray:
        return (volume[self._mask].astype(np.float64) * self._slope + self._inter).astype(np.float32)

    def _unpack(self) -> np.ndarray:
        scratch = tempfile.TemporaryFile(prefix="mindtuner-betas-")
        try:
            with reading(self.path, WHOLE), gzip.open(self.path) as stream:
                volumes = stream_volumes(stream, int(self._offset), self.stored, self._mask.size, self.shape[0])
                for volume in progress(volumes, self.path.name, total=self.shape[0], unit="trial"):
                    self._write(scratch, self._masked(volume.reshape(self._mask.shape, order="F")))
                if stream.read(1):  # reading to the end also makes gzip compare its checksum
                    raise ValueError("more data than its header says")
        except BaseException:
            scratch.close()
            raise
        return np.memmap(scratch, np.float32, "r", shape=self.shape)

    def _write(self, scratch, row: np.ndarray) -> None:
        try:
            scratch.write(row.tobytes())
            scratch.flush()
        except OSError as error:
            raise no_room(self.path, error) from error


class JoinedSessions:
    """The sessions' rows one after the other: ``joined[rows]`` is float32 (n, V). All have the same voxels."""

    def __init__(self, sessions: Sequence[LazyArray]):
        self.sessions = sessions
        self._starts = np.concatenate([[0], np.cumsum([session.shape[0] for session in sessions])])
        self.shape, self.dtype = (int(self._starts[-1]), sessions[0].shape[1]), np.dtype(np.float32)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        out = np.empty((len(rows), self.shape[1]), np.float32)
        which = np.searchsorted(self._starts, rows, side="right") - 1
        for index in np.unique(which):
            inside = which == index
            out[inside] = self.sessions[index][rows[inside] - self._starts[index]]
        return out


def box_of(voxels: int) -> np.ndarray:
    """A mask, bool (X, Y, Z), for voxels that lie nowhere.

    They fill a cube from its first corner on, in C order, with an empty border around it.
    """
    side = int(np.ceil(voxels ** (1 / 3)))
    return np.pad((np.arange(side**3) < voxels).reshape(side, side, side), 1)


def save_nifti(path: Path, array: np.ndarray, affine: np.ndarray) -> None:
    """Write a volume, or several, as compressed NIfTI of the array's dtype, without scaling."""
    with atomic_path(path) as part, part.open("wb") as file, gzip.GzipFile("", "wb", 1, file, mtime=0) as packed:
        nibabel.Nifti1Image(array, affine).to_stream(packed)
