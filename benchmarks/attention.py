"""How long does the prior's attention take, written out and as torch's fused kernel?

    python benchmarks/attention.py [--samples 12] [--rounds 30] [--threads 2] [--write benchmarks/results/attention.md]

One layer's queries, keys and values at the sizes of ``train_step.py`` (9 heads, 129 tokens and a null key, 52 a head), forth
and back; random numbers, seed 0. The two take turns. On a CPU ``model/attention.py`` writes attention out in
bfloat16, by this table.
"""

from __future__ import annotations

import argparse
import datetime
import time
from pathlib import Path

import numpy as np
import torch
from pages import machine, write_between
from sides import SIZES, ratios

from mindtuner.model.attention import attend_fused, attend_written_out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    lines = [
        f"{datetime.date.today()}, {machine()}, {options.samples} samples, {options.threads} threads, {options.rounds} "
        "rounds; milliseconds are medians, ratios median (lowest to highest round)\n",
        "| numbers | bias | fused, ms | written out, ms | times as fast |",
        "|---|---|---:|---:|---:|",
    ]
    for dtype in (torch.float32, torch.bfloat16):
        for trains in (False, True):
            fused, written = measure(options.samples, dtype, trains, options.rounds)
            lines.append(
                f"| {str(dtype).removeprefix('torch.')} | {'trains' if trains else 'frozen'} "
                f"| {1e3 * np.median(fused):.1f} | {1e3 * np.median(written):.1f} | {ratios(fused, written)} |"
            )
    text = "\n".join(lines)
    print(text)
    if options.write:
        write_between(options.write, "attention", text)


def measure(samples: int, dtype: torch.dtype, trains: bool, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of each round, fused and written out, after three that do not count."""
    tokens, width = 2 * SIZES["tokens"] + 1, SIZES["head_dim"]
    asked = SIZES["heads"] * tokens
    leaves = [
        torch.randn(*shape, dtype=dtype, requires_grad=True)
        for shape in ((samples, asked, width), (samples, tokens + 1, width), (samples, tokens + 1, width))
    ]
    bias = torch.randn(asked, tokens + 1, dtype=dtype, requires_grad=trains)
    gradient, leaves = torch.randn(samples, asked, width, dtype=dtype), leaves + [bias] * trains
    found: tuple[list[float], list[float]] = [], []
    for _ in range(3 + rounds):
        for attend, seconds in zip((attend_fused, attend_written_out), found, strict=True):
            start = time.perf_counter()
            torch.autograd.grad(attend(*leaves[:3], bias), leaves, gradient)
            seconds.append(time.perf_counter() - start)
    return found[0][3:], found[1][3:]


if __name__ == "__main__":
    main()
