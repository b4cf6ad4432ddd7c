"""A lab's folder of its own scans: betas, a trial table and stimuli, read without loading them whole.

One subject is a folder with ``trials.tsv`` (see ``trial_table``), its betas, and optionally regions of interest. The
betas are ``betas.npy``, or dataset ``betas`` of ``betas.h5`` or ``betas.hdf5``, both (trials, voxels); or one NIfTI file per
session, ``betas_session-01.nii.gz`` (X, Y, Z, trials), with ``mask.nii.gz``. Regions are ``rois/NAME.nii.gz``,
``rois.npz`` or ``rois.tsv``. Several subjects are folders ``sub-01``, ``sub-02``, ... The root holds ``stimuli/`` or
``stimuli.hdf5`` (see ``image_files``) and, optionally, ``dataset.json``, the card. ``docs/your-own-scans.md`` says it for
users.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from mindtuner.data import Dataset, Stimuli, Subject, Trials, check_no_leak
from mindtuner.data.dataset import CARD
from mindtuner.data.lazy import LazyArray, open_rows, unmapped
from mindtuner.data.surface import HEMISPHERE
from mindtuner.data.zscore import SessionZScored
from mindtuner.errors import UserError
from mindtuner.files import read_json
from mindtuner.formats.image_files import FolderImages, Hdf5Images
from mindtuner.formats.lab_folder import trial_table
from mindtuner.formats.lab_folder.trial_table import TrialLines
from mindtuner.formats.nifti import JoinedSessions, NiftiSession, load_mask

TRIALS, MASK, STIMULI, STIMULI_HDF5 = "trials.tsv", "mask.nii.gz", "stimuli", "stimuli.hdf5"
VERTICES = "vertices.npy"
ZSCORES = ("publisher", "train_trials", "session_all", "none")
DTYPES = ("float32", "float64", "float16", "int16", "int32")
_SESSION_FILE = re.compile(r"betas_session-(\d+)\.nii(\.gz)?")


def sniff(root: Path) -> bool:
    """Whether a folder looks like a lab's: a table of trials, stimuli or betas will do."""
    names = (TRIALS, f"sub-*/{TRIALS}", STIMULI, STIMULI_HDF5, "betas.*", "betas_session-*")
    return any(any(root.glob(name)) for name in names)


def load(root: str | Path, subjects: Iterable[int] | None = None) -> Dataset:
    """Open a lab's folder. Betas and images stay on disk until they are asked for.

    Parameters
    ----------
    root : str or Path
        Folder with stimuli, and with one subject or folders of subjects.
    subjects : iterable of int, optional
        By default all of it.

    Returns
    -------
    Dataset
        Test images are those of any subject's test trials. Where the card says ``zscore: none``, or there is no card, betas
        are z-scored as they are read (see ``zscore.SessionZScored``), and the dataset's card says ``train_trials``.

    Raises
    ------
    UserError
        For anything missing, damaged or at odds with another file, and where an image stands in training and in test, be it
        of two subjects.
    """
    root = Path(root)
    card = load_card(root)
    images = open_images(root)
    stimulus_captions = [images.captions(i) for i in range(images.shape[0])]
    folders = subject_folders(root, card)
    numbers = sorted(folders) if subjects is None else sorted(set(subjects))
    for number in numbers:
        if number not in folders:
            raise UserError(f"{root}: no subject {number}; expected some of {', '.join(map(str, sorted(folders)))}")
    tables = {number: trial_table.read_lines(folder / TRIALS) for number, folder in folders.items()}
    for lines in tables.values():
        for field, message in trial_table.problems(lines, images.names):
            raise UserError(f"{lines.path}: {field} {message}")
    for path, field, message in trial_table.split_conflicts(tables):
        raise UserError(f"{path}: {field} {message}")
    trials = {number: lines.trials(images.names) for number, lines in tables.items()}
    is_shared = np.zeros(images.shape[0], bool)
    for found in trials.values():
        is_shared[found.stimulus[found.is_test]] = True
    names = list(images.names) if isinstance(images, FolderImages) else None
    stimuli = Stimuli(images, stimulus_captions, is_shared, str(_images_path(root)), names)
    opened = {
        number: _open_subject(number, folders[number], tables[number], trials[number], is_shared, card) for number in numbers
    }
    if card["zscore"] == "none":
        card = {**card, "zscore": "train_trials", "zscored_on_read": True}
    return Dataset(root, opened, stimuli, card)


def load_card(root: Path) -> dict:
    """The card with its defaults: not simulated, betas not z-scored, no offset of subject numbers.

    Raises UserError where a field holds something else than expected.
    """
    path = root / CARD
    card = {"simulated": False, "zscore": "none", "subject_offset": 0, **(read_json(path) if path.exists() else {})}
    if not isinstance(card["simulated"], bool):
        raise UserError(f"{path}: simulated is {card['simulated']!r}; expected true or false")
    if card["zscore"] not in ZSCORES:
        raise UserError(f"{path}: zscore is {card['zscore']!r}; expected one of {', '.join(ZSCORES)}")
    offset = card["subject_offset"]
    if not isinstance(offset, int) or isinstance(offset, bool) or offset < 0:
        raise UserError(f"{path}: subject_offset is {offset!r}; expected a whole number, 0 or more")
    return card


def _images_path(root: Path) -> Path:
    folder, file = root / STIMULI, root / STIMULI_HDF5
    if folder.exists() == file.exists():
        raise UserError(
            f"{root}: {'both' if file.exists() else 'neither'} {STIMULI}/ and {STIMULI_HDF5}; expected one of them"
        )
    return folder if folder.exists() else file


def open_images(root: Path) -> FolderImages | Hdf5Images:
    """The stimuli. Raises UserError where there is no image, or both a folder and an HDF5 file."""
    path = _images_path(root)
    return FolderImages(path) if path.name == STIMULI else Hdf5Images(path)


def subject_folders(root: Path, card: dict) -> dict[int, Path]:
    """Subject number -> folder.

    ``sub-07`` is 7 plus the card's ``subject_offset``; a folder of one subject is 1, unless it is itself called ``sub-07``.
    Raises UserError where none, or no one number, can be told.
    """
    folders = sorted(path for path in root.glob("sub-*") if path.is_dir())
    if folders and (root / TRIALS).exists():
        raise UserError(f"{root}: holds {TRIALS} and {folders[0].name}; expected one subject, or folders of subjects")
    found: dict[int, Path] = {}
    for folder in folders or [root]:
        match = re.fullmatch(r"sub-(\d{1,6})", folder.resolve().name)
        if match is None and folders:
            raise UserError(f"{folder}: expected a folder called sub- and a number, such as sub-01")
        number = card["subject_offset"] + (int(match[1]) if match else 1)
        if number in found or number < 1:
            raise UserError(
                f"{folder}: is subject {number}{', as ' + found[number].name if number in found else ''}; "
                "expected a number of its own, from 1"
            )
        found[number] = folder
    return found


def _open_subject(number: int, folder: Path, lines: TrialLines, trials: Trials, is_shared: np.ndarray, card: dict) -> Subject:
    path, betas = open_betas(folder)
    check_rows(path, betas, lines)
    check_dtype(path, betas, card)
    check_no_leak(trials, is_shared, str(lines.path))
    rois = load_rois(folder, betas.shape[1])
    if card["zscore"] == "none":
        training = np.zeros(len(lines), bool)
        training[trials.row[~trials.is_test]] = True
        betas = SessionZScored(betas, lines.sessions(), training, str(path))
    mask = folder / MASK if (folder / MASK).is_file() else None
    return Subject(number, trials, rois, betas, is_shared, str(path), load_vertices(folder, betas.shape[1]), mask)


def find_betas(folder: Path) -> list[Path]:
    """The files of a subject's betas: one, or one NIfTI per session in their order.

    Raises UserError where there are none, files of two kinds, or two of one session.
    """
    single = [path for name in ("betas.npy", "betas.h5", "betas.hdf5") if (path := folder / name).exists()]
    sessions = sorted((path for path in folder.glob("betas_*.nii*")), key=session_number)
    if len(single) + bool(sessions) != 1:
        names = ", ".join(path.name for path in single + sessions[:1]) or "none"
        raise UserError(
            f"{folder}: betas are {names}; expected one of betas.npy, betas.h5, betas.hdf5 or betas_session-01.nii.gz, ..."
        )
    for path, after in zip(sessions, sessions[1:], strict=False):
        if session_number(path) == session_number(after):
            raise UserError(f"{after}: is session {session_number(path)}, as {path.name}; expected one file per session")
    return single or sessions


def session_number(path: Path) -> int:
    """3 of ``betas_session-03.nii.gz``. Raises UserError where the name has no such number from 1."""
    match = _SESSION_FILE.fullmatch(path.name)
    if match is None or int(match[1]) < 1:
        raise UserError(f"{path}: expected a name such as betas_session-01.nii.gz")
    return int(match[1])


def open_betas(folder: Path) -> tuple[Path, LazyArray]:
    """The file (or folder of session files) and the betas as they are stored, (trials, voxels).

    Raises UserError where they are missing or damaged, or do not fit the mask.
    """
    files = find_betas(folder)
    if files[0].name == "betas.npy":
        betas = _open_npy(files[0])
    elif files[0].suffix in (".h5", ".hdf5"):
        betas = open_rows(files[0], "betas", 2, DTYPES)
    else:
        mask, image = load_mask(folder / MASK)
        if not mask.any():
            raise UserError(f"{folder / MASK}: is 0 everywhere; expected voxels above 0")
        return folder, JoinedSessions([NiftiSession(path, mask, image) for path in files])
    if (folder / MASK).exists():
        voxels = int(load_mask(folder / MASK)[0].sum())
        if voxels != betas.shape[1]:
            raise UserError(
                f"{folder / MASK}: {voxels} voxels are above 0; expected {betas.shape[1]} as in {files[0].name}"
                + _turned(betas, voxels)
            )
    return files[0], betas


def _turned(betas: LazyArray, voxels: int) -> str:
    return "; is the array turned round?" if betas.shape[0] == voxels else ""


def _open_npy(path: Path) -> LazyArray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(
            f"{path}: not a whole .npy file ({' '.join(str(error).split())}); expected betas of shape (trials, voxels)"
        ) from error
    if not isinstance(array, np.memmap) or array.ndim != 2 or 0 in array.shape or array.dtype.name not in DTYPES:
        raise UserError(
            f"{path}: has shape {np.shape(array)} and dtype {getattr(array, 'dtype', type(array).__name__)}; "
            f"expected (trials, voxels) of {' or '.join(DTYPES)}"
        )
    if (size := path.stat().st_size) != array.offset + array.nbytes:
        raise UserError(f"{path}: has {size} bytes; expected {array.offset + array.nbytes} by its header")
    return unmapped(path, array)


def check_rows(path: Path, betas: LazyArray, lines: TrialLines) -> None:
    """Raise UserError where the trial table does not have one line per row of the betas.

    With one file per session, also where it does not have the sessions of these files in their order.
    """
    rows = betas.shape[0]
    if rows != len(lines):
        turned = _turned(betas, rows) if betas.shape[1] == len(lines) else ""
        raise UserError(
            f"{lines.path}: {len(lines)} trials but {rows} betas rows in {path.name}; expected one line per row{turned}"
        )
    if not isinstance(betas, JoinedSessions):
        return
    expected = np.repeat([session_number(part.path) for part in betas.sessions], [part.shape[0] for part in betas.sessions])
    wrong = np.flatnonzero(lines.sessions() != expected)
    if len(wrong):
        first, held = int(wrong[0]), ", ".join(f"{part.shape[0]} trials ({part.path.name})" for part in betas.sessions)
        raise UserError(
            f"{lines.path}: line {first + trial_table.FIRST_LINE}, session is {lines.columns['session'][first]}; "
            f"expected {expected[first]}, since the session files hold {held}"
        )


def check_dtype(path: Path, betas: LazyArray, card: dict) -> None:
    """Raise UserError where the betas are whole numbers although the card says that they are z-scored."""
    if betas.dtype.kind == "i" and card["zscore"] != "none":
        raise UserError(
            f"{path}: betas are {betas.dtype.name}, but {CARD} says zscore {card['zscore']!r}; expected real "
            'numbers, or zscore "none"'
        )


def load_rois(folder: Path, voxels: int) -> dict[str, np.ndarray]:
    """Regions of interest, name -> bool (V,); none where there is no ``rois``.

    Raises UserError where there are two kinds, or one is damaged or does not fit the voxels.
    """
    kinds = [path for name in ("rois", "rois.npz", "rois.tsv") if (path := folder / name).exists()]
    if len(kinds) > 1:
        raise UserError(f"{folder}: regions in {', '.join(path.name for path in kinds)}; expected one of them")
    if not kinds:
        return {}
    read = {"rois": _rois_of_nifti, "rois.npz": _rois_of_npz, "rois.tsv": _rois_of_tsv}[kinds[0].name]
    rois = read(kinds[0])
    for name, mask in rois.items():
        if mask.shape != (voxels,):
            raise UserError(f"{kinds[0]}: {name} has shape {mask.shape}; expected ({voxels},), one entry per voxel")
    return rois


def _rois_of_nifti(folder: Path) -> dict[str, np.ndarray]:
    mask, image = load_mask(folder.parent / MASK)
    paths = {
        path.name.removesuffix(".gz").removesuffix(".nii"): path
        for path in sorted(folder.glob("*.nii*"))
        if not path.name.startswith(".")
    }
    return {name: load_mask(path, image)[0][mask] for name, path in paths.items()}


def _rois_of_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (ValueError, EOFError, OSError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: not a whole .npz file ({' '.join(str(error).split())}); expected one list per region"
        ) from error
    return {name: _as_mask(path, name, values) for name, values in found.items()}


def _rois_of_tsv(path: Path) -> dict[str, np.ndarray]:
    try:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")]
    except (UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}); expected a table, a column per region") from error
    for line, row in enumerate(rows, 1):
        if len(row) != len(rows[0]) or line > 1 and not {cell.strip() for cell in row} <= {"0", "1"}:
            raise UserError(
                f"{path}: line {line} is not {len(rows[0])} cells of 0 or 1; expected a column per region, a line per voxel"
            )
    return {name.strip(): np.array([row[i].strip() == "1" for row in rows[1:]], bool) for i, name in enumerate(rows[0])}


def _as_mask(path: Path, name: str, values: np.ndarray) -> np.ndarray:
    if values.dtype.kind not in "biuf" or not np.isin(values, (0, 1)).all():
        raise UserError(f"{path}: {name} holds something else than 0 and 1 (dtype {values.dtype}); expected a mask")
    return values.astype(bool)


def load_vertices(folder: Path, voxels: int) -> np.ndarray | None:
    """The fsLR-32k vertex of each voxel, int64 (V,), of ``vertices.npy``; None without that file.

    Raises UserError where it lists other numbers, one twice, or not one for each voxel.
    """
    path = folder / VERTICES
    if not path.exists():
        return None
    try:
        vertices = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected an array of vertices") from error
    if vertices.shape != (voxels,) or vertices.dtype.kind not in "iu":
        raise UserError(f"{path}: holds {vertices.dtype} {vertices.shape}; expected integers ({voxels},), one for each voxel")
    if len(np.unique(vertices)) != voxels or vertices.min() < 0 or vertices.max() >= 2 * HEMISPHERE:
        raise UserError(
            f"{path}: has vertices outside 0..{2 * HEMISPHERE - 1}, or one twice; expected fsLR-32k vertices, "
            "left before right"
        )
    return vertices.astype(np.int64)
