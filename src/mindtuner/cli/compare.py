"""Compare two finished runs, or sets of runs, image by image; or put runs beside published numbers.

A RUN is a folder that demo or evaluate finished. "compare A B" compares two runs by the method that decodes, "compare A" the
methods of one run; "compare A1 A2 --to B1 B2" two sets of runs: several seeds of a subject, several subjects on the same
test images, or both. Prints differences with 95 % intervals and p values. Runs over different test sets are refused. See
docs/scores.md.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from mindtuner.cli import options as shared
from mindtuner.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="*", metavar="RUN", help="one run or two; with --to those of the first side")
    parser.add_argument("--to", type=Path, nargs="+", metavar="RUN", help="runs of the second side")
    parser.add_argument(
        "--method", metavar="NAME", help="what to compare (default mindtuner, where runs have it, else their first method)"
    )
    parser.add_argument(
        "--method-b", metavar="NAME", help="of the second side, where it is another; of one RUN this method alone"
    )
    parser.add_argument(
        "--images",
        choices=("all", "category", "others"),
        default="all",
        help="test images: all, those of the category that a run held out, or the others (default all)",
    )
    parser.add_argument("--seed", type=shared.seed, default=0, metavar="N", help="of resampling (default 0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the numbers as JSON too")
    parser.add_argument(
        "--published",
        action="store_true",
        help="print published scores with the RUNs beside them, as Markdown, and compare nothing",
    )


def run(options: argparse.Namespace) -> None:
    from mindtuner.evaluation import compare, published
    from mindtuner.evaluation.results import rounded
    from mindtuner.files import write_json

    if options.published:
        if options.to or options.method_b or options.images != "all":
            raise UserError("--published: is given with --to, --method-b or --images; expected RUNs alone")
        _refuse_inside(options.out, options.runs)
        found = published.table(list(_load(options.runs).values()), options.method or "mindtuner")
        print(published.markdown(found))
    else:
        first, second = _sides(options)
        _refuse_inside(options.out, [*first, *second])
        runs = _load([*first, *(path for path in second if path not in first)])
        a, b = ({str(path): runs[str(path)] for path in side} for side in (first, second))
        method_a, others = _methods(options, a, b)
        every = [compare.compare(a, b, method_a, other, options.images, options.seed) for other in others]
        print("\n\n".join(map(compare.comparison_text, every)))
        found = every[0] if first != second or options.method_b else {"comparisons": every}
    if options.out:
        write_json(options.out, rounded(found, str(options.out)))


def _methods(options: argparse.Namespace, a: dict, b: dict) -> tuple[str, list[str]]:
    """The method of the first side, and those of the second that it is compared to: of one run all others."""
    method = options.method or _main(a)
    if options.method_b:
        return method, [options.method_b]
    if a.keys() != b.keys():
        return method, [options.method or _main(b)]
    others = [name for name in _common(a) if name != method]
    if not others:
        raise UserError(f"{next(iter(a))}: has no method but {method}; expected another, or another run")
    return method, others


def _main(side: dict) -> str:
    """The method that decodes, of all runs of a side."""
    names = _common(side)
    return "mindtuner" if "mindtuner" in names or not names else names[0]


def _common(side: dict) -> list[str]:
    """Methods that all runs of a side keep scores of single images of, in the order of the first run."""
    first, *others = ({key.partition("/")[0]: None for key in run.per_image if "/" in key} for run in side.values())
    order = list(next(iter(side.values())).results["methods"])
    return sorted((name for name in first if all(name in other for other in others)), key=order.index)


def _sides(options: argparse.Namespace) -> tuple[list[Path], list[Path]]:
    runs = options.runs
    if options.to:
        first, second = runs, options.to
    elif len(runs) == 1:
        first, second = runs, runs
    else:
        first, second = runs[:1], runs[1:]
        if len(runs) != 2:
            raise UserError(f"RUN: {len(runs)} given; expected one or two, or more with --to between the sides")
    if not first:
        raise UserError("RUN: none stands before --to; expected one or more of the first side")
    return first, second


def _load(folders: list[Path]) -> dict:
    """Folder -> run. Raises UserError where one is not finished, or given twice."""
    from mindtuner.evaluation.results import load_run

    runs: dict = {}
    for folder in folders:
        if str(folder) in runs:
            raise UserError(f"{folder}: is given twice; expected each run once on its side")
        if not (folder / "results.json").is_file():
            raise UserError(f"{folder / 'results.json'}: not found; expected a run that mindtuner demo or evaluate finished")
        runs[str(folder)] = load_run(folder)
    return runs


def _refuse_inside(out: Path | None, runs: list[Path]) -> None:
    """A file in a run's folder would be one that no run wrote, and --force would refuse to replace the run."""
    for run in runs if out else ():
        if os.path.realpath(run) == os.path.dirname(os.path.realpath(out)):
            raise UserError(f"--out: {out} lies in a run; expected a file elsewhere")
