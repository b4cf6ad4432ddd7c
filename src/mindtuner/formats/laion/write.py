"""Write any dataset as LAION-fMRI, for instance simulated brains as its authors would publish them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mindtuner.data import Dataset, Subject
from mindtuner.data.dataset import CARD
from mindtuner.errors import UserError
from mindtuner.files import write_json, write_text
from mindtuner.formats.image_files import write_stimuli
from mindtuner.formats.lab_folder.write import kept_card
from mindtuner.formats.laion import read as laion
from mindtuner.formats.laion.convert import SPLITS
from mindtuner.formats.nifti import box_of, save_nifti

OWN = "own"  # the name of the split that the dataset came with
_AFFINE = np.diag([1.8, 1.8, 1.8, 1.0])


def write(root: str | Path, dataset: Dataset) -> None:
    """Write any dataset as LAION-fMRI, for ``convert_laion`` to read.

    Betas are written as they are read. Voxels fill a box in their order, regions become ``derivatives/atlases``, captions
    stand in a ``.txt`` beside each picture. The dataset's own training and test images are ``splits/own.json``. Noise
    ceilings are computed from repeated images as LAION-fMRI's authors do. The card says what the dataset's says, without
    what its files were read by, and that the betas are not z-scored.

    Parameters
    ----------
    root : str or Path
        Folder to write into.
    dataset : Dataset
        What to write.

    Raises
    ------
    UserError
        Where the sessions of a subject are not in order.
    """
    root = Path(root)
    for subject in dataset.subjects.values():
        if (np.diff(subject.trials.session) < 0).any():
            raise UserError(f"{subject.where}: session falls from one trial to the next; expected sessions in order")
    write_json(root / CARD, {**kept_card(dataset.card), "zscore": "none"})
    labels = write_stimuli(root / laion.STIMULI, dataset.stimuli)
    write_text(root / laion.STIMULUS_TABLE, "\n".join(["filename", *labels]) + "\n")
    _write_split(root / SPLITS / f"{OWN}.json", dataset, labels)
    for number, subject in dataset.subjects.items():
        _write_subject(root, f"sub-{number:02d}", subject, labels)


def _write_split(path: Path, dataset: Dataset, labels: list[str]) -> None:
    sides = {}
    for side, is_test in (("train", False), ("test", True)):
        shown = [subject.trials.stimulus[subject.trials.is_test == is_test] for subject in dataset.subjects.values()]
        sides[side] = [labels[i] for i in np.unique(np.concatenate(shown))]
    variant = {"variant_id": 0, **{f"{side}_ids": found for side, found in sides.items()}}
    write_json(path, {"name": path.stem, **{f"n_{side}": len(found) for side, found in sides.items()}, "variants": [variant]})


def _write_subject(root: Path, person: str, subject: Subject, labels: list[str]) -> None:
    mask, trials = box_of(subject.n_voxels), subject.trials
    path = laion.mask_path(root, person)
    save_nifti(path, mask.astype(np.uint8), _AFFINE)
    for name, region in subject.rois.items():
        save_nifti(root / laion.ATLASES / person / "rois" / f"{name}.nii.gz", _volume(mask, region, np.uint8), _AFFINE)
    ceiling = noise_ceiling(subject.betas(trials.row), trials.stimulus)
    file = f"{person}_task-images_space-T1w_desc-{laion.ALL_REPEATS}_statmap.nii.gz"
    save_nifti(path.with_name(file), _volume(mask, ceiling, np.float32), _AFFINE)
    for number in np.unique(trials.session).tolist():
        session = laion.Session(person, number, root / laion.BETAS / person / f"ses-{number:02d}" / "func")
        inside = trials.session == number
        save_nifti(session.betas, _volume(mask, subject.betas(trials.row[inside]).T, np.float32), _AFFINE)
        lines = [f"{session.name}\t1\t{k}\t{labels[i]}" for k, i in enumerate(trials.stimulus[inside])]
        write_text(session.trials, "\n".join(["\t".join(laion.COLUMNS), *lines]) + "\n")


def _volume(mask: np.ndarray, values: np.ndarray, dtype: type) -> np.ndarray:
    """Values (V, ...) at their places, 0 elsewhere."""
    volume = np.zeros((*mask.shape, *values.shape[1:]), dtype)
    volume[mask] = values
    return volume


def noise_ceiling(betas: np.ndarray, stimulus: np.ndarray) -> np.ndarray:
    """How much of an average over an image's trials the image explains, in percent, float64 (V,), by NSD's ncsnr.

    ``betas`` (n, V) are z-scored, so that signal and noise variance add up to 1. Noise is the variance between trials of the
    same image. All is 0 where no image is repeated.
    """
    _, image, count = np.unique(stimulus, return_inverse=True, return_counts=True)
    repeated = [betas[image == i].astype(np.float64) for i in np.flatnonzero(count > 1)]
    if not repeated:
        return np.zeros(betas.shape[1])
    noise = np.mean([own.var(0, ddof=1) for own in repeated], axis=0)
    signal = np.maximum(0, 1 - noise)
    return 100 * signal / (signal + noise * np.mean(1 / count[count > 1]))
