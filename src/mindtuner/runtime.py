"""The machine under a run: device, number format, seeds, progress bars, peak memory."""

from __future__ import annotations

import functools
import random
import re
import sys
import time
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import psutil
import torch
from tqdm import tqdm

from mindtuner.errors import UserError
from mindtuner.processes import processes
from mindtuner.threads import keep_share

LINES_EVERY_S = 60  # between two lines on how far a long work is, where no bar can be drawn

_chosen: list[torch.device] = []  # by ``use_device``: none, or one for the whole process


def device() -> torch.device:
    """CUDA where it works, else the CPU; or what ``use_device`` said, without which Apple's GPU is never used."""
    return _chosen[0] if _chosen else torch.device("cuda" if torch.cuda.is_available() else "cpu")


def use_device(where: str | torch.device | None) -> None:
    """Compute on ``where`` from now on, or, with None, again on what the machine is fastest with.

    Parameters
    ----------
    where : str, torch.device or None
        "cuda", "cuda:1", "mps" (Apple's GPU), "cpu" or None.

    Raises
    ------
    UserError
        Where there is no such device here, with the reason.

    Examples
    --------
    >>> from mindtuner import runtime
    >>> runtime.use_device("cpu")
    >>> runtime.device()
    device(type='cpu')
    >>> runtime.use_device(None)
    """
    _chosen[:] = [] if where is None else [available(where)]
    fast_dtype.cache_clear()


def available(where: str | torch.device) -> torch.device:
    """The device of that name. Raises UserError where it is none, or not here, with the reason."""
    try:
        found = torch.device(where)
    except RuntimeError as error:
        raise UserError(f"device: is {where!r}; expected cuda, cuda:N, mps or cpu") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device: is {where}, but torch finds no CUDA here; expected cpu, or a torch built for your GPU")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"device: is {where}, but the last GPU here is cuda:{torch.cuda.device_count() - 1}; expected one of them"
        )
    if found.type == "mps" and not torch.backends.mps.is_built():
        raise UserError(f"device: is {where}, but this torch was built without MPS; expected cpu, or a Mac with Apple's GPU")
    if found.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"device: is {where}, but torch finds no Apple GPU here; expected cpu, or macOS 12.3 or later on one")
    if found.type not in ("cuda", "mps", "cpu"):
        raise UserError(f"device: is {where!r}; expected cuda, cuda:N, mps or cpu")
    return found


def for_float64(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on a device that computes in float64: on the CPU where its own does not, as Apple's GPU."""
    return tensor.cpu() if tensor.device.type == "mps" else tensor


def to_device(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor on the device, which float64 reaches as float32: Apple's GPU has none, and no network here wants it."""
    return (tensor.float() if tensor.dtype == torch.float64 else tensor).to(device())


@functools.cache
def fast_dtype() -> torch.dtype:
    """bfloat16 where this machine multiplies it clearly faster than float32, by a short measurement.

    Most laptops have no bf16 matrix unit and emulate it; there the answer is float32. So it is on Apple's GPU, where
    bfloat16 depends on the version of macOS.
    """
    where = device()
    if where.type == "mps":
        return torch.float32
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.full((320, 320), 0.5, device=where, dtype=dtype)  # not random: nobody's stream may move
        best = float("inf")
        for _ in range(12):
            start = time.perf_counter()
            (a @ a).sum().item()
            best = min(best, time.perf_counter() - start)
        seconds[dtype] = best
    return torch.bfloat16 if seconds[torch.bfloat16] < 0.67 * seconds[torch.float32] else torch.float32


def autocast(dtype: torch.dtype | None = None):
    """Mixed precision in ``dtype`` (measured when not given); float32 means off."""
    dtype = dtype or fast_dtype()
    on = dtype is not torch.float32
    return torch.autocast(device().type, dtype if on else None, enabled=on)  # off it is not asked whether it knows float32


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed of its own for each named purpose, so that adding one stream never shifts another."""
    return zlib.crc32(":".join(str(part) for part in (seed, *names)).encode())


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def progress(items: Iterable, title: str, total: int | None = None, unit: str = "it", lines: bool = False):
    """A progress bar on stderr with an estimate of the time left; silent where stderr is not a terminal.

    ``lines``: where it is not, such as in a cluster's log, a line at most once in ``LINES_EVERY_S``; wants ``total``.
    """
    terminal, first = sys.stderr.isatty(), processes().index == 0  # of several processes the first speaks
    if lines and first and not terminal:
        return _Lines(items, desc=title, total=total, unit=unit, leave=False, mininterval=LINES_EVERY_S, miniters=1)
    return _Bar(items, desc=title, total=total, unit=unit, disable=not (first and terminal), leave=False)


class _Bar(tqdm):
    """All long work comes by here, so here threads keep to the cores that are free."""

    def __iter__(self):
        for item in super().__iter__():
            keep_share()
            yield item


class _Lines(_Bar):
    """Says how far it is in lines, each a new one."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        if msg is None and self.n:
            said = self.format_dict
            left = (self.total - self.n) * said["elapsed"] / self.n
            print(
                f"{self.desc}: {self.n} of {self.total} in {self.format_interval(said['elapsed'])}, about "
                f"{self.format_interval(left)} left",
                file=sys.stderr,
                flush=True,
            )


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage would begin with the size of whatever started this process
        return int(re.findall(r"VmHWM:\s+(\d+) kB", status.read_text())[0]) / 1024
    found = psutil.Process().memory_info()
    if hasattr(found, "peak_wset"):  # Windows
        return found.peak_wset / 1024**2
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)  # macOS counts bytes, other systems KiB
