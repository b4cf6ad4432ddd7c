"""What ``check`` looks at in NSD as its authors publish it: the design, the table of stimuli, stimuli and captions.

Subjects are looked at in ``check_b_subjects``. NSD counts trials, images and subjects from 1, and so do the messages that
name an entry of NSD's own files; ``image N`` is row N of ``imgBrick``, from 0, as ``nsdId`` counts.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from mindtuner.data.rows import open_rows
from mindtuner.formats.checks.findings import Findings, some
from mindtuner.formats.checks.parts import check_captions, check_pictures
from mindtuner.formats.nsd_raw import convert as convert_nsd
from mindtuner.formats.nsd_raw import read as layout_b
from mindtuner.formats.nsd_raw.check_subject import check_subject
from mindtuner.formats.nsd_raw.read import Design

IMAGES, SIDE = 73_000, 425  # of NSD's own stimuli


def check_b(root: Path, findings: Findings) -> None:
    """Report on the design, the stimuli, their table and captions, and each subject's masks and sessions."""
    count = None
    with findings.catching(root / layout_b.STIMULI, "imgBrick"):
        count = layout_b.count_stimuli(root)
    design = None
    with findings.catching(root / layout_b.DESIGN, "design"):
        design = layout_b.read_design(root, count or IMAGES)
        _check_design(findings, root / layout_b.DESIGN, design)
    captions = None
    if count is not None and design is not None:
        captions = _check_table(findings, root, design)
    numbers = layout_b.find_subjects(root)
    if not numbers:
        findings.error(root / layout_b.BETAS, "subjects", f"no subject; expected folders subj01/{layout_b.BETAS_VERSION}")
    used = np.zeros(count or IMAGES, bool)
    for number in numbers:
        trials = check_subject(findings, root, number, design)
        if trials is not None:
            used[trials.stimulus] = True
    if count is not None:
        is_shared = np.zeros(count, bool) if design is None else design.is_shared
        _check_images(findings, root, is_shared, used if design is not None else np.ones(count, bool))
        if captions is not None:
            check_captions(findings, root / layout_b.STIMULUS_TABLE, captions, [f"image {i}" for i in range(count)])


def take_whole(root: Path) -> None:
    """All that ``convert nsd`` compares before it writes anything. Raises UserError as it does."""
    design = layout_b.read_design(root, layout_b.count_stimuli(root))
    layout_b.read_coco_ids(root, design.is_shared)
    convert_nsd.find_scans(root, design, layout_b.find_subjects(root))


def _check_design(findings: Findings, path: Path, design: Design) -> None:
    """What can be odd although every number is in range: images listed twice, shared by some only, or shown too often."""
    subjects, places = design.images.shape
    findings.fact(
        path, f"{len(design.order)} trials of {subjects} subjects, {places} images each, {design.is_shared.sum()} shared"
    )
    for number, images in enumerate(design.images, 1):
        listed, times = np.unique(images, return_counts=True)
        if (times > 1).any():
            findings.warning(
                path,
                f"subjectim, row {number}",
                f"lists {(times > 1).sum()} images more than once: image {some(listed[times > 1])}; expected each once",
            )
        unseen = np.setdiff1d(np.flatnonzero(design.is_shared), images)
        if len(unseen):
            findings.warning(
                path,
                f"subjectim, row {number}",
                f"lacks {len(unseen)} of the images in sharedix: image "
                f"{some(unseen)}; expected that all subjects see the shared images",
            )
    times = np.bincount(design.order, minlength=places)
    usual = len(design.order) // places
    odd = (times < usual) | (times > usual + (len(design.order) % places > 0))
    if odd.any():
        told = (f"place {place + 1} ({times[place]} times)" for place in np.flatnonzero(odd))
        findings.warning(
            path,
            "masterordering",
            f"{odd.sum()} of {places} places are not shown as often as the others: {some(told)}; expected {usual} times each",
        )


def _check_table(findings: Findings, root: Path, design: Design) -> list[tuple[str, ...]] | None:
    """The captions of each image; None where none can be read."""
    path = root / layout_b.STIMULUS_TABLE
    coco = None
    with findings.catching(path, "table"):
        coco = layout_b.read_coco_ids(root, design.is_shared)
        _check_lines(findings, path)
    places = [place for place in (root, root / "annotations") if any((place / n).is_file() for n in layout_b.CAPTION_FILES)]
    if not places:
        findings.note(
            root,
            "captions",
            f"no {' or '.join(layout_b.CAPTION_FILES)} here or in annotations/: captions were "
            "not checked; 'mindtuner convert nsd --captions' takes them from anywhere",
        )
    if coco is None:
        return None
    findings.fact(path, f"{len(coco)} stimuli")
    photo, first, times = np.unique(coco, return_index=True, return_counts=True)
    if (times > 1).any():
        findings.warning(
            path,
            "cocoId",
            f"{(times > 1).sum()} photographs are two stimuli: cocoId {some(photo[times > 1])}; expected each once",
        )
    if places:
        with findings.catching(places[0], "captions"):
            return layout_b.read_captions(layout_b.caption_files(places), coco)
    return None


def _check_lines(findings: Findings, path: Path) -> None:
    """Lines that break off after what the reader needs of them."""
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    found = (
        (f"line {number}", f"has {len(row)} cells; expected {len(rows[0])}, as in the first line")
        for number, row in enumerate(rows, 1)
        if row and len(row) != len(rows[0])
    )
    findings.errors(path, found)


def _check_images(findings: Findings, root: Path, is_shared: np.ndarray, used: np.ndarray) -> None:
    path = root / layout_b.STIMULI
    with findings.catching(path, "imgBrick"):
        bricks = open_rows(path, "imgBrick", 4, ("uint8",))
        count, height, width, _ = bricks.shape
        findings.fact(path, f"{count} images of {width} x {height}, {bricks.dtype.name}")
        if (count, height, width) != (IMAGES, SIDE, SIDE):
            findings.note(path, "imgBrick", f"NSD has {IMAGES} images of {SIDE} x {SIDE}; taken as it is")
        check_pictures(
            findings,
            path,
            lambda number: bricks[np.array([number])][0],
            [f"image {i}" for i in range(count)],
            is_shared,
            used,
        )
