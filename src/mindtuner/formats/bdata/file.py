"""One file of BData: what its columns are, its labels, and its rows, read as they are asked for.

``dataset`` is (samples, columns). ``metadata`` has ``key`` (K,), ``description`` (K,) and ``value`` (K, columns): the columns
of a key are those where its value is 1, ``VoxelData`` and ``ROI_V1`` as well as ``Session`` or ``stimulus_name``.
``vmap/KEY/NUMBER`` is the label of a number in the column of a key. Older files say ``dataSet`` and ``metaData``, and have no
``vmap``.
"""

from __future__ import annotations

import re
from pathlib import Path

import h5py
import numpy as np

from mindtuner.data.lazy import LazyArray, get_dataset, holds, open_hdf5, open_rows
from mindtuner.errors import UserError
from mindtuner.formats.bdata import expression
from mindtuner.formats.checks.findings import some
from mindtuner.inputs import reading

NAMES = (("dataset", "metadata"), ("dataSet", "metaData"))
DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16")


def is_bdata(path: Path) -> bool:
    """Whether a file is BData, by the names in it."""
    if path.suffix not in (".h5", ".hdf5"):
        return False
    try:
        with open_hdf5(path) as file:
            return any(all(holds(file, name) for name in names) for names in NAMES)
    except UserError:
        return False


class BDataFile:
    """An open file.

    Attributes
    ----------
    path : Path
    keys : list of str (K,)
    rows : LazyArray (samples, columns)
    vmap : dict
        Key -> number -> label.

    Raises
    ------
    UserError
        Where the file is damaged or is no BData.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = open_hdf5(path)
        names = next((names for names in NAMES if all(holds(self._file, name) for name in names)), None)
        if names is None or not isinstance(self._file[names[1]], h5py.Group):
            raise UserError(f"{path}: holds {some(self._file) or 'nothing'}; expected bdpy's BData, dataset and metadata")
        self._table = names[0]
        with reading(path, "a whole file of BData"):
            self.keys = self._strings(f"{names[1]}/key")
            self._values = get_dataset(self._file, f"{names[1]}/value")
            shape = getattr(self._values, "shape", None)
            self.rows: LazyArray = open_rows(path, names[0], 2, DTYPES)
            if shape != (len(self.keys), self.rows.shape[1]):
                raise UserError(
                    f"{path}: {names[1]}/value has shape {shape}; expected {(len(self.keys), self.rows.shape[1])}, a row for "
                    "each key and a column for each of the dataset"
                )
            maps = self._file.get("vmap")
            self.vmap = {key: self._labels(maps, key) for key in (maps if isinstance(maps, h5py.Group) else ())}

    def __len__(self) -> int:
        return self.rows.shape[0]

    def _strings(self, name: str) -> list[str]:
        data = get_dataset(self._file, name)
        if data is None or len(data.shape or ()) != 1 or data.dtype.kind not in "SO":
            raise UserError(f"{self.path}: {name} is no list of texts; expected the names of bdpy's metadata")
        return [_text(value) for value in data[()]]

    def _labels(self, maps: h5py.Group, key: str) -> dict[float, str]:
        try:
            return {float(number): _text(maps[key][number][()]) for number in maps[key]}
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(f"{self.path}: vmap/{key} is no map of numbers to labels; expected bdpy's vmap") from error

    def value(self, key: str) -> np.ndarray:
        """A key's metadata, float64 (columns,)."""
        with reading(self.path, "a whole file of BData"):
            return np.asarray(self._values[self.keys.index(key)], np.float64)

    def select(self, chosen: str) -> np.ndarray:
        """The columns that an expression chooses, bool (columns,). Raises UserError where there are none."""
        try:
            found = expression.select(chosen, self._named)
        except UserError as error:
            raise UserError(f"{self.path}: {error}") from error
        if not found.any():
            raise UserError(f"{self.path}: voxels: {chosen!r} chooses no column; expected some")
        return found

    def _named(self, name: str) -> np.ndarray:
        pattern = re.compile(re.escape(name).replace(r"\*", ".*"))
        matching = [key for key in self.keys if pattern.fullmatch(key)]
        if not matching:
            raise UserError(f"voxels: no metadata is called {name!r}; expected some of {some(self.keys, 12)}")
        return np.any([self.value(key) == 1 for key in matching], axis=0)

    def column(self, key: str) -> np.ndarray:
        """The numbers of a key that has one column, float64 (samples,). Raises UserError where it has none or several."""
        if key not in self.keys:
            raise UserError(f"{self.path}: no metadata is called {key!r}; expected some of {some(self.keys, 12)}")
        columns = np.flatnonzero(self.value(key) == 1)
        if len(columns) != 1:
            raise UserError(f"{self.path}: {key} has {len(columns)} columns; expected one")
        with reading(self.path, "a whole file of BData"):
            return np.asarray(self._file[self._table][:, columns[0]], np.float64)

    def labels(self, key: str) -> list[str | float | None]:
        """A key's label of each sample: a text where ``vmap`` has the key, else the number; None where there is none.

        Raises UserError where a number has no label.
        """
        numbers, known = self.column(key), self.vmap.get(key)
        found: list[str | float | None] = []
        for row, number in enumerate(numbers.tolist()):
            if number != number:
                found.append(None)
            elif known is None:
                found.append(number)
            elif number in known:
                found.append(None if known[number] == "n/a" else known[number])
            else:
                raise UserError(
                    f"{self.path}: {key} of row {row} is {number:g}, which vmap does not list; expected its label"
                )
        return found


def _text(value: bytes | str | np.ndarray) -> str:
    return value if isinstance(value, str) else value.decode("utf-8")
