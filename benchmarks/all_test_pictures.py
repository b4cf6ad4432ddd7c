"""Are corrected pictures identified more often than the nearest training image? With every test image painted.

    python benchmarks/all_test_pictures.py OUT [--seeds 0 1 2] [--write benchmarks/results/all_test_pictures.md]

A demo paints 64 of the 300 test images, too few to tell small differences. For each simulator seed this simulates, embeds and
pretrains once (kept in OUT/seed-N, shared with painting.py), tunes ``mindtuner`` as the demo does, paints all test images and
corrects them. Two-way identification among all of them, by the demo's scoring network: mean, 95 % interval over images, and
the paired difference to the image of ``nearest_training_image``; in the last row over all images of all seeds. ``--write``
puts the table between the file's ``pictures:begin`` and ``pictures:end`` comments.
"""

from __future__ import annotations

import argparse

import numpy as np
from painting import add_seeds, configured
from sides import write_between
from tuning_seeds import prepare

from mindtuner.decoding.decoder import Decoder
from mindtuner.decoding.training_images import draw_to_neighbours, nearest_training_image
from mindtuner.decoding.words import TextBank
from mindtuner.evaluation.results import from_uint8
from mindtuner.evaluation.scores.features import LITE2, features_of
from mindtuner.evaluation.scores.pictures import two_way
from mindtuner.evaluation.statistics import bootstrap_ci, paired_difference
from mindtuner.generators.compact import CompactGenerator, starting_prior
from mindtuner.towers.compact import CompactTextEncoder
from mindtuner.training import subject_name, tune

KINDS = ("nearest training image", "painted", "corrected")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_seeds(parser)
    options = parser.parse_args()
    found = {str(seed): identified(seed, options) for seed in options.seeds}
    found["all"] = {kind: np.concatenate([scores[kind] for scores in found.values()]) for kind in KINDS}
    lines = [
        "| simulator seed | " + " | ".join(KINDS) + " | corrected minus nearest | corrected minus painted |",
        "|---|" + "---:|" * (len(KINDS) + 2),
    ]
    for seed, scores in found.items():
        cells = []
        for kind in KINDS:
            low, high = bootstrap_ci(scores[kind], 0)
            cells.append(f"{scores[kind].mean():.3f} [{low:.3f}, {high:.3f}]")
        for other in KINDS[:2]:
            difference = paired_difference(scores["corrected"], scores[other], 0)
            cells.append("{:+.3f} [{:+.3f}, {:+.3f}]".format(difference["mean"], *difference["ci"]))
        lines.append(f"| {seed} | " + " | ".join(cells) + " |")
    lines += ["", f"    python benchmarks/all_test_pictures.py OUT --seeds {' '.join(map(str, options.seeds))}"]
    print("\n".join(lines))
    if options.write:
        write_between(options.write, "pictures", "\n".join(lines))


def identified(seed: int, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Two-way identification of each test image, by kind of picture."""
    config = configured(seed)
    dataset, caches, targets, base = prepare(options.out / f"seed-{seed}", config)
    subject = dataset.subject(config.target_subject)
    network = tune(base, subject.sessions(config.tuning_sessions), targets, config, seed, prior=starting_prior(config.model))
    decoder = Decoder(network, subject_name(subject.number), config.decode, seed)
    said = decoder.predict(subject.betas(subject.test.row), subject.test.stimulus)
    training = dataset.stimuli.training_images
    tokens = np.asarray(caches["tokens"][training])
    wanted = draw_to_neighbours(decoder.image_tokens(said.backbone_tokens, said.images), tokens, config.decode.neighbours)
    bank, generator = (
        TextBank.of(dataset.stimuli, dataset.stimuli.training_images, CompactTextEncoder()),
        CompactGenerator(config.decode, seed),
    )
    latents = generator.generate(wanted, said.images)
    caption = bank.embeddings[bank.nearest(said.text)]
    nearest = training[nearest_training_image(said.backbone_tokens, tokens)]
    seen = features_of(LITE2, np.asarray(caches["pixels"][said.images]))["two_way"]
    pictures = (
        from_uint8(np.asarray(caches["pixels"][nearest])),
        generator.pictures(latents),
        generator.best_correction(latents, wanted, caption, said.images),
    )
    return {kind: two_way(features_of(LITE2, shown)["two_way"], seen) for kind, shown in zip(KINDS, pictures, strict=True)}


if __name__ == "__main__":
    main()
