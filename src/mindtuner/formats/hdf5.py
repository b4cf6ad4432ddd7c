"""HDF5 files while they are written. How they are read stands in ``data.lazy``."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

import h5py

from mindtuner.files import atomic_path


@contextlib.contextmanager
def create_hdf5(path: Path) -> Iterator[h5py.File]:
    """A new HDF5 file, moved to ``path`` once it is whole; a full disk raises UserError like everywhere else."""
    with atomic_path(path) as part:
        file = h5py.File(part, "w")
        try:
            yield file
        except OSError as error:
            _close(file)
            # HDF5 puts its whole call history, over several lines, where others put the reason.
            number = error.errno or errno.EIO
            raise OSError(number, os.strerror(number)) from error
        except BaseException:
            _close(file)
            raise
        if failure := _close(file):
            raise OSError(errno.EIO, " ".join(failure.split()))


def _close(file: h5py.File) -> str | None:
    """Close the file; say why if that failed. On a full disk HDF5 then raises a RuntimeError."""
    try:
        file.close()
    except (OSError, RuntimeError) as error:
        return str(error)
    return None
