"""Get the released networks of the full-size system, verify and convert them.

Source, size and licence of every file are shown first. A fetch that was stopped goes on where it was when the same command
is given again. The environment variable HF_ENDPOINT names another hub. See docs/full-size.md, Weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "out",
        type=Path,
        nargs="?",
        metavar="OUT",
        help="folder for the weights: new, or one that fetch weights began (not needed with --list)",
    )
    parser.add_argument("--only", metavar="NAME,...", help="some of the names that --list shows (default: all)")
    parser.add_argument(
        "--from",
        type=Path,
        dest="source",
        metavar="DIR",
        help="take files that lie anywhere under DIR, such as a hub's cache: found by name and size, "
        "verified, linked or else copied; the others come from the hub",
    )
    parser.add_argument("--list", action="store_true", help="show what would be fetched, and fetch nothing")


def run(options: argparse.Namespace) -> None:
    from mindtuner.errors import UserError
    from mindtuner.published_weights import store

    names = None if options.only is None else [name.strip() for name in options.only.split(",")]
    chosen = store.choose(names)
    if options.out is None and not options.list:
        raise UserError("OUT: not given; expected a folder for the weights (./weights is a dataset's folder of that name)")
    print("\n".join(listing(chosen)))
    if options.out is not None:
        to_come = sum(file.to_come for _, files in store.look(options.out, chosen) for file in files)
        print(f"\nstill to come to {options.out}: {_about(to_come, False)}")
    if options.list:
        return
    print(flush=True)
    store.fetch(options.out, chosen, options.source)
    for weights in chosen:
        if weights.converted and not store.is_converted(options.out, weights):
            _convert(options.out, weights)
    print(f"{options.out}: complete, all checksums right")


def listing(chosen) -> list[str]:
    """Lines that say source, licence and the files of each, and what all of them weigh."""
    lines = []
    for weights in chosen:
        rows = [
            (file.path, _about(file.about, file.size is not None), "" if file.sha256 else "  checksum as the hub states it")
            for file in weights.files
        ]
        widths = [max(len(row[k]) for row in rows) for k in (0, 1)]
        at = "" if weights.revision == "main" else f" at {weights.revision[:12]}"
        lines += [f"{weights.name}: {weights.what}", f"  from {weights.source}{at}; licence: {weights.licence}"]
        lines += [f"    {path.ljust(widths[0])}  {size.rjust(widths[1])}{note}" for path, size, note in rows]
        if weights.converted:
            folder, size = weights.converted
            lines.append(f"    -> {folder}/, converted, {_about(size, False)}; then the file is not needed any more")
    total = sum(weights.about for weights in chosen)
    return [*lines, f"total: {sum(len(weights.files) for weights in chosen)} files, {_about(total, False)}"]


def _convert(out: Path, weights) -> None:
    """The one conversion that there is: the unCLIP checkpoint, as 'mindtuner convert unclip' does it."""
    from mindtuner.interop.unclip import convert_unclip

    checkpoint, folder = out / weights.files[0].path, out / weights.converted[0]
    print(f"{checkpoint}: being converted", flush=True)
    convert_unclip(checkpoint, folder)
    print(f"{folder}: converted ({checkpoint.name} is not needed any more)")


def _about(size: int, exact: bool) -> str:
    from mindtuner.download import in_words

    return in_words(size) if exact else f"about {in_words(size)}"
