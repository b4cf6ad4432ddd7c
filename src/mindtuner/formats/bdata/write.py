"""Write any dataset as BData, one file a subject, as bdpy writes and reads them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mindtuner.data import Dataset, Subject
from mindtuner.data.dataset import CARD
from mindtuner.files import write_json
from mindtuner.formats.bdata.read import LABELS, ROI, SESSION, SPLIT_COLUMNS, VOXELS
from mindtuner.formats.hdf5 import create_hdf5
from mindtuner.formats.image_files import own_names, write_stimuli
from mindtuner.formats.lab_folder.read import STIMULI
from mindtuner.formats.lab_folder.write import kept_card

_BLOCK = 256


def write(root: str | Path, dataset: Dataset) -> None:
    """Write any dataset as BData: ``sub-01.h5`` for each subject, and ``stimuli/`` as PNG with captions.

    Columns are ``VoxelData``, ``Session``, ``DataType`` (1 training, 2 test) and ``stimulus_name``, whose ``vmap`` has file
    names; regions are ``ROI_V1``, ... Betas are written as they are read, in the order of trials.

    Parameters
    ----------
    root : str or Path
        Folder to write into.
    dataset : Dataset
        What to write.

    Raises
    ------
    UserError
        Where a file cannot be written.
    """
    root = Path(root)
    write_json(root / CARD, kept_card(dataset.card))
    names = write_stimuli(root / STIMULI, dataset.stimuli, own_names(dataset.stimuli))
    for number, subject in dataset.subjects.items():
        _write_file(root / f"sub-{number:02d}.h5", subject, names)


def _write_file(path: Path, subject: Subject, names: list[str]) -> None:
    trials, voxels, label = subject.trials, subject.n_voxels, LABELS[0]
    single = [SESSION, SPLIT_COLUMNS[0], label]
    keys = [VOXELS[0], *single, *(f"{ROI}{name}" for name in subject.rois)]
    values = np.full((len(keys), voxels + len(single)), np.nan)
    values[0, :voxels] = 1
    values[np.arange(1, 4), voxels + np.arange(3)] = 1
    for row, mask in enumerate(subject.rois.values(), 1 + len(single)):
        values[row, :voxels] = mask
    shown, picture = np.unique(trials.stimulus, return_inverse=True)
    with create_hdf5(path) as file:
        rows = file.create_dataset("dataset", (len(trials), values.shape[1]), np.float64)
        for start in range(0, len(trials), _BLOCK):
            part = slice(start, start + _BLOCK)
            labels = np.column_stack([trials.session[part], trials.is_test[part] + 1, picture[part] + 1])
            rows[part] = np.column_stack([subject.betas(trials.row[part]), labels])
        about = file.create_group("metadata")
        about.create_dataset("key", data=[key.encode() for key in keys])
        about.create_dataset("description", data=[f"1 = {key}".encode() for key in keys])
        about.create_dataset("value", data=values)
        known = file.create_group(f"vmap/{label}")
        for number, image in enumerate(shown, 1):
            known.create_dataset(f"{float(number)}", data=names[image].encode())
