"""LAION-fMRI in small, written by hand in its own layout, and the truth that it holds."""

import dataclasses
import json

import nibabel
import numpy as np
from PIL import Image

SHAPE = (6, 5, 4)
SESSIONS = {1: (1, 2), 3: (1, 4)}  # person -> sessions, one with a gap
TRIALS = 16
AFFINE = np.array([[-1.778, 0, 0, 9], [0, 1.778, 0, -7], [0, 0, 1.778, 3], [0, 0, 0, 1]])
SHARED = [f"shared_12rep_LAION_cluster_{k}_i0.jpg" for k in range(4)]
OOD = [f"shared_4rep_OOD_shape_{k}.png" for k in range(2)]
GLM = "derivatives/glmsingle-tedana/sub-{0:02d}"
SPACE = "task-images_space-T1w"


def unique(person):
    return [f"unique_LAION_initial_cluster_{k}_i1_p{person:02d}.jpg" for k in range(4)]


# What each of everybody's split trains on and what it tests; the last shared and the last unique image are in neither.
SPLITS = {
    ("sub-01", "tau"): (SHARED[:2] + unique(1)[:2], [SHARED[2], unique(1)[2]]),
    ("sub-03", "tau"): ([SHARED[0], SHARED[2], *unique(3)[:2]], [SHARED[1], unique(3)[2]]),
    ("sub-01", "ood"): (SHARED[:3] + unique(1)[:3], OOD),
    ("sub-03", "ood"): (SHARED[:3] + unique(3)[:3], OOD),
    ("shared", "tau"): (SHARED[:2], [SHARED[2], "shared_never_shown.jpg"]),
}


@dataclasses.dataclass
class Truth:
    root: object
    mask: dict  # person -> bool SHAPE
    betas: dict  # (person, session) -> float (*SHAPE, TRIALS)
    labels: dict  # (person, session) -> the label of each volume
    rois: dict  # person -> name -> bool SHAPE
    ceiling: dict  # person -> SHAPE


def nifti(path, array, **header):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, header.get("affine", AFFINE))
    image.header.set_slope_inter(header.get("slope", 1), header.get("inter", 0))
    image.to_filename(path)


def mask_of(root, person):
    return root / GLM.format(person) / f"sub-{person:02d}_{SPACE}_desc-meanR2gt15mask_mask.nii.gz"


def ceiling_of(root, person, name="NoiseceilingAllrep"):
    return root / GLM.format(person) / f"sub-{person:02d}_{SPACE}_desc-{name}_statmap.nii.gz"


def betas_of(root, person, session):
    start = f"sub-{person:02d}_ses-{session:02d}_{SPACE}"
    folder = root / GLM.format(person) / f"ses-{session:02d}" / "func"
    return folder / f"{start}_stat-effect_desc-SingletrialBetas_statmap.nii.gz"


def table_of(root, person, session):
    name = f"sub-{person:02d}_ses-{session:02d}_task-images_desc-SingletrialBetas_trials.tsv"
    return betas_of(root, person, session).with_name(name)


def write_table(path, session, labels):
    """Lines in another order than volumes."""
    order = np.random.default_rng(len(labels)).permutation(len(labels))
    lines = [f"ses-{session:02d}\trun-{1 + k % 2:02d}\t{k}\t{labels[k]}" for k in order]
    path.write_text("session\trun\tbeta_index\tlabel\n" + "\n".join(lines) + "\n")


def write_split(path, train, test, **change):
    path.parent.mkdir(parents=True, exist_ok=True)
    variant = {"variant_id": 0, "train_ids": train, "test_ids": test}
    value = {"name": path.stem, "pool": "a pool", "n_train": len(train), "n_test": len(test), "variants": [variant]}
    path.write_text(json.dumps(value | change))


def write_splits(folder):
    for (pool, name), (train, test) in SPLITS.items():
        write_split(folder / pool / f"{name}.json", train, test)
    return folder


def picture(label):
    """A picture that its label tells from all others."""
    return np.random.default_rng(list(label.encode())).integers(0, 256, (20, 30, 3), np.uint8)


def make_laion(root, pictures=True):
    """Two people, two sessions each; sub-01's last session is int16 with a scale, the others float32."""
    rng, truth = np.random.default_rng(11), Truth(root, {}, {}, {}, {}, {})
    for person, sessions in SESSIONS.items():
        mask = rng.random(SHAPE) < 0.4
        truth.mask[person] = mask
        nifti(mask_of(root, person), mask.astype(np.uint8))
        truth.rois[person] = {name: rng.random(SHAPE) < 0.5 for name in ("V1", "FFA-1")}
        for name, region in truth.rois[person].items():
            nifti(root / f"derivatives/atlases/sub-{person:02d}/rois/{name}.nii.gz", region.astype(np.float32))
        truth.ceiling[person] = rng.uniform(0, 80, SHAPE).astype(np.float32) * mask
        nifti(ceiling_of(root, person), truth.ceiling[person])
        images = SHARED + OOD + unique(person)
        for number in sessions:
            labels = [images[i] for i in rng.permutation(np.arange(TRIALS) % len(images))]
            spread = rng.integers(-1024, 1024, (*SHAPE, TRIALS)) * (1 + number)  # whole 1024ths: the same on every machine
            betas = ((rng.integers(-2000, 2000, SHAPE)[..., None] + spread) / 1024).astype(np.float32)
            path = betas_of(root, person, number)
            if (person, number) == (1, 2):
                whole = np.rint(betas * 100).astype(np.int16)
                nifti(path, whole, slope=0.01, inter=0.5)
                betas = (whole * np.float64(np.float32(0.01)) + 0.5).astype(np.float32)
            else:
                nifti(path, betas)
            truth.betas[person, number], truth.labels[person, number] = betas, labels
            write_table(table_of(root, person, number), number, labels)
        if pictures:
            for label in images:
                path = root / "stimuli/images" / label
                path.parent.mkdir(parents=True, exist_ok=True)
                if not path.exists():
                    Image.fromarray(picture(label)).save(path)
    return truth


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
