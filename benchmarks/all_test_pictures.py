"""What is in the pictures? With every test image painted, beside what the painter can do and the nearest training image.

    python benchmarks/all_test_pictures.py OUT [--seeds 10 11 12] [--write benchmarks/results/all_test_pictures.md]

A demo paints 64 of the 300 test images, too few to tell small differences. For each simulator seed this simulates, embeds
and pretrains once (kept in OUT/seed-N), tunes ``mindtuner`` as the demo does, and paints all test images: from what the brain
says of them, with its own words, without, and with those of another image; and, to know what the painter can do, from the
true tokens and captions. Pictures with the words of another image are held against what was seen, and against that other
image: who paints what words say shows its things. The same by words alone, without the brain's tokens: what it costs to let
nothing but words say what is there. Things, colours and places recognised, two-way identification by the
demo's scoring network, and PixCorr. The first table has means over images and seeds with 95 % intervals, and chance, from
wrong images; the second has paired differences. ``--write`` puts them between the file's ``pictures:begin`` and
``pictures:end`` comments, ``--picture`` draws ten test images of the first seed, drawn at random. Scores of a world go to
OUT/seed-N/all_test_pictures.jsonl, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from pages import markdown, write_between
from PIL import Image
from world import Done, World, add_seeds, config_of, difference, level, open_world

from mindtuner.decoding.decoder import Predictions
from mindtuner.decoding.training_images import nearest_training_image
from mindtuner.decoding.words import Words
from mindtuner.evaluation.results import from_uint8, to_uint8
from mindtuner.evaluation.scores.features import LITE2, EncodingFeatures, features_of
from mindtuner.evaluation.scores.pictures import pixcorr, two_way
from mindtuner.evaluation.scores.preparation import OURS
from mindtuner.evaluation.statistics import random_pairs
from mindtuner.generators.compact import CompactGenerator
from mindtuner.pipeline.objects import Shown

SEEN, NEAREST, PLAIN, CORRECTED = "seen", "nearest training image", "reconstructed", "corrected"
OTHER = "corrected with the words of another image"
AGAINST = "the same, held against that other image"
ALONE, OTHER_ALONE = "by its words alone", "by the words of another image alone"
TRUE, TOLD, BOTH = "true tokens", "true caption alone", "true tokens and caption"
KINDS = (SEEN, TRUE, TOLD, BOTH, NEAREST, PLAIN, CORRECTED, OTHER, AGAINST, ALONE, OTHER_ALONE)
PAIRS = (
    (CORRECTED, PLAIN),
    (CORRECTED, NEAREST),
    (CORRECTED, OTHER),
    (AGAINST, OTHER),
    (CORRECTED, ALONE),
    (ALONE, PLAIN),
    (ALONE, OTHER_ALONE),
)
SCORES = ("objects", "colours", "places", "two-way", "PixCorr")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_seeds(parser)
    parser.set_defaults(seeds=[10, 11, 12])
    parser.add_argument("--picture", type=Path, metavar="PNG")
    options = parser.parse_args()
    found = []
    for seed in options.seeds:
        done = Done(options.out / f"seed-{seed}" / "all_test_pictures.jsonl", "seed")
        if seed not in done or (options.picture and not found):
            world = open_world(options.out / f"seed-{seed}", config_of(seed))
            pictures, images, nearest = painted(world, seed)
            if options.picture and not found:
                draw(pictures, options.picture)
            scores, chance = scored(world, pictures, images, nearest)
            done.add(seed=seed, chance=chance, scores=scores)
        found.append(done[seed])
        print(f"simulator seed {seed} done", flush=True)
    every = {
        (kind, score): np.concatenate([np.array(one["scores"][kind][score], float) for one in found])
        for kind in KINDS
        for score in SCORES
    }
    rows = [[kind, *(level(every[kind, score]) for score in SCORES)] for kind in KINDS]
    rows.append(["chance", *(f"{np.mean([one['chance'][score] for one in found]):.3f}" for score in SCORES)])
    text = markdown(["picture", *SCORES], rows)
    rows = [[f"{a} minus {b}", *(paired(every[a, score], every[b, score]) for score in SCORES)] for a, b in PAIRS]
    text += "\n\n" + markdown(["difference", *SCORES], rows)
    text += f"\n\n    python benchmarks/all_test_pictures.py OUT --seeds {' '.join(map(str, options.seeds))}"
    print(text)
    if options.write:
        write_between(options.write, "pictures", text)


def painted(world: World, seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Pictures of all test images by kind, float32 (300, 3, 128, 128), the images' ids, and those of the nearest ones."""
    decoder, caches = world.tune("mindtuner", seed).decoder(), world.features.caches
    said, generator = world.decode(decoder), decoder.generator
    images, every = said.images, np.arange(len(said.images))
    nearest = decoder.training_images[nearest_training_image(said.backbone_tokens, decoder.training_tokens)]
    tokens, words = decoder.draw(decoder.expected_tokens(said, every)), decoder.words(said)
    other = words.rows(other_image(len(images)))
    stages = generator.stages(tokens, said, words, lowlevel=False)
    others = generator.stages(tokens, said, other, lowlevel=False)
    true, told = np.asarray(caches["tokens"][images]), world.true_phrases(images)
    pictures = {
        SEEN: from_uint8(np.asarray(caches["pixels"][images])),
        TRUE: generator.pictures(true),
        TOLD: generator.pictures(generator.imagine(None, images, told)),
        BOTH: generator.pictures(generator.imagine(true, images, told)),
        NEAREST: from_uint8(np.asarray(caches["pixels"][nearest])),
        PLAIN: stages["reconstructed"],
        CORRECTED: stages["corrected"],
        OTHER: others["corrected"],
        AGAINST: others["corrected"],
        ALONE: by_words_alone(generator, said, words),
        OTHER_ALONE: by_words_alone(generator, said, other),
    }
    return pictures, images, nearest


def by_words_alone(generator: CompactGenerator, said: Predictions, words: Words) -> np.ndarray:
    """Corrections as many and as long as ever, neither painted by the brain's tokens nor judged by them."""
    phrases = words.phrase_embeddings
    imagined = generator.imagine(None, said.images, phrases)
    numbers = range(generator.config.corrections)
    candidates = [generator.correct(imagined, None, phrases, said.images, candidate=number) for number in numbers]
    return generator.best_of(np.stack(candidates), said, words, faith=0)


def other_image(count: int) -> np.ndarray:
    """Of each of so many images the position of another, whose words it gets."""
    return np.roll(np.arange(count), 1)


def scored(
    world: World, pictures: dict, images: np.ndarray, nearest: np.ndarray
) -> tuple[dict[str, dict[str, list[float | None]]], dict[str, float]]:
    """Each picture's score, by kind and score, and what the brain's corrected pictures would have of wrong images."""
    shown = Shown.of(world.dataset.stimuli, images, world.features.caches["pixels"], without=nearest)
    assert shown.recognition is not None
    looked, recognised, found = EncodingFeatures(OURS), {}, {}
    seen = features_of(LITE2, pictures[SEEN])["two_way"]
    for kind, some in pictures.items():
        recognised[kind] = shown.recognition.probe(looked(to_uint8(some)))
        target = other_image(len(images)) if kind == AGAINST else np.arange(len(images))  # the image that it is held against
        against = {name: named[target] for name, named in shown.recognition.shown.items()}
        scores = dataclasses.replace(shown.recognition, shown=against).scores(recognised[kind])
        scores |= {
            "two-way": two_way(features_of(LITE2, some)["two_way"], seen[target]),
            "PixCorr": pixcorr(pictures[SEEN][target], some),
        }
        found[kind] = {score: [None if np.isnan(one) else round(float(one), 5) for one in scores[score]] for score in SCORES}
    chance = shown.recognition.chance(recognised[CORRECTED], random_pairs(len(images), 0))
    others = pixcorr(pictures[SEEN][other_image(len(images))], pictures[CORRECTED])
    return found, {key: float(value) for key, value in chance.items()} | {"two-way": 0.5, "PixCorr": float(others.mean())}


def paired(a: np.ndarray, b: np.ndarray) -> str:
    known = ~(np.isnan(a) | np.isnan(b))
    return difference(a[known], b[known])


def draw(pictures: dict[str, np.ndarray], path: Path) -> None:
    """Ten of the images, drawn at random, a row for each kind of picture."""
    some = np.random.default_rng(0).choice(len(pictures[SEEN]), 10, replace=False)
    drawn = [kind for kind in KINDS if kind != AGAINST]  # the same pictures as OTHER
    rows = [np.concatenate(list(to_uint8(pictures[kind][some]).transpose(0, 2, 3, 1)), 1) for kind in drawn]
    Image.fromarray(np.concatenate(rows)).save(path)


if __name__ == "__main__":
    main()
