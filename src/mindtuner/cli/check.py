"""Look at everything in a dataset: what is there, what is missing, what is wrong.

ROOT is the NSD release, raw NSD (docs/nsd.md), LAION-fMRI (docs/laion.md), MOSAIC (docs/mosaic.md), and a lab's folder or
bdpy's BData (docs/your-own-scans.md). Other forms that are known, such as GLMsingle's output, are named, with the way in. All
betas and images are read once. Errors make the dataset unusable and the exit code 2; warnings are to be looked at; notes say
what is assumed.

A folder of the full-size system's weights: mindtuner check weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from mindtuner.cli import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("root", type=Path, metavar="ROOT", help="folder of the dataset")
    parser.add_argument(
        "--allow-twins",
        action="store_true",
        help="warn where a test image has the same pixels as a training image, which else is an error",
    )
    shared.add_mask_values(
        parser, "look at the voxels where the mask of a lab's folder, raw NSD or LAION-fMRI has one of these values"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")


def run(options: argparse.Namespace) -> None:
    from mindtuner.errors import UserError
    from mindtuner.formats import check

    findings = check(options.root, options.allow_twins, shared.mask_values(options.mask_values))
    print(_as_json(findings) if options.json else _as_table(findings))
    if errors := findings.count("error"):
        raise UserError(f"{options.root}: {_many(errors, 'error')} found; expected none")


def _as_json(findings) -> str:
    return json.dumps(
        {
            "root": str(findings.root),
            "found": [{"file": name, "what": what} for name, what in findings.facts],
            "findings": [dataclasses.asdict(item) for item in findings.items],
            "errors": findings.count("error"),
            "warnings": findings.count("warning"),
            "notes": findings.count("note"),
        },
        indent=2,
    )


def _as_table(findings) -> str:
    from mindtuner.formats.checks.findings import SEVERITIES

    lines = [f"{findings.root}", ""]
    lines += _columns([("found", "")] + findings.facts)
    ordered = sorted(findings.items, key=lambda item: SEVERITIES.index(item.severity))
    if ordered:
        lines += ["", *_columns([(item.severity, item.file, item.field, item.message) for item in ordered])]
    lines += ["", ", ".join(_many(findings.count(severity), severity) for severity in SEVERITIES)]
    return "\n".join(lines)


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows as lines, each column but the last as wide as its widest cell."""
    from tabulate import tabulate

    lines = tabulate(rows, tablefmt="plain", colalign=("left",) * len(rows[0]), disable_numparse=True).splitlines()
    return [line.rstrip() for line in lines]


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
