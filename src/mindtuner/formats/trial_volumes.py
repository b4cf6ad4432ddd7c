"""Arrays of trials in which axes come in any order, seen through a mask as rows (trials, voxels).

A lab's betas are X x Y x Z x trials, or voxels x trials, in a NumPy array or in HDF5. MATLAB writes its axes into HDF5 in the
reverse order, Python as they are. The two are told apart by MATLAB's own mark, the shape of the mask and the number of
trials; where these leave more than one order the array is refused.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from mindtuner.errors import UserError
from mindtuner.formats.nifti import no_room
from mindtuner.inputs import reading
from mindtuner.runtime import progress

BLOCK_BYTES = 64 * 2**20
MATLAB_MARK = "MATLAB_class"  # attribute that MATLAB 7.3 gives each dataset


@dataclass(frozen=True)
class Order:
    """An order of axes. ``place[i]`` is the stored axis of X, Y, Z, trials (or of voxels, trials)."""

    name: str
    place: tuple[int, ...]

    @property
    def trials_first(self) -> bool:
        """Whether a trial is a row of the stored array."""
        return self.place[-1] == 0


AS_NAMED = Order("X x Y x Z x trials", (0, 1, 2, 3))
REVERSED = Order("trials x Z x Y x X", (3, 2, 1, 0))
TRIALS_FIRST = Order("trials x X x Y x Z", (1, 2, 3, 0))
FLAT, FLAT_REVERSED = Order("voxels x trials", (0, 1)), Order("trials x voxels", (1, 0))


def order_of(
    path: Path, name: str, shape: tuple[int, ...], matlab: bool, mask: np.ndarray | None, trials: int | None
) -> tuple[Order, tuple[int, ...]]:
    """The order of a stored array's axes, and its shape without axes of one that MATLAB and GLMsingle put between.

    Parameters
    ----------
    path, name : the file, and the array in it, for messages
    shape : as it is stored
    matlab : whether MATLAB wrote it
    mask : bool (X, Y, Z), or None where there is none
    trials : how many there should be, None where nobody knows

    Raises
    ------
    UserError
        Where no order fits mask and trials, or more than one.
    """
    where = f"{path}: {name} has shape {shape}"
    volumes = len(shape) == 4 and shape[1:3] != (1, 1)
    if not volumes:
        shape = (shape[0], shape[3]) if len(shape) == 4 else shape
    if len(shape) != (4 if volumes else 2) or 0 in shape:
        raise UserError(f"{where}; expected {AS_NAMED.name}, or {FLAT.name}")
    if volumes and mask is None:
        raise UserError(
            f"{where}; expected mask.nii.gz beside it, which says where voxels lie and in which order the axes are"
        )
    if volumes:
        known = [REVERSED] if matlab else [AS_NAMED, REVERSED, TRIALS_FIRST]
        fits = [order for order in known if tuple(shape[i] for i in order.place[:3]) == mask.shape]
        wanted = f"a mask of {mask.shape}"
    else:
        known = [FLAT_REVERSED] if matlab else [FLAT, FLAT_REVERSED]
        voxels = None if mask is None else int(mask.sum())
        fits = [order for order in known if voxels is None or shape[order.place[0]] == voxels]
        wanted = "no mask" if mask is None else f"a mask of {voxels} voxels"
    if not fits:
        stored = f"MATLAB's {known[0].name}" if matlab else " or ".join(order.name for order in known)
        raise UserError(f"{where}; expected {stored} with {wanted}")
    if len(fits) > 1:
        fits = [order for order in fits if shape[order.place[-1]] == trials] or fits
    if len(fits) > 1:
        counted = "no table of trials" if trials is None else f"{trials} trials"
        raise UserError(
            f"{where}, which with {wanted} and {counted} may be {' or '.join(order.name for order in fits)}; expected one "
            "that can be told, such as betas.npy (trials, voxels)"
        )
    return fits[0], shape


def written_by_matlab(data: h5py.Dataset) -> bool:
    """Whether MATLAB wrote a dataset of HDF5."""
    return MATLAB_MARK in data.attrs


class TrialVolumes:
    """Betas of an array of any order of axes: ``volumes[rows]`` is float32 (n, V).

    When rows are first asked for, the voxels of the mask are unpacked, once per run, into a temporary file (in ``TMPDIR``),
    which goes with the process: the trials of an array that ends with them lie scattered over the whole file.

    path · source : array or h5py dataset · order, shape : of ``order_of`` · mask : bool (X, Y, Z), None for flat betas
    matlab : whether MATLAB wrote them, which takes the voxels of a mask column by column
    """

    def __init__(
        self,
        path: Path,
        source: np.ndarray | h5py.Dataset,
        order: Order,
        shape: tuple[int, ...],
        mask: np.ndarray | None,
        matlab: bool = False,
    ):
        self.path, self.order, self.stored, self.matlab = path, order, source.dtype, matlab
        self._source, self._mask, self._rows = source, mask if len(shape) == 4 else None, None
        self._shape, self._column = shape, None
        voxels = int(mask.sum()) if self._mask is not None else shape[order.place[0]]
        self.shape, self.dtype = (shape[order.place[-1]], voxels), np.dtype(np.float32)
        if matlab and self._mask is None and mask is not None:
            number = np.full(mask.shape, -1)
            number.T[mask.T] = np.arange(voxels)  # counted column by column
            self._column = number[mask]

    @property
    def reorders(self) -> bool:
        """Whether voxels come in another order than they are stored in."""
        return self._column is not None

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        if self._rows is None:
            self._rows = self._unpack()
        found = self._rows[rows]
        return found if self._column is None else found[:, self._column]

    def _unpack(self) -> np.ndarray:
        scratch = tempfile.TemporaryFile(prefix="mindtuner-betas-")
        try:
            self._reserve(scratch)
            rows = np.memmap(scratch, np.float32, "r+", shape=self.shape)
            with reading(self.path, "a whole file of betas"):
                for at, columns, values in progress(self._blocks(), self.path.name, unit="block"):
                    rows[at, columns] = values
        except BaseException:
            scratch.close()
            raise
        return rows

    def _reserve(self, scratch) -> None:
        """Its room on disk is taken at once: a map of a file whose disk is full ends the process."""
        left, zeros = self.shape[0] * self.shape[1] * 4, bytes(2**20)
        try:
            while left:
                left -= scratch.write(zeros[:left])
            scratch.flush()
        except OSError as error:
            raise no_room(self.path, error) from error

    def _blocks(self) -> Iterator[tuple[slice, slice | np.ndarray, np.ndarray]]:
        """(trials, voxels, values), block by block along the axes as they are stored."""
        long = len(self._source.shape) == 4 and len(self._shape) == 2  # an axis of one, twice
        if self.order.trials_first:
            for start, stop in self._steps(0, int(np.prod(self._shape[1:]))):
                block = np.asarray(self._source[start:stop])
                block = block.reshape(stop - start, -1) if self._mask is None else self._in_mask(block)
                yield slice(start, stop), slice(None), block
        elif self._mask is None:
            for start, stop in self._steps(0, self._shape[1]):
                block = np.asarray(self._source[start:stop])
                yield slice(None), slice(start, stop), (block[:, 0, 0] if long else block).T
        else:
            place = np.cumsum(self._mask).reshape(self._mask.shape) - 1
            deep = (getattr(self._source, "chunks", None) or (1,))[0]
            for x in range(0, self._shape[0], deep):
                for start, stop in self._steps(1, deep * int(np.prod(self._shape[2:]))):
                    inside = self._mask[x : x + deep, start:stop]
                    if inside.any():
                        block = np.asarray(self._source[x : x + deep, start:stop])
                        yield slice(None), place[x : x + deep, start:stop][inside], block[inside].T

    def _in_mask(self, block: np.ndarray) -> np.ndarray:
        """(n, V) of volumes (n, ...) whose spatial axes come in any order."""
        return block.transpose(0, *self.order.place[:3])[:, self._mask]

    def _steps(self, axis: int, width: int) -> Iterator[tuple[int, int]]:
        """Ranges of an axis whose entries hold ``width`` numbers, of whole chunks where there are any."""
        chunks = getattr(self._source, "chunks", None)
        step = max(1, BLOCK_BYTES // (width * self.stored.itemsize))
        if chunks:
            step = max(1, step // chunks[axis]) * chunks[axis]
        for start in range(0, self._shape[axis], step):
            yield start, min(start + step, self._shape[axis])
