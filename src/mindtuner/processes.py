"""The processes of one launch (``accelerate launch``, ``torchrun``), and which share of the work is whose."""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from mindtuner.errors import UserError

PATIENCE = datetime.timedelta(days=1)  # how long a process that is done waits for the slowest


@dataclass(frozen=True)
class Processes:
    """This process among ``count``; 0 is the one that does what is done once."""

    index: int = 0
    count: int = 1

    def share(self, items: int) -> range:
        """This process's own contiguous part of ``range(items)``; the parts of all processes make up the whole."""
        return range(items * self.index // self.count, items * (self.index + 1) // self.count)

    def wait(self) -> None:
        """Return when all processes have come here. Raises UserError where one of them has ended instead."""
        if self.count == 1:
            return
        from accelerate import PartialState

        with ended_early():
            PartialState().wait_for_everyone()


@contextlib.contextmanager
def ended_early() -> Iterator[None]:
    """Around what needs all processes: a UserError where one of them has ended instead."""
    try:
        yield
    except RuntimeError as error:
        group = processes()
        talking = isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL", "Connection"))
        if group.count == 1 or not talking:
            raise
        raise UserError(
            f"process {group.index} of {group.count}: another process of this launch has ended early; expected "
            "all to come to the end (what is done is kept: give the same command again)"
        ) from error


@functools.cache
def processes() -> Processes:
    """The processes that this one was launched with, as RANK and WORLD_SIZE say; by itself where they do not.

    Here they talk over the CPU (gloo): that they are there, and plain values. Each takes a GPU of its own where there are
    any; for tensors on these, training opens another channel (``training/distributed.py``). Raises UserError where they do
    not find one another.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return Processes()
    from accelerate import PartialState

    try:
        state = PartialState(cpu=True, backend="gloo", timeout=PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise UserError(
            f"WORLD_SIZE: is {os.environ['WORLD_SIZE']}, but the processes do not find one another "
            f"({' '.join(str(error).split())}); expected accelerate launch or torchrun"
        ) from error
    if torch.cuda.is_available():
        torch.cuda.set_device(state.local_process_index % torch.cuda.device_count())
    return Processes(state.process_index, state.num_processes)
