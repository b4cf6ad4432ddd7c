"""The NSD release in small, written with the package's writer, and the truth that it holds."""

import dataclasses
import io
import tarfile

import numpy as np

from mindtuner.formats.nsd_release import write as release_writer

VOXELS, IMAGES, TRIALS = 7, 6, 40
ROIS = ("nsd_general", "V1", "V2", "V3", "V4", "higher_vis")
CAPTIONS = [("a red house", "a house, red"), (), ("über naïve 猫",), ("a", "b", "c", "d", "e"), ("dog",), ("x" * 99,)]


@dataclasses.dataclass
class Truth:
    root: object
    betas: dict
    tables: dict
    pixels: np.ndarray
    shared: np.ndarray
    masks: dict


def make_nsd(root, seed=0):
    """Two subjects, two sessions of 20 trials, 6 images of which 1 and 4 are shared."""
    rng = np.random.default_rng(seed)
    shared = np.array([False, True, False, False, True, False])
    pixels = rng.integers(0, 256, (IMAGES, 3, 224, 224), dtype=np.uint8)
    betas, tables, masks = {}, {}, {}
    for subject in (1, 3):
        stimulus = rng.permutation(np.arange(TRIALS) % IMAGES)
        tables[subject] = release_writer.TrialTable(
            stimulus=stimulus,
            session=np.repeat([1, 2], 20),
            run=np.tile(np.repeat([1, 2], 10), 2),
            trial=np.tile(np.arange(1, 11), 4),
            time=np.arange(TRIALS) * 4.5,
            is_shared=shared[stimulus],
        )
        betas[subject] = rng.standard_normal((TRIALS, VOXELS)).astype(np.float32)
        masks[subject] = {name: rng.random(VOXELS) < 0.5 for name in ROIS} | {"nsd_general": np.ones(VOXELS, bool)}
        release_writer.write_betas(root, subject, [betas[subject][:15], betas[subject][15:]], (TRIALS, VOXELS))
        release_writer.write_behaviour(root, subject, tables[subject])
    release_writer.write_images(root, (pixels[i : i + 4] for i in (0, 4)), IMAGES)
    release_writer.write_captions(root, CAPTIONS)
    release_writer.write_shared(root, shared)
    release_writer.write_indices(root, {subject: table.stimulus for subject, table in tables.items()})
    release_writer.write_masks(root, masks)
    release_writer.write_card(root, {"simulated": True, "zscore": "train_trials", "seed": seed})
    return Truth(root, betas, tables, pixels, shared, masks)


def raw_samples(path):
    samples = {}
    with tarfile.open(path) as tar:
        for member in tar.getmembers():
            sample, kind = member.name.split(".", 1)
            samples.setdefault(sample, {})[kind] = np.load(io.BytesIO(tar.extractfile(member).read()))
    return samples


def rewrite(path, change, keep=lambda member: True):
    """Pass every behaviour array of a tar through ``change`` (array -> array)."""
    with tarfile.open(path) as tar:
        contents = [(member, tar.extractfile(member).read()) for member in tar.getmembers() if keep(member)]
    with tarfile.open(path, "w") as tar:
        for member, data in contents:
            if member.name.endswith(".behav.npy"):
                out = io.BytesIO()
                np.save(out, change(np.load(io.BytesIO(data))))
                data = out.getvalue()
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def put(column, value):
    def change(array):
        array[0, column] = value
        return array

    return change
