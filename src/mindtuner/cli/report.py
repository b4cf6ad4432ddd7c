"""Write report.html of a finished run again.

One self-contained page: pictures, words, scores with intervals, curves and settings.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a finished demo")


def run(options: argparse.Namespace) -> None:
    from mindtuner.evaluation.report import write_report

    print(write_report(options.run))
