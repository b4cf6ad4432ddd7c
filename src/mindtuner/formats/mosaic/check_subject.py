"""What ``check`` looks at in one MOSAIC subject: the keys of its trials against the stimulus table, and its betas."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np

from mindtuner.data import Trials
from mindtuner.data.lazy import get_dataset, open_hdf5
from mindtuner.data.surface import CORTEX, GRAYORDINATES, GROUPS, load_atlas
from mindtuner.errors import UserError
from mindtuner.formats.checks.betas import Labels, check_betas
from mindtuner.formats.checks.findings import Findings, some
from mindtuner.formats.checks.parts import check_trials
from mindtuner.formats.mosaic.read import ARTIFICIAL, KEY
from mindtuner.formats.mosaic.stimuli import ENDINGS
from mindtuner.formats.mosaic.tables import DATASETS
from mindtuner.inputs import reading
from mindtuner.runtime import progress


@dataclass(frozen=True)
class Trial:
    """What a key says."""

    key: str
    stem: str
    is_test: bool
    repeat: int


@dataclass(eq=False)
class Person:
    """An open subject file, and what has been learnt about it so far.

    trials    those whose keys parse
    names     of each trial that counts, what its stimulus' file may be called
    pictures  of each trial that counts, its stimulus' file, where there is one
    """

    path: Path
    file: h5py.File
    name: str  # such as sub-01_NSD
    dataset: str
    number: int
    trials: list[Trial]
    names: dict[Trial, list[str]] = field(default_factory=dict)
    pictures: dict[Trial, Path] = field(default_factory=dict)


def open_person(findings: Findings, path: Path) -> Person | None:
    """Open a subject's file and parse its keys, all of them. Raises UserError where the file holds none."""
    file = open_hdf5(path)
    with reading(path, "a MOSAIC subject"):
        betas = file.get("betas")
        if not isinstance(betas, h5py.Group) or len(betas) == 0:
            raise UserError(f"{path}: no group 'betas' with a dataset for each trial; expected a MOSAIC subject")
        matches = {key: KEY.fullmatch(key) for key in betas}
    problems = [
        (f"key {key}", "does not parse; expected sub-NN_DATASET_stimulus-NAME_phase-train_rep-N")
        for key, match in matches.items()
        if match is None
    ]
    own = [match for match in matches.values() if match is not None]
    people = sorted({match[1] for match in own}, key=[match[1] for match in own].count)
    name = people[-1] if people else None  # that most keys are of
    problems += [
        (f"key {match[0]}", f"is of another subject than {name}; expected one subject a file")
        for match in own
        if match[1] != name
    ]
    damaged = {match[0] for match in own if not _opens(betas, match[0])}
    problems += [(f"key {key}", "cannot be read; expected a whole file") for key in sorted(damaged)]
    findings.errors(path, problems)
    if name is None:
        return None
    number, dataset = name.removeprefix("sub-").split("_")
    if dataset not in DATASETS or not 1 <= int(number) <= 99:
        findings.error(path, "subject", f"holds {name}; expected a subject 01..99 of {', '.join(DATASETS)}")
        return None
    if path.stem != name:
        findings.warning(path, "subject", f"holds {name}; expected the file to be called {name}.hdf5")
    trials = [
        Trial(match[0], match[4], match[5] == "test", int(match[6]))
        for match in own
        if match[1] == name and match[0] not in damaged
    ]
    trials.sort(key=lambda trial: (trial.stem, trial.is_test, trial.repeat))
    return Person(path, file, name, dataset, DATASETS[dataset].base + int(number), trials)


def _opens(betas: h5py.Group, key: str) -> bool:
    try:
        return get_dataset(betas, key) is not None
    except UserError:
        return False


def check_keys(findings: Findings, person: Person, table: dict[str, list[dict]]) -> None:
    """Compare keys and attributes with the table; say which trials count, and by what names their pictures go."""
    problems, odd = [], []
    for trial in person.trials:
        attributes = person.file["betas"][trial.key].attrs
        rows = table.get(trial.stem, [])
        if len(rows) > 1:  # a.jpg and a.png: only the trial itself knows
            rows = [row for row in rows if row["filename"] == attributes.get("presented_stimulus_filename")]
        if len(rows) != 1:
            problems.append(
                (
                    f"key {trial.key}",
                    f"has {len(rows)} rows in {DATASETS[person.dataset].stiminfo}; expected "
                    f"one, whose filename is {trial.stem} and an ending",
                )
            )
            continue
        if trial.is_test != (rows[0]["test_train"] == "test"):
            problems.append(
                (
                    f"key {trial.key}",
                    f"and the stimulus table, which says {rows[0]['test_train']}, differ; expected the same phase",
                )
            )
        said = {"phase": "test" if trial.is_test else "train", "repetition": trial.repeat}
        odd += [
            f"{trial.key} ({name} {attributes[name]})" for name, value in said.items() if attributes.get(name, value) != value
        ]
        if rows[0]["source"] not in ARTIFICIAL:
            alias = rows[0]["alias"] or ""
            person.names[trial] = [rows[0]["filename"], *([alias] if alias.lower().endswith(ENDINGS) else [])]
    findings.errors(person.path, problems)
    if odd:
        findings.warning(
            person.path,
            "attributes",
            f"{len(odd)} trials have attributes that differ from their key: {some(odd)}; the key counts",
        )
    _check_repeats(findings, person)


def _check_repeats(findings: Findings, person: Person) -> None:
    """Whether the trials of each stimulus are numbered 0, 1, 2, ..., each once."""
    found: dict[tuple[str, bool], list[int]] = {}
    for trial in person.trials:
        found.setdefault((trial.stem, trial.is_test), []).append(trial.repeat)
    twice = [stem for (stem, _), repeats in found.items() if len(set(repeats)) < len(repeats)]
    gaps = [stem for (stem, _), repeats in found.items() if set(range(max(repeats))) - set(repeats)]
    if twice:
        findings.error(
            person.path,
            "repeat",
            f"{len(twice)} stimuli have the same repeat twice: {some(twice)}; expected 0, 1, 2, ... once each",
        )
    if gaps:
        findings.warning(
            person.path,
            "repeat",
            f"{len(gaps)} stimuli lack an earlier repeat: {some(gaps)}; expected 0 the first time, then 1, 2, ...",
        )


def check_shown(
    findings: Findings, person: Person, numbers: dict[Path, int], is_shared: np.ndarray, name_of: Callable[[int], str]
) -> None:
    """Report what the trials that count show, by the number of each picture.

    Training trials of a test picture are left out, as the reader does.
    """
    trials = [trial for trial in person.pictures if trial.is_test or not is_shared[numbers[person.pictures[trial]]]]
    if trials:
        stimulus = [numbers[person.pictures[trial]] for trial in trials]
        repeat, is_test = ([getattr(trial, name) for trial in trials] for name in ("repeat", "is_test"))
        table = Trials(np.arange(len(trials)), stimulus, np.ones(len(trials)), repeat, is_test)
        check_trials(findings, person.path, table, is_shared, name_of)


def check_betas_of(findings: Findings, person: Person) -> None:
    """Read the cortical part of all vectors once; report wrong lengths and dtypes, and what ``check_betas`` finds."""
    path, betas = person.path, person.file["betas"]
    problems, kinds, keys = [], set(), []
    for trial in person.trials:
        data = betas[trial.key]
        if isinstance(data, h5py.Dataset) and data.shape == (GRAYORDINATES,) and data.dtype.kind == "f":
            kinds.add(data.dtype.name)
            keys.append(trial.key)
        else:
            form = f"shape {data.shape} and dtype {data.dtype}" if isinstance(data, h5py.Dataset) else "no dataset"
            problems.append(
                (f"key {trial.key}", f"has {form}; expected ({GRAYORDINATES},) floats, the grayordinates of fsLR")
            )
    findings.errors(path, problems)
    if not keys:
        return
    findings.fact(path, f"{len(person.trials)} trials x {GRAYORDINATES} grayordinates, {' and '.join(sorted(kinds))}")
    if "float16" in kinds or len(kinds) > 1:
        findings.warning(path, "dtype", f"betas are {' and '.join(sorted(kinds))}; expected float64 or float32 throughout")
    voxels = _with_value(findings, person, keys)
    if len(voxels):
        labels = Labels(lambda row: f"key {keys[row]}", lambda voxel: f"grayordinate {voxels[voxel]}")
        check_betas(findings, path, _Vectors(betas, keys, voxels, path), np.ones(len(keys), np.int64), True, labels)


def _with_value(findings: Findings, person: Person, keys: list[str]) -> np.ndarray:
    """Cortical grayordinates that nan_indices_all does not list, int64 (V,); without it, that have a value in all trials."""
    path, empty = person.path, np.zeros(GRAYORDINATES, bool)
    known = person.file.get("nan_indices_all")
    if not isinstance(known, h5py.Dataset):
        vectors = _Vectors(person.file["betas"], keys, np.arange(CORTEX), path)
        for row in progress(range(len(keys)), f"{findings.name(path)}, vertices without a value", unit="trial"):
            with contextlib.suppress(UserError):  # reported when the betas are read
                empty[:CORTEX] |= ~np.isfinite(vectors[np.array([row])][0])
        findings.note(
            path,
            "nan_indices_all",
            f"is missing: all trials were read to find the {empty.sum()} vertices without "
            "a value in some, which are left out",
        )
    else:
        listed = known[()]
        if listed.ndim != 1 or not ((listed >= 0) & (listed < GRAYORDINATES) & (listed == np.floor(listed))).all():
            findings.error(
                path,
                "nan_indices_all",
                f"has shape {listed.shape} or numbers out of range; expected a list of grayordinates 0..{GRAYORDINATES - 1}",
            )
        else:
            empty[listed.astype(np.int64)] = True
    empty = empty[:CORTEX]
    regions = load_atlas().regions(GROUPS)
    left = {name: int((regions[name] & ~empty).sum()) for name in GROUPS}
    findings.fact(
        path,
        f"{CORTEX - empty.sum()} of {CORTEX} vertices have a value: "
        + ", ".join(f"{name} {count}" for name, count in left.items()),
    )
    for name in (name for name, count in left.items() if count == 0):
        findings.warning(path, f"region {name}", "holds no vertex that has a value")
    return np.flatnonzero(~empty)


class _Vectors:
    """``vectors[rows]`` is float64 (n, V) of these grayordinates, row ``i`` from the dataset called ``keys[i]``."""

    def __init__(self, betas: h5py.Group, keys: list[str], voxels: np.ndarray, path: Path):
        self._betas, self._keys, self._voxels, self._path = betas, keys, voxels, path
        self.shape, self.dtype = (len(keys), len(voxels)), np.dtype(np.float64)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        block = np.empty((len(rows), len(self._voxels)))
        for target, row in zip(block, rows, strict=True):
            key = self._keys[row]
            data = get_dataset(self._betas, key)
            with reading(self._path, f"a vector of grayordinates at key {key}"):
                target[:] = data[:CORTEX][self._voxels]
        return block
