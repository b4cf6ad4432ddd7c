"""Which decoded tokens should retrieve? On training images that tuning did not see.

    python benchmarks/retrieval_tokens.py OUT [--seeds 0 1 2 3 4] [--tuning-seeds 3] [--write FILE]

For each simulator seed a world is made once (kept in OUT/seed-N, shared with other benchmarks). ``mindtuner`` and
``ridge_only`` are tuned without a fifth of the training images, and these are ranked as in recipe.py (mean of log(1 + rank),
lower is better): by the projected tokens C, as published; by the backbone tokens B; by the sum of their unit vectors; and by
what an image changes in both (``model.backbone.Centre``), B having a share of it. Differences to C with 95 % intervals over
worlds. The last column tells of hubs: the share of held-out brains whose nearest image is one of the ten that are nearest
most often. ``--write`` puts the table between the file's ``tokens:begin`` and ``tokens:end`` comments.
"""

from __future__ import annotations

import argparse
from unittest import mock

import numpy as np
import torch
from pages import markdown, write_between
from world import HOLDOUT, add_seeds, config_of, open_world, over_worlds

from mindtuner.config import load_config
from mindtuner.decoding.training_images import most_similar
from mindtuner.model import backbone
from mindtuner.runtime import progress

METHODS, DIRECTIONS, C, HUBS = ("mindtuner", "ridge_only"), ("image", "brain"), "C", 10
SHARES = {"what changes in C": 0.0, "0.15 B": 0.15, "0.3 B": 0.3, "0.5 B": 0.5, "what changes in B": 1.0}


class Uncentred(torch.nn.Module):
    """In the place of a centre: the tokens as they are."""

    def __init__(self, share: float):
        super().__init__()
        self.share = share

    def forward(self, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        unit = [torch.nn.functional.normalize(tokens.flatten(1), dim=1).view_as(tokens) for tokens in (b, c)]
        return self.share * unit[0] + (1 - self.share) * unit[1]


UNCENTRED = {C: 0.0, "B": 1.0, "B + C": 0.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_seeds(parser)
    parser.add_argument("--tuning-seeds", type=int, default=3)
    options = parser.parse_args()
    found: dict[tuple[str, str, str], list[float]] = {}  # method, tokens, column -> a value for each world
    for seed in options.seeds:
        for key, values in measure(seed, options.out, options.tuning_seeds).items():
            found.setdefault(key, []).append(float(np.mean(values)))
    rows = []
    for method in METHODS:
        for name in (*UNCENTRED, *SHARES):
            cells = [method, name, *(f"{np.mean(found[method, name, d]):.3f}" for d in DIRECTIONS)]
            for d in DIRECTIONS:
                gain = np.array(found[method, name, d]) - np.array(found[method, C, d])
                cells.append("" if name == C else over_worlds(gain))
            rows.append([*cells, f"{np.mean(found[method, name, 'hubs']):.0%}"])
    header = ["method", "by", *DIRECTIONS, *(f"minus C, {d}" for d in DIRECTIONS), f"nearest is one of {HUBS} hubs"]
    seeds = " ".join(map(str, options.seeds))
    text = (
        f"{markdown(header, rows, left=2)}\n\n    python benchmarks/retrieval_tokens.py OUT --seeds {seeds} --tuning-seeds "
    )
    text += f"{options.tuning_seeds}"
    print(text)
    if options.write:
        write_between(options.write, "tokens", text)


def measure(seed: int, out, tuning_seeds: int) -> dict[tuple[str, str, str], list[float]]:
    """Values of one world, one for each tuning seed."""
    world = open_world(out / f"seed-{seed}", config_of(seed))
    config, found = load_config(world.config, decode={"retrieval_tokens": "centred"}), {}
    runs = [(method, tuning) for method in METHODS for tuning in range(tuning_seeds)]
    for method, tuning in progress(runs, f"world {seed}", unit="run"):
        tuned = world.tune(method, tuning, config, holdout=HOLDOUT)
        [network] = tuned.networks.values()
        centre = network.centre
        for name, share in (UNCENTRED | SHARES).items():
            network.centre = Uncentred(share) if name in UNCENTRED else centre
            with mock.patch.object(backbone, "CENTRED_BACKBONE", share):
                ranks = world.held_out_ranks(tuned)
                said = world.decode(tuned.decoder(), tuned.held_out(world.dataset))
            images = world.features.caches["tokens"][world.dataset.stimuli.training_images]
            nearest = most_similar(said.retrieval_tokens, np.asarray(images, np.float32), 1)[:, 0]
            counts = np.sort(np.bincount(nearest))[::-1]
            values = {d: float(ranks.log[d].mean()) for d in DIRECTIONS} | {"hubs": float(counts[:HUBS].sum() / counts.sum())}
            for column, value in values.items():
                found.setdefault((method, name, column), []).append(value)
        network.centre = centre
    return found


if __name__ == "__main__":
    main()
