"""Raw NSD in small, written by hand, and the truth that it holds."""

import dataclasses
import gzip
import json

import h5py
import nibabel
import numpy as np
import scipy.io

SHAPE, SESSION, PLACES, IMAGES, SIDE = (6, 5, 4), 24, 10, 17, 40
SESSIONS = {1: 3, 2: 2}
DESIGN = "nsddata/experiments/nsd/nsd_expdesign.mat"
TABLE = "nsddata/experiments/nsd/nsd_stim_info_merged.csv"
STIMULI = "nsddata_stimuli/stimuli/nsd/nsd_stimuli.hdf5"
ROI = "nsddata/ppdata/subj{:02d}/func1pt8mm/roi"
BETAS = "nsddata_betas/ppdata/subj{:02d}/func1pt8mm/betas_fithrf_GLMdenoise_RR"


@dataclasses.dataclass
class Truth:
    root: object
    raw: dict  # subject -> int16 (sessions, X, Y, Z, trials)
    labels: dict  # subject -> nsdgeneral and prf-visualrois (X, Y, Z)
    order: np.ndarray  # from 1, as NSD writes it
    images: np.ndarray  # (8, places), from 1
    shared: np.ndarray  # from 1
    pixels: np.ndarray
    coco: np.ndarray
    captions: dict  # COCO's number -> texts

    def stimulus(self, subject):
        trials = SESSIONS[subject] * SESSION
        return [int(self.images[subject - 1, place - 1]) - 1 for place in self.order[:trials]]

    def is_shared(self, subject):
        return [image + 1 in self.shared.tolist() for image in self.stimulus(subject)]

    def voxels(self, subject):
        inside = self.labels[subject][0]
        return [(x, y, z) for x in range(SHAPE[0]) for y in range(SHAPE[1]) for z in range(SHAPE[2]) if inside[x, y, z] > 0]


def nifti(path, array, **header):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(array, np.eye(4))
    image.header.set_slope_inter(header.get("slope", 1), 0)
    image.to_filename(path)


def hdf5(path, name, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset(name, data=array, **options)


def write_session(folder, number, betas, kind):
    """``betas`` int16 (X, Y, Z, trials), in one of the two forms that NSD publishes."""
    path = folder / f"betas_session{number:02d}.{kind}"
    if kind == "nii.gz":
        nifti(path, betas)
    else:
        hdf5(path, "betas", betas.T, chunks=(betas.shape[3], 1, 1, 1))
    return path


def write_design(truth):
    path = truth.root / DESIGN
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(
        path,
        {
            "masterordering": truth.order[None].astype(float),
            "subjectim": truth.images.astype(float),
            "sharedix": truth.shared[None].astype(float),
        },
    )


def make_raw_nsd(root, kinds=("nii.gz", "hdf5"), without_training=None):
    """Subject 1 with three sessions, subject 2 with two; images 1 to 3 of everyone's ten are shared."""
    rng = np.random.default_rng(7)
    ids = rng.permutation(IMAGES) + 1
    images = np.stack([np.r_[ids[:3], np.roll(ids[3:], 7 * subject)[:7]] for subject in range(8)])
    order = rng.permutation(np.arange(4 * SESSION) % PLACES) + 1  # a session more than anyone has been to
    if without_training is not None:
        order[without_training * SESSION : (without_training + 1) * SESSION] = rng.integers(1, 4, SESSION)
    coco = rng.permutation(1000)[:IMAGES] + 1
    truth = Truth(
        root,
        {},
        {},
        order,
        images,
        np.sort(ids[:3]),
        rng.integers(0, 256, (IMAGES, SIDE, SIDE, 3), np.uint8),
        coco,
        {int(image): [f"caption {k} of {image}" for k in range(i % 7)] for i, image in enumerate(coco)},
    )
    write_design(truth)
    lines = [
        f'{i},{image},train2017,"(0, 0, 0.1, 0.2)",0.5,{i},False,False,{i + 1 in truth.shared.tolist()}'
        for i, image in enumerate(coco)
    ]
    (root / TABLE).write_text(",cocoId,cocoSplit,cropBox,loss,nsdId,flagged,BOLD5000,shared1000\n" + "\n".join(lines) + "\n")
    hdf5(root / STIMULI, "imgBrick", truth.pixels)
    for k, name in enumerate(("train", "val")):
        half = [
            {"id": n, "image_id": image, "caption": text}
            for n, image in enumerate(truth.captions)
            if image % 2 == k
            for text in (*truth.captions[image], "  ")
        ]
        half.append({"id": 9, "image_id": 4321, "caption": "of no stimulus"})
        (root / f"captions_{name}2017.json").write_text(json.dumps({"info": {}, "annotations": half}))
    for subject, kind in zip(SESSIONS, kinds, strict=True):
        general = rng.choice([-1, 0, 1], SHAPE).astype(np.float32)
        visual = rng.integers(-1, 8, SHAPE).astype(np.float32)
        truth.labels[subject] = general, visual
        nifti(root / ROI.format(subject) / "nsdgeneral.nii.gz", general)
        nifti(root / ROI.format(subject) / "prf-visualrois.nii.gz", visual)
        betas = rng.normal(rng.normal(0, 300, SHAPE)[..., None], 400, (SESSIONS[subject], *SHAPE, SESSION)).astype(np.int16)
        betas *= np.arange(1, SESSIONS[subject] + 1).reshape(-1, 1, 1, 1, 1).astype(np.int16)
        betas[0, ..., 0], betas[0, ..., 1] = 32767, -32768
        truth.raw[subject] = betas
        (x, y, z), other = truth.voxels(subject)[:2]
        betas[1, x, y, z] = 0  # outside the imaged volume in session 2
        shared = np.array(truth.is_shared(subject)).reshape(-1, SESSION)
        betas[(1, *other, ~shared[1])] = 123  # varies over test trials alone
        for number, session in enumerate(betas, 1):
            write_session(root / BETAS.format(subject), number, session, kind)
    return truth


def cut(path, keep=0.6):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * keep)])


def betas_of(truth, subject, number):
    return next((truth.root / BETAS.format(subject)).glob(f"betas_session{number:02d}.*"))


def redesign(truth, **change):
    fields = {"order": truth.order.copy(), "images": truth.images.copy(), "shared": truth.shared.copy()}
    for name, value in change.items():
        fields[name].flat[-1] = value
    write_design(dataclasses.replace(truth, **fields))


def edit(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def flip(path):
    data = bytearray(gzip.decompress(path.read_bytes()))
    packed = bytearray(gzip.compress(bytes(data), 0))
    packed[-400] ^= 4  # stored, so only the checksum can tell
    path.write_bytes(packed)
