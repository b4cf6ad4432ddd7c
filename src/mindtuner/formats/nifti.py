"""What the readers of NIfTI files share: opening one, one volume after the other, and how damage is told."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import nibabel
import numpy as np

from mindtuner.errors import UserError

_DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    RuntimeError,
    zlib.error,
    nibabel.filebasedimages.ImageFileError,
    nibabel.spatialimages.HeaderDataError,
)


@contextlib.contextmanager
def whole(path: Path, what: str = "NIfTI file") -> Iterator[None]:
    """Turn what NumPy, nibabel, h5py and zlib raise over a damaged file into a UserError that names it."""
    try:
        yield
    except _DAMAGE as error:
        raise UserError(
            f"{path}: damaged or not a whole {what} ({' '.join(str(error).split())}); expected one that was copied to its end"
        ) from error


def open_nifti(path: Path) -> nibabel.spatialimages.SpatialImage:
    """An image whose data stay on disk. Raises UserError where there is none."""
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a NIfTI file")
    with whole(path):
        return nibabel.load(path, mmap=False)


def read_data(path: Path, image: nibabel.spatialimages.SpatialImage) -> np.ndarray:
    """All of an image's numbers, scaled as its header says. Raises UserError where they are not whole."""
    with whole(path):
        return np.asarray(image.dataobj)


def stream_volumes(file: BinaryIO, offset: int, dtype: np.dtype, voxels: int, count: int) -> Iterator[np.ndarray]:
    """The first ``count`` volumes of the data that begin at byte ``offset``, each as stored, ``dtype`` (voxels,) in
    Fortran order. A file that ends before raises EOFError."""
    _exactly(file, offset)
    for _ in range(count):
        yield np.frombuffer(_exactly(file, voxels * dtype.itemsize), dtype)


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError("it breaks off")
    return data
