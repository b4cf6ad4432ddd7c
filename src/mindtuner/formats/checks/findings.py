"""What ``check`` found: a list that goes on after an error, for people and for machines."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mindtuner.errors import UserError

SEVERITIES = ("error", "warning", "note")  # cannot be used as it is; look at it; what is assumed
LISTED = 10  # findings of one kind in one file that are told one by one


@dataclass(frozen=True)
class Finding:
    """One thing to know. ``file`` is relative to the dataset, ``field`` says where in it."""

    severity: str
    file: str
    field: str
    message: str


class Findings:
    """Collects findings, and facts: what was found in each file, as (file, what).

    ``allow_twins``: a test image may have the pixels of a training image, which else is an error. ``mask_values``: of a mask
    at the voxels to take, None for those that the dataset says, or above 0.
    """

    def __init__(self, root: Path, allow_twins: bool = False, mask_values: Sequence[float] | None = None):
        self.root, self.allow_twins, self.mask_values = root, allow_twins, mask_values
        self.facts: list[tuple[str, str]] = []
        self.items: list[Finding] = []

    def fact(self, path: Path, what: str) -> None:
        """Note what was found in a file."""
        self.facts.append((self.name(path), what))

    def error(self, path: Path, field: str, message: str) -> None:
        """Add what makes the dataset unusable."""
        self.items.append(Finding("error", self.name(path), field, message))

    def warning(self, path: Path, field: str, message: str) -> None:
        """Add what is likely to be wrong, though the dataset can be read."""
        self.items.append(Finding("warning", self.name(path), field, message))

    def note(self, path: Path, field: str, message: str) -> None:
        """Add what is good to know and not wrong."""
        self.items.append(Finding("note", self.name(path), field, message))

    def errors(self, path: Path, found: Iterable[tuple[str, str]]) -> bool:
        """An error for each (field, message), the first of them one by one; whether there was any."""
        found = list(found)
        for field, message in found[:LISTED]:
            self.error(path, field, message)
        if len(found) > LISTED:
            self.error(path, "and more", f"{len(found) - LISTED} further errors in this file")
        return bool(found)

    @contextlib.contextmanager
    def catching(self, path: Path, field: str) -> Iterator[None]:
        """Turn a reader's UserError inside the block into an error, under the file that its message begins with."""
        try:
            yield
        except UserError as error:
            name, _, message = str(error).partition(": ")
            if message and name.startswith(str(self.root)):
                self.error(Path(name), field, message)
            else:
                self.error(path, field, str(error))

    def take_whole(self, open_whole: Callable):
        """What the reader makes of the whole where nothing was wrong: it sees what single checks overlook. None otherwise."""
        if not self.count("error"):
            with self.catching(self.root, "dataset"):
                return open_whole()
        return None

    def count(self, severity: str) -> int:
        """How many findings have this severity: "error", "warning" or "note"."""
        return sum(item.severity == severity for item in self.items)

    def name(self, path: Path) -> str:
        """``path`` relative to the dataset, or as it is where it lies elsewhere."""
        try:
            return path.relative_to(self.root).as_posix()
        except ValueError:
            return str(path)


def some(names: Iterable, limit: int = 3) -> str:
    """The first of many, in words: "a, b, c and 4 more"."""
    names = [str(name) for name in names]
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
