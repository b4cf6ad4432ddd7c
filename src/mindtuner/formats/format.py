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
    sniff_file : (path) -> bool, or None
        Whether a single file is one of this format. None where nobody takes one for the whole.
    check : (root, findings) -> None
        Report on everything in the folder, and go on after an error wherever that is possible.
    write : (root, dataset, **options) -> None, or None
        Write any dataset. None for files that only their own software writes.
    load : (root, subjects=None) -> Dataset, or None
        Open a folder. None for a format that is not read as it is.
    way_in : (root) -> str, or None
        What is expected instead, where ``load`` is None.
    convert : (root, out, **options) -> dict, or None
        Write the folder in a format that is read directly; return the card. None where there is no need.
    """

    name: str
    title: str
    holds: str
    sniff: Callable[[Path], bool]
    check: Callable[[Path, Findings], None]
    sniff_file: Callable[[Path], bool] | None = None
    write: Callable[..., None] | None = None
    load: Callable[..., Dataset] | None = None
    way_in: Callable[[Path], str] | None = None
    convert: Callable[..., dict] | None = None
