"""Measure how scores grow with hours of data, and how many hours from scratch one hour of tuning is worth.

Trains on a quarter and a half of the subject's first session, on 1, 2, 4, 10 and on all sessions, as far as there are so
many: tuned, from scratch, fully fine-tuned, and by a ridge regression without a base. Scores the retrieval of the test
images. Writes results.csv, results.json and report.html into OUT. The same command goes on where an earlier one was
stopped; --seeds and --jobs may change.
"""

from __future__ import annotations

import argparse

from mindtuner.cli import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_study(parser)


def run(options: argparse.Namespace) -> None:
    from mindtuner.studies import run_curve

    study = run_curve(options.out, **shared.study_arguments(options, "curve"))
    print(study)
    print(f"\nOpen {study.page}")
