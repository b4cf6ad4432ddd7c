"""What do pictures lose between the brain and the canvas? On held-out training images, step by step.

    python benchmarks/painting.py OUT [--seed 0] [--prior-steps 1 10] [--guidance 2] [--generator FILE]

Simulates, embeds and pretrains once (kept in OUT, shared with tuning_seeds.py), tunes mindtuner without a fifth of its
training images, and paints those. Each row paints from other tokens: the true ones; those of the training image nearest to
the backbone tokens B; B itself; and what the prior makes of B, in so many steps, alone and drawn to the config's number of
nearest training images. Columns: how these tokens correlate with the
true ones, and two-way identification of the training image nearest to them, of the picture painted from them, and of its
correction; mean (sd) over noise seeds.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from tuning_seeds import HOLDOUT, held_out, prepare

from mindtuner.cli.story import training_bank
from mindtuner.config import load_config
from mindtuner.decoding.compact import CompactGenerator, starting_prior
from mindtuner.decoding.decoder import Decoder
from mindtuner.decoding.recall import recall
from mindtuner.encoders.compact import CompactTextEncoder
from mindtuner.evaluation.controls import nearest_training_image
from mindtuner.evaluation.results import from_uint8
from mindtuner.evaluation.scores.features import LITE2, features_of
from mindtuner.evaluation.scores.pictures import two_way
from mindtuner.training import subject_name, tune


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="seed of simulation, pretraining and tuning")
    parser.add_argument("--noise-seeds", type=int, default=3)
    parser.add_argument("--prior-steps", type=int, nargs="+", default=[1, 10])
    parser.add_argument("--guidance", type=float, default=load_config("demo").decode.guidance)
    parser.add_argument("--generator", type=Path, help="weights of mindtuner train-generator")
    options = parser.parse_args()
    config = load_config("demo")
    config = dataclasses.replace(
        config, seed=options.seed, simulate=dataclasses.replace(config.simulate, seed=options.seed),
        decode=dataclasses.replace(config.decode, guidance=options.guidance))
    dataset, caches, targets, base = prepare(options.out, config)
    subject = dataset.subject(config.target_subject)
    hour = subject.sessions(config.tuning_sessions)
    network = tune(base, hour, targets, config, options.seed, holdout=HOLDOUT, prior=starting_prior(config.model))
    trials = held_out(subject, hour, options.seed)

    def decoder(prior_steps: int, noise: int) -> Decoder:
        return Decoder(network, subject_name(subject.number),
                       dataclasses.replace(config.decode, prior_steps=prior_steps), noise)

    said = decoder(1, 0).predict(subject.betas(trials.row), trials.stimulus)
    training = np.setdiff1d(np.flatnonzero(~dataset.stimuli.is_shared), said.images)
    training_tokens, true = np.asarray(caches["tokens"][training]), np.asarray(caches["tokens"][said.images])
    mean, bank = training_tokens.mean(0), training_bank(dataset, CompactTextEncoder())
    seen = features_of(LITE2, np.asarray(caches["pixels"][said.images]))["two_way"]
    caption = bank.embeddings[bank.nearest(said.text)]

    def nearest(tokens: np.ndarray) -> np.ndarray:
        return training[nearest_training_image(tokens, training_tokens)]

    def scores(tokens: np.ndarray, noise: int) -> list[float]:
        generator = CompactGenerator(config.decode, noise, options.generator)
        latents = generator.generate(tokens, said.images)
        corrected = generator.correct(latents, tokens, caption, said.images)
        pictures = (from_uint8(np.asarray(caches["pixels"][nearest(tokens)])), generator.pictures(latents),
                    generator.pictures(corrected))
        r = np.corrcoef((tokens - mean).ravel(), (true - mean).ravel())[0, 1]
        return [r, *(two_way(features_of(LITE2, p)["two_way"], seen).mean() for p in pictures)]

    print(f"simulator seed {options.seed}, {len(said.images)} held-out training images, {options.noise_seeds} noise seeds, "
          f"guidance {options.guidance:g}\n")
    print("| painted from | r with true tokens | nearest training image | painted | corrected |\n|---|---:|---:|---:|---:|")
    tokens_of_nearest = np.asarray(caches["tokens"][nearest(said.backbone_tokens)])
    sources = {"the true tokens": lambda noise: true,
               "tokens of the training image nearest to B": lambda noise: tokens_of_nearest,
               "B": lambda noise: said.backbone_tokens}
    for steps in options.prior_steps:
        sources[f"the prior, {steps} step{'s' * (steps > 1)}"] = (
            lambda noise, steps=steps: decoder(steps, noise).image_tokens(said.backbone_tokens, said.images))
        sources[f"the same, and {config.decode.neighbours} neighbours"] = (
            lambda noise, steps=steps: recall(decoder(steps, noise).image_tokens(said.backbone_tokens, said.images),
                                              training_tokens, config.decode.neighbours))
    for name, tokens in sources.items():
        found = np.array([scores(tokens(noise), noise) for noise in range(options.noise_seeds)])
        cells = [f"{m:.3f} ({sd:.3f})" for m, sd in zip(found.mean(0), found.std(0, ddof=1), strict=True)]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
