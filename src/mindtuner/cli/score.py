"""Score pictures against their originals: two folders in, a table out.

SEEN and PAINTED hold pictures of the same names, in RGB and of one size each. Their origin does not matter: this scores any
decoder's reconstructions with the scores of mindtuner evaluate, beside chance. See docs/scores.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mindtuner.cli.evaluate import add_networks


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("seen", type=Path, metavar="SEEN", help="folder of originals")
    parser.add_argument("painted", type=Path, metavar="PAINTED", help="folder of pictures, each named as its original")
    parser.add_argument("--scores", metavar="NAME,...", help="some of the scores (default: all whose network is there)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the scores of each picture there, as JSON")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of intervals and random pairings (default 0)")
    add_networks(parser)


def run(options: argparse.Namespace) -> None:
    from mindtuner.errors import UserError
    from mindtuner.evaluation.results import rounded
    from mindtuner.evaluation.scores.catalogue import ONE_HALF, find, of_part
    from mindtuner.evaluation.scores.images import score_images
    from mindtuner.evaluation.scores.networks import not_scored
    from mindtuner.evaluation.scores.picture_files import read_pairs
    from mindtuner.evaluation.scores.pictures import is_flat
    from mindtuner.evaluation.scoring import defined
    from mindtuner.evaluation.statistics import bootstrap_ci
    from mindtuner.files import write_json
    from mindtuner.pipeline import Scoring

    scoring, table = Scoring(options.networks, options.as_published), of_part("reconstruction")
    wanted = list(table)
    if options.scores is not None:
        wanted = [find("reconstruction", name.strip(), "--scores").name for name in options.scores.split(",")]
        for name in wanted:
            if name in scoring.missing:
                raise UserError(f"--scores: {name} cannot be had ({scoring.missing[name]}); expected its network")
    names, seen, painted = read_pairs(options.seen, options.painted)
    networks = [network for network in scoring.networks if set(network.layers) & set(wanted)]
    scores, chance = score_images(seen, {"painted": painted}, networks, scoring.choices, ["painted"], options.seed)
    found = {}
    print(f"{'score':<16}{'mean':>8}{'95 % interval':>20}{'chance':>9}")
    for name, values in scores["painted"].items():
        if name in wanted:
            level = 0.5 if table[name].chance == ONE_HALF else chance["painted"][name]
            low, high = bootstrap_ci(defined(values), options.seed)
            found[name] = {
                "mean": defined(values).mean(),
                "ci95": [low, high],
                "chance": level,
                "pictures": {key: None if value != value else value for key, value in zip(names, values, strict=True)},
            }
            print(f"{table[name].label:<16}{found[name]['mean']:>8.3f}{f'{low:.3f} to {high:.3f}':>20}{level:>9.3f}")
    flat = {
        where: [name for name, found_flat in zip(names, is_flat(pictures), strict=True) if found_flat]
        for where, pictures in (("seen", seen), ("painted", painted))
    }
    for where, what in (("seen", "leaves out"), ("painted", "counts 0 for")):
        if flat[where]:
            print(f"PixCorr {what} {len(flat[where])} {where} pictures of one value everywhere: {', '.join(flat[where])}")
    if options.scores is None and scoring.missing:
        print(not_scored(scoring.missing))
    if options.out:
        write_json(options.out, rounded({"setting": scoring.described(), "scores": found, "flat": flat}))
