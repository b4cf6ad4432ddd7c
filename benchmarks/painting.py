"""What do pictures lose between the brain and the canvas? On held-out training images, step by step.

    python benchmarks/painting.py OUT [--seeds 0 1 2] [--noise-seeds 2] [--takes 1 6] [--write benchmarks/results/painting.md]

For each simulator seed, simulates, embeds and pretrains once (kept in OUT/seed-N), tunes mindtuner without a fifth of its
training images, and paints those. Each row paints from other tokens: the true ones; those of the training image nearest to
the backbone tokens B; B itself; what the prior makes of B, alone and drawn to the config's number of nearest training images.
Columns: how these tokens correlate with the true ones, and two-way identification and things recognised of the training image
nearest to them, of the picture painted from them, of one imagined from them, and of its correction by phrases, the best of so
many takes. Mean over noise seeds, (sd over simulator seeds). ``--write`` puts the table between the file's
``painting:begin`` and ``painting:end`` comments.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from pages import markdown, write_between
from world import HOLDOUT, add_seeds, config_of, open_world

from mindtuner.decoding.training_images import draw_to_neighbours, nearest_training_image
from mindtuner.evaluation.results import from_uint8
from mindtuner.evaluation.scores.features import LITE2, EncodingFeatures, features_of
from mindtuner.evaluation.scores.pictures import two_way
from mindtuner.generators.compact import CompactGenerator
from mindtuner.pipeline.objects import Shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_seeds(parser)
    parser.add_argument("--noise-seeds", type=int, default=2)
    parser.add_argument("--takes", type=int, nargs="+", default=[1, 6], help="corrections of which one is kept")
    parser.add_argument("--generator", type=Path, help="weights of mindtuner train-generator")
    options = parser.parse_args()
    found: dict[str, list[np.ndarray]] = {}
    for seed in options.seeds:
        for name, scores in rows_of(seed, options).items():
            found.setdefault(name, []).append(scores)
            print(f"simulator seed {seed}: {name}: {' '.join(f'{v:.3f}' for v in scores.ravel())}", flush=True)
    corrected = [f"corrected, best of {n}" if n > 1 else "corrected" for n in options.takes]
    rows = []
    for name, scores in found.items():
        spread = np.std(scores, axis=0, ddof=1) if len(scores) > 1 else np.full(np.shape(scores)[1:], np.nan)
        cells = [f"{m:.3f} ({sd:.3f})" for m, sd in zip(np.mean(scores, 0).ravel(), spread.ravel(), strict=True)]
        rows.append([name, cells[0], *(", ".join(cells[k : k + 2]) for k in range(2, len(cells), 2))])
    columns = ["r with true tokens", "nearest training image", "painted as they are", "imagined", *corrected]
    text = markdown(["painted from", *columns], rows)
    text += (
        f"\n\n    python benchmarks/painting.py OUT --seeds {' '.join(map(str, options.seeds))} --noise-seeds "
        f"{options.noise_seeds} --takes {' '.join(map(str, options.takes))}"
    )
    print(text)
    if options.write:
        write_between(options.write, "painting", text)


def rows_of(seed: int, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """For each origin of tokens, the columns' values for one simulator seed, means over noise seeds."""
    world = open_world(options.out / f"seed-{seed}", config_of(seed))
    tuned, caches = world.tune("mindtuner", seed, holdout=HOLDOUT), world.features.caches
    decoder, decode = tuned.decoder(), world.config.decode
    said = world.decode(decoder, tuned.held_out(world.dataset))
    training = np.setdiff1d(decoder.training_images, said.images)
    training_tokens, true = np.asarray(caches["tokens"][training]), np.asarray(caches["tokens"][said.images])
    mean, phrases = training_tokens.mean(0), decoder.words(said).phrase_embeddings
    seen = features_of(LITE2, np.asarray(caches["pixels"][said.images]))["two_way"]
    expected = decoder.expected_tokens(said, np.arange(len(said.images)))
    most = dataclasses.replace(decode, corrections=max(options.takes))
    generators = [CompactGenerator(most, noise, options.generator) for noise in range(options.noise_seeds)]

    def nearest(tokens: np.ndarray) -> np.ndarray:
        return training[nearest_training_image(tokens, training_tokens)]

    def look(pictures: np.ndarray) -> tuple[float, float]:
        found = shown.recognition.scores(shown.recognition.probe(EncodingFeatures()(pictures)))
        return two_way(features_of(LITE2, pictures)["two_way"], seen).mean(), np.nanmean(found["objects"])

    def scores(tokens: np.ndarray, generator: CompactGenerator) -> np.ndarray:
        imagined = generator.imagine(tokens, said.images)
        corrected = []
        for takes in options.takes:
            generator.config = dataclasses.replace(decode, corrections=takes)
            corrected.append(look(generator.best_correction(imagined, tokens, phrases, said.images)))
        correlation = np.corrcoef((tokens - mean).ravel(), (true - mean).ravel())[0, 1]
        return np.array(
            [
                (correlation, np.nan),
                look(from_uint8(np.asarray(caches["pixels"][nearest(tokens)]))),
                look(generator.pictures(tokens)),
                look(generator.pictures(imagined)),
                *corrected,
            ]
        )

    sources = {
        "the true tokens": true,
        "tokens of the training image nearest to B": np.asarray(caches["tokens"][nearest(said.backbone_tokens)]),
        "B": said.backbone_tokens,
        "the prior": expected,
        f"the same, and {decode.neighbours} neighbours": draw_to_neighbours(expected, training_tokens, decode.neighbours),
    }
    # The probe is not to know the pictures that it judges.
    judged = np.concatenate([said.images, *(nearest(tokens) for tokens in sources.values())])
    shown = Shown.of(world.dataset.stimuli, said.images, caches["pixels"], without=judged)
    assert shown.recognition is not None
    return {name: np.mean([scores(tokens, generator) for generator in generators], 0) for name, tokens in sources.items()}


if __name__ == "__main__":
    main()
