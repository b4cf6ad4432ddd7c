"""Trials of which labels alone are known, such as the category of a block: their stimuli have captions and no pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path

from mindtuner.data.stimuli import NoPictures
from mindtuner.errors import UserError
from mindtuner.formats.lab_folder.trial_table import FIRST_LINE, MISSING, TrialLines

LABELS = ("label", "trial_type")  # columns, the first that there is; the second is what BIDS calls a condition


class LabelStimuli(NoPictures):
    """Stimuli of labels: ``names`` -> id, and a caption for each, its label."""

    def __init__(self, labels: Mapping[str, str], path: Path):
        super().__init__(len(labels), str(path), "a folder stimuli/ with an image for each")
        self.path, self._labels = path, list(labels.values())
        self.names: Mapping[str, int] = {name: i for i, name in enumerate(labels)}

    def captions(self, number: int) -> tuple[str, ...]:
        """The label."""
        return (self._labels[number],)


def label_column(lines: TrialLines) -> str | None:
    """The column of labels of a table, None where it has none."""
    return next((name for name in LABELS if name in lines.columns), None)


def labelled(
    tables: Mapping[int, TrialLines], folders: Mapping[int, Path], root: Path, missing: str
) -> tuple[LabelStimuli, dict[int, TrialLines]]:
    """The stimuli of tables with labels, and the tables by the stimuli's names.

    A column ``stimulus`` or ``stim_file`` tells stimuli of one label apart. Without one nobody knows which trials showed the
    same, and each trial is a stimulus of its own, such as ``face-0012`` of line 12.

    Raises UserError where a table has no column of labels, which ``missing`` says, or a stimulus two labels.
    """
    labels: dict[str, str] = {}
    found = {}
    for number, lines in tables.items():
        column = label_column(lines)
        if column is None:
            raise UserError(f"{root}: {missing}, or a column label in {lines.path.name}")
        place = "" if folders[number] == root else f"{folders[number].name}/"
        names = list(_names(lines, column, place))
        for line, (name, label) in enumerate(zip(names, lines.columns[column], strict=True), FIRST_LINE):
            if name != MISSING and labels.setdefault(name, label) != label:
                raise UserError(
                    f"{lines.path}: line {line}, {column} is {label!r}; expected {labels[name]!r}, as {name!r} has elsewhere"
                )
        found[number] = dataclasses.replace(lines, columns={**lines.columns, "stimulus": names})
    ordered = {name: labels[name] for name in sorted(labels)}
    return LabelStimuli(ordered, next(iter(found.values())).path), found


def _names(lines: TrialLines, column: str, place: str) -> Iterator[str]:
    told = lines.named not in LABELS
    for line, (name, label) in enumerate(zip(lines.columns["stimulus"], lines.columns[column], strict=True), FIRST_LINE):
        if MISSING in (name, label):
            yield MISSING
        else:
            yield name if told else f"{place}{label}-{line:04d}"
