"""How long does the closed-form start of a ridge take at the paper's size?

    python benchmarks/closed_form_full_size.py [--trials 750] [--voxels 15724] [--hidden 4096] [--similar 0 10] [--rounds 3]

Betas are a random linear image of random hidden features, and as much noise; each image is seen three times. Each round is
a process of its own, with and without similar voxels in turn. Prints seconds, CPU seconds and peak memory, and how well the
ridge predicts the hidden features of trials that it was not fitted to.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time

import numpy as np
import torch

from mindtuner import runtime
from mindtuner.training.closed_form import fit_hidden

NEW = 200  # trials to predict


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("trials", 750), ("voxels", 15724), ("hidden", 4096), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default {default}")
    parser.add_argument("--similar", type=int, nargs="+", default=[0, 10], metavar="N")
    options = parser.parse_args()
    found: dict[int, list] = {similar: [] for similar in options.similar}
    for seed in range(options.rounds):
        for similar, rounds in found.items():
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rounds.append(pool.apply(measure, (options.trials, options.voxels, options.hidden, similar, seed)))
    print(
        f"{options.trials} trials, {options.voxels} voxels, {options.hidden} hidden features, {options.rounds} rounds, "
        f"{torch.get_num_threads()} threads; mean (sd)\n"
    )
    print("| similar voxels | seconds | CPU seconds | peak memory, MB | of them before | r of new trials |")
    print("|---:|" + "---:|" * 5)
    for similar, rounds in found.items():
        cells = [
            f"{mean:.{digits}f} ({sd:.{digits}f})"
            for mean, sd, digits in zip(
                np.mean(rounds, 0), np.std(rounds, 0, ddof=1 if len(rounds) > 1 else 0), (1, 1, 0, 0, 3), strict=True
            )
        ]
        print(f"| {similar} | " + " | ".join(cells) + " |")


def measure(trials: int, voxels: int, hidden: int, similar: int, seed: int) -> tuple[float, ...]:
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((trials // 3 + NEW, 64), np.float32) @ rng.standard_normal((64, hidden), np.float32)
    image = np.r_[np.repeat(np.arange(trials // 3), 3), np.arange(trials // 3, trials // 3 + NEW)]
    signal = features[image] @ (rng.standard_normal((hidden, voxels), np.float32) / (8 * hidden**0.5))
    betas = signal + rng.standard_normal(signal.shape, np.float32) * signal.std()
    fitted = slice(len(image) - NEW)
    spread = float(features.var(0).sum())
    before, start, cpu = runtime.peak_memory_mb(), time.perf_counter(), time.process_time()
    ridge = fit_hidden(features[image[fitted]], betas[fitted], image[fitted], spread, seed, similar)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    peak, said = runtime.peak_memory_mb(), betas[-NEW:] @ ridge.weight + ridge.bias
    r = np.corrcoef(said.ravel(), features[image[-NEW:]].ravel())[0, 1]
    return seconds, cpu, peak, before, r


if __name__ == "__main__":
    main()
