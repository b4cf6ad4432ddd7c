"""Score pictures against their originals: two folders in, a table out.

SEEN and PAINTED hold pictures (PNG, JPEG, WebP, TIFF or BMP) of the same names, in RGB and of one size each; names count
without recon_image- before them, as the Kamitani lab calls reconstructions. Their origin does not matter: this scores any
decoder's reconstructions with the scores of mindtuner evaluate, beside chance. See docs/scores.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mindtuner.cli import options as shared
from mindtuner.cli.evaluate import add_networks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("seen", type=Path, metavar="SEEN", help="folder of originals")
    parser.add_argument("painted", type=Path, metavar="PAINTED", help="folder of pictures, each named as its original")
    parser.add_argument("--scores", metavar="NAME,...", help="some of the scores (default: all whose network is there)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the scores of each picture there, as JSON")
    parser.add_argument(
        "--seed", type=shared.seed, default=0, metavar="N", help="of intervals and random pairings (default 0)"
    )
    add_networks(parser)


def run(options: argparse.Namespace) -> None:
    from mindtuner.evaluation.results import rounded
    from mindtuner.files import write_json
    from mindtuner.pipeline import Scoring, score_pictures

    scoring = Scoring(options.networks, options.as_published)
    wanted = None if options.scores is None else options.scores.split(",")
    found = score_pictures(options.seen, options.painted, wanted, scoring=scoring, seed=options.seed)
    print(found)
    if options.out:
        write_json(options.out, rounded({"setting": found.setting, "scores": found.scores, "flat": found.flat}))
