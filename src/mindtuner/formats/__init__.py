"""Dataset formats. Each is a package whose ``FORMAT`` says how a folder of it is told, read, written and checked.

What is here only finds the format and hands on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mindtuner.data import Dataset
from mindtuner.errors import UserError
from mindtuner.formats import bdata, glmsingle, lab_folder, laion, mosaic, nsd_raw, nsd_release
from mindtuner.formats.checks.findings import Finding, Findings
from mindtuner.formats.format import Format

__all__ = ["FORMATS", "Finding", "Findings", "Format", "check", "convert", "format_of", "load", "named", "write"]

# The first that fits a folder is its format. A lab's folder is told by little: stimuli or betas alone will do.
FORMATS = tuple(known.FORMAT for known in (nsd_release, nsd_raw, laion, mosaic, bdata, lab_folder, glmsingle))


def load(root: str | Path, subjects: Iterable[int] | None = None) -> Dataset:
    """Open a dataset: the NSD release, a lab's folder, MOSAIC or BData. Betas and images stay on disk until they are used.

    Parameters
    ----------
    root : str or Path
        Folder of the dataset. Its format is told by the names of its files.
    subjects : iterable of int, optional
        Numbers of the subjects to open. All by default.

    Returns
    -------
    Dataset
        Its subjects, stimuli and card.

    Raises
    ------
    UserError
        Where the folder is no dataset, or anything in it is missing, damaged or at odds with the rest, or a trial of a shared
        image stands in training. Raw NSD and LAION-fMRI are converted first (see ``convert``).

    Examples
    --------
    >>> import mindtuner
    >>> dataset = mindtuner.load("data/nsd", subjects=[1])
    >>> dataset.subject(1).betas([0, 1]).dtype
    dtype('float32')
    """
    root = Path(root)
    found = format_of(root)
    if found.load is None:
        raise UserError(f"{root}: is {found.title}, which is not read as it is; expected {found.way_in(root)}")
    return found.load(root, subjects)


def check(root: str | Path, allow_twins: bool = False, mask_values: Sequence[float] | None = None) -> Findings:
    """Look at everything in a dataset and say what is there, what is missing, and what is wrong.

    ``load`` stops at the first thing that is wrong and leaves betas and pixels alone until they are asked for. This reads all
    of them once, in blocks, and goes on after an error wherever it can.

    Parameters
    ----------
    root : str or Path
        Folder of the dataset, in any format.
    allow_twins : bool
        Warn where a test image has the pixels of a training image, which else is an error.
    mask_values : sequence of float, optional
        Look at the voxels where the mask has one of these values, in a lab's folder, raw NSD and LAION-fMRI. By default as
        they are read.

    Returns
    -------
    Findings
        ``facts``, what was found in each file; ``items``, errors, warnings and notes. The dataset can be used where
        ``count("error")`` is 0.

    Examples
    --------
    >>> from mindtuner.formats import check
    >>> check("nowhere").items
    [Finding(severity='error', file='.', field='format', message='not found; expected a folder with a dataset')]
    """
    root = Path(root)
    findings = Findings(root, allow_twins, mask_values)
    with findings.catching(root, "format"):
        found = format_of(root)
        findings.fact(root, f"format {found.name}: {found.title}")
        if mask_values is not None and found.name not in ("lab_folder", "nsd_raw", "laion"):
            expected = "a lab's folder, raw NSD or LAION-fMRI"
            raise UserError(f"mask_values: are given, and {root} is {found.title}; expected {expected}")
        found.check(root, findings)
    return findings


def convert(root: str | Path, out: str | Path, **options) -> dict:
    """Write raw NSD as the NSD release, MOSAIC or BData as a lab's folder, or LAION-fMRI as one for each split.

    Parameters
    ----------
    root : str or Path
        Folder of the dataset. Its format is told by the names of its files.
    out : str or Path
        Folder to write.
    **options
        Those of ``nsd_raw.convert.convert_nsd``, ``mosaic.convert.convert_mosaic``, ``bdata.convert.convert_bdata`` or
        ``laion.convert.convert_laion``.

    Returns
    -------
    dict
        The card of what was written; of LAION-fMRI that of each split.

    Raises
    ------
    UserError
        Where the format is read as it is, so that there is nothing to convert; and as these functions do.

    Examples
    --------
    >>> from mindtuner.formats import convert
    >>> card = convert("nsd", "data/nsd", captions=["annotations"])  # doctest: +SKIP
    """
    found = format_of(root)
    if found.convert is None and found.way_in is not None:
        raise UserError(f"{root}: is {found.title}, which is not converted by itself; expected {found.way_in(Path(root))}")
    if found.convert is None:
        titles = [other.title for other in FORMATS if other.convert]
        raise UserError(
            f"{root}: is {found.title}, which is read as it is; expected {', '.join(titles[:-1])} or {titles[-1]}"
        )
    return found.convert(root, out, **options)


def write(root: str | Path, dataset: Dataset, format: str = "lab_folder", **options) -> None:
    """Write any dataset, for instance a simulated one, in one of the formats.

    Parameters
    ----------
    root : str or Path
        Folder to write into.
    dataset : Dataset
        What to write. Its betas are written as they are read.
    format : str
        Name of the format: ``nsd_release``, ``nsd_raw``, ``laion``, ``mosaic``, ``bdata`` or ``lab_folder``.
    **options
        ``form`` of the betas: "npy", "hdf5" or "nifti" of a lab's folder, "hdf5" or "nifti" of raw NSD.

    Raises
    ------
    UserError
        Where the format is unknown, cannot hold this dataset, or a file cannot be written.

    Examples
    --------
    >>> from mindtuner.formats import load, write
    >>> write("mystudy", load("simulated"), form="nifti")  # doctest: +SKIP
    """
    named(format).write(root, dataset, **options)


def format_of(root: str | Path) -> Format:
    """The format of a folder, told by the names of its files.

    Parameters
    ----------
    root : str or Path
        Folder of the dataset. Parts of it may be missing.

    Returns
    -------
    Format
        One of ``FORMATS``.

    Raises
    ------
    UserError
        Where there is no such folder, or it is of no known format.
    """
    root = Path(root)
    if root.is_file():
        raise UserError(f"{root}: is {_said_of_file(root)}; expected a folder with a dataset (docs/your-own-scans.md)")
    if not root.is_dir():
        raise UserError(f"{root}: not found; expected a folder with a dataset")
    for known in FORMATS:
        if known.sniff(root):
            return known
    told = [f"{known.holds} ({known.title})" for known in FORMATS]
    raise UserError(f"{root}: no dataset that is known; expected {', '.join(told[:-1])}, or {told[-1]}")


def _said_of_file(path: Path) -> str:
    """What a single file is, as far as its name and its first names tell."""
    for known in FORMATS:
        if known.sniff_file and known.sniff_file(path):
            return f"a file of {known.title}"
    return "a file"


def named(name: str) -> Format:
    """The format of this name, to write. Raises UserError where there is none."""
    written = {known.name: known for known in FORMATS if known.write}
    if name not in written:
        raise UserError(f"format: is {name!r}; expected one of {', '.join(written)}")
    return written[name]
