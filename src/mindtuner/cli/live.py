"""Decode while a person is scanned: trials as they arrive in a folder, shown on a page of this machine.

FINGERPRINT is a run of mindtuner tune or fit, as for mindtuner decode, and DATA its dataset. Each file that comes to lie in
WATCHED is a trial, in the order of names: NAME.npy with a beta for each voxel, or a NIfTI volume NAME.nii.gz, read by the
dataset's mask or --mask. A file that is still being written is waited for; one that is broken is named. Where the dataset's
betas are as measured, trials are z-scored by the session so far and by earlier sessions; where they are z-scored already,
trials have to come so.

The page shows of each trial the words, the nearest images with how sure to be of each, and, when it is painted, the picture.
OUT gets decoded.csv, pictures/NUMBER-NAME.png and betas/NUMBER-NAME.npy. Ctrl-C ends the session; the same command goes on
with it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mindtuner.cli import generator_options
from mindtuner.cli import options as shared
from mindtuner.errors import UserError

AMONG = ("all", "test", "train")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "fingerprint", type=Path, metavar="FINGERPRINT", help="run of mindtuner tune, a file of it, or OWNER/NAME on the hub"
    )
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the dataset")
    parser.add_argument("watched", type=Path, metavar="WATCHED", help="folder in which trials arrive")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    shared.add_base(parser)
    parser.add_argument("--among", choices=AMONG, default="all", help="which stimuli of DATA to look for (default all)")
    parser.add_argument("--mask", type=Path, metavar="FILE", help="NIfTI mask of the voxels (default: the dataset's own)")
    parser.add_argument(
        "--zscored", action="store_true", help="trials come z-scored, though the betas of DATA are as measured"
    )
    parser.add_argument("--no-pictures", action="store_true", help="paint nothing")
    parser.add_argument("--port", type=int, default=8377, metavar="N", help="of the page (default 8377; 0 for a free one)")
    parser.add_argument("--stop-after", type=int, metavar="N", help="end after N trials (default: at Ctrl-C)")
    shared.add_cache(parser)
    generator_options.add_arguments(parser)
    shared.add_force(parser, "an earlier session in OUT")


def run(options: argparse.Namespace) -> None:
    generator_options.check_options(options)
    if options.stop_after is not None and options.stop_after < 1:
        raise UserError(f"--stop-after is {options.stop_after}; expected 1 or more")

    from mindtuner.formats import load
    from mindtuner.live.arrivals import Broken
    from mindtuner.live.following import follow, refuse_no_folder
    from mindtuner.pipeline import TunedSubject, embed
    from mindtuner.pipeline.run_folder import command_of
    from mindtuner.pipeline.subject import read_tuned
    from mindtuner.pipeline.tuned_files import decoding_file

    refuse_no_folder(options.watched)
    path = decoding_file(options.fingerprint)
    tuned = read_tuned(path, options.base)
    dataset = load(options.data, [tuned.number])
    subject = TunedSubject.load(path, dataset, base=tuned.base)
    generator, texts = generator_options.opened(options, subject)
    with shared.stopwatch().stage("embed"):
        features = embed(dataset, options.cache, weights=generator_options.weights_of(options))
    command = command_of(
        "live",
        options.fingerprint,
        options.data,
        options.watched,
        options.out,
        "--base",
        tuned.base.where,
        "--among",
        options.among,
        *([] if options.mask is None else ["--mask", options.mask]),
        *(["--zscored"] if options.zscored else []),
        *generator_options.words_of(options),
    )

    def began(url: str, scaling: str) -> None:
        print(f"\n{url}\n{options.watched}: betas are taken {scaling}; Ctrl-C ends the session", flush=True)

    def came(found: dict | Broken) -> None:
        if isinstance(found, Broken):
            print(f"broken: {found.why}", flush=True)
            return
        words = ", ".join(phrase for phrase, _ in found["words"]) or found["caption"]
        print(f"{found['trial']}  {sum(found['seconds'].values()):.2f} s  {words}", flush=True)

    session = follow(
        subject,
        dataset,
        features,
        options.watched,
        options.out,
        among=options.among,
        mask=options.mask,
        zscored=options.zscored or None,
        pictures=not options.no_pictures,
        generator=generator,
        text_encoder=texts,
        port=options.port,
        stop_after=options.stop_after,
        force=options.force,
        command=command,
        began=began,
        came=came,
    )
    print(f"\n{options.out}: {len(session.trials)} trials")
