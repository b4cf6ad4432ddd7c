"""Write Layout A (see ``layout_a``) from arrays: each file atomically, row blocks streamed.

A whole dataset is: ``write_images``, ``write_captions``, ``write_shared``, ``write_card`` once; ``write_betas`` and
``write_behaviour`` per subject; ``write_indices`` and ``write_masks`` once for all subjects.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import h5py
import numpy as np

from mindtuner.data.dataset import IMAGE_SHAPE
from mindtuner.errors import UserError
from mindtuner.files import atomic_path, write_json
from mindtuner.formats.nsd_release import read as layout_a

PAST = FUTURE = 15  # neighbouring trials of the same session that go with each trial
BYTE_AS_HALF = (np.arange(256) / 255).astype(np.float16)
OLDS = 3  # earlier presentations of the same image that go with each trial


@dataclass(frozen=True, eq=False)
class TrialTable:
    """All trials of one subject in the order of the scan, so entry i is row i of the betas; arrays (n,).

    stimulus  index into the image file · session  1-based, never falling · run  1-based within the session
    trial  1-based within the run · time  any clock, e.g. seconds · is_shared  bool, a trial of a shared image
    """

    stimulus: np.ndarray
    session: np.ndarray
    run: np.ndarray
    trial: np.ndarray
    time: np.ndarray
    is_shared: np.ndarray

    def __post_init__(self):
        for field in fields(self):
            array = np.asarray(getattr(self, field.name))
            if array.ndim != 1 or len(array) != len(self.stimulus):
                raise UserError(f"trial table: {field.name} has shape {array.shape}; expected ({len(self.stimulus)},)")
            object.__setattr__(self, field.name, array)
        if len(self.session) and (self.session[0] < 1 or (np.diff(self.session) < 0).any()):
            raise UserError("trial table: session falls or is below 1; expected 1, 1, ..., 2, 2, ...")

    def __len__(self) -> int:
        return len(self.stimulus)


def write_betas(root: str | Path, subject: int, blocks: Iterable[np.ndarray], shape: tuple[int, int]) -> None:
    """Write betas of ``shape`` (trials, voxels) as contiguous float32 from blocks (k, voxels) in row order.

    Raises UserError where blocks do not fill the shape or hold a number that is not finite.
    """
    path = layout_a.betas_path(root, subject)
    _write_rows(path, "betas", (np.asarray(block, np.float32) for block in blocks), shape, np.float32)


def write_images(root: str | Path, blocks: Iterable[np.ndarray], count: int) -> None:
    """Write ``count`` images as float16 in 0..1 from blocks (k, 3, 224, 224), uint8 or floats in 0..1.

    Raises UserError where blocks do not hold that many images or a pixel is out of range.
    """
    path = Path(root) / layout_a.IMAGES
    _write_rows(path, "images", (_unit_range(block, path) for block in blocks), (count, *IMAGE_SHAPE), np.float16)


def _unit_range(block: np.ndarray, path: Path) -> np.ndarray:
    block = np.asarray(block)
    if block.dtype == np.uint8:
        return BYTE_AS_HALF[block]
    if block.dtype.kind != "f":
        raise UserError(f"{path}: images of dtype {block.dtype}; expected uint8, or floats in 0..1")
    if block.size and not (block.min() >= 0 and block.max() <= 1):
        raise UserError(f"{path}: pixels in {block.min()}..{block.max()}; expected floats in 0..1")
    return block.astype(np.float16)


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


def _write_rows(path: Path, field: str, blocks: Iterable[np.ndarray], shape: tuple[int, ...], dtype) -> None:
    with create_hdf5(path) as file:
        rows = file.create_dataset(field, shape, dtype)
        done = 0
        for block in blocks:
            if block.shape[1:] != tuple(shape[1:]) or done + len(block) > shape[0]:
                raise UserError(
                    f"{path}: a block of {field} from row {done} has shape {block.shape}; "
                    f"expected it to fit into {tuple(shape)}"
                )
            if not np.isfinite(block).all():
                raise UserError(
                    f"{path}: {field} between row {done} and {done + len(block) - 1} hold a NaN or "
                    "an infinity; expected finite numbers"
                )
            rows[done : done + len(block)] = block
            done += len(block)
        if done != shape[0] or done == 0:
            raise UserError(f"{path}: got {done} rows of {field}; expected {shape[0]}, at least 1")


def write_captions(root: str | Path, captions: Sequence[Sequence[str]]) -> None:
    """Write up to five captions per image; images with fewer are filled with empty strings."""
    path = Path(root) / layout_a.CAPTIONS
    for i, texts in enumerate(captions):
        if isinstance(texts, str) or len(texts) > layout_a.CAPTIONS_PER_IMAGE:
            raise UserError(
                f"{path}: captions of image {i} are {len(texts)} of {type(texts).__name__}; "
                f"expected a list of up to {layout_a.CAPTIONS_PER_IMAGE} strings"
            )
    width = max((len(text) for texts in captions for text in texts), default=0)
    table = np.zeros((len(captions), layout_a.CAPTIONS_PER_IMAGE), f"<U{max(width, 1)}")
    for row, texts in zip(table, captions, strict=True):
        row[: len(texts)] = texts
    _write_npy(path, table)


def write_shared(root: str | Path, is_shared: np.ndarray) -> None:
    """Write which images are shared (test) images, bool (N,)."""
    _write_npy(Path(root) / layout_a.SHARED, np.asarray(is_shared, bool))


def _write_npy(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as part, open(part, "wb") as file:
        np.save(file, array, allow_pickle=False)


def write_card(root: str | Path, card: dict) -> None:
    """Write the card; it must say ``simulated`` and ``zscore``, and may say more."""
    path = Path(root) / layout_a.CARD
    layout_a.check_card(card, str(path))
    write_json(path, card)


def write_indices(root: str | Path, stimulus: Mapping[int, np.ndarray]) -> None:
    """Write the stimulus of each trial, subject number -> int (trials,)."""
    with create_hdf5(Path(root) / layout_a.INDICES) as file:
        for subject, indices in stimulus.items():
            file[f"subj0{subject}"] = np.asarray(indices, np.int64)


def write_masks(root: str | Path, masks: Mapping[int, Mapping[str, np.ndarray]]) -> None:
    """Write the regions of interest, subject number -> name -> bool (voxels,); all of ``layout_a.ROIS``."""
    path = Path(root) / layout_a.MASKS
    for subject, rois in masks.items():
        if missing := sorted(set(layout_a.ROIS) - set(rois)):
            raise UserError(f"{path}: subj0{subject} lacks {', '.join(missing)}; expected a mask for each region")
    with create_hdf5(path) as file:
        for subject, rois in masks.items():
            for name, mask in rois.items():
                file[f"subj0{subject}/{name}"] = np.asarray(mask, bool)


def write_behaviour(root: str | Path, subject: int, table: TrialTable) -> None:
    """Write the behaviour tars of one subject: one per session for training, one for all shared images."""
    behaviour = behaviour_array(subject, table)
    session, is_shared = np.asarray(table.session), np.asarray(table.is_shared, bool)
    folder = layout_a.behaviour_folder(root, subject)
    for number in range(1, int(session.max(initial=0)) + 1):
        rows = np.flatnonzero((session == number) & ~is_shared)
        _write_tar(folder / "train" / f"{number - 1}.tar", rows, behaviour)
    _write_tar(folder / "new_test" / "0.tar", np.flatnonzero(is_shared), behaviour)


def behaviour_array(subject: int, table: TrialTable) -> np.ndarray:
    """The 17 columns of each trial, float64 (n, 17). What no subject pressed or answered is missing, -1."""
    array = np.full((len(table), layout_a.COLUMNS), -1.0)
    array[:, layout_a.STIMULUS] = table.stimulus
    array[:, layout_a.SUBJECT] = subject
    array[:, layout_a.SESSION] = table.session
    array[:, layout_a.RUN] = table.run
    array[:, layout_a.TRIAL] = table.trial
    array[:, layout_a.ROW] = np.arange(len(table))
    array[:, layout_a.TIME] = table.time
    array[:, layout_a.IS_OLD] = layout_a.count_repeats(table.stimulus) > 0
    for number in np.unique(table.session):
        within = table.session == number
        array[within, layout_a.IS_OLD_IN_SESSION] = layout_a.count_repeats(table.stimulus[within]) > 0
    array[:, layout_a.IS_SHARED] = np.asarray(table.is_shared, bool)
    return array


def _write_tar(path: Path, rows: np.ndarray, behaviour: np.ndarray) -> None:
    # Headers come from tarfile, but its addfile() would take most of the time of thousands of tiny members.
    with atomic_path(path) as part, open(part, "wb") as file:
        for row in rows:
            for kind, array in _sample(int(row), behaviour).items():
                data = _npy_header(array.shape) + array.tobytes()
                member = tarfile.TarInfo(f"sample{row:09d}.{kind}.npy")
                member.size = len(data)
                file.write(member.tobuf(tarfile.USTAR_FORMAT) + data + bytes(-len(data) % tarfile.BLOCKSIZE))
        end = file.tell() + 2 * tarfile.BLOCKSIZE
        file.write(bytes(2 * tarfile.BLOCKSIZE + -end % tarfile.RECORDSIZE))


@functools.cache
def _npy_header(shape: tuple[int, int]) -> bytes:
    data = io.BytesIO()
    np.lib.format.write_array_header_1_0(data, {"descr": "<f8", "fortran_order": False, "shape": shape})
    return data.getvalue()


def _sample(row: int, behaviour: np.ndarray) -> dict[str, np.ndarray]:
    """One trial with its neighbours in time, oldest first. Past trials end, future trials start, at this one;
    the olds are the presentations of the same image before this one, over all sessions."""
    session = behaviour[:, layout_a.SESSION]
    first, last = np.searchsorted(session, session[row], "left"), np.searchsorted(session, session[row], "right")
    past = behaviour[max(row - PAST, first) : row]
    future = behaviour[row + 1 : min(row + 1 + FUTURE, last)]
    olds = behaviour[np.flatnonzero(behaviour[:row, layout_a.STIMULUS] == behaviour[row, layout_a.STIMULUS])[-OLDS:]]
    arrays = {"behav": behaviour[row : row + 1]}
    for kind, lines, count in (("past", past, PAST), ("future", future, FUTURE), ("olds", olds, OLDS)):
        array = np.full((count, layout_a.COLUMNS), -1.0)
        start = count - len(lines) if kind == "past" else 0
        array[start : start + len(lines)] = lines
        arrays[f"{kind}_behav"] = array
    return arrays
