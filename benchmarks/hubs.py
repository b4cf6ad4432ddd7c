"""Do some images come first for too many brains, and what does it cost? Cosines, and cosines in units of their usual size.

    python benchmarks/hubs.py OUT [--held-out 0 1 2] [--test 10 12] [--tunings 2] [--write FILE]

An image is looked up by its cosine to what was decoded. Of some images all cosines are large, of others all are small: for
one brain that is no evidence. So each image's cosines are divided by their standard deviation over the trials that the
subject was tuned on, and each caption's likewise (hubs: Radovanovic et al. 2010; related remedies: Schnitzer et al. 2012).
``of N``: that deviation as the N largest principal components of what was decoded of these trials give it, which can be kept
where all trials are too much. Which brain an image finds does not change, as there the image is the query.

For each simulator seed a world is made once (kept in OUT/seed-N, shared with other benchmarks), and subject 1 tuned on one
session by each method. With seeds ``--held-out`` a fifth of the training images is held out, and ranked among all of them:
the mean of log(1 + rank), as in recipe.py. With seeds ``--test``, which chose nothing, top-1 of the 300 test images among
themselves. Differences are paired by world, with 95 % intervals over worlds. One line per run goes to OUT/seed-N/hubs.jsonl,
so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pages import markdown, write_between
from world import HOLDOUT, Done, World, config_of, mean_and_sd, open_world, over_worlds

from mindtuner.decoding.decoder import Predictions
from mindtuner.evaluation.scores.retrieval import score

BASELINE = "ridge_only"
METHODS = ("mindtuner", BASELINE, "full_finetune", "shuffled_brain")
COMPONENTS = (8, 32, 128)
PLAIN, SCALED = "cosine", "over its deviation"
MEASURES = (PLAIN, SCALED, *(f"the same, of {count}" for count in COMPONENTS))
HELD, TEST = "held out", "test"


def known(out: Path, seed: int) -> Done:
    return Done(out / f"seed-{seed}" / "hubs.jsonl", "where", "method", "tuning")


def measure(out: Path, seed: int, where: str, tunings: int) -> None:
    done = known(out, seed)
    left = done.left((where, method, tuning) for method in METHODS for tuning in range(tunings))
    if not left:
        return
    world = open_world(out / f"seed-{seed}", config_of(seed))
    for _, method, tuning in left:
        tuned = world.tune(method, tuning, holdout=HOLDOUT if where == HELD else 0.0)
        decoder, hour = tuned.decoder(), world.hour.train
        asked = tuned.held_out(world.dataset) if where == HELD else world.subject.test
        tuned_on = hour.select(~np.isin(hour.stimulus, asked.stimulus))
        each = np.arange(len(tuned_on.stimulus))  # single trials, as tuning sees them
        said = world.decode(decoder, asked)
        usual = decoder.predict(world.subject.betas(tuned_on.row), each)
        pool = np.sort(world.dataset.stimuli.training_images) if where == HELD else said.images
        done.add(where=where, method=method, tuning=tuning, **found(world, said, usual, pool, where))


def found(world: World, said: Predictions, usual: Predictions, pool: np.ndarray, where: str) -> dict[str, dict[str, float]]:
    """By direction and measure: log ranks or top-1 of what is ``said`` among the images of ``pool`` (m,), ascending."""
    own, caches = np.searchsorted(pool, said.images), world.features.caches
    tokens = unit(said.compared(np.asarray(caches["tokens"][pool], np.float32)))
    text, which = torch.unique(unit(np.asarray(caches["text"][pool])), dim=0, return_inverse=True)
    right = which[torch.from_numpy(own)].numpy()
    return {
        "image": scored(unit(said.retrieval_tokens), unit(usual.retrieval_tokens), tokens, own, where),
        "text": scored(unit(said.text), unit(usual.text), text, right, where),
    }


def unit(rows: np.ndarray) -> torch.Tensor:
    return F.normalize(torch.from_numpy(rows).flatten(1), dim=1)


def scored(
    said: torch.Tensor, usual: torch.Tensor, candidates: torch.Tensor, own: np.ndarray, where: str
) -> dict[str, float]:
    """By measure, of rows said (n, w), where ``own`` (n,) are the right ones of the candidates (m, w)."""
    cosines, around = said @ candidates.T, usual - usual.mean(0)
    _, lengths, components = torch.linalg.svd(around, full_matrices=False)
    parts = (components @ candidates.T) * lengths[:, None]
    deviations = {PLAIN: torch.ones(len(candidates)), SCALED: (around @ candidates.T).norm(dim=0)}
    deviations |= {name: parts[:count].norm(dim=0) for name, count in zip(MEASURES[2:], COMPONENTS, strict=True)}
    values = {}
    for name, deviation in deviations.items():
        one = score((cosines / (deviation / deviation.mean())).double().numpy(), own)
        values[name] = round(float(np.log1p(one.ranks).mean() if where == HELD else one.top1.mean()), 4)
    return values


def table(options: argparse.Namespace) -> str:
    parts = []
    for where, seeds in ((HELD, options.held_out), (TEST, options.test)):
        worlds = [known(options.out, seed) for seed in seeds]

        def value(method: str, direction: str, measured: str, where=where, worlds=worlds) -> np.ndarray:
            runs = [[one[where, method, tuning][direction][measured] for tuning in range(options.tunings)] for one in worlds]
            return np.array(runs).mean(1)

        rows = []
        for measured in MEASURES:
            for method in METHODS:
                row = [measured, method]
                for direction in ("image", "text"):
                    own = value(method, direction, measured)
                    row += [
                        mean_and_sd(own[:, None]),
                        "" if measured == PLAIN else over_worlds(own - value(method, direction, PLAIN)),
                        "" if method == BASELINE else over_worlds(own - value(BASELINE, direction, measured)),
                    ]
                rows.append(row)
        header = ["looked up by", "method"]
        header += [f"{d}{w}" for d in ("image", "text") for w in ("", f" minus {PLAIN}", f" minus {BASELINE}")]
        what = "mean log(1 + rank), held-out training images" if where == HELD else "top-1, test images"
        parts.append(f"{what}, simulator seeds {', '.join(map(str, seeds))}:\n\n{markdown(header, rows)}")
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--held-out", type=int, nargs="+", default=[0, 1, 2], metavar="SEED")
    parser.add_argument("--test", type=int, nargs="+", default=[10, 12], metavar="SEED")
    parser.add_argument("--tunings", type=int, default=2)
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    for where, seeds in ((HELD, options.held_out), (TEST, options.test)):
        for seed in seeds:
            measure(options.out, seed, where, options.tunings)
    text = table(options)
    print(text)
    if options.write:
        write_between(options.write, "hubs", text)


if __name__ == "__main__":
    main()
