"""Rows of one HDF5 dataset, read lazily: memory-mapped where the file allows it."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from mindtuner.errors import UserError

ROWS_AT_ONCE = 256  # of a dataset without chunks that cannot be mapped: external or virtual


def open_rows(path: str | Path, field: str, ndim: int, dtypes: tuple[str, ...]) -> np.memmap | ChunkedRows:
    """Open dataset ``field`` of an HDF5 file so that ``rows[ids]`` reads only those rows.

    A contiguous dataset is memory-mapped at its offset in the file, which makes random rows as cheap as the
    disk allows; a chunked or compressed one is read through h5py. Both have ``shape`` and ``dtype`` and take
    an int64 array of row numbers in any order.

    Raises UserError where the file is missing or damaged, lacks the field, or holds another number of
    dimensions or another dtype than expected.
    """
    path = Path(path)
    file = open_hdf5(path)
    data = file.get(field)
    if not isinstance(data, h5py.Dataset):
        file.close()
        raise UserError(f"{path}: no dataset {field!r}; expected one with {ndim} dimensions")
    shape, dtype = data.shape, data.dtype
    if data.ndim != ndim or 0 in shape or dtype.name not in dtypes:
        file.close()
        raise UserError(f"{path}: {field} has shape {shape} and dtype {dtype.name}; "
                        f"expected {ndim} non-empty dimensions of {' or '.join(dtypes)}")
    if data.chunks is None and not data.external and not data.is_virtual:
        offset = data.id.get_offset()
        file.close()
        if offset is None:
            raise UserError(f"{path}: {field} was declared but never written; expected data")
        return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape)
    return ChunkedRows(data)


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading. Raises UserError where it is missing, truncated or something else."""
    if not path.is_file():
        raise UserError(f"{path}: not found; expected an HDF5 file")
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise UserError(f"{path}: not a whole HDF5 file ({' '.join(str(error).split())}); expected one that "
                        "was copied to its end") from error


class ChunkedRows:
    """Rows of a chunked HDF5 dataset, read chunk by chunk: each chunk once, and no row that is not asked for.

    One selection of all rows would do the same, but HDF5 takes the square of its length in time.
    """

    def __init__(self, data: h5py.Dataset):
        self._data = data
        self.shape = data.shape
        self.dtype = data.dtype

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        if len(rows) == 0:
            return np.empty((0, *self.shape[1:]), self.dtype)
        ascending, place = np.unique(rows, return_inverse=True)
        found = np.empty((len(ascending), *self.shape[1:]), self.dtype)
        chunk = ascending // (self._data.chunks or (ROWS_AT_ONCE,))[0]
        edges = np.flatnonzero(np.diff(chunk)) + 1
        try:
            for start, stop in zip([0, *edges], [*edges, len(ascending)], strict=True):
                first, last = ascending[start], ascending[stop - 1]
                together = last - first == stop - start - 1
                self._data.read_direct(found, np.s_[first:last + 1] if together else ascending[start:stop], np.s_[start:stop])
            return found if len(place) == len(found) and (np.diff(place) == 1).all() else found[place]
        except OSError as error:
            raise UserError(f"{self._data.file.filename}: {self._data.name} cannot be read "
                            f"({' '.join(str(error).split())}); expected whole chunks") from error


def as_rows(rows, count: int, where: str, field: str) -> np.ndarray:
    """``rows`` as an int64 (n,) array. Raises UserError where one is no whole number in ``0..count-1``."""
    rows = np.asarray(rows)
    if rows.size == 0 and rows.ndim == 1:
        return np.empty(0, np.int64)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise UserError(f"{where}: {field} numbers have shape {rows.shape} and dtype {rows.dtype}; "
                        "expected a list of whole numbers")
    outside = (rows < 0) | (rows >= count)
    if outside.any():
        raise UserError(f"{where}: {field} {rows[outside][0]} is out of range; expected 0..{count - 1}")
    return rows.astype(np.int64)
