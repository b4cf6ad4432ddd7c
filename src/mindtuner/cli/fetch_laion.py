"""Get LAION-fMRI (7T, five people) from its public bucket: no account is needed.

Only what the subjects and sessions asked for need, with sizes shown first. A fetch that was stopped goes on where it was when
the same command is given again. Brain data are CC0. The pictures are not: they come with --stimuli alone, to those who accept
their terms. Then: mindtuner convert laion OUT DATASET --split NAME. See docs/laion.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from mindtuner.cli.fetch import agreed, numbers, print_table

_LICENCE = "Brain data and participants' data of LAION-fMRI are CC0 1.0 (https://creativecommons.org/publicdomain/zero/1.0/)."
_TERMS = """\
The pictures are closed: all rights stay with their owners. They may be used for academic research that is not commercial,
and for nothing else. They may not be passed on, nor used to train or test models or services that are commercial.
  terms in full   {terms}
  the same by LAION-fMRI's own package   laion-fmri download --include-stimuli
"""
_ANSWER = "I AGREE"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder for the dataset: new, or one that holds some of it")
    parser.add_argument("--subjects", metavar="N,N,...", help="subjects, such as 1,3 (default: all: 1,3,5,6,7)")
    parser.add_argument(
        "--sessions", metavar="N,N,...", help="sessions, such as 1 or 1-10 (default: all but those that the authors hold out)"
    )
    parser.add_argument("--stimuli", action="store_true", help="get the pictures too, which have terms of their own")
    parser.add_argument(
        "--accept-stimulus-terms",
        action="store_true",
        help="do not ask: you have read the terms of the pictures and accept them",
    )
    parser.add_argument("--list", action="store_true", help="show what would be fetched, and fetch nothing")
    parser.add_argument("--yes", action="store_true", help="do not ask whether that much shall come")
    parser.add_argument(
        "--endpoint",
        metavar="URL",
        help="a mirror that speaks S3 (default: https://s3.us-west-2.amazonaws.com)",
    )
    parser.add_argument("--bucket", metavar="NAME", help="its bucket (default: laion-fmri)")


def run(options: argparse.Namespace) -> None:
    from mindtuner.errors import UserError

    subjects, sessions = numbers("--subjects", options.subjects), numbers("--sessions", options.sessions)
    alone = not (options.list or sys.stdin.isatty())
    if options.accept_stimulus_terms and not options.stimuli:
        raise UserError("--accept-stimulus-terms: is given without --stimuli; expected both, or neither")
    if options.stimuli and not options.accept_stimulus_terms and alone:
        raise UserError(
            "--accept-stimulus-terms: not given, and there is no terminal to ask on; expected it, which says that you have "
            "read the terms of the pictures and accept them (mindtuner fetch laion OUT --stimuli --list shows them)"
        )
    if alone and not options.yes:
        raise UserError("--yes: not given, and there is no terminal to ask on; expected --yes to fetch, or --list to look")

    from mindtuner.formats.laion import fetch
    from mindtuner.formats.laion.bucket import Bucket

    bucket = Bucket(options.endpoint or fetch.ENDPOINT, options.bucket or fetch.BUCKET)
    plan = fetch.plan_fetch(bucket, options.out, subjects, sessions, options.stimuli)
    print(_LICENCE + "\n")
    if options.stimuli:
        print(_TERMS.format(terms=fetch.TERMS_AT))
    print(f"{bucket.url()}; sessions {', '.join(map(str, fetch.HELD_OUT))} are held out by the authors\n")
    to_come = print_table(plan)
    if options.list:
        return
    plan.check_space()
    if options.stimuli and not options.accept_stimulus_terms and not _accepted():
        raise UserError(f"{options.out}: not fetched; expected {_ANSWER} for an answer, or no --stimuli")
    if not options.yes and not agreed(f"\nShall {to_come} come to {options.out}? [y/N] "):
        raise UserError(f"{options.out}: not fetched; expected y for an answer")
    fetch.fetch(plan)
    print(f"\n{options.out}: complete, all checksums right; next: mindtuner check {options.out}")


def _accepted() -> bool:
    try:
        return input(f'\nType "{_ANSWER}" to accept the terms of the pictures: ').strip() == _ANSWER
    except EOFError:
        return False
