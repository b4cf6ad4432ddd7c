"""What does a category cost that no training ever saw? Paired comparison over categories and seeds, on one simulated dataset.

    python benchmarks/hold_out.py OUT [--categories dog car house] [--seeds 2] [--seed 0] [--config demo]

Simulates and embeds once (kept in OUT). With every seed it pretrains and tunes once on all training images, and once for each
category without the images whose captions name it: in pretraining, in the Pivot, in tuning, in the text bank and among the
training images that decoded tokens are drawn to. Retrieval is among all test images; two-way identification among those
painted, which are all test images of the categories and ``decode.pictures`` of all kinds. One line per run goes to
OUT/hold_out.jsonl, so a run that was stopped goes on; a summary with paired differences is printed at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from pages import markdown
from world import Done, config_of, difference, open_dataset

import mindtuner
from mindtuner.config import Config
from mindtuner.data import Dataset
from mindtuner.data.hold_out import mask
from mindtuner.decoding.words import TextBank
from mindtuner.evaluation.statistics import bootstrap_ci, over_seeds, sign_flips
from mindtuner.generators.compact import CompactGenerator
from mindtuner.pipeline import Features, Scoring
from mindtuner.pipeline.stages import TestSet, decode_all, paint_all, read_all, score_all
from mindtuner.pipeline.words import phrase_reader
from mindtuner.runtime import progress

SCORES = {"image": "image retrieval", "brain": "brain retrieval", "text": "text retrieval", "two_way": "two-way"}
HEADER = ["category", "score", "images", "trained on it", "never trained on it", "difference", "p", "the others: difference"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--categories", nargs="+", default=["dog", "car", "house"])
    parser.add_argument("--seeds", type=int, default=2, help="of pretraining, tuning and painting")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    options = parser.parse_args()
    config = config_of(options.seed, config=options.config)
    dataset, features = open_dataset(options.out, config)
    of = {category: mask(dataset.stimuli.captions, category) for category in options.categories}
    hour = dataset.subject(config.target_subject).sessions(config.tuning_sessions)
    test = TestSet.of(hour, dataset.stimuli, features.caches, config.decode.pictures)
    named = np.any([of[category][test.images] for category in options.categories], axis=0)
    shown = np.union1d(test.shown, np.flatnonzero(named))
    done = Done(options.out / "hold_out.jsonl", "category", "seed")
    wanted = [(category, seed) for seed in range(options.seeds) for category in ("", *options.categories)]
    for key in wanted:
        if key in done and done[key]["shown"] != shown.tolist():
            raise SystemExit(f"{done.path}: painted other images; expected the same categories, or another OUT")
    for category, seed in progress(done.left(wanted), "runs"):
        found = one_run(options.out, dataset, features, dataclasses.replace(config, seed=seed), category, shown)
        done.add(category=category, seed=seed, shown=shown.tolist(), **found)
    print(summary(done, of, test.images, shown, dataset, options))


def one_run(out: Path, dataset: Dataset, features: Features, config: Config, category: str, shown: np.ndarray) -> dict:
    """Pretrain, tune, decode, paint and score: how many trials trained, and the scores of single images."""
    dataset = dataset.without_category(category) if category else dataset
    others, run = dataset.without(subject=config.target_subject), out / f"base {category or 'of all'}, seed {config.seed}"
    base = mindtuner.pretrain(others, features, config, hold_out_category=category or None, out=run)
    hour = dataset.subject(config.target_subject).sessions(config.tuning_sessions)
    tuned = mindtuner.tune(base, hour, features, methods=("mindtuner",))
    test = TestSet.of(hour, dataset.stimuli, features.caches, config.decode.pictures)
    test = dataclasses.replace(test, shown=shown)
    decoded = {"mindtuner": decode_all(tuned.networks, base.network, test, tuned.config)["mindtuner"]}
    bank = TextBank.of(dataset.stimuli, dataset.stimuli.training_images, features.text_encoder)
    reader = phrase_reader(dataset.stimuli, features.caches, dataset.stimuli.training_images, features.text_encoder)
    words = read_all(decoded, bank, reader)
    painted = paint_all(decoded, CompactGenerator(config.decode, config.seed), words, test)
    found = score_all(decoded, painted, test, config.seed, Scoring())["mindtuner"]
    values = {**found.retrieval, "two_way": found.reconstruction["two_way"]}
    return {
        "pretraining_trials": sum(len(other.train) for other in others.subjects.values()),
        "tuning_trials": len(hour.train),
        "scores": {name: [round(float(v), 4) for v in values[name]] for name in SCORES},
    }


def summary(
    done: Done,
    of: dict[str, np.ndarray],
    images: np.ndarray,
    shown: np.ndarray,
    dataset: Dataset,
    options: argparse.Namespace,
) -> str:
    """A table in Markdown: for each category and score, its test images with and without training on it, and the others."""
    rows, pooled = [], {score: [] for score in SCORES}
    for category, mine in of.items():
        for score, title in SCORES.items():
            at = images[shown] if score == "two_way" else images
            with_it, without = (
                np.array([done[name, seed]["scores"][score] for seed in range(options.seeds)]) for name in ("", category)
            )
            sides = mine[at], ~mine[at]
            pooled[score].append((with_it, without, sides))
            rows.append(row(category, title, [(with_it[:, chosen], without[:, chosen]) for chosen in sides]))
    for score, title in SCORES.items():
        rows.append(row("all of them", title, [over_categories(pooled[score], side) for side in range(2)]))
    own = ~dataset.stimuli.is_shared
    shows = ", ".join(f"{category} {int((mine & own).sum())} of {int(own.sum())}" for category, mine in of.items())
    trials = {category: "{pretraining_trials} and {tuning_trials}".format(**done[category, 0]) for category in ("", *of)}
    without = ", ".join(f"{category}: {trials[category]}" for category in of)
    return (
        f"config {options.config}, simulator seed {options.seed}, {options.seeds} seeds, retrieval among {len(images)}, "
        f"two-way among {len(shown)}\n\n{markdown(HEADER, rows, left=2)}\n\ntraining images that show it: {shows}\n"
        f"trials of pretraining and tuning: {trials['']}; without {without}"
    )


def over_categories(runs: list[tuple], side: int) -> tuple[np.ndarray, np.ndarray]:
    """(with, without), (seeds, images): each image once, averaged over the categories for which it is on this side, because
    most images are among the others of all of them."""
    chosen = np.array([sides[side] for _, _, sides in runs], float)[:, None]  # (categories, 1, images)
    some = chosen.any(axis=(0, 1))
    return tuple(
        ((np.array([run[k] for run in runs]) * chosen).sum(0) / np.maximum(chosen.sum(0), 1))[:, some] for k in range(2)
    )


def row(category: str, title: str, sides: list[tuple[np.ndarray, np.ndarray]]) -> list[str]:
    """sides: of the category and of the others, each (with, without), (seeds, images)."""
    with_it, without = sides[0]
    p = sign_flips((without - with_it).mean(0), 0)
    levels = [level(with_it), level(without)]
    return [category, title, str(with_it.shape[1]), *levels, difference(without, with_it), f"{p:.4f}"] + [
        difference(sides[1][1], sides[1][0])
    ]


def level(values: np.ndarray) -> str:
    """Mean with its 95 % interval, of values (seeds, images)."""
    low, high = over_seeds(values, 0)["ci"] if len(values) > 1 else bootstrap_ci(values[0], 0)
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
