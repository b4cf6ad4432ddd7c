"""Which decoded tokens should retrieve? On training images that tuning did not see.

    python benchmarks/retrieval_tokens.py OUT [--seeds 0 1 2] [--tuning-seeds 3] [--write FILE]

For each simulator seed, simulates, embeds and pretrains once (kept in OUT/seed-N, shared with painting.py), then tunes
``mindtuner`` and ``ridge_only`` without a fifth of the training images and looks those up among themselves: by the projected
tokens C, as published, by the backbone tokens B, and by both, as ``decode.retrieval_tokens: both`` does. Mean (sd over
simulator seeds); paired differences to C over all tuning seeds and images, with 95 % intervals. ``--write`` puts the table
between the file's ``tokens:begin`` and ``tokens:end`` comments.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
import torch
from pages import markdown, spread, write_between
from world import HOLDOUT, add_seeds, config_of, difference, open_world

from mindtuner.decoding.decoder import sum_of_unit_tokens

METHODS, DIRECTIONS = ("mindtuner", "ridge_only"), ("image", "brain")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_seeds(parser)
    parser.add_argument("--tuning-seeds", type=int, default=3)
    options = parser.parse_args()
    hits: dict[tuple[str, str, str], list[np.ndarray]] = {}  # an array (tuning seeds, images) of each simulator seed
    for seed in options.seeds:
        for key, rows in measure(seed, options).items():
            hits.setdefault(key, []).append(np.array(rows))
    count = hits[METHODS[0], "C", "image"][0].shape[1]
    rows = []
    for method in METHODS:
        for name in ("C", "B", "both"):
            cells = [method, name, *(spread([one.mean() for one in hits[method, name, d]]) for d in DIRECTIONS)]
            for d in DIRECTIONS:
                own, published = (np.concatenate(hits[method, by, d], 1) for by in (name, "C"))
                cells.append("" if name == "C" else difference(own, published))
            rows.append(cells)
    text = (
        markdown(["method", "by", *DIRECTIONS, *(f"minus C, {d}" for d in DIRECTIONS)], rows, left=2)
        + f"\n\n    python benchmarks/retrieval_tokens.py OUT --seeds {' '.join(map(str, options.seeds))} "
        f"--tuning-seeds {options.tuning_seeds}\n\n{count} held-out training images at a time, chance {1 / count:.3f}."
    )
    print(text)
    if options.write:
        write_between(options.write, "tokens", text)


def measure(seed: int, options: argparse.Namespace) -> dict[tuple[str, str, str], list[list[float]]]:
    """Hits of one simulator seed by method, tokens and direction, a row for each tuning seed."""
    world = open_world(options.out / f"seed-{seed}", config_of(seed))
    decode = dataclasses.replace(world.config.decode, retrieval_tokens="projected")
    config = dataclasses.replace(world.config, decode=decode)
    found: dict[tuple[str, str, str], list[list[float]]] = {}
    for tuning in range(options.tuning_seeds):
        for method in METHODS:
            tuned = world.tune(method, tuning, config, holdout=HOLDOUT)
            said = world.decode(tuned.decoder(), tuned.held_out(world.dataset))
            b, c = said.backbone_tokens, said.retrieval_tokens
            both = sum_of_unit_tokens(torch.from_numpy(b), torch.from_numpy(c)).numpy()
            for name, tokens in {"C": c, "B": b, "both": both}.items():
                scores = world.top1(dataclasses.replace(said, retrieval_tokens=tokens))
                for direction in DIRECTIONS:
                    found.setdefault((method, name, direction), []).append(scores[direction])
    return found


if __name__ == "__main__":
    main()
