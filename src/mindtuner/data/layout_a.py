"""Layout A, the files of the public MindEye2 release, read without loading them whole.

Per subject ``s``: ``betas_all_subj0{s}_fp32_renorm.hdf5`` (dataset ``betas``, (trials, voxels) float32) and the
behaviour of each trial in ``wds/subj0{s}/train/{session-1}.tar`` and ``wds/subj0{s}/new_test/0.tar``.
For all: ``coco_images_224_float16.hdf5``, ``COCO_73k_annots_curated.npy``, ``COCO_73k_subj_indices.hdf5``,
``shared1000.npy``, ``brain_region_masks.hdf5`` and, optionally, ``dataset.json`` (the card). The release has
73,000 images; any number will do, as long as all files agree on it.
"""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Iterable
from pathlib import Path

import h5py
import numpy as np

from mindtuner.data.dataset import Dataset, Stimuli, Subject, Trials
from mindtuner.data.leaks import check_no_leak
from mindtuner.data.rows import open_hdf5, open_rows
from mindtuner.errors import UserError
from mindtuner.files import read_json

IMAGES = "coco_images_224_float16.hdf5"
CAPTIONS = "COCO_73k_annots_curated.npy"
INDICES = "COCO_73k_subj_indices.hdf5"
SHARED = "shared1000.npy"
MASKS = "brain_region_masks.hdf5"
CARD = "dataset.json"
ROIS = ("nsd_general", "V1", "V2", "V3", "V4", "higher_vis")
ZSCORES = ("publisher", "train_trials", "session_all")
CAPTIONS_PER_IMAGE = 5
COLUMNS = 17
STIMULUS, SUBJECT, SESSION, RUN, TRIAL, ROW, TIME, IS_OLD = range(8)
IS_OLD_IN_SESSION, IS_SHARED = 11, 16


def betas_path(root: str | Path, subject: int) -> Path:
    """The betas file of one subject."""
    return Path(root) / f"betas_all_subj0{subject}_fp32_renorm.hdf5"


def behaviour_folder(root: str | Path, subject: int) -> Path:
    """The folder whose ``train/`` and ``new_test/`` hold the behaviour tars of one subject."""
    return Path(root) / "wds" / f"subj0{subject}"


def load(root: str | Path, subjects: Iterable[int] | None = None) -> Dataset:
    """Open a Layout A folder; ``subjects`` by default are all that have a betas file.

    Betas and images stay on disk until they are asked for. A folder without ``dataset.json`` is taken for the
    public release: not simulated, z-scored by its publisher.

    Raises UserError for anything missing, damaged or at odds with another file, and where a trial of a shared
    image stands in training.
    """
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: not found; expected a folder with a dataset")
    card = load_card(root)
    found = sorted(int(match[1]) for path in root.iterdir()
                   if (match := re.fullmatch(r"betas_all_subj0(\d+)_fp32_renorm\.hdf5", path.name)))
    numbers = found if subjects is None else sorted(set(subjects))
    if not numbers:
        raise UserError(f"{root}: no subject; expected files betas_all_subj0N_fp32_renorm.hdf5")
    stimuli = _load_stimuli(root)
    return Dataset(root, {number: _load_subject(root, number, stimuli, card.get("sessions", {}).get(str(number)))
                          for number in numbers}, stimuli, card)


def check_card(card: dict, where: str) -> None:
    """Raise UserError where a card does not say whether the data are simulated and how they were z-scored."""
    if not isinstance(card.get("simulated"), bool):
        raise UserError(f"{where}: simulated is {card.get('simulated')!r}; expected true or false")
    if card.get("zscore") not in ZSCORES:
        raise UserError(f"{where}: zscore is {card.get('zscore')!r}; expected one of {', '.join(ZSCORES)}")
    sessions = card.get("sessions", {})
    if not isinstance(sessions, dict) or not all(
            isinstance(some, list) and all(type(i) is int and i > 0 for i in some) for some in sessions.values()):
        raise UserError(f"{where}: sessions is {sessions!r}; expected subject: [session, ...]")


def load_card(root: Path) -> dict:
    path = root / CARD
    if not path.exists():
        return {"simulated": False, "zscore": "publisher"}
    card = read_json(path)
    check_card(card, str(path))
    return card


def _load_stimuli(root: Path) -> Stimuli:
    images = open_rows(root / IMAGES, "images", 4, ("float16", "float32"))
    count = images.shape[0]
    captions = load_npy(root / CAPTIONS, "U", (count, CAPTIONS_PER_IMAGE), "fixed-width unicode captions")
    shared = load_npy(root / SHARED, "b", (count,), "booleans")
    # Row by row: the whole table as Python strings at once would hold the padding of 73,000 x 5 captions too.
    return Stimuli(images, [row.tolist() for row in captions], np.array(shared), str(root / IMAGES))


def load_npy(path: Path, kind: str, shape: tuple[int | None, ...], what: str) -> np.ndarray:
    """A memory-mapped array of this dtype kind and shape, where None is any length. Raises UserError for anything else."""
    if not path.is_file():
        raise UserError(f"{path}: not found; expected {what} of shape {shape}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a whole .npy file ({' '.join(str(error).split())}); "
                        f"expected {what} of shape {shape}") from error
    fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if array.dtype.kind != kind or not fits:
        raise UserError(f"{path}: has shape {array.shape} and dtype {array.dtype}; expected {what} of shape {shape}")
    return array


def _load_subject(root: Path, number: int, stimuli: Stimuli, sessions: list[int] | None) -> Subject:
    path = betas_path(root, number)
    betas = open_rows(path, "betas", 2, ("float32",))
    shown = load_indices(root / INDICES, number, betas.shape[0])
    trials = _load_trials(root, number, shown, len(stimuli), sessions)
    check_no_leak(trials, stimuli.is_shared, str(behaviour_folder(root, number)))
    check_indices(root / INDICES, number, shown, trials)
    rois = load_rois(root / MASKS, number, betas.shape[1])
    return Subject(number, trials, rois, betas, stimuli.is_shared, str(path))


def _load_trials(root: Path, number: int, shown: np.ndarray, images: int, sessions: list[int] | None) -> Trials:
    """Trials of one subject; ``sessions`` None means that all training sessions are there, as many as there are tars.

    Which image each row of the betas showed, ``shown`` (rows,), gives the repeats, also where sessions are missing.
    """
    folder, rows, whole = behaviour_folder(root, number), len(shown), sessions is None
    if sessions is None:
        sessions = range(1, len(list((folder / "train").glob("*.tar"))) + 1)
    if len(sessions) == 0:
        raise UserError(f"{folder / 'train'}: no behaviour; expected 0.tar, 1.tar, ... one per session")
    tables = [load_behaviour(folder / "train" / f"{i - 1}.tar", number, rows, images, i) for i in sessions]
    tables.append(load_behaviour(folder / "new_test" / "0.tar", number, rows, images, None))
    is_test = np.repeat([False, True], [sum(map(len, tables[:-1])), len(tables[-1])])
    table = np.concatenate(tables)
    order = np.argsort(table[:, ROW], kind="stable")
    table, is_test = table[order], is_test[order]
    twice = np.flatnonzero(np.diff(table[:, ROW]) == 0)
    if len(twice):
        raise UserError(f"{folder}: betas row {table[twice[0], ROW]} belongs to two trials; expected one")
    if whole and len(table) != rows:
        raise UserError(f"{folder}: {len(table)} trials but {rows} rows in {betas_path(root, number).name}; "
                        "expected one trial per row")
    repeat = count_repeats(shown)[table[:, ROW]]
    return Trials(table[:, ROW], table[:, STIMULUS], table[:, SESSION], repeat, is_test)


def count_repeats(stimulus: np.ndarray) -> np.ndarray:
    """How often each entry of ``stimulus`` (n,) occurred before it, int64 (n,)."""
    seen: dict[int, int] = {}
    repeat = np.empty(len(stimulus), np.int64)
    for i, image in enumerate(np.asarray(stimulus).tolist()):
        repeat[i] = seen.get(image, 0)
        seen[image] = repeat[i] + 1
    return repeat


def load_behaviour(path: Path, number: int, rows: int, images: int, session: int | None) -> np.ndarray:
    """Behaviour of the trials in one tar, int64 (n, 17), checked; ``session`` None is the tar of test trials."""
    table = _read_tar(path)
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
        raise UserError(f"{path}: column {column} ({name}) of the trial with global trial "
                        f"{table[wrong[0], ROW]} is {values[wrong[0]]}; expected {expected}")


def _read_tar(path: Path) -> np.ndarray:
    """Behaviour of each sample of a tar in its order, float64 (n, 17)."""
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a tar of behaviour arrays")
    data = path.read_bytes()
    samples, found = set(), {}
    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                sample, _, kind = member.name.partition(".")
                samples.add(sample)
                if kind == "behav.npy":
                    found[sample] = _read_behaviour(path, member.name, tar.extractfile(member).read())
            end = tar.offset
    except tarfile.TarError as error:
        raise UserError(f"{path}: not a whole tar ({error}); expected a tar of behaviour arrays") from error
    # tarfile takes a file that was cut between two members for whole; only the closing zero block tells.
    if data[end:end + tarfile.BLOCKSIZE] != bytes(tarfile.BLOCKSIZE):
        raise UserError(f"{path}: not a whole tar (it breaks off after {len(found)} trials); "
                        "expected a tar of behaviour arrays")
    for sample in sorted(samples - set(found)):
        raise UserError(f"{path}: {sample} has no behav.npy; expected one of shape (1, {COLUMNS})")
    return np.array(list(found.values()), np.float64).reshape(-1, COLUMNS)


def _read_behaviour(path: Path, name: str, data: bytes) -> np.ndarray:
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise UserError(f"{path}: {name} is not a .npy array ({' '.join(str(error).split())})") from error
    if array.shape != (1, COLUMNS) or array.dtype.kind not in "fiu" or not np.isfinite(array).all():
        raise UserError(f"{path}: {name} has shape {array.shape} and dtype {array.dtype}; "
                        f"expected (1, {COLUMNS}) finite numbers")
    return array[0]


def load_indices(path: Path, number: int, rows: int) -> np.ndarray:
    """Which image each row of the betas showed (rows,)."""
    with open_hdf5(path) as file:
        data = file.get(f"subj0{number}")
        if not isinstance(data, h5py.Dataset) or data.ndim != 1 or len(data) < rows:
            raise UserError(f"{path}: no whole list subj0{number}; expected the stimulus of {rows} trials")
        return data[:rows]


def check_indices(path: Path, number: int, shown: np.ndarray, trials: Trials) -> None:
    """The file of indices says a second time which image each trial showed; both must agree."""
    wrong = np.flatnonzero(shown[trials.row] != trials.stimulus)
    if len(wrong):
        row = trials.row[wrong[0]]
        raise UserError(f"{path}: subj0{number}[{row}] is {shown[row]}; expected {trials.stimulus[wrong[0]]}, "
                        "the stimulus that the behaviour tars give")


def load_rois(path: Path, number: int, voxels: int) -> dict[str, np.ndarray]:
    """Regions of interest over the voxels of the betas, name -> bool (V,).

    Masks may cover the voxels of the betas, or the whole volume (flattened): then ``nsd_general`` tells which
    entries are the voxels of the betas, and the other masks are indexed by it.
    """
    masks = {}
    with open_hdf5(path) as file:
        for name in ROIS:
            data = file.get(f"subj0{number}/{name}")
            if not isinstance(data, h5py.Dataset) or data.ndim != 1 or data.dtype.kind != "b":
                raise UserError(f"{path}: no boolean list subj0{number}/{name}; expected a mask over {voxels} voxels")
            masks[name] = data[()]
    general = masks["nsd_general"]
    for name, mask in masks.items():
        if mask.shape != general.shape:
            raise UserError(f"{path}: subj0{number}/{name} has {len(mask)} entries; "
                            f"expected {len(general)} as in nsd_general")
    if len(general) == voxels:
        return masks
    if general.sum() != voxels:
        raise UserError(f"{path}: subj0{number}/nsd_general has {len(general)} entries, {general.sum()} of them "
                        f"true; expected {voxels} entries, or {voxels} true ones")
    return {name: mask[general] for name, mask in masks.items()}
