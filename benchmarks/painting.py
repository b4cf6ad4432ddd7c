"""What do pictures lose between the brain and the canvas? On held-out training images, step by step.

    python benchmarks/painting.py OUT [--seeds 0 1 2] [--noise-seeds 2] [--takes 1 3] [--write benchmarks/results/painting.md]

For each simulator seed, simulates, embeds and pretrains once (kept in OUT/seed-N), tunes mindtuner without a fifth of its
training images, and paints those. Each row paints from other tokens: the true ones; those of the training image nearest to
the backbone tokens B; B itself; what the prior makes of B, alone and drawn to the config's number of nearest training images.
Columns: how these tokens correlate with the true ones, and two-way identification of the training image nearest to them,
of the picture painted from them, and of its correction, the best of so many takes. Mean over noise seeds, (sd over simulator
seeds). ``--write`` puts the table between the file's ``painting:begin`` and ``painting:end`` comments.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from sides import write_between
from tuning_seeds import HOLDOUT, held_out, prepare

from mindtuner.config import Config, load_config
from mindtuner.decoding.decoder import Decoder
from mindtuner.decoding.training_images import draw_to_neighbours, nearest_training_image
from mindtuner.decoding.words import TextBank
from mindtuner.evaluation.results import from_uint8
from mindtuner.evaluation.scores.features import LITE2, features_of
from mindtuner.evaluation.scores.pictures import two_way
from mindtuner.generators.compact import CompactGenerator, starting_prior
from mindtuner.towers.compact import CompactTextEncoder
from mindtuner.training import subject_name, tune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_seeds(parser)
    parser.add_argument("--noise-seeds", type=int, default=2)
    parser.add_argument("--takes", type=int, nargs="+", default=[1, 3], help="corrections of which one is kept")
    parser.add_argument("--generator", type=Path, help="weights of mindtuner train-generator")
    options = parser.parse_args()
    found: dict[str, list[np.ndarray]] = {}
    for seed in options.seeds:
        for name, scores in rows_of(seed, options).items():
            found.setdefault(name, []).append(scores)
            print(f"simulator seed {seed}: {name}: {' '.join(f'{v:.3f}' for v in scores)}", flush=True)
    corrected = [f"corrected, best of {n}" if n > 1 else "corrected" for n in options.takes]
    lines = [
        "| painted from | " + " | ".join(["r with true tokens", "nearest training image", "painted", *corrected]) + " |",
        "|---|" + "---:|" * (3 + len(corrected)),
    ]
    for name, scores in found.items():
        spread = np.std(scores, axis=0, ddof=1) if len(scores) > 1 else np.full(len(scores[0]), np.nan)
        cells = [f"{m:.3f} ({sd:.3f})" for m, sd in zip(np.mean(scores, 0), spread, strict=True)]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"    python benchmarks/painting.py OUT --seeds {' '.join(map(str, options.seeds))} --noise-seeds "
        f"{options.noise_seeds} --takes {' '.join(map(str, options.takes))}",
    ]
    print("\n".join(lines))
    if options.write:
        write_between(options.write, "painting", "\n".join(lines))


def rows_of(seed: int, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """For each origin of tokens, the columns' values for one simulator seed, means over noise seeds."""
    config = configured(seed)
    dataset, caches, targets, base = prepare(options.out / f"seed-{seed}", config)
    subject = dataset.subject(config.target_subject)
    hour = subject.sessions(config.tuning_sessions)
    network = tune(base, hour, targets, config, seed, holdout=HOLDOUT, prior=starting_prior(config.model))
    trials = held_out(subject, hour, seed)
    decoder = Decoder(network, subject_name(subject.number), config.decode, seed)
    said = decoder.predict(subject.betas(trials.row), trials.stimulus)
    training = np.setdiff1d(np.flatnonzero(~dataset.stimuli.is_shared), said.images)
    training_tokens, true = np.asarray(caches["tokens"][training]), np.asarray(caches["tokens"][said.images])
    mean, bank = training_tokens.mean(0), TextBank.of(dataset.stimuli, dataset.stimuli.training_images, CompactTextEncoder())
    seen = features_of(LITE2, np.asarray(caches["pixels"][said.images]))["two_way"]
    caption = bank.embeddings[bank.nearest(said.text)]
    expected = decoder.image_tokens(said.backbone_tokens, said.images)
    most = dataclasses.replace(config.decode, corrections=max(options.takes))
    generators = [CompactGenerator(most, noise, options.generator) for noise in range(options.noise_seeds)]

    def nearest(tokens: np.ndarray) -> np.ndarray:
        return training[nearest_training_image(tokens, training_tokens)]

    def identified(pictures: np.ndarray) -> float:
        return two_way(features_of(LITE2, pictures)["two_way"], seen).mean()

    def scores(tokens: np.ndarray, generator: CompactGenerator) -> list[float]:
        latents = generator.generate(tokens, said.images)
        corrected = []
        for takes in options.takes:
            generator.config = dataclasses.replace(config.decode, corrections=takes)
            corrected.append(identified(generator.best_correction(latents, tokens, caption, said.images)))
        found = from_uint8(np.asarray(caches["pixels"][nearest(tokens)]))
        return [
            np.corrcoef((tokens - mean).ravel(), (true - mean).ravel())[0, 1],
            identified(found),
            identified(generator.pictures(latents)),
            *corrected,
        ]

    sources = {
        "the true tokens": true,
        "tokens of the training image nearest to B": np.asarray(caches["tokens"][nearest(said.backbone_tokens)]),
        "B": said.backbone_tokens,
        "the prior": expected,
        f"the same, and {config.decode.neighbours} neighbours": draw_to_neighbours(
            expected, training_tokens, config.decode.neighbours
        ),
    }
    return {name: np.mean([scores(tokens, generator) for generator in generators], 0) for name, tokens in sources.items()}


def add_seeds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of simulation, pretraining and tuning")
    parser.add_argument("--write", type=Path, metavar="FILE", help="a page with marks for the table")


def configured(seed: int) -> Config:
    config = load_config("demo")
    return dataclasses.replace(config, seed=seed, simulate=dataclasses.replace(config.simulate, seed=seed))


if __name__ == "__main__":
    main()
