"""The NSD release, which is the public MindEye2 release of NSD, read without loading them whole.

Per subject ``s``: ``betas_all_subj0{s}_fp32_renorm.hdf5`` (dataset ``betas``, (trials, voxels) float32) and the
behaviour of each trial in ``wds/subj0{s}/train/{session-1}.tar`` and ``wds/subj0{s}/new_test/0.tar``.
For all: ``coco_images_224_float16.hdf5``, ``COCO_73k_annots_curated.npy``, ``COCO_73k_subj_indices.hdf5``,
``shared1000.npy``, ``brain_region_masks.hdf5`` and, optionally, ``dataset.json`` (the card). The release has
73,000 images; any number will do, as long as all files agree on it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mindtuner.data import Dataset, Stimuli, Subject, Trials, check_no_leak, nsd
from mindtuner.data.dataset import CARD, count_repeats
from mindtuner.data.lazy import get_dataset, holds, open_hdf5, open_rows, read_ahead, unmapped
from mindtuner.data.stimuli import StoredCaptions
from mindtuner.errors import UserError
from mindtuner.files import read_json
from mindtuner.formats.nsd_release.behaviour import COLUMNS as COLUMNS
from mindtuner.formats.nsd_release.behaviour import read_behaviour
from mindtuner.inputs import read_array, reading

IMAGES = "coco_images_224_float16.hdf5"
CAPTIONS = "COCO_73k_annots_curated.npy"
INDICES = "COCO_73k_subj_indices.hdf5"
SHARED = "shared1000.npy"
MASKS = "brain_region_masks.hdf5"
ROIS = ("nsd_general", "V1", "V2", "V3", "V4", "higher_vis")
ZSCORES = ("publisher", "train_trials", "session_all")
CAPTIONS_PER_IMAGE = 5
TARS_AT_ONCE = 3
TEST_SPLITS = ("new_test", "test")
STIMULUS, SUBJECT, SESSION, RUN, TRIAL, ROW, TIME, IS_OLD = range(8)
IS_OLD_IN_SESSION, IS_SHARED = 11, 16


def betas_path(root: str | Path, subject: int) -> Path:
    """The betas file of one subject."""
    return Path(root) / f"betas_all_subj0{subject}_fp32_renorm.hdf5"


def behaviour_folder(root: str | Path, subject: int) -> Path:
    """The folder whose ``train/`` and ``new_test/`` hold the behaviour tars of one subject."""
    return Path(root) / "wds" / f"subj0{subject}"


def sniff(root: Path) -> bool:
    """Whether a folder looks like the NSD release: any one of its files will do."""
    names = ("betas_all_subj0*", "wds", IMAGES, CAPTIONS, INDICES, SHARED, MASKS)
    return any(any(root.glob(name)) for name in names)


def load(root: str | Path, subjects: Iterable[int] | None = None, test_split: str = "new_test") -> Dataset:
    """Open a folder of the NSD release. Betas and images stay on disk until they are asked for.

    Parameters
    ----------
    root : str or Path
        Folder with the release's files. Without ``dataset.json`` it is taken for the public release: not simulated, z-scored
        by its publisher.
    subjects : iterable of int, optional
        By default all that have a betas file.
    test_split : {"new_test", "test"}
        "test" is the release's older split, without the shared images' trials in the sessions that came out last. Training
        trials are the same.

    Returns
    -------
    Dataset
        A region that ``brain_region_masks.hdf5`` does not have for a subject is left out of its ``rois``; the card then lists
        under ``assumed`` what is missing.

    Raises
    ------
    UserError
        For anything missing, damaged or at odds with another file, and where a trial of a shared image stands in training.
    """
    if test_split not in TEST_SPLITS:
        raise UserError(f"{root}: test split is {test_split!r}; expected {' or '.join(TEST_SPLITS)}")
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: not found; expected a folder with a dataset")
    card = load_card(root)
    found = sorted(
        int(match[1])
        for path in root.iterdir()
        if (match := re.fullmatch(r"betas_all_subj0(\d+)_fp32_renorm\.hdf5", path.name))
    )
    numbers = found if subjects is None else sorted(set(subjects))
    if not numbers:
        raise UserError(f"{root}: no subject; expected files betas_all_subj0N_fp32_renorm.hdf5")
    stimuli = _load_stimuli(root)
    listed = card.get("sessions", {})
    opened = {number: _load_subject(root, number, stimuli, listed.get(str(number)), test_split) for number in numbers}
    assumed = [f"subj0{number}: {line}" for number, subject in opened.items() if (line := missing_rois(subject.rois))]
    if assumed:
        card = {**card, "assumed": assumed}
    return Dataset(root, opened, stimuli, card)


def check_card(card: dict, where: str) -> None:
    """Raise UserError where a card does not say whether the data are simulated and how they were z-scored."""
    if not isinstance(card.get("simulated"), bool):
        raise UserError(f"{where}: simulated is {card.get('simulated')!r}; expected true or false")
    if card.get("zscore") not in ZSCORES:
        raise UserError(f"{where}: zscore is {card.get('zscore')!r}; expected one of {', '.join(ZSCORES)}")
    sessions = card.get("sessions", {})
    if not isinstance(sessions, dict) or not all(
        isinstance(some, list) and all(type(i) is int and i > 0 for i in some) for some in sessions.values()
    ):
        raise UserError(f"{where}: sessions is {sessions!r}; expected subject: [session, ...]")


def load_card(root: Path) -> dict:
    """The card of a release folder; without one, that of the real release as its authors z-scored it.

    Where brains were measured its ``dataset`` is NSD, unless it says another.

    Raises UserError where the card is damaged.
    """
    path = root / CARD
    if not path.exists():
        return {"simulated": False, "zscore": "publisher", "dataset": nsd.NAME}
    card = read_json(path)
    check_card(card, str(path))
    return card if card["simulated"] else {"dataset": nsd.NAME, **card}


def _load_stimuli(root: Path) -> Stimuli:
    images = open_rows(root / IMAGES, "images", 4, ("float16", "float32"))
    count = images.shape[0]
    shared = load_npy(root / SHARED, "b", (count,), "booleans")
    return Stimuli(images, load_captions(root / CAPTIONS, count), np.array(shared), str(root / IMAGES), files=[root / IMAGES])


def load_captions(path: Path, count: int) -> StoredCaptions:
    """Up to five captions of each image. Raises UserError where the file is something else."""
    return StoredCaptions(unmapped(path, load_npy(path, "U", (count, CAPTIONS_PER_IMAGE), "fixed-width unicode captions")))


def load_npy(path: Path, kind: str, shape: tuple[int | None, ...], what: str) -> np.ndarray:
    """A memory-mapped array of this dtype kind and shape, where None is any length. Raises UserError for anything else."""
    array = read_array(path, f"{what} of shape {shape}")
    fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if array.dtype.kind != kind or not fits:
        raise UserError(f"{path}: has shape {array.shape} and dtype {array.dtype}; expected {what} of shape {shape}")
    return array


def _load_subject(root: Path, number: int, stimuli: Stimuli, sessions: list[int] | None, test_split: str) -> Subject:
    path = betas_path(root, number)
    betas = open_rows(path, "betas", 2, ("float32",))
    shown = load_indices(root / INDICES, number, betas.shape[0])
    trials = _load_trials(root, number, shown, stimuli.is_shared, sessions, test_split)
    check_no_leak(trials, stimuli.is_shared, str(behaviour_folder(root, number)))
    check_indices(root / INDICES, number, shown, trials)
    rois = load_rois(root / MASKS, number, betas.shape[1])
    table = str(behaviour_folder(root, number))
    return Subject(number, trials, rois, betas, stimuli.is_shared, str(path), files=(path,), table=table)


def _load_trials(
    root: Path, number: int, shown: np.ndarray, is_shared: np.ndarray, sessions: list[int] | None, test_split: str
) -> Trials:
    """Trials of one subject; ``sessions`` None means that all training sessions are there, as many as there are tars.

    Which image each row of the betas showed, ``shown`` (rows,), gives the repeats, also where trials are missing.
    """
    folder, rows, images, whole = behaviour_folder(root, number), len(shown), len(is_shared), sessions is None
    if sessions is None:
        sessions = range(1, len(list((folder / "train").glob("*.tar"))) + 1)
    if len(sessions) == 0:
        raise UserError(f"{folder / 'train'}: no behaviour; expected 0.tar, 1.tar, ... one per session")
    tars = [(folder / "train" / f"{i - 1}.tar", i) for i in sessions] + [(folder / test_split / "0.tar", None)]
    tables = list(read_ahead(lambda tar: load_behaviour(tar[0], number, rows, images, tar[1]), tars, TARS_AT_ONCE))
    is_test = np.repeat([False, True], [sum(map(len, tables[:-1])), len(tables[-1])])
    table = np.concatenate(tables)
    order = np.argsort(table[:, ROW], kind="stable")
    table, is_test = table[order], is_test[order]
    twice = np.flatnonzero(np.diff(table[:, ROW]) == 0)
    if len(twice):
        raise UserError(f"{folder}: betas row {table[twice[0], ROW]} belongs to two trials; expected one")
    lost = np.setdiff1d(np.arange(rows), table[:, ROW])
    if test_split == "test":  # which leaves out test trials, but no others
        lost = lost[~np.isin(shown[lost], np.flatnonzero(is_shared))]
    if whole and len(lost):
        raise UserError(
            f"{folder}: {len(table)} trials but {rows} rows in {betas_path(root, number).name}; expected one "
            f"trial per row, but row {lost[0]} has none"
        )
    repeat = count_repeats(shown)[table[:, ROW]]
    return Trials(table[:, ROW], table[:, STIMULUS], table[:, SESSION], repeat, is_test)


def load_behaviour(path: Path, number: int, rows: int, images: int, session: int | None) -> np.ndarray:
    """Behaviour of the trials in one tar, int64 (n, 17), checked; ``session`` None is the tar of test trials."""
    table = read_behaviour(path)
    used = table[:, [STIMULUS, SUBJECT, SESSION, ROW, IS_SHARED]]
    if not np.array_equal(used, np.rint(used)):
        raise UserError(f"{path}: a behaviour column 0, 1, 2, 5 or 16 holds a fraction; expected whole numbers")
    table = np.rint(table).astype(np.int64)
    _check_column(path, table, STIMULUS, "stimulus", 0, images - 1)
    _check_column(path, table, SUBJECT, "subject", number, number)
    _check_column(path, table, SESSION, "session", session or 1, session or np.iinfo(np.int64).max)
    _check_column(path, table, ROW, "global trial", 0, rows - 1)
    _check_column(path, table, IS_SHARED, "is-shared1000", int(session is None), int(session is None))
    return table


def _check_column(path: Path, table: np.ndarray, column: int, name: str, low: int, high: int) -> None:
    values = table[:, column]
    wrong = np.flatnonzero((values < low) | (values > high))
    if len(wrong):
        expected = str(low) if low == high else f"{low}..{high}"
        raise UserError(
            f"{path}: column {column} ({name}) of the trial with global trial "
            f"{table[wrong[0], ROW]} is {values[wrong[0]]}; expected {expected}"
        )


def load_indices(path: Path, number: int, rows: int) -> np.ndarray:
    """Which image each row of the betas showed (rows,)."""
    with open_hdf5(path) as file:
        data = get_dataset(file, f"subj0{number}")
        if data is None or data.dtype.kind not in "iuf" or len(data.shape or ()) != 1 or len(data) < rows:
            raise UserError(f"{path}: no whole list subj0{number}; expected the stimulus of {rows} trials")
        with reading(path, "the stimulus of each trial"):
            return data[:rows]


def check_indices(path: Path, number: int, shown: np.ndarray, trials: Trials) -> None:
    """The file of indices says a second time which image each trial showed; both must agree."""
    wrong = np.flatnonzero(shown[trials.row] != trials.stimulus)
    if len(wrong):
        row = trials.row[wrong[0]]
        raise UserError(
            f"{path}: subj0{number}[{row}] is {shown[row]}; expected {trials.stimulus[wrong[0]]}, "
            "the stimulus that the behaviour tars give"
        )


def load_rois(path: Path, number: int, voxels: int) -> dict[str, np.ndarray]:
    """Regions of interest over the voxels of the betas, name -> bool (V,), those of ``ROIS`` that the file has.

    Masks may cover the voxels of the betas, or the whole volume (flattened): then ``nsd_general`` tells which
    entries are the voxels of the betas, and the other masks are indexed by it. Where there is no ``nsd_general``, masks
    must cover the voxels, and it is not among the regions.
    """
    masks = {}
    with open_hdf5(path) as file:
        for name in ROIS:
            field = f"subj0{number}/{name}"
            if not holds(file, field):
                continue
            data = get_dataset(file, field)
            if data is None or len(data.shape or ()) != 1 or data.dtype.kind != "b":
                raise UserError(f"{path}: no boolean list {field}; expected a mask over {voxels} voxels")
            with reading(path, "masks of regions"):
                masks[name] = data[()]
    general = masks.get("nsd_general", np.ones(voxels, bool))
    for name, mask in masks.items():
        if mask.shape != general.shape:
            raise UserError(
                f"{path}: subj0{number}/{name} has {len(mask)} entries; "
                f"expected {len(general)} as in {'nsd_general' if 'nsd_general' in masks else 'the betas'}"
            )
    if len(general) == voxels:
        return masks
    if general.sum() != voxels:
        raise UserError(
            f"{path}: subj0{number}/nsd_general has {len(general)} entries, {general.sum()} of them "
            f"true; expected {voxels} entries, or {voxels} true ones"
        )
    return {name: mask[general] for name, mask in masks.items()}


def missing_rois(rois: dict[str, np.ndarray]) -> str:
    """Which regions of the release a subject lacks and what that means, in one line; empty where it has all."""
    missing = [name for name in ROIS if name not in rois]
    return f"no mask of {', '.join(missing)}, so nothing can be cut to it; all voxels are used together" if missing else ""
