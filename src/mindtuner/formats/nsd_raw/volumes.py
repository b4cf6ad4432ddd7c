"""The volumes of raw NSD: which voxels count, and what they did in each trial of a session.

A voxel's place in every (V,) or (trials, V) array is its place among the mask's voxels in C order of NIfTI's (X, Y, Z),
which is what ``volume[mask]`` gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from nibabel.openers import ImageOpener

from mindtuner.data.lazy import get_dataset, open_hdf5
from mindtuner.data.nsd import BETA_SCALE, VISUAL_ROIS
from mindtuner.errors import UserError
from mindtuner.formats.nifti import WHOLE, none_taken, open_nifti, read_data, stream_volumes
from mindtuner.formats.nsd_raw.read import roi_folder
from mindtuner.inputs import reading

VISUAL = "prf-visualrois.nii.gz"


def read_mask(root: Path, subject: int, values: Sequence[float] | None = None) -> np.ndarray:
    """Which voxels are in ``nsdgeneral``, bool (X, Y, Z): those above 0, or of one of ``values``.

    Raises UserError where none is, or the file is damaged.
    """
    path = roi_folder(root, subject) / "nsdgeneral.nii.gz"
    held = _read_volume(path)
    mask = held > 0 if values is None else np.isin(held, values)
    if not mask.any() and values is not None:
        raise none_taken(path, values, held)
    if not mask.any():
        raise UserError(f"{path}: no voxel is above 0; expected NSD's nsdgeneral mask")
    return mask


def read_rois(root: Path, subject: int, mask: np.ndarray) -> tuple[dict[str, np.ndarray], str | None]:
    """Regions over the voxels of ``mask`` (X, Y, Z): name -> bool (V,), and what had to be assumed, if anything.

    V1 to V4 come from ``prf-visualrois``; ``higher_vis`` is the rest of the mask. Without that file V1 to V4 are empty.
    Raises UserError where the file is damaged or is a volume of another shape.
    """
    path = roi_folder(root, subject) / VISUAL
    assumed = None
    if path.exists():
        labels = _read_volume(path)
        if labels.shape != mask.shape:
            raise UserError(f"{path}: has shape {labels.shape}; expected {mask.shape} as in nsdgeneral.nii.gz")
        labels = labels[mask]
    else:
        labels = np.zeros(int(mask.sum()))
        assumed = f"no {VISUAL}, so V1 to V4 are empty and higher_vis is all of nsd_general"
    early = {name: np.isin(labels, values) for name, values in VISUAL_ROIS.items()}
    whole = np.ones(len(labels), bool)
    return {"nsd_general": whole, **early, "higher_vis": whole & ~np.any(list(early.values()), axis=0)}, assumed


def session_trials(path: Path, mask: np.ndarray) -> int:
    """How many trials a session's file holds, from its header.

    Raises UserError where it is missing or truncated, or is not int16 over the volume of ``mask`` (X, Y, Z).
    """
    if path.suffix == ".hdf5":
        with open_hdf5(path) as file:
            data = _hdf5_betas(file)
            return _check_session(path, (*data.shape[::-1],), data.dtype, mask)
    image = open_nifti(path)
    slope, intercept = image.dataobj.slope, image.dataobj.inter
    if (slope, intercept) != (1, 0):
        raise UserError(
            f"{path}: is scaled by {slope} and shifted by {intercept}; expected plain int16, percent x {BETA_SCALE}"
        )
    return _check_session(path, image.shape, image.get_data_dtype(), mask)


def read_session(path: Path, mask: np.ndarray) -> np.ndarray:
    """Betas of one session in percent signal change, float64 (trials, V), C order; the same from HDF5 and NIfTI.

    Of HDF5 only the mask's voxels are read, of NIfTI one volume at a time, so neither is ever whole in memory.
    Raises UserError as ``session_trials`` does.
    """
    trials = session_trials(path, mask)
    raw = (_read_hdf5 if path.suffix == ".hdf5" else _read_nifti)(path, mask, trials)
    return raw / BETA_SCALE


def _read_hdf5(path: Path, mask: np.ndarray, trials: int) -> np.ndarray:
    # h5py shows (trials, Z, Y, X), in chunks of one voxel each: neighbours along X are read together.
    voxel = np.zeros(mask.shape, np.int64)
    voxel[mask] = np.arange(mask.sum())
    voxel, mask = voxel.T, mask.T
    columns = np.empty((mask.sum(), trials), np.int16)
    edges = np.diff(np.pad(mask, ((0, 0), (0, 0), (1, 1))).astype(np.int8), axis=2)
    with open_hdf5(path) as file, reading(path, "a whole HDF5 file"):
        data = _hdf5_betas(file)
        for (z, y, start), stop in zip(np.argwhere(edges == 1), np.argwhere(edges == -1)[:, 2], strict=True):
            columns[voxel[z, y, start:stop]] = data[:, z, y, start:stop].T
    return np.ascontiguousarray(columns.T)


def _read_nifti(path: Path, mask: np.ndarray, trials: int) -> np.ndarray:
    proxy = open_nifti(path).dataobj
    places = np.ravel_multi_index(np.nonzero(mask), mask.shape, order="F")
    raw = np.empty((trials, len(places)), np.int16)
    with reading(path, WHOLE), ImageOpener(str(path)) as file:
        for row, volume in zip(raw, stream_volumes(file, proxy.offset, proxy.dtype, mask.size, trials), strict=True):
            row[:] = volume[places]
        file.read(1)  # the end, where gzip compares its checksum
    return raw


def _check_session(path: Path, shape: tuple[int, ...], dtype: np.dtype, mask: np.ndarray) -> int:
    expected = f"int16 over {mask.shape}, the volume of nsdgeneral.nii.gz, and trials"
    if len(shape) != 4 or 0 in shape or shape[:3] != mask.shape or dtype.newbyteorder("=") != np.int16:
        raise UserError(f"{path}: betas have shape {shape} (X, Y, Z, trials) and dtype {dtype.name}; expected {expected}")
    return shape[3]


def _hdf5_betas(file: h5py.File) -> h5py.Dataset:
    data = get_dataset(file, "betas")
    if data is None or data.shape is None:
        raise UserError(f"{file.filename}: no dataset 'betas'; expected the betas of a session")
    return data


def _read_volume(path: Path) -> np.ndarray:
    volume = read_data(path, open_nifti(path))
    with reading(path, WHOLE), ImageOpener(str(path)) as file:
        while file.read(2**20):
            pass  # to the end, where gzip compares its checksum: nibabel stops at the last voxel
    if volume.ndim != 3 or volume.size == 0:
        raise UserError(f"{path}: has shape {volume.shape}; expected a volume (X, Y, Z)")
    return volume
