"""Implementations measured in turn, each in a process of its own: what ``train_step.py`` and ``decode_speed.py`` share.

On a machine that others use too, seconds say little and ratios of neighbours much: side A does one piece of work, then B,
then A again. Sides live in processes of their own, so that each has its own peak memory and versions of modules; all but
the one whose turn it is sleep. The sizes are those of ``SIZES`` for everybody.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).parents[1] / "src"
SIZES = {"hidden": 1024, "voxels": 15724, "blocks": 4, "tokens": 64, "width": 512, "depth": 6, "heads": 9, "head_dim": 52}


@dataclass(frozen=True)
class Side:
    """``work(turns, *arguments)`` runs in a new process, with ``source`` in front of its path and ``environment`` set."""

    name: str
    work: Callable
    arguments: tuple = ()
    source: Path = SOURCE
    environment: dict = field(default_factory=dict)


@dataclass
class Measured:
    """One side: wall and CPU seconds of each turn, peak resident MB after imports and in the end, and FLOPs of a turn."""

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    imported: float = 0.0
    peak: float = 0.0
    flops: float = 0.0


class Turns:
    """The side's end: call it before each piece of work; it returns when it is this side's turn."""

    def __init__(self, connection, threads: int):
        self.connection, self.threads, self.started, self.flops = connection, threads, None, 0.0

    def imported(self) -> None:
        """All modules are there; what memory grows by from here on is the side's own."""
        import torch

        torch.set_num_threads(self.threads)
        self.connection.send(("imported", peak_mb()))

    def __call__(self) -> None:
        if self.started is not None:
            wall, cpu = time.perf_counter() - self.started[0], time.process_time() - self.started[1]
            self.connection.send(("turn", wall, cpu, peak_mb(), self.flops))
        if self.connection.recv() == "stop":
            os._exit(0)
        self.started = time.perf_counter(), time.process_time()

    def count(self, act: Callable):
        """What ``act`` returns; its FLOPs (of matrix products, convolutions and attention) go with the next turn."""
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            result = act()
        self.flops = counter.get_total_flops()
        return result


def peak_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _start(side: Side, connection, threads: int) -> None:
    sys.path.insert(0, str(side.source))
    os.environ.update(side.environment, TQDM_DISABLE="1")  # the public sampler has a progress bar
    side.work(Turns(connection, threads), *side.arguments)


def in_turn(sides: list[Side], rounds: int, threads: int, warm_up: int = 2) -> dict[str, Measured]:
    """``rounds`` turns of each side, A B C A B C ..., after ``warm_up`` turns that do not count."""
    context, running = multiprocessing.get_context("spawn"), {}
    found = {side.name: Measured() for side in sides}
    os.environ["OMP_NUM_THREADS"] = str(threads)
    for side in sides:
        here, there = context.Pipe()
        process = context.Process(target=_start, args=(side, there, threads), daemon=True)
        process.start()
        there.close()
        found[side.name].imported = here.recv()[1]
        running[side.name] = process, here
    for turn in range(warm_up + rounds):
        for name, (_, connection) in running.items():
            connection.send("go")
            _, wall, cpu, peak, flops = connection.recv()
            measured = found[name]
            measured.peak, measured.flops = peak, flops or measured.flops
            if turn >= warm_up:
                measured.seconds.append(wall)
                measured.cpu.append(cpu)
            print(f"turn {turn + 1} of {warm_up + rounds}: {name} {wall:.3f} s", file=sys.stderr, flush=True)
    for process, connection in running.values():
        connection.send("stop")
        process.join()
    return found


def ratios(slow: list[float], fast: list[float]) -> str:
    """``median (min to max)`` of the turns' ratios."""
    each = np.array(slow) / np.array(fast)
    return f"{np.median(each):.2f} ({each.min():.2f} to {each.max():.2f})"


def matmul_peak(turns: Turns, dtype: str) -> None:
    """A side whose turn is a few products of square matrices of 1024: what the machine can do at best."""
    import torch

    turns.imported()
    a, b = (torch.randn(1024, 1024).to(getattr(torch, dtype)) for _ in range(2))
    out, start = torch.empty_like(a), time.perf_counter()
    torch.mm(a, b, out=out)
    repeats = 20 if time.perf_counter() - start < 0.5 else 1  # one, where bf16 is emulated
    turns.flops = 2 * repeats * 1024**3
    while True:
        turns()
        for _ in range(repeats):
            torch.mm(a, b, out=out)
