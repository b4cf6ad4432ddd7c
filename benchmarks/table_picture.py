"""Draw the differences in a table of results, with their intervals.

    python benchmarks/table_picture.py benchmarks/results/closing_the_gap.md gap docs/gap.png

The table stands between the file's ``MARKER:begin`` and ``MARKER:end`` comments. Each column named "minus ..." becomes a
panel, titled by the column of scores before it; a row a line, red where the interval excludes 0. Rows without any difference
are left out. Needs matplotlib, which the package itself does not.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DIFFERENCE = re.compile(r"([+-]\d\.\d+) \[([+-]\d\.\d+), ([+-]\d\.\d+)\]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("marker")
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    header, rows = table(options.file, options.marker)
    rows = [row for row in rows if any(map(DIFFERENCE.fullmatch, row))]
    panels = [column for column, title in enumerate(header) if title.startswith("minus")]
    figure, axes = plt.subplots(1, len(panels), figsize=(13, 0.3 * len(rows) + 1.4), sharey=True, layout="constrained")
    for axis, column in zip(axes, panels, strict=True):
        for at, row in enumerate(rows):
            if found := DIFFERENCE.fullmatch(row[column]):
                mean, low, high = map(float, found.groups())
                color = "tab:red" if low > 0 or high < 0 else "tab:blue"
                axis.plot([low, high], [at, at], color=color)
                axis.plot(mean, at, "o", markersize=4, color=color)
        axis.axvline(0, color="grey", linestyle=":")
        scores = [title for title in header[:column] if title in ("image", "brain", "text")]
        axis.set(title=f"{scores[-1].capitalize()} retrieval", xlabel=header[column])
    axes[0].set_yticks(range(len(rows)), [row[0] for row in rows], fontsize=8)
    axes[0].invert_yaxis()
    figure.savefig(options.picture, dpi=100)


def table(file: Path, marker: str) -> tuple[list[str], list[list[str]]]:
    """Cells of the header and of each row of the first table between the marks."""
    found = re.search(rf"<!-- {marker}:begin -->\n(.*?)<!-- {marker}:end -->", file.read_text(encoding="utf-8"), re.DOTALL)
    if found is None:
        raise SystemExit(f"{file}: expected {marker}:begin and {marker}:end comments")
    lines = [line for line in found[1].splitlines() if line.startswith("|")]
    header, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return header, rows


if __name__ == "__main__":
    main()
