"""What ``check`` says of GLMsingle's output where it lies alone."""

from __future__ import annotations

from pathlib import Path

from mindtuner.data.lazy import open_hdf5
from mindtuner.formats.checks.findings import Findings
from mindtuner.formats.glmsingle import read
from mindtuner.formats.trial_volumes import written_by_matlab


def check(root: Path, findings: Findings) -> None:
    """Report on the betas that are there, and how to use them."""
    for folder in read.folders(root):
        with findings.catching(folder, "betas"):
            _say_output(findings, folder)
    findings.error(root, "format", f"no word of what each trial showed; expected {read.way_in(root)}")


def _say_output(findings: Findings, folder: Path) -> None:
    path = read.find_output(folder)
    if path is None or path.suffix == ".npy":
        raise read.pickled(path or folder)
    with open_hdf5(path) as file:
        data = read.field_of(file)
        writer = "MATLAB, axes in reverse" if written_by_matlab(data) else "Python"
        findings.fact(path, f"{data.name.strip('/')} {data.shape} {data.dtype}, written by {writer}")
