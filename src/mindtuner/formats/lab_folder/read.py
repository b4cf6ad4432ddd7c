"""A lab's folder of its own scans: betas, a trial table and stimuli, read without loading them whole.

One subject is a folder with ``trials.tsv`` (see ``trial_table``), its betas (see ``betas``), and optionally regions of
interest: ``rois/NAME.nii.gz``, ``rois.npz`` or ``rois.tsv``. Several subjects are folders ``sub-01``, ``sub-02``, ... or
``sub-BE``, ``sub-KM``, ... The root holds ``stimuli/`` or ``stimuli.hdf5`` (see ``image_files``), or, where the tables have
labels (see ``labels``), neither; and, optionally, ``dataset.json``, the card. ``docs/your-own-scans.md`` says it for users.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from mindtuner.data import Dataset, Stimuli, Subject, Trials, check_no_leak
from mindtuner.data.dataset import CARD
from mindtuner.data.surface import HEMISPHERE
from mindtuner.data.zscore import SessionZScored
from mindtuner.errors import UserError
from mindtuner.files import read_json
from mindtuner.formats.image_files import FolderImages, Hdf5Images
from mindtuner.formats.lab_folder import trial_table
from mindtuner.formats.lab_folder.betas import MASK, check_dtype, check_rows, find_betas, open_betas, own_mask, values_of
from mindtuner.formats.lab_folder.labels import LabelStimuli, labelled
from mindtuner.formats.lab_folder.trial_table import TrialLines, find_table
from mindtuner.formats.nifti import load_mask
from mindtuner.formats.subject_numbers import number_subjects
from mindtuner.inputs import read_array, read_arrays, read_text

STIMULI, STIMULI_HDF5 = "stimuli", "stimuli.hdf5"
NEITHER = f"holds neither {STIMULI}/ nor {STIMULI_HDF5}; expected one of them"
VERTICES = "vertices.npy"
ZSCORES = ("publisher", "train_trials", "session_all", "none")


def sniff(root: Path) -> bool:
    """Whether a folder looks like a lab's: a table of trials, stimuli or betas will do."""
    return has_table(root) or any(any(root.glob(name)) for name in (STIMULI, STIMULI_HDF5, "betas.*", "betas_session-*"))


def has_table(root: Path) -> bool:
    """Whether a folder, or a subject's folder in it, has a lab's table of trials."""
    return any(any(root.glob(f"{place}{name}")) for place in ("", "sub-*/") for name in trial_table.TABLES)


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
    images: FolderImages | Hdf5Images | LabelStimuli | None = open_images(root, card) if has_pictures(root) else None
    folders = subject_folders(root, card)
    numbers = sorted(folders) if subjects is None else sorted(set(subjects))
    for number in numbers:
        if number not in folders:
            raise UserError(f"{root}: no subject {number}; expected some of {', '.join(map(str, sorted(folders)))}")
    tables = {number: trial_table.read_lines(find_table(folder)) for number, folder in folders.items()}
    if images is None:
        images, tables = labelled(tables, folders, root, NEITHER)
    for lines in tables.values():
        for field, message in trial_table.problems(lines, images.names):
            raise UserError(f"{lines.path}: {field} {message}")
    for path, field, message in trial_table.split_conflicts(tables):
        raise UserError(f"{path}: {field} {message}")
    trials = {number: lines.trials(images.names) for number, lines in tables.items()}
    is_shared = np.zeros(images.shape[0], bool)
    for found in trials.values():
        is_shared[found.stimulus[found.is_test]] = True
    names = None if isinstance(images, Hdf5Images) else list(images.names)
    captions = [images.captions(i) for i in range(images.shape[0])]
    where = str(images.path if isinstance(images, LabelStimuli) else _images_path(root))
    files = [] if isinstance(images, LabelStimuli) else image_files(root, images)
    stimuli = Stimuli(images, captions, is_shared, where, names, files)
    opened = {
        number: _open_subject(number, root, folders[number], tables[number], trials[number], is_shared, card)
        for number in numbers
    }
    if card["zscore"] == "none":
        card = {**card, "zscore": "train_trials", "zscored_on_read": True}
    if named := {str(number): folder.name for number, folder in folders.items() if is_named(root, folder)}:
        card = {**card, "subjects": named}
    return Dataset(root, opened, stimuli, card)


def load_card(root: Path) -> dict:
    """The card with its defaults: not simulated, betas not z-scored, no offset of subject numbers.

    Optional fields are ``subject_numbers``, ``mask_values`` and ``background``. Raises UserError where a field holds
    something else than expected.
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
    _check_field(path, card, "subject_numbers", "a number from 1 for each name", '{"sub-BE": 1}', _is_number)
    _check_field(path, card, "mask_values", "a list of values for each mask", '{"mask": [1, 2]}', _is_values)
    background = card.get("background")
    if background is not None and not (_is_values(background) and len(background) == 3 and _are_bytes(background)):
        raise UserError(f"{path}: background is {background!r}; expected red, green and blue of 0 to 255, as [128, 128, 128]")
    return card


def _check_field(path: Path, card: dict, name: str, what: str, example: str, fits: Callable[[object], bool]) -> None:
    found = card.get(name, {})
    if not isinstance(found, dict) or not all(fits(value) for value in found.values()):
        raise UserError(f"{path}: {name} is {found!r}; expected {what}, as {example}")


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_values(value: object) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(type(entry) in (int, float) for entry in value)


def _are_bytes(values: list) -> bool:
    return all(isinstance(value, int) and 0 <= value <= 255 for value in values)


def has_pictures(root: Path) -> bool:
    """Whether there are stimuli, and not labels in the tables alone."""
    return (root / STIMULI).exists() or (root / STIMULI_HDF5).exists()


def _images_path(root: Path) -> Path:
    folder, file = root / STIMULI, root / STIMULI_HDF5
    if folder.exists() and file.exists():
        raise UserError(f"{root}: holds both {STIMULI}/ and {STIMULI_HDF5}; expected one of them")
    if not folder.exists() and not file.exists():
        raise UserError(f"{root}: {NEITHER}")
    return folder if folder.exists() else file


def open_images(root: Path, card: dict) -> FolderImages | Hdf5Images:
    """The stimuli. Raises UserError where there is no image, or both a folder and an HDF5 file."""
    path = _images_path(root)
    return FolderImages(path, card.get("background")) if path.name == STIMULI else Hdf5Images(path)


def image_files(root: Path, images: FolderImages | Hdf5Images) -> list[Path]:
    """All that the stimuli are read from: their files, and the card, which may say what is behind transparent ones."""
    return [*images.files, *filter(Path.is_file, [root / CARD])]


def subject_folders(root: Path, card: dict) -> dict[int, Path]:
    """Subject number -> folder.

    ``sub-07`` is 7. Where no folder's name has a number, subjects are counted from 1 in the order of names; the card's
    ``subject_numbers`` may say others. A folder of one subject is 1, unless it is itself called ``sub-07``. To all the card's
    ``subject_offset`` is added. Raises UserError where none, or no one number, can be told.
    """
    folders = sorted(path for path in root.glob("sub-*") if path.is_dir())
    own = find_table(root)
    if folders and own.exists():
        raise UserError(f"{root}: holds {own.name} and {folders[0].name}; expected one subject, or folders of subjects")
    if not folders:
        own_name = os.path.basename(os.path.abspath(root))  # of a link its own name, not that of what it leads to
        return {card["subject_offset"] + (_number_in_name(own_name) or 1): root}
    places = {folder.name: folder for folder in folders}
    return {number: places[name] for number, name in number_subjects(places, _number_in_name, card).items()}


def is_named(root: Path, folder: Path) -> bool:
    """Whether a subject has a name, as ``sub-BE`` has, and no number."""
    return folder != root and _number_in_name(folder.name) is None


def _number_in_name(name: str) -> int | None:
    """7 of ``sub-07``."""
    match = re.fullmatch(r"sub-(\d{1,6})", name)
    return int(match[1]) if match else None


def _open_subject(
    number: int, root: Path, folder: Path, lines: TrialLines, trials: Trials, is_shared: np.ndarray, card: dict
) -> Subject:
    path, betas = open_betas(folder, card, len(lines))
    check_rows(path, betas, lines)
    check_dtype(path, betas, card)
    check_no_leak(trials, is_shared, str(lines.path))
    rois = load_rois(folder, betas.shape[1], card)
    if card["zscore"] == "none":
        training = np.zeros(len(lines), bool)
        training[trials.row[~trials.is_test]] = True
        betas = SessionZScored(betas, lines.sessions(), training, str(path))
    plain = (folder / MASK).is_file() and values_of(card, "mask") is None
    mask = folder / MASK if plain else None  # others take all above 0
    # Which voxels and how they are scaled may depend on mask, card and table too.
    files = (*find_betas(folder), *filter(Path.is_file, [folder / MASK, root / CARD, lines.path]))
    vertices = load_vertices(folder, betas.shape[1])
    return Subject(number, trials, rois, betas, is_shared, str(path), vertices, mask, files, str(lines.path))


def load_rois(folder: Path, voxels: int, card: dict) -> dict[str, np.ndarray]:
    """Regions of interest, name -> bool (V,); none where there is no ``rois``.

    Raises UserError where there are two kinds, or one is damaged or does not fit the voxels.
    """
    kinds = [path for name in ("rois", "rois.npz", "rois.tsv") if (path := folder / name).exists()]
    if len(kinds) > 1:
        raise UserError(f"{folder}: regions in {', '.join(path.name for path in kinds)}; expected one of them")
    if not kinds:
        return {}
    if kinds[0].name == "rois":
        rois = _rois_of_nifti(kinds[0], card)
    else:
        rois = (_rois_of_npz if kinds[0].suffix == ".npz" else _rois_of_tsv)(kinds[0])
    for name, mask in rois.items():
        if mask.shape != (voxels,):
            raise UserError(f"{kinds[0]}: {name} has shape {mask.shape}; expected ({voxels},), one entry per voxel")
    return rois


def nifti_rois(folder: Path) -> dict[str, Path]:
    """Name -> file of the regions of ``rois/``."""
    return {
        path.name.removesuffix(".gz").removesuffix(".nii"): path
        for path in sorted(folder.glob("*.nii*"))
        if not path.name.startswith(".")
    }


def _rois_of_nifti(folder: Path, card: dict) -> dict[str, np.ndarray]:
    mask, image = own_mask(folder.parent, card)
    return {name: load_mask(path, image, values_of(card, name))[0][mask] for name, path in nifti_rois(folder).items()}


def _rois_of_npz(path: Path) -> dict[str, np.ndarray]:
    found = read_arrays(path, "an .npz file with one list per region")
    return {name: _as_mask(path, name, values) for name, values in found.items()}


def _rois_of_tsv(path: Path) -> dict[str, np.ndarray]:
    text = read_text(path, "a table, a column per region")
    rows = [line.split("\t") for line in text.rstrip("\n").split("\n")]
    for line, row in enumerate(rows, 1):
        if len(row) != len(rows[0]) or line > 1 and not {cell.strip() for cell in row} <= {"0", "1", "0.0", "1.0"}:
            raise UserError(
                f"{path}: line {line} is not {len(rows[0])} cells of 0 or 1; expected a column per region, a line per voxel"
            )
    return {
        name.strip(): np.array([row[i].strip() in ("1", "1.0") for row in rows[1:]], bool) for i, name in enumerate(rows[0])
    }


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
    vertices = read_array(path, "an array of vertices")
    if vertices.shape != (voxels,) or vertices.dtype.kind not in "iu":
        raise UserError(f"{path}: holds {vertices.dtype} {vertices.shape}; expected integers ({voxels},), one for each voxel")
    if len(np.unique(vertices)) != voxels or vertices.min() < 0 or vertices.max() >= 2 * HEMISPHERE:
        raise UserError(
            f"{path}: has vertices outside 0..{2 * HEMISPHERE - 1}, or one twice; expected fsLR-32k vertices, "
            "left before right"
        )
    return vertices.astype(np.int64)
