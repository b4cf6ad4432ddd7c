"""What does a category cost that no training ever saw? Paired comparison over categories and seeds, on one simulated dataset.

    python benchmarks/hold_out.py OUT [--categories dog car house] [--seeds 2] [--seed 0] [--config demo]

Simulates and embeds once (kept in OUT). With every seed it pretrains and tunes once on all training images, and once for each
category without the images whose captions name it: in pretraining, in the Pivot, in tuning, in the text bank and among the
training images that decoded tokens are drawn to. Retrieval is among all test images; two-way identification among those
painted, which are all test images of the categories and ``decode.pictures`` of all kinds. One line per run goes to
OUT/hold_out.jsonl, so a run that was stopped continues; a summary with paired differences is printed at the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import numpy as np
from mindtuner.cli.steps import Materials
from tuning_seeds import materials

from mindtuner.cli import story
from mindtuner.config import load_config
from mindtuner.data.hold_out import mask
from mindtuner.evaluation.statistics import bootstrap_ci, over_seeds, paired_difference, paired_over_seeds, sign_flips
from mindtuner.generators.compact import CompactGenerator, starting_prior
from mindtuner.towers.compact import CompactTextEncoder
from mindtuner.training import pretrain, remove_checkpoint, tune

SCORES = {"image": "image retrieval", "brain": "brain retrieval", "text": "text retrieval", "two_way": "two-way"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--config", default="demo")
    parser.add_argument("--categories", nargs="+", default=["dog", "car", "house"])
    parser.add_argument("--seeds", type=int, default=2, help="of pretraining, tuning and painting")
    parser.add_argument("--seed", type=int, default=0, help="of the simulation")
    options = parser.parse_args()
    config = load_config(options.config)
    config = dataclasses.replace(config, simulate=dataclasses.replace(config.simulate, seed=options.seed))
    dataset, caches, targets = materials(options.out, config)
    texts = CompactTextEncoder()
    of = {category: mask(dataset.stimuli.captions, category) for category in options.categories}
    lines = options.out / "hold_out.jsonl"
    done = {}
    if lines.exists():
        for line in lines.read_text().splitlines():
            entry = json.loads(line)
            done[entry["category"], entry["seed"]] = entry
    subject = dataset.subject(config.target_subject).sessions(config.tuning_sessions)
    test = story.TestSet.of(subject, dataset.stimuli, caches, config.decode.pictures)
    named = np.any([of[category][test.images] for category in options.categories], axis=0)
    shown = np.union1d(test.shown, np.flatnonzero(named))
    for seed in range(options.seeds):
        for category in ("", *options.categories):
            if (category, seed) in done:
                if done[category, seed]["shown"] != shown.tolist():
                    raise SystemExit(f"{lines}: painted other images; expected the same categories, or another OUT")
                continue
            whole = Materials(
                dataset.without_category(category) if category else dataset,
                texts,
                CompactGenerator(config.decode, seed),
                caches,
            )
            checkpoint = options.out / "hold_out.checkpoint"
            entry = {
                "category": category,
                "seed": seed,
                "shown": shown.tolist(),
                **one_run(whole, targets, dataclasses.replace(config, seed=seed), shown, checkpoint),
            }
            with lines.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            remove_checkpoint(checkpoint)
            done[category, seed] = entry
    summarise(done, of, test.images, shown, dataset, options)


def one_run(whole: Materials, targets, config, shown: np.ndarray, checkpoint: Path) -> dict:
    """Pretrain, tune, decode, paint and score: how many trials trained, and the scores of single images."""
    others, prior = whole.dataset.without(subject=config.target_subject), starting_prior(config.model)
    base = pretrain(others, targets, config, config.seed, prior=prior, checkpoint=checkpoint)
    hour = whole.dataset.subject(config.target_subject).sessions(config.tuning_sessions)
    network = tune(base, hour, targets, config, config.seed, prior=prior)
    test = story.TestSet.of(hour, whole.dataset.stimuli, whole.caches, config.decode.pictures)
    test = dataclasses.replace(test, shown=shown)
    decoded = {"mindtuner": story.decode_all({"mindtuner": network}, base, test, whole.caches, config)["mindtuner"]}
    bank = story.training_bank(whole.dataset, whole.texts)
    painted = story.paint_all(decoded, whole.generator, bank, test)
    found = story.score_all(decoded, painted, test, config.seed, story.Scoring())["mindtuner"]
    values = {**found.retrieval, "two_way": found.reconstruction["two_way"]}
    return {
        "pretraining_trials": sum(len(other.train) for other in others.subjects.values()),
        "tuning_trials": len(hour.train),
        "scores": {name: [round(float(v), 4) for v in values[name]] for name in SCORES},
    }


def summarise(done: dict, of: dict, images: np.ndarray, shown: np.ndarray, dataset, options) -> None:
    """A table in Markdown: for each category and score, its test images with and without training on it, and the others."""
    print(
        f"config {options.config}, simulator seed {options.seed}, {options.seeds} seeds, retrieval among {len(images)}, "
        f"two-way among {len(shown)}\n"
    )
    print("| category | score | images | trained on it | never trained on it | difference | p | the others: difference |")
    print("|---|---|---:|---:|---:|---:|---:|---:|")
    pooled: dict = {score: [] for score in SCORES}
    for category, mine in of.items():
        for score, title in SCORES.items():
            at = images[shown] if score == "two_way" else images
            with_it, without = (
                np.array([done[name, seed]["scores"][score] for seed in range(options.seeds)]) for name in ("", category)
            )
            sides = mine[at], ~mine[at]
            pooled[score].append((with_it, without, sides))
            print_row(category, title, [(with_it[:, chosen], without[:, chosen]) for chosen in sides])
    for score, title in SCORES.items():
        print_row("all of them", title, [over_categories(pooled[score], side) for side in range(2)])
    whole = done["", 0]
    print(
        "\ntraining images that show it:",
        ", ".join(
            f"{category} {int((mine & ~dataset.stimuli.is_shared).sum())} of {int((~dataset.stimuli.is_shared).sum())}"
            for category, mine in of.items()
        ),
    )
    print(
        f"trials of pretraining and tuning: {whole['pretraining_trials']} and {whole['tuning_trials']}; without",
        ", ".join(
            f"{category}: {done[category, 0]['pretraining_trials']} and {done[category, 0]['tuning_trials']}"
            for category in of
        ),
    )


def over_categories(runs: list[tuple], side: int) -> tuple[np.ndarray, np.ndarray]:
    """(with, without), (seeds, images): each image once, averaged over the categories for which it is on this side, because
    most images are among the others of all of them."""
    chosen = np.array([sides[side] for _, _, sides in runs], float)[:, None]  # (categories, 1, images)
    some = chosen.any(axis=(0, 1))
    return tuple(
        ((np.array([run[k] for run in runs]) * chosen).sum(0) / np.maximum(chosen.sum(0), 1))[:, some] for k in range(2)
    )


def print_row(category: str, title: str, sides) -> None:
    """sides: of the category and of the others, each (with, without), (seeds, images)."""
    with_it, without = sides[0]
    p = sign_flips((without - with_it).mean(0), 0)
    print(
        f"| {category} | {title} | {with_it.shape[1]} | {level(with_it)} | {level(without)} | "
        f"{difference(without, with_it)} | {p:.4f} | {difference(sides[1][1], sides[1][0])} |"
    )


def level(values: np.ndarray) -> str:
    ci = over_seeds(values, 0)["ci"] if len(values) > 1 else bootstrap_ci(values[0], 0)
    return f"{values.mean():.3f} [{ci[0]:.3f}, {ci[1]:.3f}]"


def difference(a: np.ndarray, b: np.ndarray) -> str:
    found = paired_over_seeds(a, b, 0) if len(a) > 1 else paired_difference(a[0], b[0], 0)
    return f"{found['mean']:+.3f} [{found['ci'][0]:+.3f}, {found['ci'][1]:+.3f}]"


if __name__ == "__main__":
    main()
