"""How much memory does a whole ``tune`` take, its base included?

    python benchmarks/tune_memory.py [--before SRC] [--threads 2]

Three steps of ``tune`` at the sizes of ``train_step.py``, on a base of one other subject that stays in memory as it does for
any caller; random numbers, seed 0. SRC is the ``src`` folder of another revision of this project. Peak resident MB, imports
included, of one process each.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import sys
from pathlib import Path

from sides import SIZES, SOURCE, peak_mb
from train_step import fit_config, our_model, random_world


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, metavar="SRC")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    sources = {"before": options.before.resolve()} if options.before else {}
    print("| a whole `tune` | fp32, peak MB | bf16, peak MB |\n|---|---:|---:|")
    for name, source in {**sources, "ours": SOURCE}.items():
        peaks = []
        for dtype in ("float32", "bfloat16"):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                peaks.append(pool.apply(tune_once, (source, dtype, options.threads)))
        print(f"| {name} | {peaks[0]:.0f} | {peaks[1]:.0f} |")


def tune_once(source: Path, dtype: str, threads: int) -> float:
    """Peak resident MB of a process that tunes with the package in ``source``."""
    sys.path.insert(0, str(source))
    import torch

    from mindtuner import runtime
    from mindtuner.config import load_config
    from mindtuner.model import BrainNetwork
    from mindtuner.training import tune

    torch.set_num_threads(threads)
    runtime.seed_everything(0)
    model = our_model()
    base = BrainNetwork(model, {"subj02": SIZES["voxels"]})
    [feed], targets = random_world(model, SIZES["voxels"])
    fit = dataclasses.replace(fit_config(3, dtype, mixco=False, batch=24), start="random")
    tune(base, feed.subject, targets, dataclasses.replace(load_config("demo"), model=model, tune=fit), 0)
    return peak_mb()


if __name__ == "__main__":
    main()
