"""Measure what each part of the method is worth: one subject tuned with and without it, over seeds.

Tunes with the full method, with parts left out or of another size, and on bases of fewer people; scores the retrieval of the
test images, and says of each variant what it has more or less, paired over images and seeds. Writes results.csv,
results.json and report.html into OUT. The same command goes on where an earlier one was stopped; --seeds, --jobs and
--variants may change.
"""

from __future__ import annotations

import argparse

from mindtuner.cli import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_study(parser)
    parser.add_argument(
        "--sessions", type=int, metavar="K", help="train on sessions 1 to K (default: tuning_sessions of the config)"
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        metavar="NAME",
        help="these alone, beside the full method (default: all; a wrong name lists them)",
    )


def run(options: argparse.Namespace) -> None:
    from mindtuner.studies import run_ablation

    given = shared.study_arguments(options, "ablate")
    study = run_ablation(options.out, variants=options.variants, sessions=options.sessions, **given)
    print(study)
    print(f"\nOpen {study.page}")
