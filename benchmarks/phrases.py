"""Phrases or whole captions: how much of what an image shows do they say, and how much of it is true?

    python benchmarks/phrases.py OUT [--held-out 0 1 2 3 4] [--test 10 11 12] [--write FILE]
    python benchmarks/phrases.py OUT --table [--held-out ...] [--test ...] [--write FILE]

For each simulator seed a world is made once (kept in OUT/seed-N, shared with other benchmarks), and subject 1 is tuned on one
session by ``mindtuner`` and by the control ``shuffled_brain``. In the worlds ``--held-out`` a fifth of its training images is
left out and decoded: settings were chosen by these. In the worlds ``--test``, which chose nothing, the test images are.

Precision, recall and F1 are those of ``mindtuner.evaluation.said``. ``chance`` is the F1 where each image is judged by the
captions of the others. Beside them, of the phrases said, how sure the brain was on average, and how many were true. One line
per run goes to OUT/seed-N/phrases.jsonl, so a run that was stopped goes on. ``--write`` puts the tables between the file's
``phrases:begin`` and ``phrases:end`` comments.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from pages import markdown, write_between
from world import HOLDOUT, Done, config_of, open_world, over_worlds

from mindtuner.decoding.phrases import phrases_of
from mindtuner.evaluation.said import PARTS, SCORES, said_scores
from mindtuner.runtime import progress

OURS, SHUFFLED = "mindtuner", "shuffled_brain"
HELD_OUT, TEST = "held-out training images", "test images"
PHRASES, CAPTIONS = "phrases", "nearest caption"
ROWS = ((OURS, PHRASES), (OURS, CAPTIONS), (SHUFFLED, PHRASES), (SHUFFLED, CAPTIONS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--held-out", type=int, nargs="*", default=[0, 1, 2, 3, 4], help="seeds of worlds")
    parser.add_argument("--test", type=int, nargs="*", default=[10, 11, 12], help="seeds of worlds")
    parser.add_argument("--table", action="store_true", help="of what was measured")
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    groups = {HELD_OUT: options.held_out, TEST: options.test}
    for of, seeds in groups.items():
        for seed in [] if options.table else seeds:
            measure(options.out, seed, of)
    text = table({of: [known(options.out, seed) for seed in seeds] for of, seeds in groups.items() if seeds}, options)
    print(text)
    if options.write:
        write_between(options.write, "phrases", text)


def known(out: Path, seed: int) -> Done:
    return Done(out / f"seed-{seed}" / "phrases.jsonl", "of", "method")


def measure(out: Path, seed: int, of: str) -> None:
    world, done = open_world(out / f"seed-{seed}", config_of(seed)), known(out, seed)
    for _, method in progress(done.left([(of, method) for method in (OURS, SHUFFLED)]), f"world {seed}", unit="run"):
        tuned = world.tune(method, seed, holdout=HOLDOUT if of == HELD_OUT else 0)
        decoder = tuned.decoder()
        found = world.decode(decoder, tuned.held_out(world.dataset) if of == HELD_OUT else None)
        words, captions = decoder.words(found), [world.dataset.stimuli.captions[int(k)] for k in found.images]
        said = {PHRASES: words.phrases, CAPTIONS: [[caption] for caption in words.captions]}
        scores = {way: said_scores(some, captions, seed, n_boot=1) for way, some in said.items()}
        right = [
            (sure, phrase in phrases_of(true))
            for phrases, true in zip(words.said or (), captions, strict=True)
            for phrase, sure in phrases
        ]
        done.add(of=of, method=method, scores=scores, sure=np.mean(right, axis=0).round(4).tolist(), images=len(captions))


def table(groups: dict[str, list[Done]], options: argparse.Namespace) -> str:
    rows, differences = [], []
    for of, worlds in groups.items():
        for method, way in ROWS:
            found = [world[of, method]["scores"][way] for world in worlds]
            cells = [f"{np.mean([one[part][score]['mean'] for one in found]):.3f}" for part in PARTS for score in SCORES]
            chance = np.mean([one["things"]["f1"]["chance"] for one in found])
            sure = np.mean([world[of, method]["sure"] for world in worlds], axis=0)
            rows.append([of, method, way, *cells, f"{chance:.3f}", f"{sure[0]:.2f}, {sure[1]:.2f}" if way == PHRASES else ""])
        for score in SCORES:
            cells = []
            for part in PARTS:
                own, other = (
                    np.array([world[of, OURS]["scores"][way][part][score]["mean"] for world in worlds])
                    for way in (PHRASES, CAPTIONS)
                )
                difference = own - other
                cells.append(over_worlds(difference) if len(worlds) > 1 else f"{difference.mean():+.3f}")
            differences.append([of, score, *cells])
    header = [f"{part}, {score}" for part in PARTS for score in SCORES]
    header = ["images", "method", "said", *header, "chance of things, f1", "sure on average, true"]
    seeds = (("--held-out", options.held_out), ("--test", options.test))
    given = " ".join(map(str, (word for name, some in seeds for word in (name, *some))))
    return "\n\n".join(
        [
            f"    python benchmarks/phrases.py OUT {given}",
            markdown(header, rows, left=3),
            f"{PHRASES.capitalize()} minus {CAPTIONS}, `{OURS}`, with 95 % intervals over worlds where there are several:",
            markdown(["images", "score", *PARTS], differences, left=2),
        ]
    )


if __name__ == "__main__":
    main()
