"""``trials.tsv``: what a lab's trials showed, one line per row of the betas, in that order.

Tab separated with a header, ``n/a`` for what is missing, as in BIDS events files. Columns: ``stimulus`` (name of an
image), ``session`` (1, 2, ... or ses-01, ...), ``split`` (train or test) and, optionally, ``repeat`` (0 where the
subject sees the image for the first time, then 1, 2, ...); others may stand beside them. A line whose stimulus or split
is ``n/a`` is a trial that nothing uses; its betas stay where they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindtuner.data import Trials
from mindtuner.data.dataset import count_repeats
from mindtuner.errors import UserError

COLUMNS = ("stimulus", "session", "split")
MISSING = "n/a"
FIRST_LINE = 2  # of the trials, as editors count: the header is line 1
_SESSION = re.compile(r"(?:ses-|session-)?0*([1-9]\d{0,5})")


@dataclass(frozen=True)
class TrialLines:
    """The table as text: each column a list of n cells, entry i belonging to betas row i.

    ``ragged``: lines with too few or too many cells, line number -> count.
    """

    path: Path
    columns: dict[str, list[str]]
    ragged: dict[int, int]

    def __len__(self) -> int:
        return len(self.columns["stimulus"])

    def used(self) -> np.ndarray:
        """bool (n,): the trials that have a stimulus and a split."""
        pairs = zip(self.columns["stimulus"], self.columns["split"], strict=True)
        return np.array([MISSING not in pair for pair in pairs], bool)

    def split_of(self, split: str) -> dict[str, int]:
        """Stimulus name -> first line on which it is in ``split``."""
        lines: dict[str, int] = {}
        cells = zip(self.columns["stimulus"], self.columns["split"], strict=True)
        for line, (name, found) in enumerate(cells, FIRST_LINE):
            if found == split and name != MISSING:
                lines.setdefault(name, line)
        return lines

    def sessions(self) -> np.ndarray:
        """int64 (n,), 1-based; 0 where a cell is no session."""
        return np.array([int(m[1]) if (m := _SESSION.fullmatch(cell)) else 0 for cell in self.columns["session"]], np.int64)

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
        return Trials(used, stimulus, self.sessions()[used], repeat, is_test)


def read_lines(path: Path) -> TrialLines:
    """Read the table as text. Raises UserError where it is missing, is no such table, or lacks a column or all trials."""
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a table with the columns {', '.join(COLUMNS)}")
    try:
        lines = path.read_text(encoding="utf-8-sig").rstrip("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); expected a tab separated table"
        ) from error
    header = [name.strip() for name in lines[0].split("\t")]
    for name in COLUMNS:
        if header.count(name) != 1:
            raise UserError(
                f"{path}: {header.count(name)} columns {name!r} in {header}; expected one, tab separated from the others"
            )
    if header.count("repeat") > 1:
        raise UserError(f"{path}: {header.count('repeat')} columns 'repeat'; expected at most one")
    if len(lines) < FIRST_LINE:
        raise UserError(f"{path}: holds no trial; expected one line per row of the betas")
    cells = [[cell.strip() for cell in line.split("\t")] for line in lines[1:]]
    ragged = {line: len(row) for line, row in enumerate(cells, FIRST_LINE) if len(row) != len(header)}
    columns = {name: [row[i] if i < len(row) else "" for row in cells] for i, name in enumerate(header)}
    return TrialLines(path, columns, ragged)


def problems(lines: TrialLines, names: Mapping[str, int] | None) -> Iterator[tuple[str, str]]:
    """Everything that makes the table unusable, as (field, message).

    ``names``: the stimuli that there are, or None where nobody knows.
    """
    for line, count in lines.ragged.items():
        yield f"line {line}", f"has {count} cells; expected {len(lines.columns)} as in the header"
    for line, cell in enumerate(lines.columns["session"], FIRST_LINE):
        if not _SESSION.fullmatch(cell):
            yield f"line {line}, session", f"is {cell!r}; expected 1, 2, ... or ses-01, ses-02, ..."
    for line, cell in enumerate(lines.columns["split"], FIRST_LINE):
        if cell not in ("train", "test", MISSING):
            yield f"line {line}, split", f"is {cell!r}; expected train, test or n/a"
    for line, cell in enumerate(lines.columns["stimulus"], FIRST_LINE):
        if names is not None and cell != MISSING and cell not in names:
            yield f"line {line}, stimulus", f"is {cell!r}, which no image of the stimuli is called; expected {_some(names)}"
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
