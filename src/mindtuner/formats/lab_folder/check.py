"""What ``check`` looks at in a lab's own scans."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindtuner.data import Stimuli, nsd
from mindtuner.data.dataset import CARD
from mindtuner.errors import UserError
from mindtuner.formats.checks.betas import check_betas
from mindtuner.formats.checks.findings import Findings, some
from mindtuner.formats.checks.parts import check_sizes, check_stimuli, check_trials
from mindtuner.formats.image_files import FolderImages, Hdf5Images
from mindtuner.formats.lab_folder import read as lab
from mindtuner.formats.lab_folder import trial_table
from mindtuner.formats.lab_folder.betas import MASK, check_dtype, check_rows, open_betas, stored_dtype, values_of
from mindtuner.formats.lab_folder.labels import LabelStimuli, labelled
from mindtuner.formats.lab_folder.trial_table import TrialLines
from mindtuner.formats.nifti import JoinedSessions, say_mask
from mindtuner.formats.trial_volumes import TrialVolumes


def check(root: Path, findings: Findings) -> None:
    """Report on the card, the stimuli, and each subject's table, betas and regions."""
    card = {"zscore": "none", "subject_offset": 0}
    with findings.catching(root / CARD, "card"):
        card = lab.load_card(root)
    describe_card(findings, root, card)
    if findings.mask_values is not None:
        values = list(findings.mask_values)
        card = {**card, "mask_values": {**card.get("mask_values", {}), "mask": values}}
        findings.note(root / CARD, "mask_values", f'looked at as given; to read it so: "mask_values": {{"mask": {values}}}')
    images: FolderImages | Hdf5Images | LabelStimuli | None = None
    pictured = lab.has_pictures(root)
    with findings.catching(root, "stimuli"):
        images = lab.open_images(root, card) if pictured else None
    folders: dict[int, Path] = {}
    with findings.catching(root, "subjects"):
        folders = lab.subject_folders(root, card)
    tables = {
        number: lines
        for number, folder in folders.items()
        if (lines := _check_table(findings, folder, images, pictured)) is not None
    }
    if tables and not pictured:
        with findings.catching(root, "stimuli"):
            images, tables = labelled(tables, folders, root, lab.NEITHER)
            for lines in tables.values():
                findings.errors(lines.path, trial_table.problems(lines, images.names))
            _say_labels(findings, images)
    for path, field, message in trial_table.split_conflicts(tables):
        findings.error(path, field, message)
    names, is_shared, used = _what_is_shown(images, tables)
    for number, folder in folders.items():
        _check_subject(findings, folder, tables.get(number), names, is_shared, card)
    _compare_subjects(findings, root, folders, tables, card)
    if isinstance(images, FolderImages | Hdf5Images):
        check_images(findings, root, images, is_shared, used)
    if findings.mask_values is None:  # else the reader would take other voxels
        findings.take_whole(lambda: lab.load(root))


def describe_card(findings: Findings, root: Path, card: dict) -> None:
    """Say what the card says of z-scores, and what follows from it."""
    path = root / CARD
    findings.fact(path, f"zscore {card['zscore']}" if path.exists() else "none")
    if card["zscore"] == "none":
        findings.note(
            path,
            "zscore",
            "betas are z-scored per session with the statistics of its training trials, as they "
            "are read; if yours are z-scored already, let dataset.json say how",
        )


def _check_table(
    findings: Findings, folder: Path, images: FolderImages | Hdf5Images | LabelStimuli | None, pictured: bool
) -> TrialLines | None:
    with findings.catching(folder, "trials"):
        path = trial_table.find_table(folder)
        lines = trial_table.read_lines(path)
        if pictured:
            findings.errors(path, trial_table.problems(lines, None if images is None else images.names))
        validation = sum(cell in trial_table.VALIDATION for cell in lines.columns["split"])
        unused = int((~lines.used()).sum()) - validation
        findings.fact(path, f"{len(lines)} lines" + (f", {unused} of them n/a" if unused else ""))
        if lines.named != "stimulus" and pictured:
            findings.note(path, "stimulus", f"no such column: {lines.named} is taken for it")
        if not lines.says_split:
            findings.note(path, "split", "no such column: all trials train; mindtuner fit --folds tests each image once")
        if "run" in lines.columns:
            known = int((lines.runs()[lines.used()] > 0).sum())
            findings.fact(path, f"runs of {known} trials")
            if known < lines.used().sum():
                findings.note(path, "run", "not 1, 2, ... or run-01, ... for every trial: runs cannot be left out")
        if unused:
            findings.note(path, "stimulus", f"{unused} trials have no stimulus or no split (n/a): nothing uses them")
        if validation:
            findings.note(
                path,
                "split",
                f"{validation} trials of a validation split: nothing uses them (training holds out images of its own); to "
                "train on them, write train",
            )
        if lines.says_repeats():
            _check_repeats(findings, lines)
        else:
            findings.note(path, "repeat", "no column of repeats: they are counted in the order of the lines")
        known = np.flatnonzero(lines.sessions() > 0)
        falls = np.flatnonzero(np.diff(lines.sessions()[known]) < 0)
        if len(falls):
            line = known[falls[0] + 1] + trial_table.FIRST_LINE
            findings.warning(path, "session", f"falls on line {line}; the order of the lines is taken for that of the scan")
        return lines
    return None


def _check_repeats(findings: Findings, lines: TrialLines) -> None:
    """Whether each image's repeats are 0, 1, 2, ... without a gap, in the order of the lines."""
    found: dict[str, list[int]] = {}
    for row in np.flatnonzero(lines.used()):
        cell = lines.columns["repeat"][row]
        if cell.isdecimal():
            found.setdefault(lines.columns["stimulus"][row], []).append(int(cell))
    gaps = [name for name, repeats in found.items() if set(range(max(repeats))) - set(repeats)]
    order = [name for name, repeats in found.items() if repeats != sorted(repeats)]
    if gaps:
        findings.warning(
            lines.path,
            "repeat",
            f"{len(gaps)} images lack an earlier repeat: {some(gaps)}; expected 0 the first time, then 1, 2, ...",
        )
    if order:
        findings.warning(lines.path, "repeat", f"{len(order)} images have repeats that fall: {some(order)}")


def _say_labels(findings: Findings, images: LabelStimuli) -> None:
    labels = sorted({images.captions(k)[0] for k in range(images.shape[0])})
    findings.fact(images.path, f"{images.shape[0]} stimuli of {len(labels)} labels, without pictures: {some(labels)}")
    findings.note(
        images.path,
        "label",
        "there are no stimuli/, so labels stand for pictures: mindtuner fit, evaluate and decode read words; pretrain, tune "
        "and all that paints need pictures",
    )


def _what_is_shown(
    images: FolderImages | Hdf5Images | LabelStimuli | None, tables: dict[int, TrialLines]
) -> tuple[dict[str, int], np.ndarray, np.ndarray]:
    """Id of each name, and over ids: whether it is a test image, whether it is shown at all.

    Where the stimuli cannot be opened, the names are those that the tables use.
    """
    shown = {name for lines in tables.values() for split in ("train", "test") for name in lines.split_of(split)}
    names = dict(images.names) if images is not None else {name: i for i, name in enumerate(sorted(shown))}
    tested = {name for lines in tables.values() for name in lines.split_of("test")}
    return (names, np.array([name in tested for name in names], bool), np.array([name in shown for name in names], bool))


def _check_subject(
    findings: Findings, folder: Path, lines: TrialLines | None, names: dict[str, int], is_shared: np.ndarray, card: dict
) -> None:
    betas, path = None, folder
    with findings.catching(folder, "betas"):
        path, betas = open_betas(folder, card, None if lines is None else len(lines))
        stored = stored_dtype(betas)
        files = f" in {len(betas.sessions)} files" if isinstance(betas, JoinedSessions) else ""
        findings.fact(path, f"betas: {betas.shape[0]} trials x {betas.shape[1]} voxels, {stored}{files}")
        _check_storage(findings, path, betas, stored)
        _check_masks(findings, folder, card)
        check_dtype(path, betas, card)
    if lines is not None:
        usable = np.array([name in names for name in lines.columns["stimulus"]], bool)
        if usable[lines.used()].all() and not any(True for _ in trial_table.problems(lines, None)):
            label = list(names)
            check_trials(findings, lines.path, lines.trials(names), is_shared, lambda i: repr(label[i]))
    if betas is None:
        return
    session = None
    if lines is not None:
        with findings.catching(lines.path, "trials"):
            check_rows(path, betas, lines)
            session = lines.sessions()
    check_betas(findings, path, betas, session, zscored=card["zscore"] != "none")
    _check_rois(findings, folder, betas.shape[1], card)


def _check_storage(findings: Findings, path: Path, betas, stored: np.dtype) -> None:
    if stored.name == "float64":
        findings.note(path, "dtype", "float64 is read as float32")
    if stored.name == "float16":
        findings.warning(path, "dtype", "float16 keeps three digits; expected float32")
    parts = betas.sessions if isinstance(betas, JoinedSessions) else [betas]
    volumes = [part for part in parts if isinstance(part, TrialVolumes)]
    for part in volumes:
        findings.fact(part.path, f"axes as {part.order.name}" + (", written by MATLAB" if part.matlab else ""))
    if volumes:
        findings.note(
            path, "betas", "unpacked once per run into a temporary file; betas.npy (trials, voxels) is read in place"
        )
    if volumes and volumes[0].reorders:
        findings.note(path, "betas", "MATLAB's order of voxels, column by column, is turned into that of volume[mask]")
    if stored.kind == "i" and (volumes or not isinstance(betas, JoinedSessions)):
        findings.warning(path, "dtype", f"{stored.name}: betas are taken as they are, without a scale; z-scoring removes any")
    if isinstance(betas, np.ndarray) and betas.flags.f_contiguous and not betas.flags.c_contiguous:
        findings.note(path, "order", "stored column by column (Fortran order): reading single trials is slow")
    if isinstance(betas, JoinedSessions):
        kinds = {part.stored.name for part in betas.sessions}
        if len(kinds) > 1:
            findings.warning(path, "dtype", f"session files hold different numbers: {', '.join(sorted(kinds))}")
        if any(part.path.suffix == ".gz" for part in betas.sessions):
            findings.note(
                path,
                "betas",
                "compressed sessions are unpacked once per run into a temporary file; .nii or betas.npy are read in place",
            )


def _check_masks(findings: Findings, folder: Path, card: dict) -> None:
    """Say of each mask that holds more than 0 and 1 which values are taken."""
    masks = {"mask": folder / MASK, **lab.nifti_rois(folder / "rois")}
    for name, path in masks.items():
        with findings.catching(path, "mask"):
            if path.exists() and (said := say_mask(path, values_of(card, name))):
                chosen = (
                    "" if name in card.get("mask_values", {}) else f'; to choose, mask_values of {CARD}: {{"{name}": [1]}}'
                )
                findings.note(path, "values", said + chosen)
    for name in sorted(card.get("mask_values", {}).keys() - masks):
        findings.warning(folder / CARD, "mask_values", f"names {name!r}, which no mask is called; expected {some(masks)}")


def _check_rois(findings: Findings, folder: Path, voxels: int, card: dict) -> None:
    with findings.catching(folder, "rois"):
        rois = lab.load_rois(folder, voxels, card)
        findings.fact(folder, "regions: " + (", ".join(f"{name} {mask.sum()}" for name, mask in rois.items()) or "none"))
        if not rois:
            findings.note(folder, "rois", "no regions of interest: all voxels are used together")
        for name, mask in rois.items():
            if not mask.any():
                findings.warning(folder, f"rois, {name}", "holds no voxel")


def _compare_subjects(
    findings: Findings, root: Path, folders: dict[int, Path], tables: dict[int, TrialLines], card: dict
) -> None:
    numbers = sorted(folders)
    named = [number for number in numbers if lab.is_named(root, folders[number])]
    if numbers:
        called = [f"{number} ({folders[number].name})" if number in named else f"{number}" for number in numbers]
        findings.fact(root, f"subjects {', '.join(called)}")
        check_numbers(findings, root, card, [folder.name for folder in folders.values()])
    if named and not card.get("subject_numbers"):
        fixed = ", ".join(f'"{folders[number].name}": {number - card["subject_offset"]}' for number in named[:2])
        findings.note(
            root,
            "subjects",
            "names without numbers are counted in their order, and another subject may shift them; to fix the numbers, "
            f"subject_numbers of {CARD}: {{{fixed}{', ...' if len(named) > 2 else ''}}}",
        )
    known = [number for number in numbers if number <= len(nsd.VOXELS)]
    if known:
        findings.note(
            root,
            "subjects",
            f"subject {some(known)} has a number of NSD's own subjects (1 to {len(nsd.VOXELS)}); "
            "to tune on a base that knows these, set subject_offset in dataset.json, e.g. to 100",
        )
    lengths = {number: len(set(lines.sessions()[lines.used()].tolist())) for number, lines in tables.items()}
    if len(set(lengths.values())) > 1:
        told = ", ".join(f"{number}: {count}" for number, count in lengths.items())
        findings.note(
            root, "sessions", f"subjects have different numbers of sessions ({told}); each is used with what it has"
        )


def check_numbers(findings: Findings, root: Path, card: dict, names: Sequence[str]) -> None:
    """Report a name in the card's ``subject_numbers`` that is nobody's: its subject would have another number."""
    if unknown := sorted(card.get("subject_numbers", {}).keys() - set(names)):
        findings.warning(
            root / CARD,
            "subject_numbers",
            f"names {some(map(repr, unknown))}, which no subject is called; expected some of {some(names)}",
        )


def check_images(
    findings: Findings, root: Path, images: FolderImages | Hdf5Images, is_shared: np.ndarray, used: np.ndarray
) -> None:
    """Report on the pictures of a lab's stimuli and their captions, and on what is done to them when they are read."""
    path = images.folder if isinstance(images, FolderImages) else images.path
    captions: list[tuple[str, ...]] = []
    for number in range(images.shape[0]):
        captions.append(())
        with findings.catching(path, "captions"):
            captions[-1] = images.captions(number)
    names = list(images.names)
    check_stimuli(findings, path, Stimuli(images, captions, is_shared, str(path)), names, used)
    sizes: list[tuple[int, int]] = []
    changed: dict[str, list[str]] = {}
    for number in range(images.shape[0]):
        try:
            sizes.append(images.size(number))
            for what in images.changed(number) if isinstance(images, FolderImages) else ():
                changed.setdefault(what, []).append(names[number])
        except (OSError, ValueError, SyntaxError, UserError):
            continue  # reported above: it cannot be read
    for what, found in changed.items():
        findings.note(path, "images", f"{len(found)} images are {what}: {some(found)}")
    check_sizes(findings, path, sizes)
