"""What a dataset format is to the rest of the package."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mindtuner.data import Dataset
from mindtuner.formats.checks.findings import Findings


@dataclass(frozen=True)
class Format:
    """One form in which datasets lie on disk. Each format's package has its own as ``FORMAT``; ``formats.FORMATS`` lists all.

    Attributes
    ----------
    name : str
        What code calls it, such as ``"nsd_release"``.
    title : str
        What people call it, such as "the NSD release".
    holds : str
        The files that tell it, for messages.
    sniff : (root) -> bool
        Whether a folder looks like this format, by the names of files alone. Parts may be missing.
    write : (root, dataset, **options) -> None
        Write any dataset.
    check : (root, findings) -> None
        Report on everything in the folder, and go on after an error wherever that is possible.
    load : (root, subjects=None) -> Dataset, or None
        Open a folder. None for a format that is only converted.
    convert : (root, out, **options) -> dict, or None
        Write the folder in a format that is read directly; return the card. None where there is no need.
    """

    name: str
    title: str
    holds: str
    sniff: Callable[[Path], bool]
    write: Callable[..., None]
    check: Callable[[Path, Findings], None]
    load: Callable[..., Dataset] | None = None
    convert: Callable[..., dict] | None = None
