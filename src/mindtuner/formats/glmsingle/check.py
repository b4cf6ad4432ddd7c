"""What ``check`` says of GLMsingle's output where it lies alone."""

from __future__ import annotations

from pathlib import Path

from mindtuner.data.lazy import open_hdf5
from mindtuner.formats.checks.findings import Findings
from mindtuner.formats.glmsingle import read
from mindtuner.formats.trial_volumes import written_by_matlab


def check(root: Path, findings: Findings) -> None:
    """Report on the betas that are there, and how to use them."""
    with findings.catching(root, "betas"):
        path = read.find_output(root)
        with open_hdf5(path) as file:
            data = read.field_of(file)
            writer = "MATLAB, axes in reverse" if written_by_matlab(data) else "Python"
            findings.fact(path, f"{data.name.strip('/')} {data.shape} {data.dtype}, written by {writer}")
    findings.error(root, "format", f"is {GLMSINGLE}, which is not read as it is; expected {read.way_in(root)}")


GLMSINGLE = "GLMsingle's output"
