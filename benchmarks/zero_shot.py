"""How far does a base get with a new subject that nothing was tuned to?

    python benchmarks/zero_shot.py OUT [--seed 0]
    python benchmarks/zero_shot.py --table OUT [OUT ...]

On one simulated dataset and base (kept in OUT, shared with tuning_seeds.py), subject 1 gets a ridge by each way of
``mindtuner.studies.zero_shot``, and its test images are retrieved. Rows:

- regions, connectome: no trial's picture is known; the first session's betas alone
- shuffled regions: the same with the labels of the voxels' regions permuted, the control
- shared images: fitted on half of the test images, scored on the other half, and the other way round; so retrieval of these
  rows is among half as many. Shuffled: with brains permuted over trials. As many training trials: the same regression on the
  same number of trials of session 1, to what the base expects of their images; the baseline, scored alike
- one hour: that regression on the whole session, no training

All rows but the regressions' folds, parcels and transports are without chance; their seed is --seed. One line per row goes to
OUT/zero-shot.jsonl.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
from pages import markdown, spread
from world import DIRECTIONS, Done, config_of, difference, in_worlds, open_world

from mindtuner.data import Subject, Trials
from mindtuner.model import BrainNetwork
from mindtuner.pipeline import SubjectDecoder
from mindtuner.runtime import derive_seed, progress
from mindtuner.studies import zero_shot
from mindtuner.training import subject_name
from mindtuner.training.batches import make_feeds
from mindtuner.training.closed_form import HiddenRidge, solve_ridge

FILE = "zero-shot.jsonl"


def measure(out: Path, seed: int, fingerprint: float) -> None:
    world = open_world(out, config_of(seed, fingerprint))
    base, subject, hour, config = world.base.network, world.subject, world.hour, world.config
    others = world.dataset.without(subject=subject.number).subjects
    name, unlabelled = subject_name(subject.number), hour.betas(hour.train.row)
    order = np.random.default_rng(derive_seed(seed, "regions")).permutation(subject.n_voxels)
    mixed_up = dataclasses.replace(subject, rois={name: mask[order] for name, mask in subject.rois.items()})
    shared = np.unique(subject.test.stimulus)
    half = np.isin(shared, np.random.default_rng(derive_seed(seed, "halves")).permutation(shared)[: len(shared) // 2])

    def asked(ridge: HiddenRidge | BrainNetwork, images: np.ndarray = shared) -> dict:
        network = zero_shot.network_with(base, subject, ridge) if isinstance(ridge, HiddenRidge) else ridge
        decoder = SubjectDecoder(network, name, config.decode, seed)
        return world.top1(world.decode(decoder, zero_shot.of_images(subject.test, images)))

    def halves(by) -> dict:
        found = [asked(by(shared[fitted]), shared[~fitted]) for fitted in (half, ~half)]
        return {d: found[0][d] + found[1][d] for d in DIRECTIONS}

    def solved(trials: Trials) -> BrainNetwork:
        shapes = (subject.n_voxels, base.config.hidden), (base.config.hidden,)
        network = zero_shot.network_with(base, subject, HiddenRidge(*(np.zeros(shape, np.float32) for shape in shapes)))
        feed = make_feeds({name: subject}, {name: trials}, seed)[0]
        solve_ridge(network, base, feed, world.features.targets, seed)
        return network

    def by_shared_images(images: np.ndarray, subject: Subject = subject) -> HiddenRidge:
        return zero_shot.by_shared_images(base, others, subject, images, seed)

    def shuffled(images: np.ndarray) -> HiddenRidge:
        rng = np.random.default_rng(derive_seed(seed, "brains"))
        at = np.flatnonzero(np.isin(subject.trials.stimulus, images))
        row = subject.trials.row.copy()
        row[at] = rng.permutation(row[at])
        trials = dataclasses.replace(subject.trials, row=row)
        return by_shared_images(images, dataclasses.replace(subject, trials=trials))

    def as_many(images: np.ndarray) -> BrainNetwork:
        count = len(zero_shot.of_images(subject.test, images))
        return solved(hour.train.select(np.arange(len(hour.train)) < count))

    rows = {
        "regions": lambda: asked(zero_shot.by_regions(base, others, subject, unlabelled)),
        "regions, shuffled regions": lambda: asked(zero_shot.by_regions(base, others, mixed_up, unlabelled)),
        "connectome": lambda: asked(zero_shot.by_connectome(base, others, subject, unlabelled, seed)),
        "connectome, shuffled regions": lambda: asked(zero_shot.by_connectome(base, others, mixed_up, unlabelled, seed)),
        "shared images": lambda: halves(by_shared_images),
        "shared images, shuffled": lambda: halves(shuffled),
        "as many training trials": lambda: halves(as_many),
        "one hour": lambda: asked(solved(hour.train)),
    }
    done = known(out)
    for row in progress(done.left(rows), "rows"):
        done.add(row=row, scores=rows[row]())


def known(out: Path) -> Done:
    return Done(out / FILE, "row")


def table(outs: list[Path]) -> str:
    """A Markdown table over worlds: means (sd over worlds), and differences to the control or baseline of a row, paired."""
    worlds = [known(out) for out in outs]
    count = len(worlds[0]["one hour"]["scores"]["image"])
    beside = {
        "regions": "regions, shuffled regions",
        "connectome": "connectome, shuffled regions",
        "shared images": "as many training trials",
    }

    def hits(row: str, direction: str) -> list[np.ndarray]:
        return [np.array(world[row]["scores"][direction]) for world in worlds]

    rows = []
    for name in worlds[0].runs:
        halved = name.startswith("shared images") or name == "as many training trials"
        cells = [name, str(count // 2 if halved else count)]
        for d in DIRECTIONS:
            mine = hits(name, d)
            cells.append(spread([one.mean() for one in mine]))
            cells.append(difference(np.concatenate(mine), np.concatenate(hits(beside[name], d))) if name in beside else "")
        rows.append(cells)
    header = ["the new subject by", "candidates", *(word for d in DIRECTIONS for word in (d, "minus control or baseline"))]
    chance = f"| *chance* | {count} | " + " | | ".join([f"{1 / count:.3f}"] * 3) + " | |"
    return f"{len(worlds)} worlds\n\n{markdown(header, rows)}\n{chance}"


if __name__ == "__main__":
    in_worlds(__doc__, measure, table)
