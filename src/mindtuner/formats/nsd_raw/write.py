"""Write any dataset as raw NSD, for instance simulated brains as NSD's authors would publish them.

Raw betas are in percent signal change. Those of a dataset are z-scores, which have no unit, so a z-score of 1 becomes
``SD_PERCENT`` above a mean of ``MEAN_PERCENT``; z-scoring takes both away again. What remains is int16's rounding, by at most
1 / (2 x 300 x ``SD_PERCENT``) = 1/1200 of an sd before z-scoring.
"""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image

from mindtuner.data import Dataset, Stimuli, Subject, nsd
from mindtuner.data.dataset import CARD
from mindtuner.errors import UserError
from mindtuner.files import atomic_path, write_json, write_text
from mindtuner.formats.hdf5 import create_hdf5
from mindtuner.formats.nifti import box_of, save_nifti
from mindtuner.formats.nsd_raw.read import CAPTION_FILES, DESIGN, STIMULI, STIMULUS_TABLE, betas_folder, roi_folder
from mindtuner.formats.nsd_raw.volumes import VISUAL
from mindtuner.formats.nsd_release.read import CAPTIONS_PER_IMAGE
from mindtuner.runtime import progress

FORMS = ("hdf5", "nifti")
CAPTIONS = Path("annotations") / CAPTION_FILES[0]
SIDE = 425  # of NSD's images
MEAN_PERCENT, SD_PERCENT = 1.0, 2.0
_AFFINE = np.diag([1.8, 1.8, 1.8, 1.0])
_BLOCK = 32
_TOLD = b"MATLAB 5.0 MAT-file".ljust(116)  # SciPy's text says when; the same dataset is the same bytes


def write(root: str | Path, dataset: Dataset, form: str = "hdf5") -> None:
    """Write any dataset as raw NSD, for ``convert_nsd`` to read.

    Voxels fill a box in their order. V1 to V4 become labels of ``prf-visualrois``, the ventral ones first, and no other
    region is written. Images are enlarged to 425 x 425 and numbered in COCO from 1 on: they are not COCO's. The first five
    captions of each go to ``annotations/``. The card says what the dataset's says, and that the betas are not z-scored; the
    files of NSD's authors have none. The design comes last: without it nothing is read.

    Parameters
    ----------
    root : str or Path
        Folder to write into.
    dataset : Dataset
        What to write.
    form : {"hdf5", "nifti"}
        Of the betas.

    Raises
    ------
    UserError
        Where the form is unknown, or a subject has a number that NSD lacks, sessions that do not follow each other with the
        same number of trials each, or a beta that int16 cannot hold.
    """
    root = Path(root)
    if form not in FORMS:
        raise UserError(f"form: is {form!r}; expected one of {', '.join(FORMS)}")
    per_session = _trials_per_session(dataset)
    write_json(root / CARD, {**dataset.card, "zscore": "none"})
    _write_images(root / STIMULI, dataset.stimuli)
    _write_words(root, dataset.stimuli)
    for number, subject in dataset.subjects.items():
        mask = box_of(subject.n_voxels)
        _write_masks(roi_folder(root, number), subject, mask)
        sessions = subject.trials.row.reshape(-1, per_session)
        for session, rows in enumerate(progress(sessions, f"subj{number:02d}", unit="session"), 1):
            path = betas_folder(root, number) / f"betas_session{session:02d}"
            _write_session(path, as_int16(subject.betas(rows), subject.where), mask, form)
    _write_design(root / DESIGN, dataset)


def as_int16(betas: np.ndarray, where: str) -> np.ndarray:
    """z-scores as NSD stores percent signal change. Raises UserError where one is too far out for int16."""
    scaled = np.rint((MEAN_PERCENT + SD_PERCENT * betas.astype(np.float64)) * nsd.BETA_SCALE)
    limits = np.iinfo(np.int16)
    outside = (scaled < limits.min) | (scaled > limits.max)
    if outside.any():
        raise UserError(
            f"{where}: a beta is {betas[outside][0]}; expected z-scores, which int16 can hold in percent x {nsd.BETA_SCALE}"
        )
    return scaled.astype(np.int16)


def _trials_per_session(dataset: Dataset) -> int:
    """The number of trials that all sessions of all subjects have."""
    found = set()
    for number, subject in dataset.subjects.items():
        if not 1 <= number <= nsd.SUBJECTS:
            raise UserError(f"{subject.where}: is of subject {number}; expected 1 to {nsd.SUBJECTS}, as in NSD")
        session = subject.trials.session
        counts = np.bincount(session)[1:]
        found.update(counts.tolist())
        if (np.diff(session) < 0).any() or len(found) != 1:
            raise UserError(
                f"{subject.where}: sessions of subject {number} have {counts.tolist()} trials; expected sessions "
                "1, 2, ... in order, each with as many trials as all others of all subjects"
            )
    return found.pop()


def _write_session(path: Path, betas: np.ndarray, mask: np.ndarray, form: str) -> None:
    """``betas`` int16 (trials, V)."""
    volumes = np.zeros((*mask.shape, len(betas)), np.int16)
    volumes[mask] = betas.T
    if form == "nifti":
        save_nifti(path.with_suffix(".nii.gz"), volumes, _AFFINE)
        return
    with create_hdf5(path.with_suffix(".hdf5")) as file:
        file.create_dataset("betas", data=volumes.T, chunks=(len(betas), 1, 1, 1))


def _write_masks(folder: Path, subject: Subject, mask: np.ndarray) -> None:
    save_nifti(folder / "nsdgeneral.nii.gz", mask.astype(np.int16), _AFFINE)
    labels = np.zeros(subject.n_voxels, np.int16)
    for name, values in nsd.VISUAL_ROIS.items():
        voxels = np.flatnonzero(subject.rois.get(name, ()))
        labels[voxels] = np.sort(np.resize(values, len(voxels)))
    volume = np.zeros(mask.shape, np.int16)
    volume[mask] = labels
    save_nifti(folder / VISUAL, volume, _AFFINE)


def _write_images(path: Path, stimuli: Stimuli) -> None:
    with create_hdf5(path) as file:
        bricks = file.create_dataset("imgBrick", (len(stimuli), SIDE, SIDE, 3), np.uint8)
        for start in progress(range(0, len(stimuli), _BLOCK), "stimuli", unit="batch"):
            images = stimuli.images(np.arange(start, min(start + _BLOCK, len(stimuli)))).astype(np.float32)
            pixels = np.rint(images * 255).astype(np.uint8).transpose(0, 2, 3, 1)
            bricks[start : start + len(pixels)] = [
                Image.fromarray(np.ascontiguousarray(image)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
                for image in pixels
            ]


def _write_words(root: Path, stimuli: Stimuli) -> None:
    """The table of stimuli, and COCO's form of their captions. A stimulus' number in COCO is its own, from 1."""
    lines = [",cocoId,cocoSplit,cropBox,loss,nsdId,flagged,BOLD5000,shared1000"]
    lines += [
        f'{i},{i + 1},train2017,"(0, 0, 0, 0)",0,{i},False,False,{bool(shared)}' for i, shared in enumerate(stimuli.is_shared)
    ]
    write_text(root / STIMULUS_TABLE, "\n".join(lines) + "\n")
    pairs = [(i, text) for i, texts in enumerate(stimuli.captions, 1) for text in texts[:CAPTIONS_PER_IMAGE]]
    write_json(
        root / CAPTIONS,
        {
            "annotations": [
                {"id": number, "image_id": image, "caption": text} for number, (image, text) in enumerate(pairs, 1)
            ]
        },
    )


def _write_design(path: Path, dataset: Dataset) -> None:
    """Write the design: in NSD all subjects go through their own list of images in one order.

    Subjects who did not have that order share one here too: a place of the list is a combination of what they saw at a time,
    so that a list may name an image twice.
    """
    import scipy.io  # here alone: it takes a while, and every reader would wait for it

    trials = max(len(subject.trials) for subject in dataset.subjects.values())
    shown = np.zeros((trials, max(dataset.subjects)), np.int64)  # who was not there is said to have seen the first image
    for number, subject in dataset.subjects.items():
        shown[: len(subject.trials), number - 1] = subject.trials.stimulus
    images, order = np.unique(shown, axis=0, return_inverse=True)
    file = io.BytesIO()
    scipy.io.savemat(
        file,
        {
            "masterordering": order.reshape(1, -1) + 1.0,
            "subjectim": images.T + 1.0,
            "sharedix": np.flatnonzero(dataset.stimuli.is_shared)[None] + 1.0,
        },
        do_compression=True,
    )
    with atomic_path(path) as part:
        part.write_bytes(_TOLD + file.getvalue()[len(_TOLD) :])
