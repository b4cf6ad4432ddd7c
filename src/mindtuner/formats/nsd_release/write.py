"""Write the NSD release: from arrays, each file atomically and row blocks streamed, or from any dataset.

From arrays a whole dataset is: ``write_images``, ``write_captions``, ``write_shared``, ``write_card`` once; ``write_betas``
and ``write_behaviour`` per subject; ``write_indices`` and ``write_masks`` once for all subjects.
"""

from __future__ import annotations

import functools
import io
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from mindtuner.data import Dataset
from mindtuner.data.dataset import CARD, count_repeats
from mindtuner.data.stimuli import IMAGE_SHAPE
from mindtuner.errors import UserError
from mindtuner.files import atomic_path, write_json
from mindtuner.formats.hdf5 import create_hdf5
from mindtuner.formats.image_files import BYTE_AS_HALF
from mindtuner.formats.nsd_release import read as release
from mindtuner.runtime import progress

_AT_ONCE = 64  # rows of betas, or images, in memory
PAST = FUTURE = 15  # neighbouring trials of the same session that go with each trial
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


def write(root: str | Path, dataset: Dataset) -> None:
    """Write any dataset as the NSD release.

    Betas are written as they are read, in float32, one row a trial in the order of trials; rows that no trial uses are left
    out. Images become float16. Runs, trials within them and times are missing (-1): a dataset does not hold them. Of each
    image the first five captions are kept, of each subject the regions in ``read.ROIS``; without ``nsd_general`` among them
    all voxels are in it. The masks come last: without them nothing is read.

    Parameters
    ----------
    root : str or Path
        Folder to write into.
    dataset : Dataset
        What to write. A reader counts repeats in the order of trials.

    Raises
    ------
    UserError
        Where the card does not say how betas were z-scored, or sessions fall from one trial to the next.
    """
    write_card(root, {key: value for key, value in dataset.card.items() if key not in ("sessions", "assumed")})
    stimuli = dataset.stimuli
    write_shared(root, stimuli.is_shared)
    write_captions(root, [texts[: release.CAPTIONS_PER_IMAGE] for texts in stimuli.captions])
    write_images(root, (stimuli.images(ids) for ids in _blocks(np.arange(len(stimuli)), "images")), len(stimuli))
    for number, subject in dataset.subjects.items():
        trials, missing = subject.trials, np.full(len(subject.trials), -1)
        table = TrialTable(trials.stimulus, trials.session, missing, missing, missing, trials.is_test)
        write_behaviour(root, number, table)
        betas = (subject.betas(rows) for rows in _blocks(trials.row, f"subj{number:02d}"))
        write_betas(root, number, betas, (len(trials), subject.n_voxels))
    write_indices(root, {number: subject.trials.stimulus for number, subject in dataset.subjects.items()})
    masks = {}
    for number, subject in dataset.subjects.items():
        rois = {"nsd_general": np.ones(subject.n_voxels, bool), **subject.rois}
        masks[number] = {name: rois[name] for name in release.ROIS if name in rois}
    _write_masks(Path(root) / release.MASKS, masks)


def _blocks(rows: np.ndarray, title: str) -> Iterator[np.ndarray]:
    return (rows[start : start + _AT_ONCE] for start in progress(range(0, len(rows), _AT_ONCE), title, unit="batch"))


def write_betas(root: str | Path, subject: int, blocks: Iterable[np.ndarray], shape: tuple[int, int]) -> None:
    """Write betas of ``shape`` (trials, voxels) as contiguous float32 from blocks (k, voxels) in row order.

    Raises UserError where blocks do not fill the shape or hold a number that is not finite.
    """
    path = release.betas_path(root, subject)
    _write_rows(path, "betas", (np.asarray(block, np.float32) for block in blocks), shape, np.float32)


def write_images(root: str | Path, blocks: Iterable[np.ndarray], count: int) -> None:
    """Write ``count`` images as float16 in 0..1 from blocks (k, 3, 224, 224), uint8 or floats in 0..1.

    Raises UserError where blocks do not hold that many images or a pixel is out of range.
    """
    path = Path(root) / release.IMAGES
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
    path = Path(root) / release.CAPTIONS
    for i, texts in enumerate(captions):
        if isinstance(texts, str) or len(texts) > release.CAPTIONS_PER_IMAGE:
            raise UserError(
                f"{path}: captions of image {i} are {len(texts)} of {type(texts).__name__}; "
                f"expected a list of up to {release.CAPTIONS_PER_IMAGE} strings"
            )
    width = max((len(text) for texts in captions for text in texts), default=0)
    table = np.zeros((len(captions), release.CAPTIONS_PER_IMAGE), f"<U{max(width, 1)}")
    for row, texts in zip(table, captions, strict=True):
        row[: len(texts)] = texts
    _write_npy(path, table)


def write_shared(root: str | Path, is_shared: np.ndarray) -> None:
    """Write which images are shared (test) images, bool (N,)."""
    _write_npy(Path(root) / release.SHARED, np.asarray(is_shared, bool))


def _write_npy(path: Path, array: np.ndarray) -> None:
    with atomic_path(path) as part, open(part, "wb") as file:
        np.save(file, array, allow_pickle=False)


def write_card(root: str | Path, card: dict) -> None:
    """Write the card; it must say ``simulated`` and ``zscore``, and may say more."""
    path = Path(root) / CARD
    release.check_card(card, str(path))
    write_json(path, card)


def write_indices(root: str | Path, stimulus: Mapping[int, np.ndarray]) -> None:
    """Write the stimulus of each trial, subject number -> int (trials,)."""
    with create_hdf5(Path(root) / release.INDICES) as file:
        for subject, indices in stimulus.items():
            file[f"subj0{subject}"] = np.asarray(indices, np.int64)


def write_masks(root: str | Path, masks: Mapping[int, Mapping[str, np.ndarray]]) -> None:
    """Write the regions of interest, subject number -> name -> bool (voxels,); all of ``read.ROIS``."""
    path = Path(root) / release.MASKS
    for subject, rois in masks.items():
        if missing := sorted(set(release.ROIS) - set(rois)):
            raise UserError(f"{path}: subj0{subject} lacks {', '.join(missing)}; expected a mask for each region")
    _write_masks(path, masks)


def _write_masks(path: Path, masks: Mapping[int, Mapping[str, np.ndarray]]) -> None:
    with create_hdf5(path) as file:
        for subject, rois in masks.items():
            for name, mask in rois.items():
                file[f"subj0{subject}/{name}"] = np.asarray(mask, bool)


def write_behaviour(root: str | Path, subject: int, table: TrialTable) -> None:
    """Write the behaviour tars of one subject: one per session for training, one for all shared images."""
    behaviour = behaviour_array(subject, table)
    session, is_shared = np.asarray(table.session), np.asarray(table.is_shared, bool)
    folder = release.behaviour_folder(root, subject)
    for number in range(1, int(session.max(initial=0)) + 1):
        rows = np.flatnonzero((session == number) & ~is_shared)
        _write_tar(folder / "train" / f"{number - 1}.tar", rows, behaviour)
    _write_tar(folder / "new_test" / "0.tar", np.flatnonzero(is_shared), behaviour)


def behaviour_array(subject: int, table: TrialTable) -> np.ndarray:
    """The 17 columns of each trial, float64 (n, 17). What no subject pressed or answered is missing, -1."""
    array = np.full((len(table), release.COLUMNS), -1.0)
    array[:, release.STIMULUS] = table.stimulus
    array[:, release.SUBJECT] = subject
    array[:, release.SESSION] = table.session
    array[:, release.RUN] = table.run
    array[:, release.TRIAL] = table.trial
    array[:, release.ROW] = np.arange(len(table))
    array[:, release.TIME] = table.time
    array[:, release.IS_OLD] = count_repeats(table.stimulus) > 0
    for number in np.unique(table.session):
        within = table.session == number
        array[within, release.IS_OLD_IN_SESSION] = count_repeats(table.stimulus[within]) > 0
    array[:, release.IS_SHARED] = np.asarray(table.is_shared, bool)
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
    """One trial with its neighbours in time, oldest first.

    Past trials end, future trials start, at this one; the olds are the presentations of the same image before this one, over
    all sessions.
    """
    session = behaviour[:, release.SESSION]
    first, last = np.searchsorted(session, session[row], "left"), np.searchsorted(session, session[row], "right")
    past = behaviour[max(row - PAST, first) : row]
    future = behaviour[row + 1 : min(row + 1 + FUTURE, last)]
    olds = behaviour[np.flatnonzero(behaviour[:row, release.STIMULUS] == behaviour[row, release.STIMULUS])[-OLDS:]]
    arrays = {"behav": behaviour[row : row + 1]}
    for kind, lines, count in (("past", past, PAST), ("future", future, FUTURE), ("olds", olds, OLDS)):
        array = np.full((count, release.COLUMNS), -1.0)
        start = count - len(lines) if kind == "past" else 0
        array[start : start + len(lines)] = lines
        arrays[f"{kind}_behav"] = array
    return arrays
