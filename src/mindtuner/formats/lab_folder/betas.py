"""A subject's betas in a lab's folder, (trials, voxels), in whatever form they lie there.

- ``betas.npy``, or dataset ``betas`` of ``betas.h5`` or ``betas.hdf5``: (trials, voxels); or, with ``mask.nii.gz``,
  (X, Y, Z, trials);
- ``betas_session-01.nii.gz``, ... (X, Y, Z, trials), one a session, with ``mask.nii.gz``;
- GLMsingle's output (see ``formats.glmsingle``), one for all sessions or one in each of ``ses-01/``, ``ses-02/``, ...
"""

from __future__ import annotations

import re
from pathlib import Path

import nibabel
import numpy as np

from mindtuner.data.dataset import CARD
from mindtuner.data.lazy import LazyArray, get_dataset, holds, open_hdf5, open_rows, unmapped
from mindtuner.errors import UserError
from mindtuner.formats.glmsingle.read import FIELDS, find_output, open_output, pickled
from mindtuner.formats.lab_folder import trial_table
from mindtuner.formats.lab_folder.trial_table import TrialLines
from mindtuner.formats.nifti import JoinedSessions, NiftiSession, load_mask
from mindtuner.formats.trial_volumes import TrialVolumes, order_of, written_by_matlab
from mindtuner.inputs import Pickled, read_array

MASK = "mask.nii.gz"
SINGLE = ("betas.npy", "betas.h5", "betas.hdf5")
DTYPES = ("float32", "float64", "float16", "int16", "int32")
_SESSION_FILE = re.compile(r"betas_session-(\d+)\.nii(\.gz)?")
_SESSION_FOLDER = re.compile(r"ses-(\d+)")


def find_betas(folder: Path) -> list[Path]:
    """The files of a subject's betas: one, or one per session in their order.

    Raises UserError where there are none, files of two kinds, or two of one session.
    """
    single = [path for name in SINGLE if (path := folder / name).exists()]
    sessions = sorted((path for path in folder.glob("betas_*.nii*")), key=session_number)
    output = find_output(folder)
    outputs = [path for place in sorted(folder.glob("ses-*")) if (path := find_output(place)) is not None]
    outputs.sort(key=session_number)
    kinds = [[path] for path in single] + [sessions] * bool(sessions)
    kinds += [found for found in ([output] if output else [], outputs) if found and not (kinds and found[0].suffix == ".npy")]
    if len(kinds) != 1:
        names = ", ".join(paths[0].relative_to(folder).as_posix() for paths in kinds) or "none"
        raise UserError(
            f"{folder}: betas are {names}; expected one of {', '.join(SINGLE)}, betas_session-01.nii.gz, ... or GLMsingle's "
            "output"
        )
    for path, after in zip(kinds[0], kinds[0][1:], strict=False):
        if session_number(path) == session_number(after):
            raise UserError(f"{after}: is session {session_number(path)}, as {path.name}; expected one file per session")
    return kinds[0]


def session_number(path: Path) -> int:
    """3 of ``betas_session-03.nii.gz``, or of a file in ``ses-03``. Raises UserError where a name has no number from 1."""
    match = _SESSION_FOLDER.fullmatch(path.parent.name) if "_session" not in path.name else _SESSION_FILE.fullmatch(path.name)
    if match is None or int(match[1]) < 1:
        wanted = "a name such as betas_session-01.nii.gz" if path.name.startswith("betas") else "a folder such as ses-01"
        raise UserError(f"{path}: expected {wanted}")
    return int(match[1])


def values_of(card: dict, name: str) -> list[float] | None:
    """The values that a mask or region takes by the card, None where it takes all above 0."""
    return card.get("mask_values", {}).get(name)


def own_mask(folder: Path, card: dict) -> tuple[np.ndarray, nibabel.Nifti1Image]:
    """A subject's ``mask.nii.gz``, bool (X, Y, Z), and its image. Raises UserError where it is damaged or empty."""
    values = values_of(card, "mask")
    mask, image = load_mask(folder / MASK, values=values)
    if not mask.any():
        wanted = f"one of {values}, as mask_values of {CARD} says" if values else "voxels above 0"
        raise UserError(f"{folder / MASK}: {'no voxel is taken' if values else 'is 0 everywhere'}; expected {wanted}")
    return mask, image


def open_betas(folder: Path, card: dict, trials: int | None = None) -> tuple[Path, LazyArray]:
    """The file (or folder of session files) and the betas as they are stored, (trials, voxels).

    ``trials``: how many the table has, where it is known. Raises UserError where betas are missing or damaged, or do not fit
    the mask or, where there is none, one another.
    """
    files = find_betas(folder)
    if files[0].suffix in (".nii", ".gz"):
        mask, image = own_mask(folder, card)
        return folder, JoinedSessions([NiftiSession(path, mask, image) for path in files])
    mask = own_mask(folder, card)[0] if (folder / MASK).exists() else None
    if files[0].name not in SINGLE:
        opened = [open_output(path, mask, trials if len(files) == 1 else None) for path in files]
        for path, part in zip(files, opened, strict=True):
            if part.shape[1] != opened[0].shape[1]:
                raise UserError(f"{path}: {part.shape[1]} voxels; expected {opened[0].shape[1]} as in {files[0]}")
        return (files[0], opened[0]) if files[0].parent == folder else (folder, JoinedSessions(opened))
    betas = (_open_npy if files[0].suffix == ".npy" else _open_hdf5)(files[0], mask, trials)
    if mask is not None and int(mask.sum()) != betas.shape[1]:
        raise UserError(
            f"{folder / MASK}: {mask.sum()} voxels are {'taken' if values_of(card, 'mask') else 'above 0'}; expected "
            f"{betas.shape[1]} as in {files[0].name}" + _turned(betas, int(mask.sum()))
        )
    return files[0], betas


def _turned(betas: LazyArray, voxels: int) -> str:
    return "; is the array turned round?" if betas.shape[0] == voxels else ""


def _open_hdf5(path: Path, mask: np.ndarray | None, trials: int | None) -> LazyArray:
    file = open_hdf5(path)
    if not holds(file, "betas") and any(holds(file, name) for name in FIELDS):
        return open_output(path, mask, trials)
    data = get_dataset(file, "betas")
    if data is not None and len(data.shape or ()) == 4 and data.dtype.name in DTYPES:
        matlab = written_by_matlab(data)
        order, shape = order_of(path, "betas", data.shape, matlab, mask, trials)
        return TrialVolumes(path, data, order, shape, mask, matlab)
    file.close()
    return open_rows(path, "betas", 2, DTYPES)


def _open_npy(path: Path, mask: np.ndarray | None, trials: int | None) -> LazyArray:
    try:
        array = read_array(path, "betas of shape (trials, voxels)")
    except Pickled as error:
        raise pickled(path) from error
    if array.ndim not in (2, 4) or 0 in array.shape or array.dtype.name not in DTYPES:
        raise UserError(
            f"{path}: has shape {array.shape} and dtype {array.dtype}; expected (trials, voxels) of {' or '.join(DTYPES)}"
        )
    if array.ndim == 4:
        order, shape = order_of(path, "array", array.shape, False, mask, trials)
        return TrialVolumes(path, array, order, shape, mask)
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
    said = lines.sessions()
    wrong = np.flatnonzero((said != expected) & (lines.used() | (said > 0)))
    if len(wrong):
        first, held = int(wrong[0]), ", ".join(f"{part.shape[0]} trials ({part.path.name})" for part in betas.sessions)
        raise UserError(
            f"{lines.path}: line {first + trial_table.FIRST_LINE}, session is {lines.columns['session'][first]}; "
            f"expected {expected[first]}, since the session files hold {held}"
        )


def stored_dtype(betas: LazyArray) -> np.dtype:
    """What numbers a file of betas holds: those that are read may be others."""
    if isinstance(betas, JoinedSessions):
        return betas.sessions[0].stored
    return betas.stored if isinstance(betas, TrialVolumes) else betas.dtype


def check_dtype(path: Path, betas: LazyArray, card: dict) -> None:
    """Raise UserError where the betas are whole numbers although the card says that they are z-scored."""
    stored = betas.dtype if isinstance(betas, JoinedSessions) else stored_dtype(betas)
    if stored.kind == "i" and card["zscore"] != "none":
        raise UserError(
            f"{path}: betas are {stored.name}, but {CARD} says zscore {card['zscore']!r}; expected real "
            'numbers, or zscore "none"'
        )
