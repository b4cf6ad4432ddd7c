"""The machine under a run: device, number format, seeds, progress bars, peak memory."""

from __future__ import annotations

import functools
import random
import resource
import sys
import time
import zlib
from collections.abc import Iterable

import numpy as np
import torch
from tqdm import tqdm


def device() -> torch.device:
    """CUDA where it works, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@functools.cache
def fast_dtype() -> torch.dtype:
    """bfloat16 where this machine multiplies it clearly faster than float32, by a short measurement.

    Most laptops have no bf16 matrix unit and emulate it; there the answer is float32.
    """
    where = device()
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
    return torch.autocast(device().type, dtype, enabled=dtype is not torch.float32)


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed of its own for each named purpose, so that adding one stream never shifts another."""
    return zlib.crc32(":".join(str(part) for part in (seed, *names)).encode())


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def progress(items: Iterable, title: str, total: int | None = None, unit: str = "it"):
    """A progress bar on stderr, silent where stderr is not a terminal."""
    return tqdm(items, desc=title, total=total, unit=unit, disable=not sys.stderr.isatty(), leave=False)


def peak_memory_mb() -> float:
    """Largest resident size of this process so far, in MB (Linux counts KiB, macOS bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024**2 if sys.platform == "darwin" else 1024)
