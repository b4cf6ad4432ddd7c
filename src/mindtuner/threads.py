"""Threads beside other jobs: as many as cores are free, counted again and again while long work goes on.

Threads that share a core wait for each other at every operation, so beside other work two can be half as fast as one.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import time
from dataclasses import dataclass

import psutil
from threadpoolctl import threadpool_limits

EVERY_S, FIRST_S = 5.0, 0.5  # between two counts, and before the first
ROOM = 0.7  # of a core that has to be free for one more thread
_logger = logging.getLogger(__name__)
PINNED = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")  # who sets one of these has chosen


@dataclass(frozen=True)
class Load:
    """Seconds of core time until ``at``: of all work on the cores that this process may use, and its own."""

    at: float
    busy: float
    own: float

    @classmethod
    def now(cls, cores: list[int]) -> Load:
        """What was counted until now. Low-priority work is no load: it gives way."""
        each = psutil.cpu_times(percpu=True)
        busy = sum(each[core].user + each[core].system + getattr(each[core], "steal", 0.0) for core in cores)
        mine = psutil.Process().cpu_times()
        return cls(time.monotonic(), busy, mine.user + mine.system)

    def free_until(self, later: Load, cores: int) -> float:
        """Cores that other work left free between two counts, on average.

        Examples
        --------
        >>> Load(0.0, 0.0, 0.0).free_until(Load(10.0, busy=25.0, own=10.0), cores=4)
        2.5
        """
        others = (later.busy - self.busy) - (later.own - self.own)
        return cores - max(0.0, others) / (later.at - self.at)


def threads_for(free: float, most: int) -> int:
    """Threads for so many free cores: one at least, ``most`` at most.

    Examples
    --------
    >>> [threads_for(free, most=4) for free in (0.2, 1.3, 1.8, 64.0)]
    [1, 1, 2, 4]
    """
    return min(max(1, math.floor(free + 1 - ROOM)), most)


class _Follower:
    """Counts, and sets the threads of all libraries where the count says so."""

    def __init__(self) -> None:
        process = psutil.Process()
        self._cores = process.cpu_affinity() if hasattr(process, "cpu_affinity") else list(range(psutil.cpu_count()))
        self._last, self._wait, self._most, self._set = Load.now(self._cores), FIRST_S, 0, 0

    def follow(self) -> None:
        if time.monotonic() < self._last.at + self._wait:
            return
        import torch

        self._most = self._most or torch.get_num_threads()
        load = Load.now(self._cores)
        wanted = threads_for(self._last.free_until(load, len(self._cores)), self._most)
        if wanted != self._set:
            if wanted < self._most:
                _say(self._most)
            torch.set_num_threads(wanted)
            threadpool_limits(wanted, "blas")  # NumPy and SciPy have pools of their own
            self._set = wanted
        self._last, self._wait = load, EVERY_S


@functools.cache
def _say(most: int) -> None:
    """Said once: who compares two runs should know."""
    _logger.info(
        "threads: fewer than %d, as other jobs are running; numbers may differ from a quiet run as between seeds "
        "(OMP_NUM_THREADS=%d keeps them)",
        most,
        most,
    )


_following: list[_Follower] = []  # none, or one for the whole process


def follow_load() -> None:
    """From now on compute with as many threads as cores are free, unless ``OMP_NUM_THREADS`` says how many.

    For a process that does nothing else, such as the command line's.
    """
    if not any(name in os.environ for name in PINNED) and not _following:
        _following.append(_Follower())


def keep_share() -> None:
    """Count again, where it is time to and ``follow_load`` was called. ``runtime.progress`` does this at each item."""
    for follower in _following:
        follower.follow()
