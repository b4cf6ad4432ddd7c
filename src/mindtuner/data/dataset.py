"""The one shape that every reader returns: trials of subjects, their betas, and the stimuli they saw."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindtuner.data.hold_out import without_category
from mindtuner.data.lazy import Columns, LazyArray, RowMeans, as_rows
from mindtuner.data.splits import check_no_leak
from mindtuner.data.stimuli import Stimuli
from mindtuner.errors import UserError

CARD = "dataset.json"  # in a dataset's folder, where there is one: simulated or not, how betas were z-scored


@dataclass(frozen=True, eq=False)
class Trials:
    """Trials of one subject, one per entry of five arrays of equal length n.

    row       int64, row of the subject's betas
    stimulus  int64, index into the image file
    session   int64, 1-based
    repeat    int64, 0-based: how often this subject had seen the image before
    is_test   bool, a trial of a shared image
    """

    row: np.ndarray
    stimulus: np.ndarray
    session: np.ndarray
    repeat: np.ndarray
    is_test: np.ndarray

    def __post_init__(self):
        for field in dataclasses.fields(self):
            wanted = bool if field.name == "is_test" else np.int64
            array = np.asarray(getattr(self, field.name), wanted)
            if array.shape != (np.size(self.row),):
                raise UserError(f"trials: {field.name} has shape {array.shape}; expected ({np.size(self.row)},)")
            object.__setattr__(self, field.name, array)

    def __len__(self) -> int:
        return len(self.row)

    def select(self, mask: np.ndarray) -> Trials:
        """The trials where ``mask`` (bool (n,), or an array of positions) says so, in its order."""
        return Trials(*(getattr(self, field.name)[mask] for field in dataclasses.fields(self)))


def count_repeats(stimulus: np.ndarray) -> np.ndarray:
    """How often each entry of ``stimulus`` (n,) occurred before it, int64 (n,)."""
    order = np.argsort(stimulus, kind="stable")
    _, first, counts = np.unique(np.asarray(stimulus)[order], return_index=True, return_counts=True)
    repeat = np.empty(len(order), np.int64)
    repeat[order] = np.arange(len(order)) - np.repeat(first, counts)
    return repeat


@dataclass(frozen=True, eq=False)
class Subject:
    """One person: trials, regions of interest, and betas that stay on disk until they are asked for.

    rois       name -> bool (V,)
    source     (rows, V) numbers, usually in a file
    is_shared  bool (N,) over the stimuli, for the leak check
    where      the betas file, for messages
    vertices   int64 (V,), where each voxel lies on the fsLR-32k surface (0..32491 left, 32492..64983 right), for data that
               live there; ``parcels.on_surface`` makes maps of them
    """

    number: int
    trials: Trials
    rois: dict[str, np.ndarray]
    source: LazyArray
    is_shared: np.ndarray
    where: str
    vertices: np.ndarray | None = None

    @property
    def n_voxels(self) -> int:
        return self.source.shape[1]

    def betas(self, rows) -> np.ndarray:
        """Betas of these rows, float32 (n, V), in the order asked for; a row may come twice.

        Raises UserError where a row is out of range or holds a beta that is not finite.
        """
        rows = as_rows(rows, self.source.shape[0], self.where, "betas row")
        betas = np.asarray(self.source[rows], np.float32)
        whole = np.isfinite(betas).all(axis=1)
        if not whole.all():
            at = int(np.argmin(whole))
            voxel = int(np.flatnonzero(~np.isfinite(betas[at]))[0])
            raise UserError(
                f"{self.where}: betas row {rows[at]}, voxel {voxel} is {betas[at, voxel]}; expected a finite number"
            )
        return betas

    @property
    def train(self) -> Trials:
        """All trials of images that are not shared. Raises UserError on a leak."""
        check_no_leak(self.trials, self.is_shared, f"subject {self.number}")
        return self.trials.select(~self.trials.is_test)

    @property
    def test(self) -> Trials:
        """All trials of shared images. Raises UserError on a leak."""
        check_no_leak(self.trials, self.is_shared, f"subject {self.number}")
        return self.trials.select(self.trials.is_test)

    def sessions(self, k: int) -> Subject:
        """This subject with the training trials of sessions 1..k only; the test trials stay whole.

        Raises UserError where there are no k sessions.
        """
        training = self.trials.session[~self.trials.is_test]
        last = int(training.max(initial=0))
        if not 1 <= k <= last or not (training <= k).any():
            raise UserError(f"subject {self.number}: sessions is {k}; expected 1..{last}")
        keep = self.trials.is_test | (self.trials.session <= k)
        return dataclasses.replace(self, trials=self.trials.select(keep))

    def within(self, *rois: str) -> Subject:
        """This subject with the voxels of these regions only, their union, in the order that they had.

        Raises UserError where a region is unknown, or all are empty.
        """
        known = ", ".join(sorted(self.rois))
        for name in rois:
            if name not in self.rois:
                raise UserError(f"subject {self.number}: no region {name!r}; expected some of {known}")
        columns = np.flatnonzero(np.any([self.rois[name] for name in rois], axis=0)) if rois else np.empty(0, int)
        if len(columns) == 0:
            raise UserError(
                f"subject {self.number}: no voxel in {' or '.join(rois) or 'no region'}; expected some of {known}"
            )
        return dataclasses.replace(
            self,
            source=Columns(self.source, columns),
            rois={name: mask[columns] for name, mask in self.rois.items()},
            vertices=None if self.vertices is None else self.vertices[columns],
        )

    def averaged(self) -> Subject:
        """This subject with one trial an image, whose betas are the mean over the trials that are there of it.

        Its session is that of the image's first trial, its repeat 0. After ``sessions(1)`` only repeats within that
        session's training trials are averaged.
        """
        order = np.argsort(self.trials.stimulus, kind="stable")
        _, starts = np.unique(self.trials.stimulus[order], return_index=True)
        groups = np.split(self.trials.row[order], starts[1:])[: len(starts)]
        trials = self.trials.select(np.lexsort((self.trials.repeat, self.trials.stimulus))[starts])
        trials = dataclasses.replace(trials, row=np.arange(len(groups)), repeat=np.zeros(len(groups)))
        return dataclasses.replace(self, trials=trials, source=RowMeans(self.source, groups))


@dataclass(frozen=True, eq=False)
class Dataset:
    """Subjects and stimuli of one folder, with its card (``simulated``, ``zscore`` and whatever else it says)."""

    root: Path
    subjects: dict[int, Subject]
    stimuli: Stimuli
    card: dict

    def subject(self, number: int) -> Subject:
        """One subject by number. Raises UserError where this dataset has none of that number."""
        if number not in self.subjects:
            known = ", ".join(str(known) for known in self.subjects)
            raise UserError(f"{self.root}: no subject {number}; expected one of {known}")
        return self.subjects[number]

    def without(self, subject: int) -> Dataset:
        """This dataset without one subject. Raises UserError where that subject is not in it."""
        self.subject(subject)
        others = {number: other for number, other in self.subjects.items() if number != subject}
        return dataclasses.replace(self, subjects=others)

    def without_category(self, category: str) -> Dataset:
        """This dataset without the training trials of images whose captions name the category (``hold_out.shows`` has the
        rule); test trials stay whole. Raises UserError as ``hold_out.without_category``."""
        return without_category(self, category)
