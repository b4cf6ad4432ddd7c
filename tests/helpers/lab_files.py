"""A lab's own scans by hand: the files of a lab's folder, written without the package, and what is in them."""

import dataclasses

import h5py
import nibabel
import numpy as np
from PIL import Image

VOXELS, TRIALS = 11, 24
NAMES = ("a/one.png", "a/two.png", "b.jpg", "c.png", "d.png", "e.jpeg")  # in the order of sorted names
SIZES = ((224, 224), (300, 150), (40, 60), (50, 50), (31, 20), (64, 64))  # width, height
CAPTIONS = {"a/one.png": "a red house\n\nthe house, in red\n", "a/two.png": "über naïve 猫\n", "c.png": "\n"}
MASK_SHAPE = (3, 4, 5)
AFFINE = np.array([[-1.8, 0, 0, 9], [0, 1.8, 0, -7], [0, 0, 1.8, 3], [0, 0, 0, 1]])


@dataclasses.dataclass
class Lab:
    root: object
    betas: np.ndarray  # (TRIALS, VOXELS) as stored
    stimulus: list  # names
    session: np.ndarray
    split: list
    mask: np.ndarray
    v1: np.ndarray  # (VOXELS,)


def make_lab(root, form="npy", folder=".", seed=0, stimuli=True, rois=True):
    """One subject: two sessions of 12 trials; d.png is a test image; session means and scales differ."""
    rng = np.random.default_rng(seed)
    place = root / folder
    place.mkdir(parents=True, exist_ok=True)
    if stimuli:
        write_pictures(root / "stimuli")
    stimulus = [NAMES[i] for i in rng.permutation(np.arange(TRIALS) % len(NAMES))]
    split = ["test" if name == "d.png" else "train" for name in stimulus]
    session = np.repeat([1, 2], TRIALS // 2)
    betas = rng.standard_normal((TRIALS, VOXELS)) * np.where(session == 1, 3, 0.5)[:, None] + session[:, None] * 7
    betas = betas.astype(np.float32)
    mask = np.zeros(MASK_SHAPE, bool)
    mask.flat[rng.permutation(mask.size)[:VOXELS]] = True
    v1 = rng.random(VOXELS) < 0.5
    lab = Lab(root, betas, stimulus, session, split, mask, v1)
    write_table(place, lab)
    write_betas(place, lab, form)
    if rois:
        region = np.zeros(MASK_SHAPE, np.uint8)
        region[mask] = v1
        save_nifti(place / "mask.nii.gz", mask.astype(np.uint8))
        save_nifti(place / "rois" / "V1.nii.gz", region)
    return lab


def write_pictures(folder, seed=5):
    rng = np.random.default_rng(seed)
    for name, size in zip(NAMES, SIZES, strict=True):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize(size, Image.Resampling.BICUBIC).save(path)
        if name in CAPTIONS:
            path.with_suffix(".txt").write_text(CAPTIONS[name], encoding="utf-8")


def write_table(place, lab):
    rows = zip(lab.stimulus, lab.session, lab.split, strict=True)
    lines = ["onset\tstimulus\tsession\tsplit"] + [f"{i}.5\t{a}\t{b}\t{c}" for i, (a, b, c) in enumerate(rows)]
    (place / "trials.tsv").write_text("\n".join(lines) + "\n")


def write_betas(place, lab, form):
    if form == "npy":
        np.save(place / "betas.npy", lab.betas)
    elif form == "hdf5":
        with h5py.File(place / "betas.hdf5", "w") as file:
            file["betas"] = lab.betas
    elif form == "packed":
        with h5py.File(place / "betas.h5", "w") as file:
            file.create_dataset("betas", data=lab.betas, chunks=(4, VOXELS), compression="gzip")
    else:
        save_nifti(place / "mask.nii.gz", lab.mask.astype(np.uint8))
        for number in np.unique(lab.session):
            volumes = np.full((*MASK_SHAPE, int((lab.session == number).sum())), -99, np.float32)
            for trial, row in enumerate(np.flatnonzero(lab.session == number)):
                voxel = 0
                for x in range(MASK_SHAPE[0]):  # the order of voxels, spelled out
                    for y in range(MASK_SHAPE[1]):
                        for z in range(MASK_SHAPE[2]):
                            if lab.mask[x, y, z]:
                                volumes[x, y, z, trial] = lab.betas[row, voxel]
                                voxel += 1
            save_nifti(place / f"betas_session-{number:02d}.{'nii' if form == 'nii' else 'nii.gz'}", volumes)


def save_nifti(path, array, affine=AFFINE):
    path.parent.mkdir(exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, affine), path)


def zscored(lab):
    """By the definition: each session by mean and sd of its training trials."""
    out = np.empty(lab.betas.shape)
    train = np.array([split == "train" for split in lab.split])
    for number in (1, 2):
        here = lab.session == number
        base = lab.betas[here & train].astype(np.float64)
        out[here] = (lab.betas[here] - base.mean(0)) / base.std(0)
    return out
