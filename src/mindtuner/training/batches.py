"""Which trials make up each step, and their betas. Only training trials are ever drawn."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from mindtuner.data import FileRows, Subject, Trials, check_no_leak
from mindtuner.data.lazy import read_ahead
from mindtuner.errors import UserError
from mindtuner.runtime import derive_seed
from mindtuner.training.targets import Targets

ENOUGH_TRIALS = 8  # to say that a voxel is constant
IN_MEMORY_BYTES = 2**30  # betas of all training trials together that are held where reading them again is dear


def subject_name(number: int) -> str:
    """The name under which a network knows a subject: 1 -> "subj01"."""
    return f"subj{number:02d}"


def training_trials(subject: Subject, n_stimuli: int) -> Trials:
    """A subject's training trials.

    Raises UserError where there are none, where one shows a test image, where a stimulus has no target, or where
    a voxel is the same in all of them.
    """
    trials, name = subject.train, f"{subject.where}: {subject_name(subject.number)}"
    if len(trials) == 0:
        raise UserError(f"{name}: trials hold no training trial; expected at least one")
    check_no_leak(trials, subject.is_shared, name)
    if trials.stimulus.max() >= n_stimuli:
        raise UserError(
            f"{name}: trials show stimulus {trials.stimulus.max()}, but targets hold {n_stimuli} "
            "stimuli; expected targets of this dataset"
        )
    refuse_constant_voxels((subject.betas(rows) for rows in np.array_split(trials.row, 1 + len(trials) // 16)), name)
    return trials


def refuse_constant_voxels(blocks: Iterable[np.ndarray], name: str) -> None:
    """Raise UserError where a voxel is the same in all trials.

    ``blocks``: betas (n, V), read only until every voxel has changed, which in sound data is soon. NSD keeps betas as whole
    numbers, so few trials may agree by chance.
    """
    first, constant, count = None, None, 0
    for block in blocks:
        if first is None:
            first, constant = block[:1], np.ones(block.shape[1], bool)
        constant &= (block == first).all(axis=0)
        count += len(block)
        if not constant.any():
            return
    if count >= ENOUGH_TRIALS:
        voxel = int(np.argmax(constant))
        raise UserError(f"{name}: voxel {voxel} is {first[0, voxel]:g} in all {count} trials; expected betas that vary")


def split_holdout(trials: dict[str, Trials], share: float, seed: int) -> tuple[dict[str, Trials], dict[str, Trials]]:
    """Split training trials by image into (fit, held out) for validation; never a test image.

    ``share`` of all training images is held out, the same images for every subject, chosen by ``seed``.
    """
    if not 0 <= share < 1:
        raise UserError(f"holdout: is {share}; expected a share of the training images in [0, 1)")
    images = np.unique(np.concatenate([t.stimulus for t in trials.values()]))
    rng = np.random.default_rng(derive_seed(seed, "holdout"))
    held = rng.permutation(images)[: round(share * len(images))]
    inside = {name: np.isin(t.stimulus, held) for name, t in trials.items()}
    fit = {name: t.select(~inside[name]) for name, t in trials.items()}
    for name, kept in fit.items():
        if len(kept) == 0:
            raise UserError(f"holdout: {share} leaves {name} no trial to train on; expected a smaller share")
    return fit, {name: t.select(inside[name]) for name, t in trials.items()}


@dataclass
class Batch:
    """One step's trials: the same number ``m`` from each subject.

    ``stimulus`` (subjects * m,) in subject order, ``targets`` the rows (subjects * m, ...) of these stimuli that were read
    along, by name, ``shift`` what may be added to what a subject's ridge says (``Feed``).
    """

    voxels: dict[str, torch.Tensor]  # name -> (m, V)
    stimulus: np.ndarray
    targets: dict[str, torch.Tensor] = field(default_factory=dict)
    shift: dict[str, torch.Tensor] = field(default_factory=dict)  # name -> (m, h)


class Feed:
    """An endless, seeded stream of one subject's training trials: one shuffle after another.

    ``shift`` (n, h), where there is one, is what a ridge fitted without a trial's image adds to what the ridge says of it.
    """

    def __init__(self, subject: Subject, trials: Trials, seed: int, in_memory: bool):
        self.name = subject_name(subject.number)
        self.subject, self.trials = subject, trials
        self.betas = subject.betas(trials.row) if in_memory else None
        self.shift: np.ndarray | None = None
        self._rng = np.random.default_rng(derive_seed(seed, "order", self.name))
        self._queue = np.empty(0, dtype=np.int64)
        self._planned = 0  # how many at the front of the queue are being read

    def plan(self, m: int) -> np.ndarray:
        """Positions (m,) of the next trials, for ``read``. They count as still to come until they are ``drop``ped."""
        end = self._planned + m
        while len(self._queue) < end:
            self._queue = np.concatenate([self._queue, self._rng.permutation(len(self.trials))])
        picked, self._planned = self._queue[self._planned : end], end
        return picked

    def drop(self, m: int) -> None:
        """The first ``m`` planned trials have been had."""
        self._queue, self._planned = self._queue[m:], self._planned - m

    def read(self, picked: np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """Betas (m, V) and stimulus ids (m,) of the trials at these positions (m,)."""
        betas = self.subject.betas(self.trials.row[picked]) if self.betas is None else self.betas[picked]
        return torch.from_numpy(betas), self.trials.stimulus[picked]

    def draw(self, m: int) -> tuple[torch.Tensor, np.ndarray]:
        """Betas (m, V) and stimulus ids (m,) of the next ``m`` trials."""
        picked = self.plan(m)
        self.drop(m)
        return self.read(picked)

    def state_dict(self) -> dict:
        """Where the stream stands, for a checkpoint."""
        return {"order": json.dumps(self._rng.bit_generator.state), "queue": torch.from_numpy(self._queue.copy())}

    def load_state_dict(self, state: dict) -> None:
        """Go on where ``state`` stood."""
        self._rng.bit_generator.state = json.loads(state["order"])
        self._queue, self._planned = state["queue"].numpy(), 0

    def permute_brains(self, seed: int) -> None:
        """Give every trial another trial's betas: the control that destroys what brain and image share."""
        rng = np.random.default_rng(derive_seed(seed, "shuffled brain"))
        order = rng.permutation(len(self.trials))
        if self.betas is not None:
            self.betas = self.betas[order]
        self.trials = replace(self.trials, row=self.trials.row[order])


def make_feeds(subjects: dict[str, Subject], trials: dict[str, Trials], seed: int) -> list[Feed]:
    """One feed per subject.

    Betas that lie row by row in a file are read batch by batch; others, which may have to be unpacked, averaged or z-scored
    each time, are held in memory where those of all subjects together are small.
    """
    size = sum(4 * len(trials[name]) * subject.n_voxels for name, subject in subjects.items())
    return [
        Feed(subject, trials[name], seed, size < IN_MEMORY_BYTES and not isinstance(subject.source, FileRows))
        for name, subject in subjects.items()
    ]


def steps_per_epoch(feeds: list[Feed], per_step: int) -> int:
    """Steps until the subject with the most trials has been through all of them; others start over earlier.

    ``per_step``: trials of a subject in one step."""
    return steps_through(max(len(feed.trials) for feed in feeds), per_step)


def steps_through(trials: int, per_step: int) -> int:
    """Steps that go once through so many trials of a subject, ``per_step`` of them at a time."""
    return max(1, round(trials / per_step))


def batches(
    feeds: list[Feed], batch_per_subject: int, count: int, targets: Targets | None = None, names: tuple[str, ...] = ()
) -> Iterator[Batch]:
    """``count`` batches, along with them the arrays ``names`` of ``targets``.

    While one is used the next is read by a thread, so that a step waits for a disk only where reading takes longer than the
    step. Which trials it holds is settled here, in order, and what is read ahead still counts as to come in the feeds'
    states: a checkpoint between two batches knows nothing of it.
    """

    def read(plans: list[np.ndarray]) -> Batch:
        drawn = {feed.name: feed.read(picked) for feed, picked in zip(feeds, plans, strict=True)}
        stimulus = np.concatenate([stimulus for _, stimulus in drawn.values()])
        return Batch(
            {name: betas for name, (betas, _) in drawn.items()},
            stimulus,
            {name: targets.rows(name, stimulus) for name in names},
            {
                feed.name: torch.from_numpy(feed.shift[picked])
                for feed, picked in zip(feeds, plans, strict=True)
                if feed.shift is not None
            },
        )

    plans = ([feed.plan(batch_per_subject) for feed in feeds] for _ in range(count))
    for batch in read_ahead(read, plans):
        for feed in feeds:
            feed.drop(batch_per_subject)
        yield batch
