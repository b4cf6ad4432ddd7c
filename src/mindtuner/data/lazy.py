"""Arrays whose rows stay on disk until they are asked for, and reading ahead.

Rows lie in one block of a file or in chunks of HDF5, and are read whole, some of their columns, or means of them.
"""

from __future__ import annotations

import itertools
import math
import operator
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar

import h5py
import numpy as np

from mindtuner.errors import UserError
from mindtuner.inputs import one_line, refuse_special

Item = TypeVar("Item")
Found = TypeVar("Found")
ROWS_AT_ONCE = 256  # of a dataset without chunks that is not one block: external or virtual


class LazyArray(Protocol):
    """What betas and images are to the rest of the package: ``array[rows]``, int64 (n,) in any order, reads just these rows.

    A NumPy array is one too.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        ...

    @property
    def dtype(self) -> np.dtype:
        """Of what is read."""
        ...

    def __getitem__(self, rows: np.ndarray) -> np.ndarray: ...


def open_rows(path: str | Path, field: str, ndim: int, dtypes: tuple[str, ...]) -> FileRows | ChunkedRows:
    """Open dataset ``field`` of an HDF5 file so that ``rows[ids]`` reads only those rows.

    A dataset that is one block of this very file is read at its offset, which makes random rows as cheap as the disk allows;
    any other is read through h5py. Both have ``shape`` and ``dtype`` and take an int64 array of row numbers in any order.

    Raises UserError where the file is missing or damaged, lacks the field, or holds another number of dimensions or another
    dtype than expected, and as ``get_dataset`` does.
    """
    path = Path(path)
    file = open_hdf5(path)
    data = get_dataset(file, field)
    if data is None:
        file.close()
        raise UserError(f"{path}: no dataset {field!r}; expected one with {ndim} dimensions")
    shape, dtype = data.shape, data.dtype
    if shape is None or len(shape) != ndim or 0 in shape or dtype.name not in dtypes:
        file.close()
        raise UserError(
            f"{path}: {field} has shape {shape} and dtype {dtype.name}; "
            f"expected {ndim} non-empty dimensions of {' or '.join(dtypes)}"
        )
    if is_one_block(data, path):
        offset = data.id.get_offset()
        file.close()
        return FileRows(path, shape, dtype, offset)
    return ChunkedRows(data)


def open_hdf5(path: Path) -> h5py.File:
    """Open an HDF5 file for reading. Raises UserError where it is missing, truncated or something else."""
    refuse_special(path, "an HDF5 file")
    try:
        return h5py.File(path, "r")
    except Exception as error:
        raise UserError(
            f"{path}: not a whole HDF5 file ({one_line(error)}); expected one that was copied to its end"
        ) from error


def get_dataset(group: h5py.Group, field: str) -> h5py.Dataset | None:
    """The dataset of that name in a file or group, None where there is none, or something else.

    Raises UserError where it is damaged, and where HDF5 would give zeros for numbers that nobody wrote, or that lie in files
    which are not there.
    """
    try:
        data = group.get(field)
        if not isinstance(data, h5py.Dataset):
            return None
        if data.dtype is not None and data.shape is not None and 0 not in data.shape:
            _refuse_unwritten(data, f"{group.file.filename}: {field}")
        return data
    except UserError:
        raise
    except Exception as error:
        where = group.file.filename
        raise UserError(f"{where}: {field} cannot be read ({one_line(error)}); expected a whole file") from error


def holds(group: h5py.Group, field: str) -> bool:
    """Whether a file or group has something of that name, be it a link to nothing. Raises UserError where it is damaged."""
    try:
        return group.get(field, getlink=True) is not None
    except Exception as error:
        where = group.file.filename
        raise UserError(f"{where}: {field} cannot be read ({one_line(error)}); expected a whole file") from error


def is_one_block(data: h5py.Dataset, path: Path) -> bool:
    """Whether a dataset's numbers lie side by side in the file ``path``.

    They do not in chunks, within a header (compact), in a raw file beside it (external), or spread over datasets (virtual);
    nor does an offset count for ``path`` where a link led into another file.
    """
    layout = data.id.get_create_plist().get_layout()
    return layout == h5py.h5d.CONTIGUOUS and not data.external and os.path.samefile(data.file.filename, path)


def _refuse_unwritten(data: h5py.Dataset, where: str) -> None:
    layout = data.id.get_create_plist().get_layout()
    if layout == h5py.h5d.VIRTUAL:
        _refuse_lacking_sources(data, where)
    elif data.external:
        _refuse_short_files(data, where)
    elif data.id.get_storage_size() == 0:
        raise UserError(f"{where} was declared but never written; expected data")
    elif layout == h5py.h5d.CHUNKED:
        wanted = math.prod(-(-length // step) for length, step in zip(data.shape, data.chunks, strict=True))
        if (found := data.id.get_num_chunks()) < wanted:
            raise UserError(f"{where} has {found:,} of {wanted:,} chunks, the rest was never written; expected data")


def _refuse_lacking_sources(data: h5py.Dataset, where: str) -> None:
    """Of a virtual dataset: HDF5 gives its fill value for what a source lacks."""
    covered = 0
    folder = Path(data.file.filename).parent
    for source in data.virtual_sources():
        covered += source.vspace.get_select_npoints()
        other = Path(data.file.filename) if source.file_name == "." else folder / source.file_name
        refuse_special(other, f"the numbers of {where}")
        with open_hdf5(other) as file:
            found = get_dataset(file, source.dset_name)
            if found is None:
                raise UserError(f"{where} is taken from {other}, which has no {source.dset_name}; expected it there")
            space, shape = source.src_space, found.shape or ()
            if space.get_select_type() == h5py.h5s.SEL_ALL:  # which says nothing of the source's shape
                fits = math.prod(shape) == source.vspace.get_select_npoints()
            else:
                last = space.get_select_bounds()[1]
                fits = len(last) == len(shape) and all(map(operator.lt, last, shape))
            if not fits:
                raise UserError(f"{where} is taken from {other}, whose {source.dset_name} is too small; expected all of it")
    if covered < math.prod(data.shape):
        raise UserError(f"{where} is taken from other files in parts, which leave gaps; expected data everywhere")


def _refuse_short_files(data: h5py.Dataset, where: str) -> None:
    """Of an external dataset: HDF5 gives zeros behind the end of a raw file."""
    left = math.prod(data.shape) * data.dtype.itemsize
    for name, offset, size in data.external:
        path = Path(name)  # from where the program runs, as HDF5 has it
        refuse_special(path, f"the raw numbers of {where}")
        wanted = min(size, left)
        if path.stat().st_size < offset + wanted:
            raise UserError(f"{path}: has {path.stat().st_size:,} bytes; expected {offset + wanted:,}, for {where}")
        left -= wanted
    if left > 0:
        raise UserError(f"{where} lies in other files, which lack {left:,} bytes; expected all of it")


class FileRows:
    """An array (N, ...) that lies in one block of a file, in C order from ``offset`` on.

    Only the rows asked for are ever read.

    ``rows[index]`` takes what picks rows of an array: a number, a slice, numbers (n,) in any order, a mask (N,).

    Rows are read rather than mapped: one large read a row is quicker than a page fault for every few of its pages, a file
    that was cut is an error rather than a crash, and no page counts as this process's memory afterwards. A map that has been
    read from end to end counts whole.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], dtype, offset: int = 0):
        self.path, self.shape, self.dtype, self._offset = path, tuple(shape), np.dtype(dtype), offset
        self.ndim = len(self.shape)
        refuse_special(path, "a file of rows")
        self._file = open(path, "rb", buffering=0)  # reads name their offset, so threads may share it
        self._turn = threading.Lock()

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.asarray(self[:], dtype)

    def __getitem__(self, index) -> np.ndarray:
        """Raises UserError where the file ends early or cannot be read, IndexError where a row is out of range."""
        ids = np.arange(len(self))[index]
        found = np.empty((ids.size, *self.shape[1:]), self.dtype)
        # Ascending, which disks like best, and neighbours together where they are neighbours in the result too.
        order = np.argsort(ids, axis=None, kind="stable")
        ascending = ids.reshape(-1)[order]
        starts = np.flatnonzero((np.diff(ascending, prepend=-2) != 1) | (np.diff(order, prepend=-2) != 1))
        for start, stop in itertools.pairwise([*starts, ids.size]):
            self._read(found[order[start] : order[start] + stop - start], int(ascending[start]))
        return found.reshape((*ids.shape, *self.shape[1:]))[()]  # a number where an array would give one

    def _read(self, rows: np.ndarray, first: int) -> None:
        left = memoryview(rows.reshape(-1).view(np.uint8))  # type: ignore[arg-type]
        size = rows.nbytes // len(rows)
        offset = self._offset + first * size
        while left:
            try:
                read = self._read_at(left, offset)
            except OSError as error:
                raise UserError(
                    f"{self.path}: row {first} cannot be read ({error.strerror}); expected a whole file"
                ) from error
            if not read:
                row = (offset - self._offset) // size
                raise UserError(f"{self.path}: ends within row {row}; expected {len(self)} rows")
            left, offset = left[read:], offset + read

    def _read_at(self, buffer: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [buffer], offset)
        with self._turn:  # Windows: a file has one position
            self._file.seek(offset)
            return self._file.readinto(buffer)


def unmapped(path: Path, array: np.memmap) -> FileRows | np.memmap:
    """A mapped .npy file as rows that are read instead; one in Fortran order, whose rows do not lie together, as it is."""
    return FileRows(path, array.shape, array.dtype, array.offset) if array.flags.c_contiguous else array


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
                self._data.read_direct(
                    found, np.s_[first : last + 1] if together else ascending[start:stop], np.s_[start:stop]
                )
        except Exception as error:
            raise UserError(
                f"{self._data.file.filename}: {self._data.name} cannot be read ({one_line(error)}); expected whole chunks"
            ) from error
        return found if len(place) == len(found) and (np.diff(place) == 1).all() else found[place]


class Columns:
    """Some voxels of a subject's betas: ``view[rows]`` is (n, K) for int64 columns (K,)."""

    def __init__(self, source: LazyArray, columns: np.ndarray):
        self._source, self._columns = source, columns
        self.shape, self.dtype = (source.shape[0], len(columns)), source.dtype

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self._source[rows])[:, self._columns]


class RowMeans:
    """Means over groups of rows, in float64 on the way: ``view[groups]`` is float32 (n, V).

    groups : for each of the view's rows the rows of ``source`` that it averages, at least one
    """

    def __init__(self, source: LazyArray, groups: list[np.ndarray]):
        self._source, self._groups = source, groups
        self.shape, self.dtype = (len(groups), source.shape[1]), np.dtype(np.float32)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        if len(rows) == 0:
            return np.empty((0, self.shape[1]), np.float32)
        groups = [self._groups[row] for row in rows]
        counts = np.array([len(group) for group in groups])
        parts = np.asarray(self._source[np.concatenate(groups)])
        sums = np.add.reduceat(parts, np.cumsum(counts) - counts, axis=0, dtype=np.float64)
        return (sums / counts[:, None]).astype(np.float32)


def as_rows(rows, count: int, where: str, field: str) -> np.ndarray:
    """``rows`` as an int64 (n,) array. Raises UserError where one is no whole number in ``0..count-1``."""
    rows = np.asarray(rows)
    if rows.size == 0 and rows.ndim == 1:
        return np.empty(0, np.int64)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise UserError(
            f"{where}: {field} numbers have shape {rows.shape} and dtype {rows.dtype}; expected a list of whole numbers"
        )
    outside = (rows < 0) | (rows >= count)
    if outside.any():
        raise UserError(f"{where}: {field} {rows[outside][0]} is out of range; expected 0..{count - 1}")
    return rows.astype(np.int64)


def read_ahead(read: Callable[[Item], Found], items: Iterable[Item], threads: int = 1) -> Iterator[Found]:
    """``read(item)`` of all items, in their order, some of them ahead.

    While one is used the next ``threads`` of them are read, each by a thread, which is worth it where reading waits for a
    disk or works outside Python's lock. An error comes up where its item would.
    """
    with ThreadPoolExecutor(threads, "ahead") as pool:
        coming: deque = deque()
        try:
            for item in items:
                coming.append(pool.submit(read, item))
                if len(coming) > threads:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        finally:  # who stops early waits for what is being read, no longer
            for future in coming:
                future.cancel()
