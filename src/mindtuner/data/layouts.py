"""Which layout a folder has, and the reader for it."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from mindtuner.data import layout_a, layout_c
from mindtuner.data.dataset import Dataset
from mindtuner.errors import UserError

_SIGNS = {  # by these files, any of them, so that a layout with parts missing is still told
    "A": ("betas_all_subj0*", "wds", layout_a.IMAGES, layout_a.CAPTIONS, layout_a.INDICES, layout_a.SHARED, layout_a.MASKS),
    "C": (layout_c.TRIALS, "sub-*/trials.tsv", layout_c.STIMULI, layout_c.STIMULI_HDF5, "betas.*", "betas_session-*"),
}


def layout_of(root: str | Path) -> str:
    """"A" for the files of the public MindEye2 release, "C" for a lab's own scans. Raises UserError where it is neither."""
    root = Path(root)
    if not root.is_dir():
        raise UserError(f"{root}: not found; expected a folder with a dataset")
    for layout, patterns in _SIGNS.items():
        if any(any(root.glob(pattern)) for pattern in patterns):
            return layout
    raise UserError(f"{root}: no dataset that is known; expected betas_all_subj0N_fp32_renorm.hdf5 and what goes with it "
                    "(the public release), or trials.tsv, betas and stimuli (a lab's own scans)")


def load(root: str | Path, subjects: Iterable[int] | None = None) -> Dataset:
    """Open a dataset of any layout; ``subjects`` by default are all of it. See ``layout_a.load`` and ``layout_c.load``.

    Raises UserError where the folder is no dataset, or anything in it is missing, damaged or at odds with the rest.
    """
    return {"A": layout_a.load, "C": layout_c.load}[layout_of(root)](root, subjects)
