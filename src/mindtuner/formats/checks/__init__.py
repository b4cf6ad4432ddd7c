"""Look at everything in a dataset and say what is there, what is missing, and what is wrong.

The readers stop at the first thing that is wrong and leave betas and pixels alone until they are asked for. This reads
all of them once, in blocks, and goes on after an error wherever it can.
"""

from __future__ import annotations

from pathlib import Path

from mindtuner.formats import layout_of, load
from mindtuner.formats.checks.findings import Findings
from mindtuner.formats.lab_folder.check import check_c
from mindtuner.formats.mosaic.check import check_d
from mindtuner.formats.nsd_raw.check import check_b, take_whole
from mindtuner.formats.nsd_release.check import check_a

LAYOUTS = {
    "A": "the files of the public MindEye2 release",
    "B": "NSD as its authors publish it",
    "C": "a lab's own scans",
    "D": "subjects of MOSAIC",
}


def check(root: str | Path) -> Findings:
    """Everything there is to say about the dataset in ``root``. Whether it can be used: ``.count("error") == 0``."""
    root = Path(root)
    findings = Findings(root)
    with findings.catching(root, "layout"):
        layout = layout_of(root)
        findings.fact(root, f"layout {layout}, {LAYOUTS[layout]}")
        {"A": check_a, "B": check_b, "C": check_c, "D": check_d}[layout](root, findings)
    if not findings.count("error"):
        with findings.catching(root, "dataset"):  # whatever the single checks overlook, the reader must take the whole
            if layout == "B":
                take_whole(root)
            else:
                card = load(root).card
                for note in card["notes"] if layout == "D" else ():
                    findings.note(root, "dataset", note)
    return findings
