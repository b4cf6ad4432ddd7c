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
from pages import markdown, write_between
from world import add_seeds, config_of, difference, open_world

from mindtuner.decoding.training_images import nearest_training_image
from mindtuner.decoding.words import Words
from mindtuner.evaluation.results import from_uint8
from mindtuner.evaluation.scores.features import LITE2, features_of
from mindtuner.evaluation.scores.pictures import two_way
from mindtuner.evaluation.statistics import bootstrap_ci

KINDS = ("nearest training image", "painted", "corrected")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_seeds(parser)
    options = parser.parse_args()
    found = {str(seed): identified(seed, options) for seed in options.seeds}
    found["all"] = {kind: np.concatenate([scores[kind] for scores in found.values()]) for kind in KINDS}
    rows = []
    for seed, scores in found.items():
        levels = ["{:.3f} [{:.3f}, {:.3f}]".format(scores[kind].mean(), *bootstrap_ci(scores[kind], 0)) for kind in KINDS]
        rows.append([seed, *levels, *(difference(scores["corrected"], scores[other]) for other in KINDS[:2])])
    text = markdown(["simulator seed", *KINDS, "corrected minus nearest", "corrected minus painted"], rows)
    text += f"\n\n    python benchmarks/all_test_pictures.py OUT --seeds {' '.join(map(str, options.seeds))}"
    print(text)
    if options.write:
        write_between(options.write, "pictures", text)


def identified(seed: int, options: argparse.Namespace) -> dict[str, np.ndarray]:
    """Two-way identification of each test image, by kind of picture."""
    world = open_world(options.out / f"seed-{seed}", config_of(seed))
    decoder, pixels = world.tune("mindtuner", seed).decoder(), world.features.caches["pixels"]
    said = world.decode(decoder)
    every = np.arange(len(said.images))
    nearest = decoder.training_images[nearest_training_image(said.backbone_tokens, decoder.training_tokens)]
    tokens = decoder.draw(decoder.expected_tokens(said, every))
    painted = decoder.generator.stages(tokens, Words(said.text, decoder.bank), None, said.images)  # not rounded to uint8
    seen = features_of(LITE2, np.asarray(pixels[said.images]))["two_way"]
    pictures = from_uint8(np.asarray(pixels[nearest])), painted["reconstructed"], painted["corrected"]
    return {kind: two_way(features_of(LITE2, shown)["two_way"], seen) for kind, shown in zip(KINDS, pictures, strict=True)}


if __name__ == "__main__":
    main()
