"""LAION-fMRI, as its authors lay it out: where each file lies, its trial tables, masks, regions and noise ceilings.

The layout is known from the data set's own package and documentation (github.com/ViCCo-Group/LAION-fMRI); ``docs/laion.md``
says which facts come from there. Under ``derivatives/glmsingle-tedana`` each person has a mask and a folder for each session
with the betas, (X, Y, Z, trials), and a table of its trials. Regions are ``derivatives/atlases/sub-XX/rois/NAME.nii.gz``,
pictures ``stimuli/images``. Voxels come in the order of ``volume[mask]``.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np

from mindtuner.errors import UserError
from mindtuner.formats.nifti import NiftiSession, check_grid, load_mask, none_taken, open_image, read_data
from mindtuner.inputs import read_text

BETAS, ATLASES = Path("derivatives/glmsingle-tedana"), Path("derivatives/atlases")
STIMULI, STIMULUS_TABLE = Path("stimuli/images"), Path("stimuli/stimuli.tsv")
COLUMNS = ("session", "run", "beta_index", "label")
ALL_REPEATS = "NoiseceilingAllrep"
PERCENT = (0, 100)
_MISSING = ("", "n/a", "nan")


def sniff(root: Path) -> bool:
    """Whether a folder looks like LAION-fMRI: its betas, or its table of stimuli, will do."""
    return any((root / name).exists() for name in (BETAS, STIMULUS_TABLE))


def find_people(root: Path) -> dict[int, str]:
    """Number -> name, such as 3 -> ``sub-03``, of everybody who has a folder of betas."""
    matches = (re.fullmatch(r"sub-(\d{1,6})", path.name) for path in sorted((root / BETAS).glob("sub-*")) if path.is_dir())
    return {int(match[1]): match[0] for match in matches if match}


def mask_path(root: Path, person: str) -> Path:
    """The file of the voxels that betas are kept of."""
    return root / BETAS / person / f"{person}_task-images_space-T1w_desc-meanR2gt15mask_mask.nii.gz"


@dataclass(frozen=True)
class Session:
    """Where the files of one session lie, and its number."""

    person: str
    number: int
    folder: Path

    @property
    def name(self) -> str:
        """Of its folder, such as ``ses-03``."""
        return self.folder.parent.name

    @property
    def betas(self) -> Path:
        """The file of betas, (X, Y, Z, trials); unpacked (``.nii``) where that is there."""
        packed = self.folder / f"{self.person}_{self.name}_task-images_space-T1w_{STATMAP}"
        unpacked = packed.with_suffix("")
        return unpacked if unpacked.exists() else packed

    @property
    def trials(self) -> Path:
        """The table of trials."""
        return self.folder / f"{self.person}_{self.name}_task-images_{TRIALS}"


STATMAP = "stat-effect_desc-SingletrialBetas_statmap.nii.gz"
TRIALS = "desc-SingletrialBetas_trials.tsv"


def find_sessions(root: Path, person: str) -> list[Session]:
    """The sessions that have betas, in order. Raises UserError where there is none."""
    found, folder = [], root / BETAS / person
    for path in folder.glob("ses-*"):
        match = re.fullmatch(r"ses-(\d{1,6})", path.name)
        if match and int(match[1]) and (session := Session(person, int(match[1]), path / "func")).betas.exists():
            found.append(session)
    if not found:
        raise UserError(
            f"{folder}: no session with betas; expected ses-01/func/{person}_ses-01_task-images_space-T1w_{STATMAP}"
        )
    return sorted(found, key=lambda session: session.number)


def read_trials(session: Session, volumes: int) -> list[tuple[str, str]]:
    """(run, label) of each of a session's ``volumes``, in their order.

    Raises UserError naming the line where the table is missing or cut, is of another session, names no stimulus, or does not
    name every volume once.
    """
    path, found = session.trials, {}
    text = read_text(path, f"a table with the columns {', '.join(COLUMNS)}")
    try:
        with io.StringIO(text, newline="") as file:
            reader = csv.DictReader(file, delimiter="\t")
            if missing := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
                raise UserError(f"{path}: no column {missing[0]}; expected {', '.join(COLUMNS)}, tab separated")
            for row in reader:
                where = f"{path}: line {reader.line_num}"
                index = _check_row(row, session, volumes, where)
                if index in found:
                    raise UserError(
                        f"{where}: beta_index is {index}, as on line {found[index][0]}; expected each volume once"
                    )
                found[index] = reader.line_num, row["run"], row["label"].strip()
    except csv.Error as error:
        raise UserError(f"{path}: cannot be read ({' '.join(str(error).split())}); expected a tab separated table") from error
    if absent := [index for index in range(volumes) if index not in found]:
        raise UserError(
            f"{path}: {len(found)} trials, but {session.betas.name} holds {volumes} volumes; expected one line for each "
            f"(beta_index {absent[0]} is missing)"
        )
    return [found[index][1:] for index in range(volumes)]


def _check_row(row: dict, session: Session, volumes: int, where: str) -> int:
    """The volume that a line names."""
    if None in row or None in row.values():
        raise UserError(f"{where}: has not as many cells as the header; expected a whole line")
    if not re.fullmatch(rf"(ses-)?0*{session.number}", row["session"].strip()):
        raise UserError(f"{where}: session is {row['session']!r}; expected {session.name}, in whose folder it lies")
    if not re.fullmatch(r"\d{1,9}", row["beta_index"].strip()) or int(row["beta_index"]) >= volumes:
        raise UserError(
            f"{where}: beta_index is {row['beta_index']!r}; expected 0 to {volumes - 1}, a volume of {session.betas.name}"
        )
    label = row["label"].strip()
    if label.lower() in _MISSING:
        raise UserError(f"{where}: label is {row['label']!r}; expected the file name of a stimulus")
    if re.search(r"[/\\]|^\.", label):
        raise UserError(f"{where}: label is {label!r}; expected a file name alone, without a folder")
    return int(row["beta_index"])


def open_session(session: Session, mask: np.ndarray, image: nibabel.Nifti1Image) -> NiftiSession:
    """The betas of some voxels, mask bool (X, Y, Z) on the grid of ``image``. Raises UserError as ``NiftiSession`` does."""
    return NiftiSession(session.betas, mask, image)


def read_mask(root: Path, person: str, values: Sequence[float] | None = None) -> tuple[np.ndarray, nibabel.Nifti1Image]:
    """Which voxels have betas, bool (X, Y, Z), those above 0 or of one of ``values``, and the image.

    Raises UserError where none has, or the file is damaged.
    """
    path = mask_path(root, person)
    mask, image = load_mask(path, values=values)
    if not mask.any() and values is not None:
        raise none_taken(path, values, read_data(path, image))
    if not mask.any():
        raise UserError(f"{path}: is 0 everywhere; expected voxels above 0")
    return mask, image


def read_rois(root: Path, person: str, image: nibabel.Nifti1Image) -> dict[str, np.ndarray]:
    """Regions by name, bool (X, Y, Z); none where there is no such folder.

    Raises UserError where one is damaged or lies on another grid than the mask, whose ``image`` is given.
    """
    folder = root / ATLASES / person / "rois"
    paths = sorted(path for path in folder.glob("*.nii.gz") if not path.name.startswith("."))
    return {path.name.removesuffix(".nii.gz"): load_mask(path, image)[0] for path in paths}


def find_ceilings(root: Path, person: str) -> dict[str, Path]:
    """The files of noise ceilings over sessions, such as ``Noiseceiling12rep``."""
    start = f"{person}_task-images_space-T1w_desc-"
    return {
        path.name.removeprefix(start).removesuffix("_statmap.nii.gz"): path
        for path in sorted((root / BETAS / person).glob(f"{start}Noiseceiling*_statmap.nii.gz"))
    }


def read_ceiling(path: Path, mask: np.ndarray, image: nibabel.Nifti1Image) -> np.ndarray:
    """The noise ceiling of each voxel in the mask, float64 (V,), in percent; 0 where the file has no number.

    Raises UserError where the file is damaged, lies on another grid, or holds what is no percentage.
    """
    ceiling = open_image(path, 3)
    check_grid(path, ceiling, image)
    values = read_data(path, ceiling)[mask].astype(np.float64)
    values = np.where(np.isnan(values), 0, values)
    if values.min() < PERCENT[0] or values.max() > PERCENT[1]:
        worst = values.max() if values.max() > PERCENT[1] else values.min()
        raise UserError(f"{path}: holds {worst:g} within the mask; expected percent, {PERCENT[0]} to {PERCENT[1]}")
    return values
