"""Decode a subject's trials: tokens, words, and pictures.

FINGERPRINT is a run of mindtuner tune (its method mindtuner), or one of the files there. Trials that show the same image are
averaged. Writes into OUT predictions.safetensors (images, backbone_tokens, retrieval_tokens, latents, text; a row an image),
words.json (the caption of a training image that is nearest to each) and, with --pictures, pictures/IMAGE.png, for which
the towers look at the stimuli where the cache does not hold that yet.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mindtuner.cli import steps

TRIALS = ("test", "train", "all")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("fingerprint", type=Path, metavar="FINGERPRINT", help="run of mindtuner tune, or a file of it")
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the dataset")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--base", type=Path, metavar="BASE",
                        help="run of mindtuner pretrain, or its base.safetensors (default: where it was when tuning)")
    parser.add_argument("--trials", choices=TRIALS, default="test", help="which trials (default test)")
    parser.add_argument("--pictures", type=int, default=0, metavar="N",
                        help="paint N of the images, evenly spaced (default 0: none)")
    steps.add_towers(parser)
    parser.add_argument("--force", action="store_true", help="replace an earlier run in OUT")


def run(options: argparse.Namespace) -> None:
    import numpy as np

    from mindtuner.cli import story, tuned
    from mindtuner.config import DecodeConfig
    from mindtuner.data import load
    from mindtuner.decoding.compact import CompactGenerator
    from mindtuner.decoding.decoder import Decoder
    from mindtuner.decoding.recall import recall
    from mindtuner.encoders.compact import CompactTextEncoder
    from mindtuner.errors import UserError
    from mindtuner.files import claim_folder, write_json, write_text
    from mindtuner.training import load_network, read_card, subject_name

    if options.pictures < 0:
        raise UserError(f"--pictures is {options.pictures}; expected 0 or more")
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
    network = tuned.load_tuned(path, load_network(base), subject)
    if options.pictures:
        steps.check_towers(network.config, base)
    config, seed = DecodeConfig(**card["config"]["decode"]), card["config"]["seed"]
    generator = CompactGenerator(config, seed, options.generator)
    claim_folder(options.out, options.force)
    command = steps.command_of("decode", options.fingerprint, options.data, options.out, "--base", base,
                               "--trials", options.trials, "--pictures", options.pictures)
    write_text(options.out / steps.SETTINGS, f"# {command}\n{json.dumps(card['config'], indent=2)}\n")  # JSON is YAML
    watch = steps.Stopwatch()
    with watch.stage("decode"):
        decoder = Decoder(network, subject_name(number), config, seed)
        found = decoder.predict(subject.betas(trials.row), trials.stimulus)
    with watch.stage("words"):
        bank = story.training_bank(dataset, CompactTextEncoder())
        nearest = bank.nearest(found.text) if bank.captions else None
    _save(options.out / "predictions.safetensors", found)
    write_json(options.out / "words.json", {"subject": number, "trials": options.trials, "images": [
        {"image": int(image), "seen": list(dataset.stimuli.captions[image]),
         "retrieved": None if nearest is None else bank.captions[nearest[k]]} for k, image in enumerate(found.images)]})
    if options.pictures:
        shown = story.evenly(len(found.images), options.pictures)
        with watch.stage("embed"):
            caches = steps.gather(dataset, options.cache, generator).caches
        with watch.stage("paint"):
            training = np.asarray(caches["tokens"][np.flatnonzero(~dataset.stimuli.is_shared)])
            tokens = recall(decoder.image_tokens(found.backbone_tokens[shown]), training, config.neighbours)
            latents = None if found.latents is None else found.latents[shown]
            painted = story.paint(tokens, found.text[shown], latents, found.images[shown], generator, bank, "pictures")
        _save_pictures(options.out / "pictures", found.images[shown], list(painted["stages"].values())[-1])
    print(f"\n{options.out}: {len(np.unique(trials.stimulus))} images from {len(trials)} {options.trials} trials of subject "
          f"{number}")


def _save(path: Path, found) -> None:
    import dataclasses

    import numpy as np
    from safetensors.numpy import save_file

    from mindtuner.files import atomic_path

    arrays = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    with atomic_path(path) as part:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items() if array is not None}, part)


def _save_pictures(folder: Path, images, pictures) -> None:
    from mindtuner.evaluation.figure import to_image
    from mindtuner.files import atomic_path

    for image, picture in zip(images, pictures, strict=True):
        with atomic_path(folder / f"{image:06d}.png") as part:
            to_image(picture).save(part, "PNG")
