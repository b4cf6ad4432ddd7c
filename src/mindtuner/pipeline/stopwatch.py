"""Seconds of each stage of a run."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Stopwatch:
    """Measures stages; one that says aloud what it measures overrides ``began`` and ``ended``.

    Examples
    --------
    >>> watch = Stopwatch()
    >>> with watch.stage("paint"):
    ...     pass
    >>> sorted(watch.total())
    ['paint', 'total']
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure what happens within."""
        start = time.perf_counter()
        self.began(name)
        yield
        self.seconds[name] = time.perf_counter() - start
        self.ended(name, self.seconds[name])

    def total(self) -> dict[str, float]:
        """Seconds by stage, and in all since the stopwatch was made."""
        return self.seconds | {"total": time.perf_counter() - self._start}

    def began(self, name: str) -> None:
        """A stage begins."""

    def ended(self, name: str, seconds: float) -> None:
        """A stage is over."""
