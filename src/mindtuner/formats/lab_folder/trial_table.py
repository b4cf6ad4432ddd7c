"""``trials.tsv``: what a lab's trials showed, one line per row of the betas, in that order.

Tab separated with a header, ``n/a`` for what is missing, as in BIDS events files; or ``trials.csv``, comma separated.
Columns: ``stimulus`` (name of an image; without that column ``stim_file``, ``label`` or ``trial_type`` is taken for it),
``session`` (1, 2, ... or ses-01, ...) and, optionally, ``split`` (train or test; without it all train), ``run`` within the
session (1, 2, ... or run-01, ...) and ``repeat`` (0 where the subject sees the image for the first time, then 1, 2, ...);
others may stand beside them. A line whose stimulus or split is ``n/a``, or whose split is ``val``, is a trial that nothing
uses; its betas stay where they are.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindtuner.data import Trials
from mindtuner.data.dataset import count_repeats
from mindtuner.errors import UserError
from mindtuner.inputs import read_text

TABLES = ("trials.tsv", "trials.csv")
COLUMNS = ("stimulus", "session")
SPLIT, TRAIN = "split", "train"
NAMED_OTHERWISE = ("stim_file", "label", "trial_type")  # what BIDS calls the stimulus; the first that there is
MISSING = "n/a"
VALIDATION = ("val", "valid", "validation", "dev")
_SAID_MISSING = ("", "N/A", "nan", "NaN")  # as pandas and others write it
_WHOLE = re.compile(r"(\d+)\.0+")  # as pandas writes whole numbers of a column that holds n/a
FIRST_LINE = 2  # of the trials, as editors count: the header is line 1
_SESSION = re.compile(r"(?:ses-|session-)?0*([1-9]\d{0,5})")
_RUN = re.compile(r"(?:run-)?0*([1-9]\d{0,5})")


@dataclass(frozen=True)
class TrialLines:
    """The table as text: each column a list of n cells, entry i belonging to betas row i.

    ``ragged``: lines with other than ``cells`` cells, line number -> count. ``named``: the column that the stimulus was in.
    ``says_split``: whether there is a column of splits; without one all trials train.
    """

    path: Path
    columns: dict[str, list[str]]
    ragged: dict[int, int]
    cells: int
    named: str = "stimulus"
    says_split: bool = True

    def __len__(self) -> int:
        return len(self.columns["stimulus"])

    def used(self) -> np.ndarray:
        """bool (n,): the trials that have a stimulus, and training or test as their split."""
        pairs = zip(self.columns["stimulus"], self.columns["split"], strict=True)
        return np.array([MISSING not in (name, split) and split not in VALIDATION for name, split in pairs], bool)

    def split_of(self, split: str) -> dict[str, int]:
        """Stimulus name -> first line on which it is in ``split``."""
        lines: dict[str, int] = {}
        cells = zip(self.columns["stimulus"], self.columns["split"], strict=True)
        for line, (name, found) in enumerate(cells, FIRST_LINE):
            if found == split and name != MISSING:
                lines.setdefault(name, line)
        return lines

    def sessions(self) -> np.ndarray:
        """int64 (n,), 1-based; 0 where a cell is no session, as n/a of a trial that nothing uses."""
        return np.array([int(m[1]) if (m := _SESSION.fullmatch(cell)) else 0 for cell in self.columns["session"]], np.int64)

    def runs(self) -> np.ndarray:
        """int64 (n,), 1-based; 0 where a cell is no run, or there is no such column."""
        cells = self.columns.get("run", [""] * len(self))
        return np.array([int(m[1]) if (m := _RUN.fullmatch(cell)) else 0 for cell in cells], np.int64)

    def says_repeats(self) -> bool:
        """Whether there is a column of repeats that says anything."""
        return any(cell != MISSING for cell in self.columns.get("repeat", ()))

    def trials(self, index: Mapping[str, int]) -> Trials:
        """The trials that are used; ``index`` is the stimulus of each name. The table has no problem."""
        used = np.flatnonzero(self.used())
        stimulus = np.array([index[self.columns["stimulus"][row]] for row in used], np.int64)
        repeat = count_repeats(stimulus)
        if self.says_repeats():
            repeat = np.array([int(self.columns["repeat"][row]) for row in used], np.int64)
        is_test = np.array([self.columns["split"][row] == "test" for row in used], bool)
        return Trials(used, stimulus, self.sessions()[used], repeat, is_test, self.runs()[used])


def find_table(folder: Path) -> Path:
    """A subject's table of trials, ``trials.tsv`` where there is none. Raises UserError where there are both."""
    found = [folder / name for name in TABLES if (folder / name).exists()]
    if len(found) > 1:
        raise UserError(f"{folder}: holds both {' and '.join(TABLES)}; expected one table of trials")
    return found[0] if found else folder / TABLES[0]


def read_lines(path: Path) -> TrialLines:
    """Read the table as text. Raises UserError where it is missing, is no such table, or lacks a column or all trials."""
    separated = "comma separated" if path.suffix == ".csv" else "tab separated"
    lines = read_text(path, f"a {separated} table with the columns {', '.join(COLUMNS)}").rstrip("\n").split("\n")
    try:
        rows = list(csv.reader(lines, strict=True)) if path.suffix == ".csv" else [line.split("\t") for line in lines]
    except csv.Error as error:
        raise UserError(f"{path}: not a table ({error}); expected one that is {separated}") from error
    header = [name.strip() for name in rows[0]] if rows else []
    named = next((name for name in ("stimulus", *NAMED_OTHERWISE) if name in header), "stimulus")
    for name in (named, *COLUMNS[1:], *([SPLIT] if SPLIT in header else [])):
        if header.count(name) != 1:
            raise UserError(
                f"{path}: {header.count(name)} columns {name!r} in {header}; expected one, {separated} from the others"
            )
    if header.count("repeat") > 1:
        raise UserError(f"{path}: {header.count('repeat')} columns 'repeat'; expected at most one")
    if len(rows) < FIRST_LINE:
        raise UserError(f"{path}: holds no trial; expected one line per row of the betas")
    cells = [[cell.strip() for cell in row] for row in rows[1:]]
    ragged = {line: len(row) for line, row in enumerate(cells, FIRST_LINE) if len(row) != len(header)}
    columns = {name: [row[i] if i < len(row) else "" for row in cells] for i, name in enumerate(header)}
    columns["stimulus"] = columns[named]
    for name in (*COLUMNS, SPLIT, "run", "repeat", *NAMED_OTHERWISE):
        if name in columns:
            columns[name] = [_tidied(cell) for cell in columns[name]]
    says_split = SPLIT in columns
    columns.setdefault(SPLIT, [TRAIN] * len(cells))
    return TrialLines(path, columns, ragged, len(header), named, says_split)


def _tidied(cell: str) -> str:
    """A cell with one word for what is missing, and whole numbers without their ``.0``."""
    whole = _WHOLE.fullmatch(cell)
    return MISSING if cell in _SAID_MISSING else whole[1] if whole else cell


def problems(lines: TrialLines, names: Mapping[str, int] | None) -> Iterator[tuple[str, str]]:
    """Everything that makes the table unusable, as (field, message).

    ``names``: the stimuli that there are, or None where nobody knows.
    """
    for line, count in lines.ragged.items():
        yield f"line {line}", f"has {count} cells; expected {lines.cells} as in the header"
    for line, (cell, used) in enumerate(zip(lines.columns["session"], lines.used(), strict=True), FIRST_LINE):
        if not _SESSION.fullmatch(cell) and (used or cell != MISSING):
            yield f"line {line}, session", f"is {cell!r}; expected 1, 2, ... or ses-01, ses-02, ..."
    for line, cell in enumerate(lines.columns["split"], FIRST_LINE):
        if cell not in ("train", "test", MISSING, *VALIDATION):
            yield f"line {line}, split", f"is {cell!r}; expected train, test or n/a"
    for line, cell in enumerate(lines.columns["stimulus"], FIRST_LINE):
        if names is not None and cell != MISSING and cell not in names:
            yield (
                f"line {line}, {lines.named}",
                f"is {cell!r}, which no image of the stimuli is called; expected {_some(names)}",
            )
    train = lines.split_of("train")
    for name, line in lines.split_of("test").items():
        if name in train:
            yield (
                f"line {line}, split",
                f"has {name!r} in test, line {train[name]} in train; expected test images in test trials only",
            )
    if lines.says_repeats():
        yield from _repeat_problems(lines)


def _repeat_problems(lines: TrialLines) -> Iterator[tuple[str, str]]:
    first: dict[tuple[str, str], int] = {}
    for row in np.flatnonzero(lines.used()):
        line, cell, name = int(row) + FIRST_LINE, lines.columns["repeat"][row], lines.columns["stimulus"][row]
        if not re.fullmatch(r"\d{1,6}", cell):
            yield (
                f"line {line}, repeat",
                f"is {cell!r}; expected 0, 1, 2, ... for every trial (or no such column: then they are counted)",
            )
        elif (name, cell) in first:
            yield (
                f"line {line}, repeat",
                f"is {cell} for {name!r}, as on line {first[name, cell]}; expected each repeat of an image once",
            )
        first.setdefault((name, cell), line)


def split_conflicts(tables: Mapping[int, TrialLines]) -> Iterator[tuple[Path, str, str]]:
    """Images that one subject has in training and another in test, as (path, field, message).

    A base that has been trained on the one would know the images that the other is tested on.
    """
    tested: dict[str, tuple[int, int]] = {}
    for number, lines in tables.items():
        for name, line in lines.split_of("test").items():
            tested.setdefault(name, (number, line))
    for number, lines in tables.items():
        own = lines.split_of("test")
        for name, line in lines.split_of("train").items():
            if name in tested and name not in own:
                other, there = tested[name]
                yield (
                    lines.path,
                    f"line {line}, split",
                    f"has {name!r} in train, subject {other} in test (line {there} of "
                    f"{tables[other].path}); expected the same test images for all subjects",
                )


def _some(names: Mapping[str, int]) -> str:
    return "one of " + ", ".join(list(names)[:3]) + (", ..." if len(names) > 3 else "")
