"""How far is one hour from all hours, and what brings it nearer?

    python benchmarks/closing_the_gap.py OUT [--seed 0] [--tuning-seeds 3] [--split validation] [--arms NAME ...]
    python benchmarks/closing_the_gap.py --table OUT [OUT ...] [--split validation]

On one simulated dataset and base (kept in OUT, shared with tuning_seeds.py), subject 1 is tuned on session 1 and on all
sessions, and on session 1 with one thing changed. ``--split validation``, to choose by: 90 training images of the subject,
others for each tuning seed, are kept from every arm, and retrieved among themselves. ``--split test``: the shared images.
Retrieval goes by both token estimates, B and C, except in arms that say otherwise; fitted on the hour:

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
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from closed_form_start import direct_ridge
from himalaya.kernel_ridge import solve_multiple_kernel_ridge_random_search
from tuning_seeds import difference, prepare

from mindtuner.config import load_config
from mindtuner.data import Subject, Trials
from mindtuner.data.splits import image_folds
from mindtuner.decoding.decoder import Decoder, Predictions, sum_of_unit_tokens
from mindtuner.evaluation.scores.retrieval import brain_retrieval, image_retrieval, text_retrieval
from mindtuner.runtime import derive_seed, progress
from mindtuner.training import subject_name, tune
from mindtuner.training.ridge import ridge_regression

DIRECTIONS = ("image", "brain", "text")
HELD_OUT, WEIGHTS_TRIED, PENALTIES = 90, 30, np.logspace(0, 6, 13)
C_ALONE, B_ALONE, BESIDE, ALONE = ", C alone", ", B alone", " beside", " alone"
ENDINGS = ("", C_ALONE, B_ALONE, BESIDE, ALONE)  # of the rows of an arm
HOUR, ALL, ITSELF = "one hour", "all hours", "each voxel for itself"
SIMILAR = (2, 5, 20, 60)  # beside the config's


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


def measure(out: Path, options) -> None:
    config = load_config("demo")
    config = dataclasses.replace(config, seed=options.seed, simulate=dataclasses.replace(config.simulate, seed=options.seed))
    dataset, caches, targets, base = prepare(out, config)
    subject = dataset.subject(config.target_subject)
    done = known(out, options.split)
    seeds = range(options.tuning_seeds)
    left = [(s, a) for s in seeds for a in options.arms if not any((a + end, s) in done for end in ENDINGS)]
    for seed, arm in progress(left, "runs"):
        kept = subject.test
        if options.split == "validation":
            images = np.unique(subject.train.stimulus)
            held = np.random.default_rng(derive_seed(seed, "held out")).choice(images, HELD_OUT, replace=False)
            kept = subject.train.select(np.isin(subject.train.stimulus, held))
        world = SimpleNamespace(
            dataset=dataset,
            caches=caches,
            targets=targets,
            base=base,
            config=config,
            kept=kept,
            name=subject_name(subject.number),
        )
        used = {k: without(subject.sessions(k), kept) for k in (config.tuning_sessions, config.simulate.sessions)}
        for name, said in ARMS[arm](world, used[config.tuning_sessions], used[config.simulate.sessions], seed).items():
            entry = {"arm": arm + name, "seed": seed, "scores": scores(said, caches)}
            with (out / f"closing-{options.split}.jsonl").open("a") as file:
                file.write(json.dumps(entry) + "\n")


def without(subject: Subject, kept: Trials) -> Subject:
    """The subject without the training trials that show an image of ``kept``."""
    trials = subject.trials
    return dataclasses.replace(subject, trials=trials.select(trials.is_test | ~np.isin(trials.stimulus, kept.stimulus)))


def decoded(world, subject: Subject, seed: int, kind: str = "both", **fingerprint) -> Predictions:
    """Tuned on the subject's training trials, and asked of the kept ones."""
    config = dataclasses.replace(
        world.config,
        decode=dataclasses.replace(world.config.decode, retrieval_tokens=kind),
        fingerprint=dataclasses.replace(world.config.fingerprint, **fingerprint),
    )
    network = tune(world.base, subject, world.targets, config, seed)
    decoder = Decoder(network, world.name, config.decode, config.seed)
    return decoder.predict(subject.betas(world.kept.row), world.kept.stimulus)


def with_retrieval(said: Predictions, *tokens: np.ndarray) -> Predictions:
    """The same with the sum of the unit vectors of ``tokens`` to retrieve by."""
    flat = [t.reshape(len(t), -1) for t in tokens]
    total = sum(t / np.linalg.norm(t, axis=1, keepdims=True) for t in flat)
    return dataclasses.replace(said, retrieval_tokens=total.reshape(said.backbone_tokens.shape).astype(np.float32))


def with_each_estimate(world, subject: Subject, seed: int) -> dict[str, Predictions]:
    plain = decoded(world, subject, seed, "projected")
    backbone, projected = plain.backbone_tokens, plain.retrieval_tokens
    fused = sum_of_unit_tokens(torch.from_numpy(backbone), torch.from_numpy(projected)).numpy()
    return {
        "": dataclasses.replace(plain, retrieval_tokens=fused),
        C_ALONE: plain,
        B_ALONE: dataclasses.replace(plain, retrieval_tokens=backbone),
    }


def similar(world, count: int):
    tune = dataclasses.replace(world.config.tune, similar_voxels=count)
    return SimpleNamespace(**vars(world) | {"config": dataclasses.replace(world.config, tune=tune)})


def with_direct(world, subject: Subject, seed: int) -> dict[str, Predictions]:
    plain = decoded(world, subject, seed, "projected")
    images, tokens = direct_ridge(subject, subject.train, world.kept, world.caches, seed, world.config.tune.similar_voxels)
    assert (images == plain.images).all()
    with torch.no_grad():
        text = world.base.projector(torch.from_numpy(tokens)).numpy()
    return {
        BESIDE: with_retrieval(plain, plain.backbone_tokens, plain.retrieval_tokens, tokens),
        ALONE: Predictions(images, tokens, tokens, None, text),
    }


def encoding(world, subject: Subject, seed: int):
    """The hour's encoding model, and residuals of images that it was not fitted on."""
    trials, tokens = subject.train, np.asarray(world.caches["tokens"], np.float32).reshape(len(world.caches["tokens"]), -1)
    betas = subject.betas(trials.row)
    fit = ridge_regression(tokens[trials.stimulus], betas, trials.stimulus, seed)
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


def weighted(world, subject: Subject, weight: np.ndarray, seed: int) -> dict[str, Predictions]:
    """Voxels times weights (V,) of mean square 1, none below a hundredth of the largest: a voxel of 0 is refused."""
    weight = weight.clip(min=weight.max() / 100)
    weight = (weight / np.sqrt(np.square(weight).mean())).astype(np.float32)
    return {"": decoded(world, dataclasses.replace(subject, source=Mapped(subject.source, lambda x: x * weight)), seed)}


def reliable_voxels(world, subject: Subject, seed: int) -> dict[str, Predictions]:
    """A voxel's weight is the correlation of its betas with what the encoding model predicts of them, if above 0."""
    fit, residuals, _ = encoding(world, subject, seed)
    betas, predicted = fit.predicted + residuals, fit.predicted
    a, b = predicted - predicted.mean(0), betas - betas.mean(0)
    norms = np.sqrt(np.square(a).sum(0) * np.square(b).sum(0))
    r = np.divide((a * b).sum(0), norms, out=np.zeros_like(norms), where=norms > 0)
    return weighted(world, subject, r.clip(min=0), seed)


def region_weights(world, subject: Subject, seed: int) -> dict[str, Predictions]:
    trials = subject.train
    betas, tokens = subject.betas(trials.row), np.asarray(world.caches["tokens"][trials.stimulus], np.float32)
    names = [name for name in subject.rois if name != "nsd_general" and subject.rois[name].any()]
    region = np.full(subject.n_voxels, len(names))  # a voxel of no region is in one of its own
    for k, name in enumerate(names):
        region[(region == len(names)) & subject.rois[name]] = k
    found = [k for k in range(len(names) + 1) if (region == k).any()]
    centred = betas - betas.mean(0)
    kernels = np.stack([centred[:, region == k] @ centred[:, region == k].T for k in found]).astype(np.float32)
    flat = tokens.reshape(len(tokens), -1)
    gammas = np.random.default_rng(seed).dirichlet(np.ones(len(found)), WEIGHTS_TRIED).astype(np.float32)
    errors = []
    for gamma in gammas:  # one weighting at a time, so that one holds for all targets
        *_, score = solve_multiple_kernel_ridge_random_search(
            kernels,
            flat - flat.mean(0),
            n_iter=gamma[None],
            alphas=PENALTIES,
            local_alpha=False,
            progress_bar=False,
            cv=image_folds(trials.stimulus, 5, derive_seed(seed, "regions")),
        )
        errors.append(float(score.mean()))
    best = gammas[int(np.argmax(errors))]
    weight = np.zeros(subject.n_voxels, np.float32)
    for k, gamma in zip(found, best, strict=True):
        weight[region == k] = gamma**0.5
    return weighted(world, subject, weight, seed)


def with_synthetic(world, subject: Subject, seed: int, images: np.ndarray) -> dict[str, Predictions]:
    _, residuals, predict = encoding(world, subject, seed)
    rng = np.random.default_rng(derive_seed(seed, "residuals"))
    brains = (predict(images) + residuals[rng.integers(len(residuals), size=len(images))]).astype(np.float32)
    t, first, n = subject.trials, subject.source.shape[0], len(images)
    trials = Trials(
        np.r_[t.row, first + np.arange(n)],
        np.r_[t.stimulus, images],
        np.r_[t.session, np.ones(n, t.session.dtype)],
        np.r_[t.repeat, np.zeros(n, t.repeat.dtype)],
        np.r_[t.is_test, np.zeros(n, bool)],
    )
    return {"": decoded(world, dataclasses.replace(subject, trials=trials, source=Extended(subject.source, brains)), seed)}


def unseen(world, subject: Subject, seed: int) -> np.ndarray:
    """As many training images of the others as the subject has trials, none of which it saw in any session."""
    own = world.dataset.subject(subject.number).trials.stimulus
    others = np.setdiff1d(world.dataset.stimuli.training_images, own)
    return np.random.default_rng(derive_seed(seed, "unseen")).choice(others, len(subject.train), replace=False)


def averaged(several: list[Predictions]) -> dict[str, Predictions]:
    """Tokens and text averaged over networks, and B and C then added as everywhere."""
    backbone, projected, text = (
        np.mean([getattr(p, field) for p in several], 0) for field in ("backbone_tokens", "retrieval_tokens", "text")
    )
    first = dataclasses.replace(several[0], backbone_tokens=backbone, text=text / np.linalg.norm(text, axis=1, keepdims=True))
    return {"": with_retrieval(first, backbone, projected)}


ARMS = {
    HOUR: lambda w, hour, every, s: with_each_estimate(w, hour, s),
    ALL: lambda w, hour, every, s: {"": decoded(w, every, s)},
    ITSELF: lambda w, hour, every, s: {"": decoded(similar(w, 0), hour, s)},
    ALL + ", " + ITSELF: lambda w, hour, every, s: {"": decoded(similar(w, 0), every, s)},
    **{
        f"{count} similar voxels": lambda w, hour, every, s, count=count: {"": decoded(similar(w, count), hour, s)}
        for count in SIMILAR
    },
    "direct ridge": lambda w, hour, every, s: with_direct(w, hour, s),
    "reliable voxels": lambda w, hour, every, s: reliable_voxels(w, hour, s),
    "a region's weight": lambda w, hour, every, s: region_weights(w, hour, s),
    "noisier copies": lambda w, hour, every, s: with_synthetic(w, hour, s, hour.train.stimulus),
    "unseen images": lambda w, hour, every, s: with_synthetic(w, hour, s, unseen(w, hour, s)),
    "three ranks": lambda w, hour, every, s: averaged([decoded(w, hour, s, "projected", rank=r) for r in (4, 8, 16)]),
    "three seeds": lambda w, hour, every, s: averaged([decoded(w, hour, s + 100 * k, "projected") for k in range(3)]),
}


def scores(said: Predictions, caches) -> dict[str, list[float]]:
    """Top-1 of every image, in three directions."""
    tokens, text = np.asarray(caches["tokens"][said.images]), np.asarray(caches["text"][said.images])
    hits = {
        "image": image_retrieval(said.retrieval_tokens, tokens),
        "brain": brain_retrieval(said.retrieval_tokens, tokens),
        "text": text_retrieval(said.text, text),
    }
    return {name: [round(float(v), 4) for v in hit.top1] for name, hit in hits.items()}


def known(out: Path, split: str) -> dict:
    path = out / f"closing-{split}.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return {(entry["arm"], entry["seed"]): entry["scores"] for entry in map(json.loads, lines)}


def table(outs: list[Path], split: str, arms: list[str]) -> str:
    """A Markdown table over worlds: means (sd over worlds), share of all hours, differences to one hour."""
    worlds = [known(out, split) for out in outs]
    seeds = sorted({seed for arm, seed in worlds[0] if arm == HOUR})
    names = [
        name
        for name in dict.fromkeys(arm for arm, _ in worlds[0])
        if any(name == arm + end for arm in arms for end in ENDINGS) and all((name, s) in w for w in worlds for s in seeds)
    ]

    def hits(arm: str, direction: str) -> np.ndarray:  # (seeds, images of all worlds)
        return np.concatenate([[w[arm, s][direction] for s in seeds] for w in worlds], axis=1)

    candidates = len(worlds[0][HOUR, seeds[0]]["image"])
    lines = [
        f"{len(worlds)} worlds, {len(seeds)} tuning seeds, {candidates} {split} images (chance {1 / candidates:.4f})",
        "",
        "| fitted on the hour | " + " | ".join(f"{d} | of all hours | minus one hour" for d in DIRECTIONS) + " |",
        "|---|" + 9 * "---:|",
    ]
    for name in names:
        cells = []
        for d in DIRECTIONS:
            by_world = [np.mean([w[name, s][d] for s in seeds]) for w in worlds]
            spread = f" ({np.std(by_world, ddof=1):.3f})" if len(worlds) > 1 else ""
            cells += [
                f"{np.mean(by_world):.3f}{spread}",
                f"{hits(name, d).mean() / hits(ALL, d).mean():.0%}" if (ALL, seeds[0]) in worlds[0] else "",
                "" if name == HOUR or len(seeds) < 2 else difference(hits(name, d), hits(HOUR, d)),
            ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
