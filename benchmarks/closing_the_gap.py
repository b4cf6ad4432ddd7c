"""How far is one hour from all hours, and what brings it nearer?

    python benchmarks/closing_the_gap.py OUT [--seed 0] [--tuning-seeds 3] [--split validation] [--arms NAME ...]
    python benchmarks/closing_the_gap.py --table OUT [OUT ...] [--split validation]

On one simulated dataset and base (kept in OUT, shared with tuning_seeds.py), subject 1 is tuned on session 1 and on all
sessions, and on session 1 with one thing changed. ``--split validation``, to choose by: 90 training images of the subject,
others for each tuning seed, are kept from every arm, and retrieved among themselves. ``--split test``: the shared images.
Retrieval goes by the sum of the unit vectors of B and C, except in arms that say otherwise; fitted on the hour:

- one hour; all hours: as ``tune`` does it, and one hour's networks with C alone, or B alone, to retrieve by
- each voxel for itself, and 2 to 60 similar voxels: so many take part in a voxel's weight where the ridge starts
  (``tune.similar_voxels``); the first also on all hours
- direct ridge beside: the tokens of a ridge regression from voxels to image tokens as a third estimate
- direct ridge alone: that regression alone, without any base
- reliable voxels: each voxel times how far it follows the images that were seen, a prior for the ridge on it; a region's
  weight: each region has one in its place, the best of 30 by cross-validation (banded ridge)
- noisier copies: the hour's images again, their voxels predicted by an encoding model (a ridge from tokens to voxels)
  fitted on the hour, plus its residuals of other trials; unseen images: the same for as many images that the subject never
  saw, which is self-training: the labels are true and the brains are the hour's own guess
- three ranks, three seeds: tokens averaged over networks of rank 4, 8 and 16, or of one rank tuned three times

One line per run goes to OUT/closing-{split}.jsonl, so a run that was stopped continues. ``--table`` prints means over the
OUTs, a world each, the share of all hours that is reached, and differences to one hour paired over images and tuning seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from himalaya.kernel_ridge import solve_multiple_kernel_ridge_random_search
from pages import markdown, spread
from world import DIRECTIONS, Done, World, config_of, difference, open_world

from mindtuner.config import Config
from mindtuner.data import Subject, Trials
from mindtuner.data.splits import image_folds
from mindtuner.decoding.decoder import Predictions
from mindtuner.runtime import derive_seed, progress
from mindtuner.studies.bench import regression
from mindtuner.training.ridge import ridge_regression

HELD_OUT, WEIGHTS_TRIED, PENALTIES = 90, 30, np.logspace(0, 6, 13)
C_ALONE, B_ALONE, BESIDE, ALONE = ", C alone", ", B alone", " beside", " alone"
ENDINGS = ("", C_ALONE, B_ALONE, BESIDE, ALONE)  # of the rows of an arm
HOUR, ALL, ITSELF = "one hour", "all hours", "each voxel for itself"
SIMILAR = (2, 5, 20, 60)  # beside the config's


@dataclass(frozen=True)
class Asked:
    """A world, the trials that no arm is tuned on and every arm is asked of, and the tuning seed."""

    world: World
    trials: Trials
    seed: int

    @property
    def caches(self):
        return self.world.features.caches

    @property
    def config(self) -> Config:
        return self.world.config

    def similar(self, count: int) -> Asked:
        """With so many voxels to each in the ridge's start."""
        tune = dataclasses.replace(self.config.tune, similar_voxels=count)
        config = dataclasses.replace(self.config, tune=tune)
        return dataclasses.replace(self, world=dataclasses.replace(self.world, config=config))

    def decoded(self, subject: Subject, summed: bool = True, seed: int | None = None, **fingerprint) -> Predictions:
        """Tuned on the subject's training trials, and asked of the kept ones; by B and C, or, not ``summed``, by C."""
        config = dataclasses.replace(
            self.config,
            decode=dataclasses.replace(self.config.decode, retrieval_tokens="projected"),
            fingerprint=dataclasses.replace(self.config.fingerprint, **fingerprint),
        )
        tuned = self.world.tune("mindtuner", self.seed if seed is None else seed, config, subject)
        said = self.world.decode(tuned.decoder(), self.trials, subject)
        return with_retrieval(said, said.backbone_tokens, said.retrieval_tokens) if summed else said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="+")
    parser.add_argument("--seed", type=int, default=0, help="seed of simulation and pretraining")
    parser.add_argument("--tuning-seeds", type=int, default=3)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--table", action="store_true")
    options = parser.parse_args()
    if not options.table:
        measure(options.out[0], options)
    print(table(options.out, options.split, options.arms))


def measure(out: Path, options: argparse.Namespace) -> None:
    world = open_world(out, config_of(options.seed))
    subject, done = world.subject, known(out, options.split)
    wanted = [(seed, arm) for seed in range(options.tuning_seeds) for arm in options.arms]
    for seed, arm in progress([(s, a) for s, a in wanted if not any((a + end, s) in done for end in ENDINGS)], "runs"):
        kept = subject.test
        if options.split == "validation":
            images = np.unique(subject.train.stimulus)
            held = np.random.default_rng(derive_seed(seed, "held out")).choice(images, HELD_OUT, replace=False)
            kept = subject.train.select(np.isin(subject.train.stimulus, held))
        hour, every = (without(some, kept) for some in (world.hour, subject))
        for name, said in ARMS[arm](Asked(world, kept, seed), hour, every).items():
            done.add(arm=arm + name, seed=seed, scores=world.top1(said))


def without(subject: Subject, kept: Trials) -> Subject:
    """The subject without the training trials that show an image of ``kept``."""
    trials = subject.trials
    return dataclasses.replace(subject, trials=trials.select(trials.is_test | ~np.isin(trials.stimulus, kept.stimulus)))


def with_retrieval(said: Predictions, *tokens: np.ndarray) -> Predictions:
    """The same with the sum of the unit vectors of ``tokens`` to retrieve by."""
    flat = [t.reshape(len(t), -1) for t in tokens]
    total = sum(t / np.linalg.norm(t, axis=1, keepdims=True) for t in flat)
    return dataclasses.replace(said, retrieval_tokens=total.reshape(said.backbone_tokens.shape).astype(np.float32))


def with_each_estimate(asked: Asked, subject: Subject) -> dict[str, Predictions]:
    plain = asked.decoded(subject, summed=False)
    backbone, projected = plain.backbone_tokens, plain.retrieval_tokens
    return {
        "": with_retrieval(plain, backbone, projected),
        C_ALONE: plain,
        B_ALONE: dataclasses.replace(plain, retrieval_tokens=backbone),
    }


def with_direct(asked: Asked, subject: Subject) -> dict[str, Predictions]:
    plain, base, similar = asked.decoded(subject, summed=False), asked.world.base.network, asked.config.tune.similar_voxels
    images, tokens, text = regression(subject, asked.world.features, base, asked.seed, similar, asked.trials)
    assert (images == plain.images).all()
    return {
        BESIDE: with_retrieval(plain, plain.backbone_tokens, plain.retrieval_tokens, tokens),
        ALONE: Predictions(images, tokens, tokens, None, text),
    }


def encoding(asked: Asked, subject: Subject):
    """The hour's encoding model, and residuals of images that it was not fitted on."""
    trials, tokens = subject.train, np.asarray(asked.caches["tokens"], np.float32).reshape(len(asked.caches["tokens"]), -1)
    betas = subject.betas(trials.row)
    fit = ridge_regression(tokens[trials.stimulus], betas, trials.stimulus, asked.seed)
    return fit, betas - fit.predicted, lambda images: tokens[images] @ fit.weight + fit.intercept


class Mapped:
    """A subject's betas, each row mapped when it is read."""

    def __init__(self, source, function):
        self.source, self.function, self.shape, self.dtype = source, function, source.shape, np.dtype(np.float32)

    def __getitem__(self, rows):
        return self.function(np.asarray(self.source[rows], np.float32))


class Extended:
    """A subject's betas, and more rows after them."""

    def __init__(self, source, more: np.ndarray):
        self.source, self.more, self.dtype = source, more, np.dtype(np.float32)
        self.shape = (source.shape[0] + len(more), source.shape[1])

    def __getitem__(self, rows):
        rows, count = np.asarray(rows), self.source.shape[0]
        return np.stack(
            [self.more[row - count] if row >= count else np.asarray(self.source[row], np.float32) for row in rows]
        )


def weighted(asked: Asked, subject: Subject, weight: np.ndarray) -> dict[str, Predictions]:
    """Voxels times weights (V,) of mean square 1, none below a hundredth of the largest: a voxel of 0 is refused."""
    weight = weight.clip(min=weight.max() / 100)
    weight = (weight / np.sqrt(np.square(weight).mean())).astype(np.float32)
    return {"": asked.decoded(dataclasses.replace(subject, source=Mapped(subject.source, lambda x: x * weight)))}


def reliable_voxels(asked: Asked, subject: Subject) -> dict[str, Predictions]:
    """A voxel's weight is the correlation of its betas with what the encoding model predicts of them, if above 0."""
    fit, residuals, _ = encoding(asked, subject)
    betas, predicted = fit.predicted + residuals, fit.predicted
    a, b = predicted - predicted.mean(0), betas - betas.mean(0)
    norms = np.sqrt(np.square(a).sum(0) * np.square(b).sum(0))
    r = np.divide((a * b).sum(0), norms, out=np.zeros_like(norms), where=norms > 0)
    return weighted(asked, subject, r.clip(min=0))


def region_weights(asked: Asked, subject: Subject) -> dict[str, Predictions]:
    trials = subject.train
    betas, tokens = subject.betas(trials.row), np.asarray(asked.caches["tokens"][trials.stimulus], np.float32)
    names = [name for name in subject.rois if name != "nsd_general" and subject.rois[name].any()]
    region = np.full(subject.n_voxels, len(names))  # a voxel of no region is in one of its own
    for k, name in enumerate(names):
        region[(region == len(names)) & subject.rois[name]] = k
    found = [k for k in range(len(names) + 1) if (region == k).any()]
    centred = betas - betas.mean(0)
    kernels = np.stack([centred[:, region == k] @ centred[:, region == k].T for k in found]).astype(np.float32)
    flat = tokens.reshape(len(tokens), -1)
    gammas = np.random.default_rng(asked.seed).dirichlet(np.ones(len(found)), WEIGHTS_TRIED).astype(np.float32)
    errors = []
    for gamma in gammas:  # one weighting at a time, so that one holds for all targets
        *_, score = solve_multiple_kernel_ridge_random_search(
            kernels,
            flat - flat.mean(0),
            n_iter=gamma[None],
            alphas=PENALTIES,
            local_alpha=False,
            progress_bar=False,
            cv=image_folds(trials.stimulus, 5, derive_seed(asked.seed, "regions")),
        )
        errors.append(float(score.mean()))
    best = gammas[int(np.argmax(errors))]
    weight = np.zeros(subject.n_voxels, np.float32)
    for k, gamma in zip(found, best, strict=True):
        weight[region == k] = gamma**0.5
    return weighted(asked, subject, weight)


def with_synthetic(asked: Asked, subject: Subject, images: np.ndarray) -> dict[str, Predictions]:
    _, residuals, predict = encoding(asked, subject)
    rng = np.random.default_rng(derive_seed(asked.seed, "residuals"))
    brains = (predict(images) + residuals[rng.integers(len(residuals), size=len(images))]).astype(np.float32)
    t, first, n = subject.trials, subject.source.shape[0], len(images)
    trials = Trials(
        np.r_[t.row, first + np.arange(n)],
        np.r_[t.stimulus, images],
        np.r_[t.session, np.ones(n, t.session.dtype)],
        np.r_[t.repeat, np.zeros(n, t.repeat.dtype)],
        np.r_[t.is_test, np.zeros(n, bool)],
    )
    return {"": asked.decoded(dataclasses.replace(subject, trials=trials, source=Extended(subject.source, brains)))}


def unseen(asked: Asked, subject: Subject) -> np.ndarray:
    """As many training images of the others as the subject has trials, none of which it saw in any session."""
    own = asked.world.subject.trials.stimulus
    others = np.setdiff1d(asked.world.dataset.stimuli.training_images, own)
    return np.random.default_rng(derive_seed(asked.seed, "unseen")).choice(others, len(subject.train), replace=False)


def averaged(several: list[Predictions]) -> dict[str, Predictions]:
    """Tokens and text averaged over networks, and B and C then added as everywhere."""
    backbone, projected, text = (
        np.mean([getattr(p, field) for p in several], 0) for field in ("backbone_tokens", "retrieval_tokens", "text")
    )
    first = dataclasses.replace(several[0], backbone_tokens=backbone, text=text / np.linalg.norm(text, axis=1, keepdims=True))
    return {"": with_retrieval(first, backbone, projected)}


ARMS = {
    HOUR: lambda asked, hour, every: with_each_estimate(asked, hour),
    ALL: lambda asked, hour, every: {"": asked.decoded(every)},
    ITSELF: lambda asked, hour, every: {"": asked.similar(0).decoded(hour)},
    ALL + ", " + ITSELF: lambda asked, hour, every: {"": asked.similar(0).decoded(every)},
    **{
        f"{count} similar voxels": lambda asked, hour, every, count=count: {"": asked.similar(count).decoded(hour)}
        for count in SIMILAR
    },
    "direct ridge": lambda asked, hour, every: with_direct(asked, hour),
    "reliable voxels": lambda asked, hour, every: reliable_voxels(asked, hour),
    "a region's weight": lambda asked, hour, every: region_weights(asked, hour),
    "noisier copies": lambda asked, hour, every: with_synthetic(asked, hour, hour.train.stimulus),
    "unseen images": lambda asked, hour, every: with_synthetic(asked, hour, unseen(asked, hour)),
    "three ranks": lambda asked, hour, every: averaged(
        [asked.decoded(hour, summed=False, rank=r, alpha=2.0 * r) for r in (4, 8, 16)]
    ),
    "three seeds": lambda asked, hour, every: averaged([asked.decoded(hour, False, asked.seed + 100 * k) for k in range(3)]),
}


def known(out: Path, split: str) -> Done:
    return Done(out / f"closing-{split}.jsonl", "arm", "seed")


def table(outs: list[Path], split: str, arms: list[str]) -> str:
    """A Markdown table over worlds: means (sd over worlds), share of all hours, differences to one hour."""
    worlds = [known(out, split) for out in outs]
    seeds = sorted({seed for arm, seed in worlds[0].runs if arm == HOUR})
    names = [
        name
        for name in dict.fromkeys(arm for arm, _ in worlds[0].runs)
        if any(name == arm + end for arm in arms for end in ENDINGS) and all((name, s) in w for w in worlds for s in seeds)
    ]

    def hits(arm: str, direction: str) -> list[np.ndarray]:  # of each world (seeds, images)
        return [np.array([world[arm, seed]["scores"][direction] for seed in seeds]) for world in worlds]

    candidates = len(worlds[0][HOUR, seeds[0]]["scores"]["image"])
    rows = []
    for name in names:
        cells = [name]
        for d in DIRECTIONS:
            mine = hits(name, d)
            every = np.concatenate(mine, axis=1)
            cells += [
                spread([one.mean() for one in mine]),
                f"{every.mean() / np.concatenate(hits(ALL, d), axis=1).mean():.0%}" if (ALL, seeds[0]) in worlds[0] else "",
                "" if name == HOUR or len(seeds) < 2 else difference(every, np.concatenate(hits(HOUR, d), axis=1)),
            ]
        rows.append(cells)
    header = ["fitted on the hour", *(word for d in DIRECTIONS for word in (d, "of all hours", "minus one hour"))]
    return (
        f"{len(worlds)} worlds, {len(seeds)} tuning seeds, {candidates} {split} images (chance {1 / candidates:.4f})\n\n"
        + markdown(header, rows)
    )


if __name__ == "__main__":
    main()
