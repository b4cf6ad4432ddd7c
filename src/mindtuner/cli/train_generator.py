"""Train the compact generator (autoencoder, priors and painter) for drawn scenes, a folder of cut-outs, or photographs.

It only ever sees scenes of a reserved random stream, of cut-outs that no simulated subject's scene uses; of a folder of
whole pictures it takes a third, chosen by content. The weights keep hashes of these, and are refused where one is a test
image. Weights are saved as it goes: a run that is cut short leaves usable ones, and the same command
continues it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mindtuner.cli import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="weights file to write (.safetensors)")
    parser.add_argument(
        "--work",
        type=Path,
        metavar="DIR",
        help="folder for rendered scenes and checkpoints (default: OUT without its ending)",
    )
    pictures = parser.add_mutually_exclusive_group()
    pictures.add_argument("--cutouts", type=Path, metavar="DIR", help="train on scenes of these cut-outs")
    pictures.add_argument(
        "--stimuli", type=Path, metavar="DIR", help="train on whole pictures, each with a .txt beside it, one caption a line"
    )
    parser.add_argument(
        "--scenes",
        type=int,
        default=40_000,
        metavar="N",
        help="scenes to train on (default 40000); pictures of a folder that has fewer come again, in part",
    )
    parser.add_argument(
        "--autoencoder-steps", type=int, default=2_500, metavar="N", help="training steps of the autoencoder (default 2500)"
    )
    parser.add_argument(
        "--prior-steps", type=int, default=3_000, metavar="N", help="training steps of the prior (default 3000)"
    )
    parser.add_argument(
        "--painter-steps", type=int, default=3_000, metavar="N", help="training steps of the painter (default 3000)"
    )
    parser.add_argument(
        "--words-steps",
        type=int,
        default=8_000,
        metavar="N",
        help="training steps of the prior that knows words (default 8000: about an hour on a core with bfloat16)",
    )
    parser.add_argument("--seed", type=shared.seed, default=0, metavar="N", help="seed (default 0)")


def run(options: argparse.Namespace) -> None:
    from mindtuner.errors import UserError
    from mindtuner.evaluation.results import log_to
    from mindtuner.generators.train_compact import train_generator

    if options.out.suffix != ".safetensors":
        raise UserError(f"{options.out}: ends in {options.out.suffix!r}; expected a file name that ends in .safetensors")
    for name in ("scenes", "autoencoder_steps", "prior_steps", "painter_steps", "words_steps"):
        least = 300 if name == "scenes" else 0
        if getattr(options, name) < least:
            raise UserError(f"--{name.replace('_', '-')}: is {getattr(options, name)}; expected at least {least}")
    work = options.work or options.out.with_suffix("")
    record = log_to(work)

    def log(entry: dict) -> None:
        record(entry)
        print(f"{entry['stage']} step {entry['step']}: {entry['losses']} ({entry['seconds']:.0f} s)", flush=True)

    train_generator(
        options.out,
        work,
        options.scenes,
        options.autoencoder_steps,
        options.prior_steps,
        options.painter_steps,
        options.words_steps,
        options.cutouts,
        options.stimuli,
        options.seed,
        log,
    )
    print(options.out)
