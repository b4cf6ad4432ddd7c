"""How long must the prior learn words before a caption alone says what is in a picture? Things recognised, by steps.

    python benchmarks/words_curve.py OUT [--seed 10] [--images 150] [--words-steps 8000] [--write FILE] [--picture PNG]
    python benchmarks/words_curve.py OUT --table [--write FILE] [--picture PNG]

Trains the prior that knows words as ``mindtuner train-generator`` does (OUT/generator.safetensors; no other part is trained),
and stops at the steps of ``MARKS`` to paint test images of a simulated world (OUT/seed-SEED, made where it is missing), with
the painter that the package ships: from the true caption alone, from the true tokens and caption, and from the captions of
other images. The learning rate falls to the end of the run, so a point is of this run and not the end of a shorter one.
Scores go to OUT/words_curve.jsonl, and weights are saved as they are made: a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from pages import markdown, write_between
from world import Done, config_of, level, open_dataset, true_phrases

from mindtuner.config import Config
from mindtuner.evaluation.scores.features import EncodingFeatures
from mindtuner.evaluation.scores.preparation import OURS
from mindtuner.evaluation.statistics import bootstrap_ci
from mindtuner.generators.compact import CompactGenerator
from mindtuner.generators.train_compact import SAVE_EVERY, train_generator
from mindtuner.pipeline.objects import Shown
from mindtuner.towers.compact import load_part

MARKS = (100, 200, 400, 800, 1_600, 3_200, 4_800, 6_400, 8_000, 9_600)
TOLD, BOTH, OTHERS = "true caption alone", "true tokens and caption", "captions of other images"
KINDS = (TOLD, BOTH, OTHERS)
SCORES = ("objects", "colours", "places")


class Judge:
    """Paints test images of a world by weights, and looks for what they show."""

    def __init__(self, out: Path, config: Config, images: int):
        dataset, features = open_dataset(out, config)
        self.images = np.flatnonzero(dataset.stimuli.is_shared)[:images]
        self.shown = Shown.of(dataset.stimuli, self.images, features.caches["pixels"])
        self.tokens = np.asarray(features.caches["tokens"][self.images], np.float32)
        self.told = true_phrases(dataset, features, self.images)
        self.generator, self.looked = CompactGenerator(config.decode, config.seed), EncodingFeatures(OURS)

    def __call__(self, weights: Path) -> dict[str, dict[str, list[float | None]]]:
        """Of each image its scores, by kind of picture; None where a caption names nothing of a kind."""
        load_part(self.generator.prior, weights, "words")
        recognition = self.shown.recognition
        assert recognition is not None
        wrong = tuple(np.roll(part, 1, 0) for part in self.told)
        made = {
            kind: self._painted(tokens, told)
            for kind, tokens, told in ((TOLD, None, self.told), (BOTH, self.tokens, self.told), (OTHERS, None, wrong))
        }
        found = {kind: recognition.scores(recognition.probe(self.looked(pictures))) for kind, pictures in made.items()}
        return {
            kind: {score: [None if np.isnan(x) else round(float(x), 4) for x in scores[score]] for score in SCORES}
            for kind, scores in found.items()
        }

    def _painted(self, tokens: np.ndarray | None, told: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return self.generator.pictures(self.generator.imagine(tokens, self.images, told))


def measure(options: argparse.Namespace, done: Done) -> None:
    marks = [step for step in (*MARKS, options.words_steps) if step <= options.words_steps]
    if not done.left(marks):
        return
    judge = Judge(options.out / f"seed-{options.seed}", config_of(options.seed), options.images)
    weights = options.out / "generator.safetensors"

    def look(record: dict) -> None:
        """Weights are saved after a step is logged: the ones that lie there are of the save before."""
        step = record["step"] - SAVE_EVERY
        if record["stage"] == "words" and step in done.left(marks):
            done.add(step=step, loss=record["losses"]["velocity"], scores=judge(weights))

    train_generator(
        weights,
        options.out / "work",
        autoencoder_steps=0,
        prior_steps=0,
        painter_steps=0,
        words_steps=options.words_steps,
        log=look,
    )
    if options.words_steps not in done:
        done.add(step=options.words_steps, loss=None, scores=judge(weights))


def table(done: Done) -> str:
    shown = [(kind, score) for kind in KINDS for score in (SCORES if kind == TOLD else SCORES[:1])]
    rows = [
        [f"{step:,}", *(level(np.array(done[step]["scores"][kind][score], float)) for kind, score in shown)]
        for step in sorted(done.runs)
    ]
    return markdown(["steps", *(f"{kind}: {score}" for kind, score in shown)], rows, left=0)


def draw(done: Done, file: Path) -> None:
    """Things recognised by steps; needs matplotlib, which the package does not."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4), layout="constrained")
    steps = sorted(done.runs)
    for kind in KINDS:
        known = [np.array([x for x in done[step]["scores"][kind]["objects"] if x is not None]) for step in steps]
        means, ends = np.array([x.mean() for x in known]), np.array([bootstrap_ci(x, 0) for x in known])
        axes.errorbar(steps, means, np.abs(ends.T - means), marker="o", markersize=4, capsize=2, label=kind)
    axes.set(xscale="log", ylim=0, xlabel="training steps of the prior that knows words", ylabel="things recognised")
    axes.legend(frameon=False)
    figure.savefig(file, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=10, help="of the world whose test images are painted")
    parser.add_argument("--images", type=int, default=150)
    parser.add_argument("--words-steps", type=int, default=8_000)
    parser.add_argument("--table", action="store_true", help="of what was measured")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a page with marks for the table")
    parser.add_argument("--picture", type=Path, metavar="PNG")
    options = parser.parse_args()
    done = Done(options.out / "words_curve.jsonl", "step")
    if not options.table:
        measure(options, done)
    text = table(done)
    print(text)
    if options.write:
        write_between(options.write, "words_curve", text)
    if options.picture:
        draw(done, options.picture)


if __name__ == "__main__":
    main()
