"""Decode a subject's trials: tokens, words, and pictures.

FINGERPRINT is a run of mindtuner tune (its method mindtuner) or fit, one of the files there, or a fingerprint that was
shared: its folder, or its id on the Hugging Face hub. With --subject N it is a base, and N one of its own subjects. Trials
that show the same image are averaged. Writes into OUT decoded.csv (of each image, by its file name: words, the rank of the
right image, the nearest images, and how sure to be), decoded_trials.csv (the same of single trials), predictions.safetensors
(images, backbone_tokens, retrieval_tokens, latents, text; a row an image), words.json and, with --pictures or --only,
pictures/NAME.png, called as the stimulus is. The towers look at the stimuli where the cache does not hold that yet. The same
command goes on where an earlier one was stopped; with another --pictures or --only it adds pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mindtuner.cli import generator_options
from mindtuner.cli import options as shared
from mindtuner.errors import UserError

TRIALS = ("test", "train", "all")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "fingerprint", type=Path, metavar="FINGERPRINT", help="run of mindtuner tune, a file of it, or OWNER/NAME on the hub"
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the dataset")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    shared.add_base(parser)
    shared.add_own_subject(parser)
    parser.add_argument("--trials", choices=TRIALS, default="test", help="which trials (default test)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--pictures", type=int, default=0, metavar="N", help="paint N of the images, evenly spaced (default 0: none)"
    )
    which.add_argument("--only", metavar="NAME,...", help="paint these images, by file name or number of the stimulus")
    parser.add_argument("--stages", action="store_true", help="keep each stage of the pictures, in pictures/STAGE/NAME.png")
    parser.add_argument(
        "--recon-images",
        action="store_true",
        help="the pictures also as recon_images/recon_image-NAME.tiff, which the Kamitani lab's evaluation reads",
    )
    shared.add_leave_out_known(parser)
    shared.add_cache(parser)
    generator_options.add_arguments(parser)
    shared.add_force(parser)


def run(options: argparse.Namespace) -> None:
    wanted = _named(options.only)
    generator_options.check_options(options)
    if options.recon_images and not options.pictures and wanted is None:
        raise UserError("--recon-images: writes painted pictures; expected --pictures or --only, too")

    from mindtuner.formats import load
    from mindtuner.pipeline import TunedSubject, embed
    from mindtuner.pipeline.base import held_out
    from mindtuner.pipeline.decoding import PICTURES, choose, decode, picture_names, settings_of
    from mindtuner.pipeline.features import check_towers, embed_tokens, fits_towers, is_full_size
    from mindtuner.pipeline.recon_images import RECON_IMAGES, write_recon_images
    from mindtuner.pipeline.run_folder import command_of, refuse_other_run, refuse_overlap
    from mindtuner.pipeline.subject import read_own, read_tuned
    from mindtuner.pipeline.tuned_files import decoding_file

    own = options.subject is not None
    path = options.fingerprint if own else decoding_file(options.fingerprint)
    tuned = read_own(path, options.subject) if own else read_tuned(path, options.base)
    base = tuned.base
    refuse_overlap(options.out, DATA=options.data, FINGERPRINT=path, BASE=base.path)
    dataset = load(options.data, [tuned.number])
    chosen = choose(tuned, dataset, options.trials, options.pictures, wanted, options.leave_out_known)
    full_size, painting = options.generator == generator_options.SDXL, len(chosen.shown) > 0
    cache = options.cache or options.data / "cache"
    if full_size and options.cache and not cache.is_dir():
        raise UserError(f"--cache: {cache} is no folder; expected the features of full size that phrases are read by")
    # At full size pictures can do without features, where they draw on no neighbours; words are whole captions then.
    drawing = painting and (not full_size or tuned.config.decode.neighbours > 0 or is_full_size(cache))
    if drawing or own:
        check_towers(base.network.config, base.where, cache if full_size else None)
    # Images are looked up where the towers are those of the base.
    looking = not drawing and (not full_size or is_full_size(cache)) and fits_towers(base.network.config, cache)
    looking = looking or not dataset.stimuli.pictured
    features = None
    if own:
        features = embed(dataset, cache, weights=generator_options.weights_of(options))
        subject = TunedSubject.of(base, held_out(dataset, base.category).subject(tuned.number), features)
    else:
        subject = TunedSubject.load(path, dataset, base=base)
    generator, texts = generator_options.opened(options, subject)
    command = command_of(
        "decode",
        options.fingerprint,
        options.data,
        options.out,
        *(["--subject", options.subject] if own else []),
        "--base",
        base.where,
        "--trials",
        options.trials,
        *generator_options.words_of(options),
        *(["--leave-out-known"] if options.leave_out_known else []),
    )
    refuse_other_run(options.out, settings_of(subject, command, options.stages), options.force)
    watch = shared.stopwatch()
    if features is None and (drawing or looking):
        with watch.stage("embed"):
            weights = generator_options.weights_of(options)
            features = embed(dataset, cache, weights=weights) if drawing else embed_tokens(dataset, cache)
    painted = decode(
        subject,
        dataset,
        chosen,
        options.out,
        trials=options.trials,
        stages=options.stages,
        features=features,
        generator=generator,
        text_encoder=texts,
        batch=options.batch,
        force=options.force,
        command=command,
        watch=watch,
    )
    if painting:
        print(f"{options.out / PICTURES}: {painted} painted, {len(chosen.shown) - painted} were there")
    if options.recon_images:
        names = picture_names(dataset.stimuli)
        painted_files = {int(image): options.out / PICTURES / names[image] for image in chosen.images[chosen.shown]}
        files = write_recon_images(options.out / RECON_IMAGES, dataset.stimuli, painted_files)
        print(f"{options.out / RECON_IMAGES}: {len(files)} pictures, {files[0].name} and so on")
    trials = f"{len(chosen.trials)} {options.trials} trials of subject {subject.number}"
    print(f"\n{options.out}: {len(chosen.images)} images from {trials}")


def _named(text: str | None) -> list[int | str] | None:
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise UserError(f"--only: is {text!r}; expected names or numbers of stimuli such as beach.png,14")
    return [int(part) if part.isdecimal() else part for part in parts]
