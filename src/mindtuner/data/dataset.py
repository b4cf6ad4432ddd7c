"""The one shape that every reader returns: trials of subjects, their betas, and the stimuli they saw."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from mindtuner.data.hold_out import without_category
from mindtuner.data.lazy import Columns, LazyArray, RowMeans, as_rows
from mindtuner.data.splits import check_no_leak
from mindtuner.data.stimuli import Stimuli
from mindtuner.data.zscore import refuse_absurd
from mindtuner.errors import UserError

CARD = "dataset.json"  # in a dataset's folder, where there is one: simulated or not, how betas were z-scored
_NAMED = 8  # regions, or subjects, that a printed object names


@dataclass(frozen=True, eq=False)
class Trials:
    """Trials of one subject: arrays of equal length n, one entry a trial.

    Attributes
    ----------
    row : int64 (n,)
        Row of the subject's betas.
    stimulus : int64 (n,)
        Index into the stimuli, from 0.
    session : int64 (n,)
        Session, from 1.
    repeat : int64 (n,)
        How often the subject had seen the image before, from 0.
    is_test : bool (n,)
        Whether the trial shows a shared image, and so is a test trial.
    run : int64 (n,), optional
        Run within its session, from 1; 0, the default, where nobody says.

    Raises
    ------
    UserError
        Where the arrays differ in length.

    Examples
    --------
    >>> from mindtuner.data import Trials
    >>> trials = Trials([0, 1, 2], [5, 7, 5], [1, 1, 2], [0, 0, 1], [False, True, False])
    >>> trials
    Trials: 3 in 2 sessions
      training  2 trials of 1 image
      test      1 trial of 1 image
    >>> trials.select(trials.session == 1).stimulus
    array([5, 7])
    """

    row: np.ndarray
    stimulus: np.ndarray
    session: np.ndarray
    repeat: np.ndarray
    is_test: np.ndarray
    run: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))

    def __post_init__(self):
        if np.size(self.run) == 0:
            object.__setattr__(self, "run", np.zeros(np.size(self.row), np.int64))
        for field in dataclasses.fields(self):
            wanted = bool if field.name == "is_test" else np.int64
            array = np.asarray(getattr(self, field.name), wanted)
            if array.shape != (np.size(self.row),):
                raise UserError(f"trials: {field.name} has shape {array.shape}; expected ({np.size(self.row)},)")
            object.__setattr__(self, field.name, array)

    def __len__(self) -> int:
        return len(self.row)

    def __repr__(self) -> str:
        return "\n".join([f"Trials: {len(self)} in {_count(len(np.unique(self.session)), 'session')}", *_split_lines(self)])

    def select(self, mask: np.ndarray) -> Trials:
        """Some of the trials.

        Parameters
        ----------
        mask : bool (n,), or int array
            Which trials, or their positions in the order wanted.

        Returns
        -------
        Trials
        """
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

    Attributes
    ----------
    number : int
        Number of the subject.
    trials : Trials
        Training and test trials together. ``train`` and ``test`` tell them apart.
    rois : dict of str to bool (V,)
        Regions of interest over the voxels.
    source : LazyArray (rows, V)
        The betas, usually in a file.
    is_shared : bool (N,)
        Which of the stimuli are shared, for the leak check.
    where : str
        The file of the betas, for messages.
    vertices : int64 (V,), optional
        For data on the fsLR-32k surface: the vertex of each voxel, 0..32491 on the left and 32492..64983 on the right.
        ``surface.on_surface`` makes maps of them.
    mask : Path, optional
        The dataset's own NIfTI volume whose voxels above 0 are this subject's, in their order, where it has one.
    files : tuple of Path
        All that betas are read from: as long as none changes, nor do they. Empty where they are in memory, or were made of
        others.
    table : str
        The file or folder of the trials, for messages.

    Examples
    --------
    >>> import numpy as np
    >>> from mindtuner.data import Subject, Trials
    >>> trials = Trials([0, 1, 2], [0, 1, 0], [1, 1, 2], [0, 0, 1], [False, True, False])
    >>> betas = np.arange(12, dtype=np.float32).reshape(3, 4)
    >>> subject = Subject(1, trials, {"V1": np.array([True, True, False, False])}, betas, np.array([False, True]), "memory")
    >>> subject
    Subject 1: 4 voxels, 3 trials in 2 sessions
      training  2 trials of 1 image
      test      1 trial of 1 image
      regions   V1 2
    >>> subject.betas(subject.test.row)
    array([[4., 5., 6., 7.]], dtype=float32)
    >>> subject.within("V1").betas([0])
    array([[0., 1.]], dtype=float32)
    """

    number: int
    trials: Trials
    rois: dict[str, np.ndarray]
    source: LazyArray
    is_shared: np.ndarray
    where: str
    vertices: np.ndarray | None = None
    mask: Path | None = None
    files: tuple[Path, ...] = ()
    table: str = ""

    def __repr__(self) -> str:
        sessions = _count(len(np.unique(self.trials.session)), "session")
        lines = [f"Subject {self.number}: {self.n_voxels} voxels, {_count(len(self.trials), 'trial')} in {sessions}"]
        lines += _split_lines(self.trials)
        lines.append(f"  regions   {_some(f'{name} {np.count_nonzero(mask)}' for name, mask in self.rois.items())}")
        if self.vertices is not None:
            lines.append("  vertices  of the fsLR-32k surface")
        return "\n".join(lines)

    @property
    def n_voxels(self) -> int:
        """How many voxels there are, V."""
        return self.source.shape[1]

    def betas(self, rows) -> np.ndarray:
        """Read betas.

        Parameters
        ----------
        rows : int array (n,)
            Rows, such as ``subject.train.row``, in any order. A row may come twice.

        Returns
        -------
        float32 (n, V)
            In the order asked for, z-scored as the dataset's card says.

        Raises
        ------
        UserError
            Where a row is out of range, or holds a beta that is not finite or larger than any measurement.
        """
        rows = as_rows(rows, self.source.shape[0], self.where, "betas row")
        betas = np.asarray(self.source[rows], np.float32)
        refuse_absurd(betas, rows, self.where)
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

    def sessions(self, k: int | Literal["all"]) -> Subject:
        """This subject with the training trials of its first k sessions only. The test trials stay whole.

        Sessions without a training trial do not count, and need not begin at 1.

        Parameters
        ----------
        k : int or "all"
            Number of sessions.

        Returns
        -------
        Subject

        Raises
        ------
        UserError
            Where there are no k sessions with training trials.
        """
        numbers = self.training_sessions
        if k == "all" and len(numbers):
            return self
        if isinstance(k, str) or not 1 <= k <= len(numbers):
            every = len(np.unique(self.trials.session))
            held = f"{len(numbers)} of its {_count(every, 'session')} hold training trials"
            most = f'1 to {len(numbers)}, or "all"' if len(numbers) else "training trials"
            raise UserError(f"sessions: is {k} for subject {self.number}; expected {most}: {held}")
        keep = self.trials.is_test | (self.trials.session <= numbers[k - 1])
        return dataclasses.replace(self, trials=self.trials.select(keep))

    @property
    def training_sessions(self) -> np.ndarray:
        """Numbers of the sessions that hold training trials, ascending: int64 (k,)."""
        return np.unique(self.trials.session[~self.trials.is_test])

    def within(self, *rois: str) -> Subject:
        """This subject with the voxels of some regions only.

        Parameters
        ----------
        *rois : str
            Names of regions. Their union is taken; voxels keep their order.

        Returns
        -------
        Subject

        Raises
        ------
        UserError
            Where a region is unknown, or all are empty.
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
            mask=None,  # a volume of all its voxels
            files=(),
        )

    def averaged(self) -> Subject:
        """This subject with one trial an image, whose betas are the mean over the image's trials.

        Its session is that of the image's first trial, its repeat 0. After ``sessions(1)`` only repeats within that
        session's training trials are averaged.

        Returns
        -------
        Subject
            Its betas are still read when they are asked for.
        """
        order = np.argsort(self.trials.stimulus, kind="stable")
        _, starts = np.unique(self.trials.stimulus[order], return_index=True)
        groups = np.split(self.trials.row[order], starts[1:])[: len(starts)]
        trials = self.trials.select(np.lexsort((self.trials.repeat, self.trials.stimulus))[starts])
        trials = dataclasses.replace(trials, row=np.arange(len(groups)), repeat=np.zeros(len(groups)))
        return dataclasses.replace(self, trials=trials, source=RowMeans(self.source, groups), files=())


@dataclass(frozen=True, eq=False)
class Dataset:
    """Subjects and stimuli of one folder.

    Attributes
    ----------
    root : Path
        The folder.
    subjects : dict of int to Subject
        By number.
    stimuli : Stimuli
        All images, with their captions.
    card : dict
        ``simulated``; ``zscore``, how betas were z-scored (``publisher``, ``train_trials`` or ``session_all``); and whatever
        else the folder's ``dataset.json`` says.

    Examples
    --------
    >>> import mindtuner
    >>> dataset = mindtuner.load("simulated")  # doctest: +SKIP
    >>> dataset  # doctest: +SKIP
    Dataset simulated: 2 simulated subjects, 84 images
      subject 1   314 voxels, 2 sessions, 72 training trials, 24 test trials
      subject 2   286 voxels, 2 sessions, 72 training trials, 24 test trials
      regions     nsd_general, V1, V2, V3, V4, higher_vis
      betas       z-scored by train_trials
    """

    root: Path
    subjects: dict[int, Subject]
    stimuli: Stimuli
    card: dict

    def __repr__(self) -> str:
        simulated = "simulated " if self.card.get("simulated") else ""
        lines = [
            f"Dataset {self.root}: {_count(len(self.subjects), f'{simulated}subject')}, {_count(len(self.stimuli), 'image')}"
        ]
        for number, subject in list(self.subjects.items())[:_NAMED]:
            test = int(subject.trials.is_test.sum())
            sessions = _count(len(np.unique(subject.trials.session)), "session")
            lines.append(
                f"  {f'subject {number}':11} {subject.n_voxels} voxels, {sessions}, "
                f"{_count(len(subject.trials) - test, 'training trial')}, {_count(test, 'test trial')}"
            )
        if len(self.subjects) > _NAMED:
            lines.append(f"  and {len(self.subjects) - _NAMED} more subjects")
        regions = dict.fromkeys(name for subject in self.subjects.values() for name in subject.rois)
        lines.append(f"  regions     {_some(regions)}")
        lines.append(f"  betas       z-scored by {self.card.get('zscore')}")
        return "\n".join(lines)

    def subject(self, number: int) -> Subject:
        """One subject by number.

        Raises
        ------
        UserError
            Where this dataset has none of that number.
        """
        if number not in self.subjects:
            known = ", ".join(str(known) for known in self.subjects)
            raise UserError(f"{self.root}: no subject {number}; expected one of {known}")
        return self.subjects[number]

    def without(self, subject: int) -> Dataset:
        """This dataset without one subject.

        Parameters
        ----------
        subject : int
            Number of the subject.

        Returns
        -------
        Dataset

        Raises
        ------
        UserError
            Where that subject is not in it.
        """
        self.subject(subject)
        others = {number: other for number, other in self.subjects.items() if number != subject}
        return dataclasses.replace(self, subjects=others)

    def without_category(self, category: str) -> Dataset:
        """This dataset without the training trials of images whose captions name a category. Test trials stay whole.

        Parameters
        ----------
        category : str
            A word or more, such as "dog". ``hold_out.shows`` has the rule.

        Returns
        -------
        Dataset

        Raises
        ------
        UserError
            As ``hold_out.without_category``.
        """
        return without_category(self, category)


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "") or "none"


def _split_lines(trials: Trials) -> list[str]:
    """What an object's print says of training and test trials."""
    lines = []
    for what, which in (("training", ~trials.is_test), ("test", trials.is_test)):
        images = len(np.unique(trials.stimulus[which]))
        shown = f"{_count(int(which.sum()), 'trial')} of {_count(images, 'image')}" if images else "none"
        lines.append(f"  {what:9} {shown}")
    return lines
