"""Decode a subject's trials: tokens, words, and pictures.

FINGERPRINT is a run of mindtuner tune (its method mindtuner), or one of the files there. Trials that show the same image are
averaged. Writes into OUT predictions.safetensors (images, backbone_tokens, retrieval_tokens, latents, text; a row an image),
words.json (the caption of a training image that is nearest to each) and, with --pictures or --only, pictures/IMAGE.png, for
which the towers look at the stimuli where the cache does not hold that yet. The same command goes on where an earlier one was
stopped; with another --pictures or --only it adds pictures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

from mindtuner.cli import painters, steps
from mindtuner.files import file_digest

if TYPE_CHECKING:
    import numpy as np

    from mindtuner.decoding.decoder import Decoder, Predictions
    from mindtuner.decoding.training_images import TrainingTokens
    from mindtuner.decoding.words import TextBank
    from mindtuner.generators.painter import Painter

TRIALS = ("test", "train", "all")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("fingerprint", type=Path, metavar="FINGERPRINT", help="run of mindtuner tune, or a file of it")
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the dataset")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument(
        "--base",
        type=Path,
        metavar="BASE",
        help="run of mindtuner pretrain, or its base.safetensors (default: where it was when tuning)",
    )
    parser.add_argument("--trials", choices=TRIALS, default="test", help="which trials (default test)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--pictures", type=int, default=0, metavar="N", help="paint N of the images, evenly spaced (default 0: none)"
    )
    which.add_argument("--only", metavar="N,M,...", help="paint these images, by the numbers of their stimuli")
    parser.add_argument("--stages", action="store_true", help="keep each stage of the pictures, in pictures/STAGE/IMAGE.png")
    parser.add_argument("--cache", type=Path, metavar="DIR", help="what the towers say about the images (default DATA/cache)")
    painters.add_arguments(parser)
    parser.add_argument("--force", action="store_true", help="replace an earlier run in OUT")


def run(options: argparse.Namespace) -> None:
    from mindtuner.errors import UserError

    if options.pictures < 0:
        raise UserError(f"--pictures is {options.pictures}; expected 0 or more")
    wanted = _numbers(options.only)
    painters.check_options(options)

    import numpy as np

    from mindtuner.cli import story, tuned
    from mindtuner.config import DecodeConfig
    from mindtuner.decoding.decoder import Decoder
    from mindtuner.files import write_json
    from mindtuner.formats import load
    from mindtuner.training import load_network, read_card, subject_name

    path = options.fingerprint / tuned.FILES["mindtuner"] if options.fingerprint.is_dir() else options.fingerprint
    card = read_card(path)
    if "subject" not in card or "config" not in card:
        raise UserError(f"{path}: is a base; expected what mindtuner tune wrote")
    number = card["subject"]
    base = tuned.base_of(path, options.base)
    steps.refuse_overlap(options.out, DATA=options.data, FINGERPRINT=path, BASE=base)
    dataset = load(options.data, [number])
    subject = dataset.subject(number)
    trials = {"test": subject.test, "train": subject.train, "all": subject.trials}[options.trials]
    if len(trials) == 0:
        raise UserError(f"{subject.where}: subject {number} has no {options.trials} trial; expected at least one")
    images = np.unique(trials.stimulus)
    shown = story.evenly(len(images), options.pictures) if wanted is None else _positions(images, wanted, options.trials)
    # What is looked up never shows a category held out; the subject's own trials of it are decoded like any.
    dataset = steps.held_out(dataset, card["config"].get("hold_out_category", ""))
    network = tuned.load_tuned(path, load_network(base), subject)
    config, seed = DecodeConfig(**card["config"]["decode"]), card["config"]["seed"]
    speech = painters.Speech(card, read_card(base), base)
    if len(shown) and options.generator != painters.SDXL:
        steps.check_towers(network.config, base)
    texts = painters.text_encoder(options, network, speech)
    batch = painters.batch_of(options)
    generator = painters.painter(options, config, seed, network, speech, texts, batch)
    steps.claim(options.out, _settings(options, base, card, path, generator), options.force)
    watch = steps.Stopwatch()
    with watch.stage("words"):  # before the network takes its room on a GPU
        bank = story.training_bank(dataset, texts)
        texts.network.cpu()  # its part is done
    with watch.stage("decode"):
        decoder = Decoder(network, subject_name(number), config, seed)
        found = decoder.predict(subject.betas(trials.row), trials.stimulus)
        nearest = bank.nearest(found.text) if bank.captions else None
    _save(options.out / "predictions.safetensors", found)
    write_json(
        options.out / "words.json",
        {
            "subject": number,
            "trials": options.trials,
            "images": [
                {
                    "image": int(image),
                    "seen": list(dataset.stimuli.captions[image]),
                    "retrieved": None if nearest is None else bank.captions[nearest[k]],
                }
                for k, image in enumerate(found.images)
            ],
        },
    )
    if len(shown):
        with watch.stage("embed"):
            training = _training_tokens(options, dataset, generator, speech, config.neighbours)
        with watch.stage("paint"):
            painted = paint_missing(
                options.out / "pictures", found, shown, decoder, generator, bank, training, batch, options.stages
            )
        print(f"{options.out / 'pictures'}: {painted} painted, {len(shown) - painted} were there")
    print(f"\n{options.out}: {len(images)} images from {len(trials)} {options.trials} trials of subject {number}")


def paint_missing(
    folder: Path,
    found: Predictions,
    shown: np.ndarray,
    decoder: Decoder,
    generator: Painter,
    bank: TextBank,
    training: np.ndarray | TrainingTokens,
    batch: int,
    keep_stages: bool,
) -> int:
    """Paint the images at the positions ``shown`` of ``found`` that ``folder`` lacks, and return how many that were.

    Each is written when it is there, its IMAGE.png last. Batches are cut as if all were missing, so that a run that goes on
    paints them in the same company.
    """
    import numpy as np

    from mindtuner.decoding.training_images import draw_to_neighbours
    from mindtuner.decoding.words import Words
    from mindtuner.evaluation.results import to_uint8
    from mindtuner.files import write_text
    from mindtuner.generators.painter import main_picture
    from mindtuner.runtime import progress

    groups = [shown[start : start + batch] for start in range(0, len(shown), batch)]
    missing = [group for group in groups if not all(_file(folder, image).exists() for image in found.images[group])]
    sampled = [decoder.image_tokens(found.backbone_tokens[group], found.images[group]) for group in missing]
    decoder.network.cpu()  # its part is done, and generators want the room
    painted = 0
    for group, drawn in zip(progress(missing, "pictures", len(missing), "batch", lines=True), sampled, strict=True):
        images = found.images[group]
        tokens = np.concatenate([draw_to_neighbours(row[None], training, decoder.config.neighbours) for row in drawn])
        lowlevel = None if found.latents is None else found.latents[group]
        stages = {
            stage: to_uint8(pictures)
            for stage, pictures in generator.stages(
                tokens, Words(found.text[group], bank), lowlevel, images, "pictures"
            ).items()
        }
        captions = generator.captions(tokens)
        for k, image in enumerate(images):
            if _file(folder, image).exists():
                continue
            for stage, pictures in stages.items() if keep_stages else ():
                _write_picture(_file(folder / stage, image), pictures[k])
            if captions is not None:
                write_text(_file(folder, image).with_suffix(".txt"), captions[k] + "\n")
            _write_picture(_file(folder, image), main_picture(stages)[k])
            painted += 1
    return painted


def _training_tokens(
    options: argparse.Namespace, dataset, generator: Painter, speech: painters.Speech, neighbours: int
) -> np.ndarray | TrainingTokens:
    """Tokens (m, T, D) of the training images, for ``draw_to_neighbours``; none where it asks for none.

    Raises UserError where the cache is of other towers than the network was trained with.
    """
    import numpy as np

    from mindtuner.cli import towers
    from mindtuner.decoding.training_images import TrainingTokens

    full_size, cache = options.generator == painters.SDXL, options.cache or dataset.root / "cache"
    if full_size and neighbours == 0:
        return np.empty((0, 1, 1), np.float32)  # what the towers say of the images is needed nowhere
    targets, _ = steps.gather_targets(dataset, cache, None if full_size else generator)
    towers.check_same(speech.base, speech.path, cache)
    return TrainingTokens(targets.tokens, dataset.stimuli.training_images if neighbours else np.empty(0, np.int64))


def _settings(options: argparse.Namespace, base: Path, card: dict, path: Path, generator: Painter) -> str:
    """What has to be the same for a run to go on. Which images are painted has not: each is what it is by itself."""
    command = steps.command_of(
        "decode",
        options.fingerprint,
        options.data,
        options.out,
        "--base",
        base,
        "--trials",
        options.trials,
        *painters.words_of(options),
    )
    facts = {"fingerprint": file_digest(path), "generator": generator.identity, "stages": options.stages}
    return f"# {command}\n# {json.dumps(facts)}\n{json.dumps(card['config'], indent=2)}\n"  # JSON is YAML


def _numbers(text: str | None) -> list[int] | None:
    from mindtuner.errors import UserError

    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts):
        raise UserError(f"--only: is {text!r}; expected numbers of stimuli such as 3,14")
    return [int(part) for part in parts]


def _positions(images: np.ndarray, wanted: list[int], trials: str) -> np.ndarray:
    import numpy as np

    from mindtuner.errors import UserError

    for image in wanted:
        if image not in images:
            raise UserError(
                f"--only: image {image} is not among the {len(images)} that the {trials} trials show; expected "
                f"some of {images[0]} ... {images[-1]}"
            )
    return np.searchsorted(images, sorted(set(wanted)))


def _save(path: Path, found: Predictions) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    from mindtuner.files import atomic_path

    arrays = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    with atomic_path(path) as part:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}, part)


def _file(folder: Path, image: int) -> Path:
    return folder / f"{image:06d}.png"


def _write_picture(path: Path, picture: np.ndarray) -> None:
    from mindtuner.files import atomic_path
    from mindtuner.report.contact_sheet import to_image

    with atomic_path(path) as part:
        to_image(picture).save(part, "PNG")
