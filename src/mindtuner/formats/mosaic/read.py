"""MOSAIC (93 subjects of eight datasets on one cortical surface), read without loading them whole.

One HDF5 file per subject, such as ``sub-01_NSD.hdf5``: group ``betas`` holds a 1-D dataset of the 91,282 fsLR grayordinates
for each trial, named ``sub-01_NSD_stimulus-NAME_phase-train_rep-0`` (phase ``train`` or ``test``; rep counts from 0), and
``nan_indices_all`` lists the grayordinates that lack a value somewhere. One table per dataset, such as
``nsd_stiminfo.tsv``, has the columns ``filename``, ``alias``, ``source``, ``test_train`` and ``sub-01_reps``. MOSAIC's
split across datasets is a folder with ``train_naturalistic.json`` and ``test_naturalistic.json``. ``docs/mosaic.md`` says
where each of these facts comes from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np

from mindtuner.data import Dataset, Stimuli, Subject, Trials, check_no_leak
from mindtuner.data.lazy import get_dataset, open_hdf5
from mindtuner.data.surface import CORTEX, GRAYORDINATES, GROUPS, Atlas, load_atlas
from mindtuner.errors import UserError
from mindtuner.formats.image_files import captions_beside
from mindtuner.formats.lab_folder.read import has_table
from mindtuner.formats.mosaic.stimuli import ENDINGS, ImageFiles, StimulusFolder, number_by_content
from mindtuner.formats.mosaic.tables import DATASETS, read_split, read_tables
from mindtuner.inputs import one_line, reading
from mindtuner.runtime import progress

SUBJECT_FILES, TABLES, STIMULI = "sub-*_*.hdf5", "*_stiminfo.tsv", "stimuli"  # in the folder itself
KEY = re.compile(r"(sub-(\d+)_([^_]+))_stimulus-(.+)_phase-(train|test)_rep-(\d+)")
ARTIFICIAL = ("NSDsynthetic", "Artificial")  # sources of drawn stimuli, which MOSAIC keeps apart from photographs
TEST_BY_TEST = ("deeprecon",)  # whose test trials were normalised by statistics of test trials


def sniff(root: Path) -> bool:
    """Whether a folder looks like MOSAIC's: a subject's file or a table. Beside a lab's table of trials they do not count."""
    if has_table(root):
        return False
    return any(any(root.glob(name)) for name in (SUBJECT_FILES, TABLES))


def mosaic_files(root: Path) -> tuple[list[Path], list[Path], Path]:
    """Subject files, tables under MOSAIC's own names, and the folder of stimuli. Any may be missing."""
    tables = [path for path in sorted(root.glob(TABLES)) if path.name in {source.stiminfo for source in DATASETS.values()}]
    return sorted(root.glob(SUBJECT_FILES)), tables, root / STIMULI


def load(root: str | Path, subjects: Iterable[int] | None = None) -> Dataset:
    """Open a folder of MOSAIC's files under their own names.

    All subjects are opened, whichever are asked for: the stimuli and which of them are test pictures depend on it.

    Parameters
    ----------
    root : str or Path
        Folder with ``sub-NN_DATASET.hdf5``, their ``*_stiminfo.tsv`` and ``stimuli/``.
    subjects : iterable of int, optional
        By default all of it. MOSAIC's number plus that of the dataset, see ``load_mosaic``.

    Returns
    -------
    Dataset
        With the regions and the split that are ``load_mosaic``'s defaults.

    Raises
    ------
    UserError
        As ``load_mosaic`` does, and where there is no subject.
    """
    root = Path(root)
    files, tables, stimuli = mosaic_files(root)
    if not files:
        raise UserError(f"{root}: no subject; expected MOSAIC's files such as sub-01_NSD.hdf5")
    dataset = load_mosaic(files, tables, stimuli)
    wanted = sorted(dataset.subjects) if subjects is None else sorted(set(subjects))
    return replace(dataset, subjects={number: dataset.subject(number) for number in wanted})


def load_mosaic(
    files: str | Path | Iterable[str | Path],
    stiminfo: str | Path | Iterable[str | Path],
    stimuli: str | Path,
    regions: Iterable[str] = tuple(GROUPS),
    split: str | Path | None = None,
) -> Dataset:
    """Open subjects of MOSAIC as one dataset. Betas and pictures stay on disk until they are asked for.

    Parameters
    ----------
    files : path or paths
        HDF5 files, one a subject, of one dataset or of several.
    stiminfo : path or paths
        The stimulus table of each of these datasets, under MOSAIC's own name.
    stimuli : str or Path
        Folder of stimuli, see ``mosaic.stimuli``. A ``.txt`` beside a picture holds its captions, one a line.
    regions : iterable of str
        ``early``, ``ventral``, ``lateral``, ``dorsal`` (see ``surface.GROUPS``), or single HCP-MMP parcels.
    split : str or Path, optional
        Folder with MOSAIC's split across datasets. By default each dataset's own, which the keys name.

    Returns
    -------
    Dataset
        A subject's ``rois`` are the regions and each parcel in them. Its ``vertices`` say where each voxel lies. Its number
        is MOSAIC's plus 0 (NSD), 100 (BOLD5000), 200 (GOD), 300 (deeprecon), 400 (THINGS), 500 (NOD), 600 (HAD) or 700
        (BMD). The files do not say in which session a trial was: all are of session 1. Pictures of several datasets count as
        one stimulus where their pixels are the same.

        Left out are vertices without a value, trials of drawn stimuli, trials that the split does not list, and training
        trials of a picture that is a test picture of anybody here. The card's ``notes`` say so.

    Raises
    ------
    UserError
        Naming file and key, where anything is missing, damaged or at odds with another file.
    """
    opened = sorted((_open(path) for path in _paths(files)), key=lambda subject: subject.number)
    if not opened:
        raise UserError("files: names no file; expected MOSAIC subjects such as sub-01_NSD.hdf5")
    for one, other in zip(opened, opened[1:], strict=False):
        if one.number == other.number:
            raise UserError(f"{other.path}: holds {other.person}, and so does {one.path}; expected each subject once")
    atlas = load_atlas()
    masks = atlas.regions(regions)
    tables = read_tables(_paths(stiminfo), {person.dataset for person in opened})
    listed = None if split is None else read_split(Path(split), {person.person for person in opened})
    notes = ["the files do not say in which session a trial was; all are taken for session 1"]
    chosen = {person.number: _choose(person, tables[person.dataset], listed, notes) for person in opened}
    stimulus, is_shared, images = _read_stimuli(opened, chosen, Path(stimuli))
    subjects = {
        n: _subject(person, chosen[n], stimulus[n], is_shared, atlas, masks, notes)
        for n, person in ((person.number, person) for person in opened)
    }
    card = {
        "simulated": any(bool(person.file.attrs.get("simulated", False)) for person in opened),
        "zscore": "session_all" if any(person.dataset in TEST_BY_TEST for person in opened) else "publisher",
        "normalised": {dataset: DATASETS[dataset].normalised for dataset in sorted(tables)},
        "split": "each dataset's own" if split is None else "MOSAIC's across datasets",
        "subjects": {str(person.number): person.person for person in opened},
        "notes": notes,
    }
    return Dataset(opened[0].path.parent, subjects, images, card)


@dataclass(frozen=True)
class _Trial:
    key: str
    stem: str  # of its stimulus, whose file name it is without the ending
    is_test: bool
    repeat: int
    names: tuple[str, ...] = ()  # of its stimulus' file


@dataclass(frozen=True, eq=False)
class _Person:
    """An open file and what its keys say."""

    path: Path
    file: h5py.File
    person: str  # such as sub-01_NSD
    dataset: str
    number: int
    trials: list[_Trial]


def _paths(given: str | Path | Iterable[str | Path]) -> list[Path]:
    return [Path(given)] if isinstance(given, str | Path) else [Path(path) for path in given]


def _open(path: Path) -> _Person:
    file = open_hdf5(path)
    betas = file.get("betas")
    if not isinstance(betas, h5py.Group) or len(betas) == 0:
        raise UserError(f"{path}: no group 'betas' with a dataset for each trial; expected a MOSAIC subject")
    trials, person = [], None
    for key in betas:
        match = KEY.fullmatch(key)
        if match is None:
            raise UserError(f"{path}: key {key} does not parse; expected sub-NN_DATASET_stimulus-NAME_phase-train_rep-N")
        person = person or match
        if match[1] != person[1]:
            raise UserError(f"{path}: key {key} is of another subject than {person[1]}; expected one subject a file")
        trials.append(_Trial(key, match[4], match[5] == "test", int(match[6])))
    if person[3] not in DATASETS or not 1 <= int(person[2]) <= 99:
        raise UserError(f"{path}: holds {person[1]}; expected a subject 01..99 of {', '.join(DATASETS)}")
    trials.sort(key=lambda trial: (trial.stem, trial.is_test, trial.repeat))
    return _Person(path, file, person[1], person[3], DATASETS[person[3]].base + int(person[2]), trials)


def _choose(person: _Person, table: dict[str, list[dict]], listed: dict[str, bool] | None, notes: list[str]) -> list[_Trial]:
    """The trials that count, with the names of their stimuli. Refuses what the table or the split says otherwise."""
    chosen, drawn, unlisted = [], 0, 0
    for trial in person.trials:
        row = _row(person, trial, table)
        if trial.is_test != (row["test_train"] == "test"):
            raise UserError(
                f"{person.path}: key {trial.key} and the stimulus table, which says {row['test_train']}, differ; "
                "expected the same phase"
            )
        if row["source"] in ARTIFICIAL:
            drawn += 1
        elif listed is not None and trial.key not in listed:
            unlisted += 1
        elif listed is not None and listed[trial.key] != trial.is_test:
            raise UserError(f"{person.path}: key {trial.key} is in the other list of MOSAIC's split; expected the same phase")
        else:
            alias = (row["alias"],) if (row["alias"] or "").lower().endswith(ENDINGS) else ()  # elsewhere it is a number
            chosen.append(replace(trial, names=(row["filename"], *alias)))
    if drawn:
        notes.append(f"{person.person}: {drawn} trials of drawn stimuli left out")
    if unlisted:
        notes.append(f"{person.person}: {unlisted} trials left out, which MOSAIC's split does not list")
    return chosen


def _row(person: _Person, trial: _Trial, table: dict[str, list[dict]]) -> dict:
    rows = table.get(trial.stem, [])
    if len(rows) > 1:  # a.jpg and a.png: only the trial itself knows
        shown = person.file["betas"][trial.key].attrs.get("presented_stimulus_filename")
        rows = [row for row in rows if row["filename"] == shown]
    if len(rows) != 1:
        raise UserError(
            f"{person.path}: key {trial.key} has {len(rows)} rows in {DATASETS[person.dataset].stiminfo}; "
            f"expected one, whose filename is {trial.stem} and an ending"
        )
    return rows[0]


def _read_stimuli(
    opened: list[_Person], chosen: dict[int, list[_Trial]], root: Path
) -> tuple[dict[int, np.ndarray], np.ndarray, Stimuli]:
    """Stimulus of each trial, int64 (n,) by subject number; is_shared, bool (N,), test picture of anybody; the stimuli."""
    folder, shown, found = StimulusFolder(root), {}, {}
    for person in opened:
        found[person.number] = [
            folder.find(person.dataset, trial.names, f"{person.path}: {trial.key}") for trial in chosen[person.number]
        ]
        for path in found[person.number]:
            shown.setdefault(path, set()).add(person.dataset)
    numbers = number_by_content(shown)
    stimulus = {number: np.array([numbers[path] for path in paths], np.int64) for number, paths in found.items()}
    is_shared = np.zeros(max(numbers.values(), default=-1) + 1, bool)
    for number, trials in chosen.items():
        is_shared[stimulus[number][[trial.is_test for trial in trials]]] = True
    first: dict[int, Path] = {}  # where several files have the same content
    for path, number in numbers.items():
        first.setdefault(number, path)
    captions = [captions_beside(path) for path in first.values()]
    names = [path.relative_to(root).as_posix() for path in first.values()]
    files = list(first.values())
    return stimulus, is_shared, Stimuli(ImageFiles(files), captions, is_shared, str(root), names, files)


def _subject(
    person: _Person,
    chosen: list[_Trial],
    stimulus: np.ndarray,
    is_shared: np.ndarray,
    atlas: Atlas,
    masks: dict[str, np.ndarray],
    notes: list[str],
) -> Subject:
    is_test = np.array([trial.is_test for trial in chosen], bool)
    leaked = is_shared[stimulus] & ~is_test
    if leaked.any():
        notes.append(
            f"{person.person}: {leaked.sum()} training trials left out, whose picture is a test picture of another subject"
        )
    keep = np.flatnonzero(~leaked)
    wanted = np.any(list(masks.values()), axis=0)
    empty = _without_value(person, notes) & wanted
    voxels = np.flatnonzero(wanted & ~empty)
    if empty.any():
        notes.append(f"{person.person}: {empty.sum()} of {wanted.sum()} vertices left out, which lack a value in some trial")
    if len(voxels) == 0 or len(keep) == 0:
        raise UserError(f"{person.path}: keeps {len(keep)} trials and {len(voxels)} vertices; expected some of both")
    trials = Trials(np.arange(len(keep)), stimulus[keep], np.ones(len(keep)), [chosen[i].repeat for i in keep], is_test[keep])
    check_no_leak(trials, is_shared, str(person.path))
    source = _Vectors(person.file["betas"], [chosen[i].key for i in keep], voxels, person.path)
    return Subject(
        person.number,
        trials,
        {name: mask[voxels] for name, mask in masks.items()},
        source,
        is_shared,
        str(person.path),
        atlas.surface[voxels],
        files=(person.path,),
        table=str(person.path),
    )


def _without_value(person: _Person, notes: list[str]) -> np.ndarray:
    """Which cortical grayordinates lack a value in at least one trial (or in MOSAIC's noise ceiling), bool (59412,)."""
    empty = np.zeros(GRAYORDINATES, bool)
    known = get_dataset(person.file, "nan_indices_all")
    if known is not None:
        with reading(person.path, "nan_indices_all, a list of grayordinates"):
            listed = np.asarray(known[()])
        if listed.ndim != 1 or listed.dtype.kind not in "iuf" or not ((listed >= 0) & (listed < GRAYORDINATES)).all():
            raise UserError(
                f"{person.path}: nan_indices_all has shape {listed.shape} or numbers out of range; expected "
                f"a list of grayordinates 0..{GRAYORDINATES - 1}"
            )
        empty[listed.astype(np.int64)] = True
    else:
        notes.append(f"{person.person}: no nan_indices_all; every trial was read to find vertices without a value")
        for trial in progress(person.trials, f"read {person.person}", unit="trial"):
            empty |= ~np.isfinite(_vector(person.file["betas"], trial.key, slice(None), person.path))
    return empty[:CORTEX]


class _Vectors:
    """Betas of one subject: ``vectors[rows]`` is float32 (n, V), row ``i`` from the dataset called ``keys[i]``."""

    def __init__(self, betas: h5py.Group, keys: list[str], voxels: np.ndarray, path: Path):
        self._betas, self._keys, self._voxels, self._path = betas, keys, voxels, path
        self.shape, self.dtype = (len(keys), len(voxels)), np.dtype(np.float32)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        # One stretch that holds all voxels, of which they are then picked: twenty times as fast as HDF5's own picking.
        first, last = int(self._voxels[0]), int(self._voxels[-1])
        ascending, place = np.unique(rows, return_inverse=True)
        betas = np.empty((len(ascending), len(self._voxels)), np.float32)
        for target, row in zip(betas, ascending, strict=True):
            key = self._keys[row]
            target[:] = _vector(self._betas, key, slice(first, last + 1), self._path)[self._voxels - first]
            whole = np.isfinite(target)
            if not whole.all():
                at = int(np.argmin(whole))
                raise UserError(
                    f"{self._path}: key {key}, grayordinate {self._voxels[at]} is {target[at]}; expected a "
                    "finite number, or the grayordinate in nan_indices_all"
                )
        return betas[place]


def _vector(betas: h5py.Group, key: str, part: slice, path: Path) -> np.ndarray:
    """Part of one trial's vector of grayordinates."""
    data = get_dataset(betas, key)
    if data is None or data.shape != (GRAYORDINATES,) or data.dtype.kind != "f":
        form = "no dataset" if data is None else f"shape {data.shape} and dtype {data.dtype}"
        raise UserError(f"{path}: key {key} has {form}; expected ({GRAYORDINATES},) floats, the grayordinates of fsLR")
    try:
        return data[part]
    except Exception as error:
        raise UserError(f"{path}: key {key} cannot be read ({one_line(error)}); expected a whole file") from error
