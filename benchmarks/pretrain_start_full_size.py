"""How long would pretraining's start in closed form take at NSD's size? Its pieces, measured on made-up rows, added up.

    python benchmarks/pretrain_start_full_size.py [--tokens 256] [--width 1664] [--hidden 4096] [--voxels 15724]

At the paper's sizes: one chunk of images through the decomposition (both products) and to coordinates; of one subject's
regression one chunk of trials, one Cholesky decomposition with the solve that judges a penalty, and the last solve, of all
hidden features. Each is timed once, and multiplied by how often it comes: 7 subjects of 27,000 trials, 70,000 images in all.
At the demo's size all of it is run. Reading tokens from the disk comes on top.
"""

from __future__ import annotations

import argparse
import multiprocessing
import time

import numpy as np
import torch
from pages import machine, markdown

from mindtuner.config import load_config
from mindtuner.model import BrainNetwork
from mindtuner.runtime import peak_memory_mb
from mindtuner.training import Targets
from mindtuner.training import first_weights as start
from mindtuner.training.ridge import PENALTIES

SUBJECTS, TRIALS, IMAGES = 7, 27_000, 70_000


def decomposition(features: int, hidden: int) -> dict[str, float]:
    """Seconds of a chunk's two products, and of the turn that ends an iteration, for a head of hidden x features."""
    head, rows = torch.randn(features, hidden), torch.randn(start.CHUNK, features)
    begun = time.perf_counter()
    said = rows @ head
    forth = time.perf_counter() - begun
    begun = time.perf_counter()
    head.addmm_(rows.T, said)
    back = time.perf_counter() - begun
    some, turn = head[: start.ROWS], torch.randn(hidden, hidden)
    begun = time.perf_counter()
    some.copy_(some @ turn)
    return {
        "forth": forth,
        "back": back,
        "turn": (time.perf_counter() - begun) * features / len(some),
        "peak": peak_memory_mb(),
    }


def regression(voxels: int, hidden: int) -> dict[str, float]:
    """Seconds of a chunk's products, of judging one penalty, and of the last solve."""
    trials = torch.randn(4 * start.CHUNK, voxels)
    y = torch.randn(len(trials), start.JUDGED).double()
    gram = torch.zeros(voxels, voxels, dtype=torch.float64)
    own = trials[: start.CHUNK].double()
    begun = time.perf_counter()
    gram.addmm_(own.T, own)
    chunk = time.perf_counter() - begun
    products = start._Products.__new__(start._Products)  # as if of more trials than voxels, without having them
    products.dual, products.gram, products.right = False, gram, trials.double().T @ y
    products.scale, products.x_mean, products.y_mean = float(voxels), trials.double().mean(0), y.mean(0)
    begun = time.perf_counter()
    products.solved(1.0)
    judged = time.perf_counter() - begun
    products.right = torch.randn(voxels, hidden, dtype=torch.float64)
    products.y_mean = torch.zeros(hidden, dtype=torch.float64)
    begun = time.perf_counter()
    products.solved(1.0)
    return {"chunk": chunk, "judged": judged, "last": time.perf_counter() - begun, "peak": peak_memory_mb()}


def at_demo_size() -> float:
    """Seconds of the decomposition and of seven regressions, on noise of the demo's shapes."""
    sizes, trials, voxels, images = load_config("demo").model, 1350, 3145, 3150
    network = BrainNetwork(sizes, {"one": voxels})
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((images, sizes.tokens, sizes.width), np.float32)
    targets = Targets(tokens, np.zeros((images, sizes.text_width), np.float32))
    shown = rng.integers(0, images, (SUBJECTS, trials))
    betas, wanted = torch.randn(trials, voxels), torch.randn(trials, sizes.hidden)
    begun = time.perf_counter()
    start.principal_head(network, targets, np.arange(images), 0)
    for own in shown:
        start.cross_fitted_ridge(betas, wanted, own, 0)
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("tokens", 256), ("width", 1664), ("hidden", 4096), ("voxels", 15724)):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default {default}")
    options = parser.parse_args()
    alone = multiprocessing.get_context("spawn")
    with alone.Pool(1) as pool:
        one = pool.apply(decomposition, (options.tokens * options.width, options.hidden))
    with alone.Pool(1) as pool:
        two = pool.apply(regression, (options.voxels, options.hidden))
    chunks = min(IMAGES, start.PER_FEATURE * options.hidden) / start.CHUNK
    times = 1 + start.POWER
    directions = times * (chunks * (one["forth"] + one["back"]) + one["turn"]) + one["turn"]
    coordinates = IMAGES / start.CHUNK * one["forth"]
    products = start.FOLDS * TRIALS / start.CHUNK * two["chunk"]  # of all trials, and of all but each fold
    ridges = SUBJECTS * (products + len(PENALTIES) * two["judged"] + (1 + start.FOLDS) * two["last"])
    rows = [
        ["principal directions", f"{directions / 3600:.1f}", f"{one['peak'] / 1024:.1f}"],
        ["coordinates of all images", f"{coordinates / 3600:.1f}", ""],
        ["seven ridges", f"{ridges / 3600:.1f}", f"{two['peak'] / 1024:.1f}"],
        ["all", f"{(directions + coordinates + ridges) / 3600:.1f}", ""],
    ]
    print(f"{machine()}, {torch.get_num_threads()} threads\n")
    print(markdown(["part", "hours", "peak of its pieces, GB"], rows))
    print(f"\nAt the demo's size, on noise of its shapes, all of it took {at_demo_size():.1f} s.")
    print("\nSeconds of a piece: " + ", ".join(f"{k} {v:.1f}" for k, v in (one | two).items() if k != "peak"))


if __name__ == "__main__":
    main()
