"""Write a page on finished runs: one, or several beside each other.

One self-contained page: pictures, words, scores with intervals, curves and settings. Of one run it is report.html in its
folder; of several, the file that --out names. Runs that differ only in their seed are averaged, and runs of different
amounts of tuning make a curve.
"""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a finished demo or evaluate")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="file to write (default RUN/report.html; several runs need it)"
    )


def run(options: argparse.Namespace) -> None:
    from mindtuner.report import write_report

    print(write_report(*options.runs, out=options.out))
