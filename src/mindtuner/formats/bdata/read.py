"""A folder of BData, one or more files a subject, with the pictures that were shown.

Files are called after their subject, ``sub-01_ImageNetTraining.h5`` or ``Subject1.h5``; those of one subject are put
together. ``stimuli/`` holds the pictures (see ``image_files``). A label is the name of a picture, with or without its ending,
or an id that ``stimuli.tsv`` has: a column ``id``, or called as the labels, beside ``file``. ``docs/your-own-scans.md`` says
it for users.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from mindtuner.data import Dataset, Stimuli, Subject, Trials, check_no_leak
from mindtuner.data.dataset import CARD, count_repeats
from mindtuner.data.lazy import Columns, LazyArray
from mindtuner.data.zscore import SessionZScored
from mindtuner.errors import UserError
from mindtuner.formats.bdata.file import BDataFile
from mindtuner.formats.checks.findings import some
from mindtuner.formats.image_files import FolderImages, Hdf5Images
from mindtuner.formats.lab_folder.read import has_table, image_files, load_card, open_images
from mindtuner.formats.nifti import JoinedSessions
from mindtuner.formats.subject_numbers import number_subjects
from mindtuner.inputs import read_text

TABLE = "stimuli.tsv"
VOXELS = ("VoxelData", "VertexData")  # the first that there is, where nobody says which voxels
LABELS = ("stimulus_name", "stimulus_id", "image_index", "Label")  # likewise
SPLIT_COLUMNS = ("DataType", "trial_type")  # 1 training, 2 test; all else is used by nothing
SESSION, ROI = "Session", "ROI_"
PLACES = ("voxel_i", "voxel_j", "voxel_k", "voxel_x", "voxel_y", "voxel_z", "vertex_index")
_NOT_SUBJECTS = ("betas.h5", "stimuli.h5")
_NUMBER = re.compile(r"(?:sub|subj|subject|s)[-_]?(\d{1,6})", re.IGNORECASE)


@dataclass(frozen=True)
class Choice:
    """Which columns are what, and which files are training and test. None: as the files tell."""

    voxels: str | None = None
    label: str | None = None
    session: str | None = None
    train: tuple[str, ...] | None = None
    test: tuple[str, ...] | None = None


def sniff(root: Path) -> bool:
    """Whether a folder looks like BData: ``.h5`` files. Beside a lab's table of trials they do not count."""
    return not has_table(root) and bool(find_files(root))


def find_files(root: Path) -> list[Path]:
    """The files of subjects, sorted by name."""
    return sorted(path for path in root.glob("*.h5") if path.name not in _NOT_SUBJECTS)


def load(root: str | Path, subjects: Iterable[int] | None = None) -> Dataset:
    """Open a folder of BData with what its ``dataset.json`` says. See ``load_bdata``."""
    return load_bdata(root, subjects)


def load_bdata(
    root: str | Path,
    subjects: Iterable[int] | None = None,
    *,
    voxels: str | None = None,
    label: str | None = None,
    session: str | None = None,
    train: Sequence[str] | None = None,
    test: Sequence[str] | None = None,
) -> Dataset:
    """Open a folder of BData. Betas and images stay on disk until they are asked for.

    What is not given is what ``dataset.json`` says in ``bdata``, else what the files tell.

    Parameters
    ----------
    root : str or Path
        Folder with the files and ``stimuli/``.
    subjects : iterable of int, optional
        By default all.
    voxels : str, optional
        An expression such as ``"ROI_V1 + ROI_V2"`` (see ``bdata.expression``). By default ``VoxelData``, or ``VertexData``.
    label : str, optional
        Metadata key of the column that says which picture was shown. By default the first of ``LABELS`` that there is.
    session : str, optional
        Metadata key of sessions from 1, by default ``Session``. Without it each file is one session.
    train, test : sequence of str, optional
        Patterns of the names of training and test files, such as ``"*Training*"``. By default a column ``DataType`` or
        ``trial_type`` says it (1 training, 2 test), or "train" and "test" in a file's name.

    Returns
    -------
    Dataset
        Sessions of a subject's later files go on counting. Regions are the metadata that begin with ``ROI_``, without that.
        The card's ``bdata`` says what was taken for what.

    Raises
    ------
    UserError
        Naming file and key, where anything is missing, damaged or at odds with another file.
    """
    root = Path(root)
    card = load_card(root)
    choice = choose(root, card, voxels=voxels, label=label, session=session, train=train, test=test)
    people = {number: people_of(root)[name] for number, name in numbers_of(root, card).items()}
    wanted = sorted(people) if subjects is None else sorted(set(subjects))
    for number in wanted:
        if number not in people:
            raise UserError(f"{root}: no subject {number}; expected some of {', '.join(map(str, sorted(people)))}")
    images = open_images(root, card)
    names = Names(root, images)
    read = {number: [Part(path, choice) for path in paths] for number, paths in people.items()}
    trials = {number: trials_of(parts, names) for number, parts in read.items()}
    for number, found in trials.items():
        if len(found) == 0:
            raise UserError(f"{read[number][0].path}: subject {number} has no trial of training or test; expected some")
    is_shared = np.zeros(images.shape[0], bool)
    for found in trials.values():
        is_shared[found.stimulus[found.is_test]] = True
    captions = [images.captions(i) for i in range(images.shape[0])]
    called = list(images.names) if isinstance(images, FolderImages) else None
    stimuli = Stimuli(images, captions, is_shared, str(root), called, image_files(root, images))
    opened = {number: open_subject(number, root, read[number], trials[number], is_shared, card) for number in wanted}
    first = next(iter(read.values()))[0]
    card = {
        **card,
        "bdata": {"voxels": first.voxels, "label": first.label},
        "subjects": {str(number): people_name(paths[0]) for number, paths in people.items()},
    }
    if card["zscore"] == "none":
        card = {**card, "zscore": "train_trials", "zscored_on_read": True}
    return Dataset(root, opened, stimuli, card)


def choose(root: Path, card: dict, **given) -> Choice:
    """What is given, else what the card says. Raises UserError where the card's ``bdata`` is no such thing."""
    said = card.get("bdata", {})
    for name, value in said.items() if isinstance(said, dict) else [("bdata", said)]:
        text = isinstance(value, str) and name in ("voxels", "label", "session")
        listed = isinstance(value, list) and name in ("train", "test") and all(isinstance(entry, str) for entry in value)
        if not text and not listed:
            raise UserError(
                f"{root / CARD}: bdata, {name} is {value!r}; expected texts voxels, label and session, and lists train and "
                'test, as {"voxels": "ROI_V1 + ROI_V2", "test": ["*Test*"]}'
            )
    found = {**said, **{name: value for name, value in given.items() if value is not None}}
    return Choice(**{name: tuple(value) if isinstance(value, list | tuple) else value for name, value in found.items()})


def people_name(path: Path) -> str:
    """``sub-01`` of ``sub-01_ImageNetTest.h5``."""
    return path.stem.partition("_")[0]


def people_of(root: Path) -> dict[str, list[Path]]:
    """Name of each subject -> its files in the order of names. Raises UserError where there is none."""
    found: dict[str, list[Path]] = {}
    for path in find_files(root):
        found.setdefault(people_name(path), []).append(path)
    if not found:
        raise UserError(f"{root}: no subject; expected files of BData such as sub-01_ImageNetTraining.h5")
    return found


def numbers_of(root: Path, card: dict) -> dict[int, str]:
    """Number -> name of the subjects. Raises UserError as ``number_subjects`` does."""
    first = {name: paths[0] for name, paths in people_of(root).items()}
    return number_subjects(first, lambda name: int(match[1]) if (match := _NUMBER.fullmatch(name)) else None, card)


class Part:
    """One file with the roles of its columns.

    Attributes
    ----------
    file : BDataFile
    voxels, label : str
        What was taken for them.
    columns : bool (columns,)
        The voxels.
    labels : list (samples,)
        As ``BDataFile.labels``.
    split : list of str (samples,)
        "train", "test" or "".
    session : int64 (samples,)
        From 1.
    """

    def __init__(self, path: Path, choice: Choice):
        self.path = path
        self.file = file = BDataFile(path)
        self.voxels = choice.voxels or self._first(VOXELS, "voxels")
        self.label = choice.label or self._first(LABELS, "label")
        self.columns = file.select(self.voxels)
        self.labels = file.labels(self.label)
        self.split = self._split(choice)
        self.session = self._session(choice.session)

    def __len__(self) -> int:
        return len(self.file)

    def _first(self, known: Sequence[str], what: str) -> str:
        for key in known:
            if key in self.file.keys:
                return key
        raise UserError(
            f"{self.path}: {what}: no metadata is called {' or '.join(known)}; expected {CARD}, bdata to name some of "
            f"{some(self.file.keys, 12)}"
        )

    def _split(self, choice: Choice) -> list[str]:
        if choice.train is not None or choice.test is not None:
            return [self._said(choice)] * len(self)
        for key in SPLIT_COLUMNS:
            if key in self.file.keys:
                return [{1.0: "train", 2.0: "test"}.get(number, "") for number in self.file.column(key).tolist()]
        name = self.path.stem.lower()
        return [self._one(train="train" in name, test="test" in name)] * len(self)

    def _said(self, choice: Choice) -> str:
        fits = {
            split: any(fnmatch.fnmatchcase(self.path.name, pattern) for pattern in patterns or ())
            for split, patterns in (("train", choice.train), ("test", choice.test))
        }
        return "" if not any(fits.values()) else self._one(**fits)

    def _one(self, train: bool, test: bool) -> str:
        if train == test:
            raise UserError(
                f"{self.path}: {'both training and test by its name' if train else 'neither training nor test'}; expected a "
                f"column {' or '.join(SPLIT_COLUMNS)} (1, 2), 'train' or 'test' in its name, or patterns in {CARD}, bdata"
            )
        return "train" if train else "test"

    def _session(self, key: str | None) -> np.ndarray:
        if key is None and SESSION not in self.file.keys:
            return np.ones(len(self), np.int64)
        numbers = self.file.column(key or SESSION)
        wrong = ~((numbers >= 1) & (numbers == np.floor(numbers)))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise UserError(f"{self.path}: {key or SESSION} of row {row} is {numbers[row]:g}; expected 1, 2, ...")
        return numbers.astype(np.int64)

    def rois(self) -> dict[str, np.ndarray]:
        """Regions over the voxels, name -> bool (V,), without those that hold none."""
        found = {
            key.removeprefix(ROI): self.file.value(key)[self.columns] == 1 for key in self.file.keys if key.startswith(ROI)
        }
        return {name: mask for name, mask in found.items() if mask.any()}

    def places(self) -> dict[str, np.ndarray]:
        """Where the voxels lie, as far as the file says: name -> float64 (V,)."""
        return {key: self.file.value(key)[self.columns] for key in PLACES if key in self.file.keys}

    def betas(self) -> LazyArray:
        """(samples, V)."""
        return Columns(self.file.rows, np.flatnonzero(self.columns))


class Names:
    """Ids of pictures by label: by ``stimuli.tsv`` where there is one, else by file name, with its ending or without."""

    def __init__(self, root: Path, images: FolderImages | Hdf5Images):
        self._known: Mapping[str, int] = images.names
        self._where = images.folder if isinstance(images, FolderImages) else images.path
        self._stems: dict[str, list[str]] = {}
        for name in images.names:
            for stem in {PurePosixPath(name).name, PurePosixPath(name).stem, PurePosixPath(name).with_suffix("").as_posix()}:
                self._stems.setdefault(stem, []).append(name)
        self.path = root / TABLE
        self._header, self._lines = _read_table(self.path) if self.path.exists() else ([], [])
        self._tables: dict[tuple[str, bool], dict[str | float, str]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def name(self, number: int) -> str:
        """What picture ``number`` is called."""
        return list(self._known)[number]

    def find(self, label: str | float, key: str) -> int:
        """The picture of a label. Raises UserError, without a file's name, where there is none or more than one."""
        if self._lines:
            text = isinstance(label, str)
            table = self._table(key, text)
            name = table.get(label if text else _rounded(label))
            if name is None:
                raise UserError(f"is {_said(label)}, which {self.path} does not list; expected {some(map(_said, table))}")
            return self._picture(name)
        if not isinstance(label, str):
            raise UserError(
                f"is the number {_said(label)}; expected {self.path} with columns {key} and file, which name its picture"
            )
        return self._picture(label)

    def _picture(self, name: str) -> int:
        if name in self._known:
            return self._known[name]
        found = self._stems.get(name, [])
        if len(found) != 1:
            raise UserError(
                f"is {name!r}, which {len(found) or 'no'} pictures in {self._where} are called; expected one, such as "
                f"{some(self._known, 2)}"
            )
        return self._known[found[0]]

    def _table(self, key: str, text: bool) -> dict[str | float, str]:
        if (key, text) in self._tables:
            return self._tables[key, text]
        column = next((self._header.index(name) for name in (key, "id") if name in self._header), None)
        if column is None:
            raise UserError(f"has no column of its own in {self.path}; expected {key} or id beside file")
        found: dict[str | float, str] = {}
        for line, row in enumerate(self._lines, 2):
            try:
                label = row[column] if text else _rounded(float(row[column]))
            except ValueError as error:
                raise UserError(
                    f"is a number, and line {line} of {self.path} is {row[column]!r}; expected numbers"
                ) from error
            name = row[self._header.index("file")]
            if found.setdefault(label, name) != name:
                raise UserError(f"is {_said(label)} twice in {self.path} (line {line}); expected one file for each")
        return self._tables.setdefault((key, text), found)


def _rounded(number: float) -> float:
    """Ids such as 1518878.005958 are computed by some and typed by others."""
    return round(number, 6)


def _said(label: str | float) -> str:
    return repr(label) if isinstance(label, str) else f"{label:.6f}".rstrip("0").rstrip(".")


def _read_table(path: Path) -> tuple[list[str], list[list[str]]]:
    lines = read_text(path, "a table of ids and files").rstrip("\n").split("\n")
    rows = [[cell.strip() for cell in line.split("\t")] for line in lines]
    if rows[0].count("file") != 1 or len(rows) < 2:
        raise UserError(f"{path}: has columns {rows[0]} and {len(rows) - 1} lines; expected id and file, tab separated")
    for line, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise UserError(f"{path}: line {line} has {len(row)} cells; expected {len(rows[0])} as in the header")
    return rows[0], rows[1:]


def used(part: Part) -> np.ndarray:
    """bool (samples,): those that have a label, and are training or test."""
    pairs = zip(part.labels, part.split, strict=True)
    return np.array([label is not None and split != "" for label, split in pairs], bool)


def sessions_of(parts: Sequence[Part]) -> np.ndarray:
    """Session of each row of all of a subject's files: those of later files go on counting, int64 (rows,)."""
    found, last = [], 0
    for part in parts:
        found.append(part.session + last)
        last = int(found[-1].max())
    return np.concatenate(found)


def trials_of(parts: Sequence[Part], names: Names) -> Trials:
    """A subject's trials over the rows of all its files. Raises UserError where a label has no picture."""
    stimulus: list[int] = []
    for part in parts:
        for row in np.flatnonzero(used(part)):
            try:
                stimulus.append(names.find(part.labels[row], part.label))
            except UserError as error:
                raise UserError(f"{part.path}: {part.label} of row {row} {error}") from error
    rows = np.flatnonzero(np.concatenate([used(part) for part in parts]))
    split = np.array([split for part in parts for split in part.split])
    return Trials(rows, stimulus, sessions_of(parts)[rows], count_repeats(np.array(stimulus)), split[rows] == "test")


def open_subject(
    number: int, root: Path, parts: Sequence[Part], trials: Trials, is_shared: np.ndarray, card: dict
) -> Subject:
    """A subject of its files. Raises UserError where these hold other voxels, or a picture is in training and in test."""
    check_same_voxels(parts)
    check_no_leak(trials, is_shared, str(parts[0].path))
    betas: LazyArray = JoinedSessions([part.betas() for part in parts])
    if card["zscore"] == "none":
        training = np.zeros(betas.shape[0], bool)
        training[trials.row[~trials.is_test]] = True
        betas = SessionZScored(betas, sessions_of(parts), training, str(parts[0].path))
    paths = [part.path for part in parts]
    where, files = ", ".join(map(str, paths)), (*paths, *filter(Path.is_file, [root / CARD]))
    return Subject(number, trials, parts[0].rois(), betas, is_shared, where, files=files, table=where)


def check_same_voxels(parts: Sequence[Part]) -> None:
    """Raise UserError where a subject's files hold different voxels, as far as they say."""
    first, rois, places = parts[0], parts[0].rois(), parts[0].places()
    for part in parts[1:]:
        counts = int(first.columns.sum()), int(part.columns.sum())
        if counts[0] != counts[1]:
            raise UserError(f"{part.path}: {counts[1]} voxels; expected {counts[0]} as in {first.path.name}")
        for name, place in part.places().items():
            if name in places and not np.array_equal(place, places[name], equal_nan=True):
                raise UserError(f"{part.path}: {name} differs from that in {first.path.name}; expected the same voxels")
        own = part.rois()
        if own.keys() != rois.keys() or not all(np.array_equal(mask, own[name]) for name, mask in rois.items()):
            raise UserError(f"{part.path}: regions differ from those in {first.path.name}; expected the same voxels")
