"""Write any dataset as a lab's folder, for instance simulated brains as a lab would have them."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from mindtuner.data import Dataset, Subject
from mindtuner.data.dataset import CARD
from mindtuner.errors import UserError
from mindtuner.files import atomic_path, write_json, write_text
from mindtuner.formats.image_files import own_names, write_stimuli
from mindtuner.formats.lab_folder.betas import MASK
from mindtuner.formats.lab_folder.read import STIMULI, VERTICES
from mindtuner.formats.lab_folder.trial_table import MISSING, TABLES
from mindtuner.formats.nifti import box_of, save_nifti

FORMS = ("npy", "hdf5", "nifti")
_BLOCK = 256


def write(root: str | Path, dataset: Dataset, form: str = "npy") -> None:
    """Write any dataset as a lab's folder: ``stimuli/`` as PNG with captions, a folder ``sub-NN`` per subject, the card.

    Betas are written as they are read, so the card keeps what the dataset's says about z-scores. Rows that no trial uses are
    left out; pixels are rounded to 8 bits, and file names kept. Of a subject that lives on the cortical surface
    ``vertices.npy`` keeps the vertex of each voxel.

    Parameters
    ----------
    root : str or Path
        Folder to write into.
    dataset : Dataset
        What to write.
    form : {"npy", "hdf5", "nifti"}
        Of the betas. NIfTI is a box of voxels, one compressed file per session.

    Raises
    ------
    UserError
        Where the form is unknown, a session is split by another, or a file cannot be written.
    """
    root = Path(root)
    if form not in FORMS:
        raise UserError(f"form: is {form!r}; expected one of {', '.join(FORMS)}")
    write_json(root / CARD, kept_card(dataset.card))
    names = write_stimuli(root / STIMULI, dataset.stimuli, own_names(dataset.stimuli))
    for number, subject in dataset.subjects.items():
        folder = root / f"sub-{number:02d}"
        write_text(folder / TABLES[0], trials_table(subject, names))
        {"npy": _write_npy, "hdf5": _write_hdf5, "nifti": _write_nifti}[form](folder, subject)
        if subject.rois and form != "nifti":
            with atomic_path(folder / "rois.npz") as part, open(part, "wb") as file:
                np.savez(file, **subject.rois)
        if subject.vertices is not None:
            with atomic_path(folder / VERTICES) as part, open(part, "wb") as file:
                np.save(file, subject.vertices, allow_pickle=False)


def kept_card(card: dict) -> dict:
    """A dataset's card for new files, without what the old ones were read by."""
    read_by = ("subject_offset", "subject_numbers", "mask_values", "background", "bdata")
    return {name: value for name, value in card.items() if name not in read_by}


def trials_table(subject: Subject, names: list[str]) -> str:
    """The text of ``trials.tsv`` for a subject's trials in their order."""
    found = subject.trials
    columns = {
        "stimulus": [names[stimulus] for stimulus in found.stimulus],
        "session": found.session,
        "repeat": found.repeat,
        "split": np.where(found.is_test, "test", "train"),
    }
    if found.run.any():
        columns["run"] = [run or MISSING for run in found.run]
    rows = zip(*columns.values(), strict=True)
    return "\n".join("\t".join(map(str, row)) for row in [columns.keys(), *rows]) + "\n"


def _write_npy(folder: Path, subject: Subject) -> None:
    shape = (len(subject.trials), subject.n_voxels)
    with atomic_path(folder / "betas.npy") as part, open(part, "wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
        for start in range(0, len(subject.trials), _BLOCK):
            file.write(subject.betas(subject.trials.row[start : start + _BLOCK]).astype("<f4").tobytes())


def _write_hdf5(folder: Path, subject: Subject) -> None:
    with atomic_path(folder / "betas.hdf5") as part, h5py.File(part, "w") as file:
        rows = file.create_dataset("betas", (len(subject.trials), subject.n_voxels), np.float32)
        for start in range(0, len(subject.trials), _BLOCK):
            rows[start : start + _BLOCK] = subject.betas(subject.trials.row[start : start + _BLOCK])


def _write_nifti(folder: Path, subject: Subject) -> None:
    session = subject.trials.session
    if (np.diff(session) < 0).any():
        raise UserError(f"{subject.where}: session falls from one trial to the next; expected sessions in order")
    mask, affine = box_of(subject.n_voxels), np.diag([2.0, 2.0, 2.0, 1.0])
    save_nifti(folder / MASK, mask.astype(np.uint8), affine)
    for name, region in subject.rois.items():
        volume = np.zeros(mask.shape, np.uint8)
        volume[mask] = region
        save_nifti(folder / "rois" / f"{name}.nii.gz", volume, affine)
    for number in np.unique(session):
        rows = subject.trials.row[session == number]
        volumes = np.zeros((*mask.shape, len(rows)), np.float32)
        volumes[mask] = subject.betas(rows).T
        save_nifti(folder / f"betas_session-{number:02d}.nii.gz", volumes, affine)
