"""Get the networks that the published scores look through, for --networks of evaluate and score.

AlexNet, Inception-v3, EfficientNet-B1, SwAV and two CLIPs, from where their authors keep them, verified. Source, size and
licence of each are shown first. What is there already stays; docs/scores.md has which score needs which.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, nargs="?", metavar="OUT", help="folder for the networks (not needed with --list)")
    parser.add_argument("--only", metavar="NAME,...", help="some of the names that --list shows (default: all)")
    parser.add_argument("--list", action="store_true", help="show what would be fetched, and fetch nothing")


def run(options: argparse.Namespace) -> None:
    from mindtuner.errors import UserError
    from mindtuner.published_weights import scoring_networks as scoring

    chosen = scoring.choose(None if options.only is None else [name.strip() for name in options.only.split(",")])
    if options.out is None and not options.list:
        raise UserError("OUT: not given; expected a folder for the networks")
    print(scoring.listing(chosen), flush=True)
    if not options.list:
        scoring.fetch(options.out, chosen)
        print(f"{options.out}: complete; mindtuner evaluate --networks {options.out}")
