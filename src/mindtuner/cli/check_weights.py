"""Look at a folder of released weights: what is there, and what each missing file would cost.

The cost is the bytes to fetch, and what cannot be done without them. Sizes are compared; with --hashes every byte is read and
its checksum compared too. A file that is cut or wrong makes the exit code 2; a missing one does not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

_WORDS = {"whole": "whole", "converted": "not needed, converted", "unverified": "size right, checksum not yet looked at"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT", help="folder that 'mindtuner fetch weights' filled")
    parser.add_argument("--hashes", action="store_true", help="read every byte and compare checksums (minutes)")


def run(options: argparse.Namespace) -> None:
    from mindtuner.errors import UserError
    from mindtuner.published_weights import store

    if options.out is None:
        raise UserError("OUT: not given; expected a folder of weights (./weights is a dataset's folder of that name)")
    if not options.out.exists():
        raise UserError(f"{options.out}: not found; expected a folder that 'mindtuner fetch weights' filled")
    looked = store.look(options.out, store.choose(None), options.hashes)
    states = [state for _, files in looked for state in files]
    width = max(len(state.file.path) for state in states)
    for weights, files in looked:
        print(f"{weights.name}: {weights.what}")
        for state in files:
            print(f"    {state.file.path.ljust(width)}  {_words(state)}")
        if missing := sum(state.to_come for state in files):
            print(
                f"    to fetch: {_about(missing)} (mindtuner fetch weights {options.out} --only {weights.name}); "
                f"without: {weights.without}"
            )
        elif weights.converted and not store.is_converted(options.out, weights):
            print(f"    {weights.converted[0]}/: not converted yet; without: {weights.without}")
    print(f"to fetch in all: {_about(sum(state.to_come for state in states))}")
    if bad := [state.file.path for state in states if state.state in ("cut", "wrong")]:
        raise UserError(f"{options.out}: {', '.join(bad)} cut or wrong; expected the released files (remove and fetch them)")


def _words(state) -> str:
    size = state.file.about if state.file.size is None else state.file.size
    if state.state == "cut":
        return f"CUT: {state.here:,} of {size:,} bytes"
    if state.state == "wrong":
        return f"WRONG: {state.here:,} bytes, not those of the release"
    if state.state == "missing":
        return f"missing, {_about(state.to_come)} to fetch{' (begun)' if state.here else ''}"
    return _WORDS[state.state]


def _about(size: int) -> str:
    from mindtuner.download import in_words

    return f"about {in_words(size)}"
