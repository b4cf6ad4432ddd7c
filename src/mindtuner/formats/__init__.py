"""Which layout a folder has, and the reader for it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

from mindtuner.data.dataset import Dataset
from mindtuner.errors import UserError
from mindtuner.formats.lab_folder import read as layout_c
from mindtuner.formats.mosaic import read as layout_d
from mindtuner.formats.mosaic.tables import DATASETS
from mindtuner.formats.nsd_release import read as layout_a

SUBJECT_FILES, TABLES = "sub-*_*.hdf5", "*_stiminfo.tsv"  # of MOSAIC, in the folder itself; the pictures lie in stimuli/

# A layout by any one of these files, so that a folder with parts missing is still told; the first that fits. Layout D has
# ``stimuli`` as Layout C does, so there a table of trials decides first.
_SIGNS = (
    ("A", ("betas_all_subj0*", "wds", layout_a.IMAGES, layout_a.CAPTIONS, layout_a.INDICES, layout_a.SHARED, layout_a.MASKS)),
    ("B", ("nsddata", "nsddata_betas", "nsddata_stimuli")),
    ("C", (layout_c.TRIALS, f"sub-*/{layout_c.TRIALS}")),
    ("D", (SUBJECT_FILES, TABLES)),
    ("C", (layout_c.STIMULI, layout_c.STIMULI_HDF5, "betas.*", "betas_session-*")),
)


def layout_of(root: str | Path) -> str:
    """ "A" for the files of the public MindEye2 release, "B" for NSD as its authors publish it, "C" for a lab's own scans,
    "D" for subjects of MOSAIC. Raises UserError where it is none of them."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: not found; expected a folder with a dataset")
    for layout, patterns in _SIGNS:
        if any(any(root.glob(pattern)) for pattern in patterns):
            return layout
    raise UserError(
        f"{root}: no dataset that is known; expected betas_all_subj0N_fp32_renorm.hdf5 and what goes with it "
        "(the public release), nsddata, nsddata_betas and nsddata_stimuli (raw NSD), trials.tsv, betas and "
        f"stimuli (a lab's own scans), or {SUBJECT_FILES}, {TABLES} and stimuli (MOSAIC)"
    )


def load(root: str | Path, subjects: Iterable[int] | None = None) -> Dataset:
    """Open a dataset of Layout A, C or D; ``subjects`` by default are all of it. See ``layout_a.load``, ``layout_c.load``
    and, for D, ``layout_d.load_mosaic``, which gets all files of the folder and otherwise its defaults.

    Raises UserError where the folder is no dataset, or anything in it is missing, damaged or at odds with the rest, and for
    Layout B, which is converted first.
    """
    root = Path(root)
    layout = layout_of(root)
    if layout == "B":
        raise UserError(
            f"{root}: is NSD as its authors publish it, which is not read as it is; expected what "
            f"'mindtuner convert nsd {root} OUT' writes"
        )
    return {"A": layout_a.load, "C": layout_c.load, "D": _load_mosaic}[layout](root, subjects)


def mosaic_files(root: Path) -> tuple[list[Path], list[Path], Path]:
    """Of a Layout D folder: subject files, tables under MOSAIC's own names, and the folder of stimuli. Any may be missing."""
    tables = [path for path in sorted(root.glob(TABLES)) if path.name in {source.stiminfo for source in DATASETS.values()}]
    return sorted(root.glob(SUBJECT_FILES)), tables, root / layout_c.STIMULI


def _load_mosaic(root: Path, subjects: Iterable[int] | None) -> Dataset:
    """All subjects are opened, whichever are asked for: the stimuli and which of them are test pictures depend on it."""
    files, tables, stimuli = mosaic_files(root)
    if not files:
        raise UserError(f"{root}: no subject; expected MOSAIC's files such as sub-01_NSD.hdf5")
    dataset = layout_d.load_mosaic(files, tables, stimuli)
    wanted = sorted(dataset.subjects) if subjects is None else sorted(set(subjects))
    return dataclasses.replace(dataset, subjects={number: dataset.subject(number) for number in wanted})
