"""Betas that GLMsingle wrote (github.com/cvnlab/GLMsingle), opened without loading them.

A run of GLMsingle leaves files ``TYPED_FITHRF_GLMDENOISE_RR``, ``TYPEC_FITHRF_GLMDENOISE`` and ``TYPEB_FITHRF``, the fullest
model first. Python writes ``.hdf5`` where it is told ``wanthdf5=1``, field ``betasmd`` (X, Y, Z, trials); data without a
third dimension become (voxels, 1, 1, trials). MATLAB writes ``.mat`` of version 7.3, which is HDF5, field ``modelmd``; h5py
shows its axes in reverse. Python's default, ``.npy``, is a pickled dictionary: reading it would run what is in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from mindtuner.data.lazy import get_dataset, open_hdf5
from mindtuner.errors import UserError
from mindtuner.formats.trial_volumes import TrialVolumes, order_of, written_by_matlab
from mindtuner.inputs import reading

MODELS = ("TYPED_FITHRF_GLMDENOISE_RR", "TYPEC_FITHRF_GLMDENOISE", "TYPEB_FITHRF")
ENDINGS = (".hdf5", ".mat")
FIELDS = ("betasmd", "modelmd")
_MATLAB_5 = b"MATLAB 5.0 MAT-file"
_WANTED = "GLMsingle's .hdf5 (run with wanthdf5=1), its .mat (version 7.3), or betas.npy (trials, voxels)"


def sniff(root: Path) -> bool:
    """Whether a folder holds output of GLMsingle, of any ending."""
    return any(True for _ in folders(root))


def folders(root: Path) -> Iterator[Path]:
    """The folder itself, or those of subjects and sessions in it, that hold output."""
    for place in ("", "sub-*", "ses-*", "sub-*/ses-*"):
        for folder in sorted(root.glob(place)) if place else [root]:
            if any(any(folder.glob(f"{model}.*")) for model in MODELS):
                yield folder


def sniff_file(path: Path) -> bool:
    """Whether a file is called as GLMsingle calls its output."""
    return path.stem in MODELS


def way_in(root: Path) -> str:
    """What to do with a folder of GLMsingle's output alone."""
    return "a lab's folder with it, trials.tsv (the image of each trial), mask.nii.gz and stimuli/ (docs/your-own-scans.md)"


def find_output(folder: Path) -> Path | None:
    """The file of the fullest model that a folder holds, also where it is pickled; None where there is none.

    Raises UserError where there are two of it.
    """
    for model in MODELS:
        found = [folder / f"{model}{ending}" for ending in ENDINGS if (folder / f"{model}{ending}").exists()]
        if len(found) > 1:
            raise UserError(f"{folder}: holds both {' and '.join(path.name for path in found)}; expected one of them")
        if found or (folder / f"{model}.npy").exists():
            return found[0] if found else folder / f"{model}.npy"
    return None


def pickled(path: Path) -> UserError:
    """What is said of a pickled file."""
    return UserError(f"{path}: is pickled, as GLMsingle's .npy is, and never loaded; expected {_WANTED}")


def open_output(path: Path, mask: np.ndarray | None, trials: int | None) -> TrialVolumes:
    """The betas of a file, (trials, voxels).

    Parameters
    ----------
    path : .hdf5 or .mat
    mask : bool (X, Y, Z), or None for betas that are voxels x trials
    trials : how many there should be, None where nobody knows

    Raises
    ------
    UserError
        Where the file is pickled, damaged, of another kind, or its order of axes cannot be told (see ``trial_volumes``).
    """
    if path.suffix == ".npy":
        raise pickled(path)
    with reading(path, _WANTED), open(path, "rb") as file:
        if file.read(len(_MATLAB_5)) == _MATLAB_5:
            raise UserError(f"{path}: is of MATLAB's older format; expected version 7.3, save(..., '-v7.3')")
    data = field_of(open_hdf5(path))
    matlab = written_by_matlab(data)
    order, shape = order_of(path, data.name.strip("/"), data.shape, matlab, mask, trials)
    return TrialVolumes(path, data, order, shape, mask, matlab)


def field_of(file: h5py.File) -> h5py.Dataset:
    """The dataset of betas. Raises UserError where there is none, two, or one of something else."""
    found = [data for name in FIELDS if (data := get_dataset(file, name)) is not None]
    if len(found) != 1:
        raise UserError(
            f"{file.filename}: holds {len(found)} datasets {' or '.join(FIELDS)}; expected one, GLMsingle's betas"
        )
    if found[0].dtype.kind != "f" or found[0].shape is None:
        raise UserError(f"{file.filename}: {found[0].name} holds {found[0].dtype} {found[0].shape}; expected real numbers")
    return found[0]
