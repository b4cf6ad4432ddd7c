"""What do pictures lose between the brain and the canvas, and what brings it back? On held-out training images.

    python benchmarks/painting.py OUT [--seeds 0 1] [--splits 3] [--write benchmarks/results/painting.md]

For each simulator seed, simulates, embeds and pretrains once (kept in OUT/seed-N), tunes mindtuner without a fifth of its
training images, and paints those; with several splits, each without another fifth.

The first table paints from other tokens: the true ones; those of the training image nearest to the backbone tokens B; B
itself; what the prior makes of B, alone and drawn to the config's number of nearest training images. Columns: how these
tokens correlate with the true ones, and two-way identification and things recognised of the training image nearest to them,
of the picture painted from them, and of one imagined from them.

The second table corrects what was imagined from the last of these, by words and B: by phrases from the true captions, to know
the headroom; as the config says; and with one thing changed at a time. "By tokens" and "by words" keep the correction that
fits one alone best; "beside" has other tokens in the place of B. Mean, (sd over worlds and splits), and things recognised
less those of "one" (standard error over these). ``--write`` puts the tables between the file's ``painting:begin`` and
``painting:end`` comments. A line of each split goes to
OUT/seed-N/painting.jsonl, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from pages import markdown, write_between
from world import HOLDOUT, Done, World, add_seeds, config_of, open_world

from mindtuner.decoding.decoder import Predictions
from mindtuner.decoding.training_images import draw_to_neighbours, nearest_training_image
from mindtuner.evaluation.results import from_uint8
from mindtuner.evaluation.scores.features import LITE2, EncodingFeatures, features_of
from mindtuner.evaluation.scores.pictures import pixcorr, two_way
from mindtuner.generators.compact import FAITH, CompactGenerator
from mindtuner.pipeline import SubjectDecoder
from mindtuner.pipeline.objects import Shown

SCORES = ("objects", "colours", "places", "two-way", "PixCorr")
ONE = "one"
ONLY_TOKENS = 1e6  # of faith: words decide between equals


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_seeds(parser)
    parser.set_defaults(seeds=[0, 1])
    parser.add_argument("--splits", type=int, default=3)
    options = parser.parse_args()
    found = []
    for seed in options.seeds:
        done = Done(options.out / f"seed-{seed}" / "painting.jsonl", "split")
        for fold in range(options.splits):
            if fold not in done:
                done.add(split=fold, **measure(options.out, seed, fold))
            found.append(done[fold])
            print(f"simulator seed {seed}, split {fold} done", flush=True)
    columns = ["painted from", "r with true tokens", "nearest training image", "painted as they are", "imagined"]
    pair = lambda name, k: ", ".join(cell(found, "sources", name, k + j) for j in (0, 1))
    rows = [[name, cell(found, "sources", name, 0), *(pair(name, k) for k in (1, 3, 5))] for name in found[0]["sources"]]
    text = markdown(columns, rows)
    rows = [
        [name, *(cell(found, "corrections", name, k) for k in range(len(SCORES))), *(beside(found, name, k) for k in (0, 3))]
        for name in found[0]["corrections"]
    ]
    text += "\n\n" + markdown(["correction", *SCORES, "objects less one's", "two-way less one's"], rows)
    text += f"\n\n    python benchmarks/painting.py OUT --seeds {' '.join(map(str, options.seeds))} --splits {options.splits}"
    print(text)
    if options.write:
        write_between(options.write, "painting", text)


def beside(found: list[dict], name: str, column: int) -> str:
    """A score less that of a single correction, with its standard error over worlds and splits."""
    values = np.array([one["corrections"][name][column] - one["corrections"][ONE][column] for one in found])
    return f"{values.mean():+.3f}" + (f" ({values.std(ddof=1) / len(values) ** 0.5:.3f})" if len(values) > 1 else "")


def cell(found: list[dict], table: str, name: str, column: int) -> str:
    values = np.array([one[table][name][column] for one in found])
    return f"{values.mean():.3f}" + (f" ({values.std(ddof=1):.3f})" if len(values) > 1 else "")


def measure(out: Path, seed: int, split: int) -> dict[str, dict[str, list[float]]]:
    """The rows of both tables in one world, for one split of its training images."""
    world = open_world(out / f"seed-{seed}", config_of(seed))
    tuned, caches = world.tune("mindtuner", 100 * split + seed, holdout=HOLDOUT), world.features.caches
    decoder, decode = tuned.decoder(), world.config.decode
    said = world.decode(decoder, tuned.held_out(world.dataset))
    training = np.setdiff1d(decoder.training_images, said.images)
    training_tokens, true = np.asarray(caches["tokens"][training]), np.asarray(caches["tokens"][said.images])
    expected = decoder.expected_tokens(said, np.arange(len(said.images)))
    sources = {
        "the true tokens": true,
        "tokens of the training image nearest to B": training_tokens[
            nearest_training_image(said.backbone_tokens, training_tokens)
        ],
        "B": said.backbone_tokens,
        "the prior": expected,
        f"the same, and {decode.neighbours} neighbours": draw_to_neighbours(expected, training_tokens, decode.neighbours),
    }
    nearest = {name: training[nearest_training_image(tokens, training_tokens)] for name, tokens in sources.items()}
    # The probe is not to know the pictures that it judges.
    shown = Shown.of(world.dataset.stimuli, said.images, caches["pixels"], np.concatenate([said.images, *nearest.values()]))
    assert shown.recognition is not None
    true_pictures = from_uint8(np.asarray(caches["pixels"][said.images]))
    seen, looked = features_of(LITE2, true_pictures)["two_way"], EncodingFeatures()

    def scores(pictures: np.ndarray) -> list[float]:
        found = shown.recognition.scores(shown.recognition.probe(looked(pictures)))
        found |= {
            "two-way": two_way(features_of(LITE2, pictures)["two_way"], seen),
            "PixCorr": pixcorr(true_pictures, pictures),
        }
        return [float(np.nanmean(found[score])) for score in SCORES]

    generator, rows = decoder.generator, {}
    for name, tokens in sources.items():
        correlation = np.corrcoef((tokens - training_tokens.mean(0)).ravel(), (true - training_tokens.mean(0)).ravel())[0, 1]
        beside = from_uint8(np.asarray(caches["pixels"][nearest[name]]))
        columns = (beside, generator.pictures(tokens), generator.pictures(generator.imagine(tokens, said.images)))
        rows[name] = [float(correlation), *(value for some in columns for value in (scores(some)[3], scores(some)[0]))]
    corrected = corrections(world, decoder, said, expected, sources[list(sources)[-1]], training_tokens)
    return {"sources": rows, "corrections": {name: scores(pictures) for name, pictures in corrected.items()}}


def corrections(
    world: World,
    decoder: SubjectDecoder,
    said: Predictions,
    expected: np.ndarray,
    drawn: np.ndarray,
    training_tokens: np.ndarray,
) -> dict:
    """Corrected pictures, by how they were made; ``drawn``: the prior's ``expected`` tokens, drawn to neighbours."""
    generator, decode, words, images = decoder.generator, world.config.decode, decoder.words(said), said.images
    assert isinstance(generator, CompactGenerator)
    imagined, backbone = generator.imagine(drawn, images), said.backbone_tokens
    start = training_tokens[nearest_training_image(said.backbone_tokens, training_tokens)]

    told = words.told(imagined), words.told(backbone)

    def candidates(
        begin: np.ndarray = told[0],
        beside: np.ndarray | None = told[1],
        phrases=words.phrase_embeddings,
        count: int = decode.corrections,
        **changed,
    ):
        generator.config = dataclasses.replace(decode, **changed)
        return np.stack([generator.correct(begin, beside, phrases, images, f"{number}", number) for number in range(count)])

    twice = candidates(count=2 * decode.corrections)
    own = twice[: decode.corrections]
    best = lambda some, faith=FAITH: generator.best_of(some, said, words, faith)
    found = {
        "none, imagined alone": generator.pictures(imagined),
        "by the true phrases, one": generator.pictures(
            candidates(begin=imagined, beside=backbone, phrases=world.true_phrases(images), count=1)[0]
        ),
        ONE: generator.pictures(own[0]),
        f"**the best of {decode.corrections}**": best(own),
        "the same by tokens alone": best(own, ONLY_TOKENS),
        "the same by words alone": best(own, 0),
        "the same, B in the place of retrieval tokens": generator.best_of(
            own, dataclasses.replace(said, retrieval_tokens=backbone), words
        ),
        f"the best of {decode.corrections // 2}": best(own[: decode.corrections // 2]),
        f"the best of {2 * decode.corrections}": best(twice),
    }
    alone = generator.imagine(None, images, words.phrase_embeddings)
    found["by words alone, no tokens"] = best(candidates(begin=alone, beside=None))
    found["beside B, not told"] = best(candidates(begin=imagined, beside=backbone))
    found["from what was imagined, not told"] = best(candidates(begin=imagined))
    for name, beside in (("the prior's, told", words.told(expected)), ("those drawn to neighbours, told", words.told(drawn))):
        found[f"beside {name}"] = best(candidates(beside=beside))
    found["by the true phrases, one, beside those drawn to neighbours"] = generator.pictures(
        candidates(begin=imagined, beside=drawn, phrases=world.true_phrases(images), count=1)[0]
    )
    for steps in (3, 2 * decode.refine_steps):
        found[f"in {steps} steps"] = best(candidates(refine_steps=steps))
    softer = candidates(refine_start=0.8, guidance=2.0)
    found["from 0.8 of the noise, guidance 2"] = best(softer)
    found["the same by tokens alone, the best of 6"] = best(softer[:6], ONLY_TOKENS)
    found["from the nearest training image, told, 0.8 of the noise"] = best(
        candidates(begin=words.told(start), refine_start=0.8)
    )
    generator.config = decode
    return found


if __name__ == "__main__":
    main()
