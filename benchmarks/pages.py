"""Tables in Markdown, and the pages that they stand in.

Nothing of the package is imported here: the benchmarks that measure another revision of it beside this one read this too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """A table whose first ``left`` columns are words, and all others numbers, to the right."""
    marks = "|" + "---|" * left + "---:|" * (len(header) - left)
    return "\n".join([line_of(header), marks, *(line_of(row) for row in rows)])


def line_of(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def spread(values: Sequence[float], form: str = ".3f", sd: str = ".3f") -> str:
    """``mean (sd)``, or the mean alone where there is one value."""
    mean = f"{np.mean(values):{form}}"
    return f"{mean} ({np.std(values, ddof=1):{sd}})" if len(values) > 1 else mean


def machine() -> str:
    """Its processor, vector units and cores."""
    about = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in about if line.startswith("model name")), "unknown CPU")
    flags = next((line for line in about if line.startswith("flags")), "")
    units = [unit for unit in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if f" {unit}" in flags]
    return f"{name} ({', '.join(units)}), {os.cpu_count()} cores"


def write_between(path: Path, marker: str, text: str) -> None:
    """Put ``text`` between the file's ``MARKER:begin`` and ``MARKER:end`` comments."""
    from mindtuner.files import write_text

    new, count = re.subn(
        rf"(<!-- {marker}:begin -->\n).*?(<!-- {marker}:end -->)",
        lambda m: m[1] + text + "\n" + m[2],
        path.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    if count != 1:
        raise SystemExit(f"{path}: expected one pair of {marker}:begin and {marker}:end comments")
    write_text(path, new)
