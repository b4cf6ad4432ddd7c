"""What ``check`` looks at in a lab's own scans."""

from __future__ import annotations

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
from mindtuner.formats.lab_folder.trial_table import TrialLines
from mindtuner.formats.nifti import JoinedSessions


def check(root: Path, findings: Findings) -> None:
    """Report on the card, the stimuli, and each subject's table, betas and regions."""
    card = {"zscore": "none", "subject_offset": 0}
    with findings.catching(root / CARD, "card"):
        card = lab.load_card(root)
    _describe_card(findings, root, card)
    images = None
    with findings.catching(root, "stimuli"):
        images = lab.open_images(root)
    folders: dict[int, Path] = {}
    with findings.catching(root, "subjects"):
        folders = lab.subject_folders(root, card)
    tables = {
        number: lines
        for number, folder in folders.items()
        if (lines := _check_table(findings, folder / lab.TRIALS, images)) is not None
    }
    for path, field, message in trial_table.split_conflicts(tables):
        findings.error(path, field, message)
    names, is_shared, used = _what_is_shown(images, tables)
    for number, folder in folders.items():
        _check_subject(findings, folder, tables.get(number), names, is_shared, card)
    _compare_subjects(findings, root, folders, tables)
    if images is not None:
        _check_images(findings, root, images, is_shared, used)
    findings.take_whole(lambda: lab.load(root))


def _describe_card(findings: Findings, root: Path, card: dict) -> None:
    path = root / CARD
    findings.fact(path, f"zscore {card['zscore']}" if path.exists() else "none")
    if card["zscore"] == "none":
        findings.note(
            path,
            "zscore",
            "betas are z-scored per session with the statistics of its training trials, as they "
            "are read; if yours are z-scored already, let dataset.json say how",
        )


def _check_table(findings: Findings, path: Path, images: FolderImages | Hdf5Images | None) -> TrialLines | None:
    with findings.catching(path, "trials"):
        lines = trial_table.read_lines(path)
        findings.errors(path, trial_table.problems(lines, None if images is None else images.names))
        unused = int((~lines.used()).sum())
        findings.fact(path, f"{len(lines)} lines" + (f", {unused} of them n/a" if unused else ""))
        if unused:
            findings.note(path, "stimulus", f"{unused} trials have no stimulus or no split (n/a): nothing uses them")
        if lines.says_repeats():
            _check_repeats(findings, lines)
        else:
            findings.note(path, "repeat", "no column of repeats: they are counted in the order of the lines")
        falls = np.flatnonzero(np.diff(lines.sessions()) < 0)
        if len(falls):
            line = falls[0] + 1 + trial_table.FIRST_LINE
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


def _what_is_shown(
    images: FolderImages | Hdf5Images | None, tables: dict[int, TrialLines]
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
        path, betas = lab.open_betas(folder)
        stored = betas.sessions[0].stored if isinstance(betas, JoinedSessions) else betas.dtype
        files = f" in {len(betas.sessions)} files" if isinstance(betas, JoinedSessions) else ""
        findings.fact(path, f"betas: {betas.shape[0]} trials x {betas.shape[1]} voxels, {stored}{files}")
        _check_storage(findings, path, betas, stored)
        lab.check_dtype(path, betas, card)
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
            lab.check_rows(path, betas, lines)
            session = lines.sessions()
    check_betas(findings, path, betas, session, zscored=card["zscore"] != "none")
    _check_rois(findings, folder, betas.shape[1])


def _check_storage(findings: Findings, path: Path, betas, stored: np.dtype) -> None:
    if stored.name == "float64":
        findings.note(path, "dtype", "float64 is read as float32")
    if stored.name == "float16":
        findings.warning(path, "dtype", "float16 keeps three digits; expected float32")
    if not isinstance(betas, JoinedSessions) and stored.kind == "i":
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


def _check_rois(findings: Findings, folder: Path, voxels: int) -> None:
    with findings.catching(folder, "rois"):
        rois = lab.load_rois(folder, voxels)
        findings.fact(folder, "regions: " + (", ".join(f"{name} {mask.sum()}" for name, mask in rois.items()) or "none"))
        if not rois:
            findings.note(folder, "rois", "no regions of interest: all voxels are used together")
        for name, mask in rois.items():
            if not mask.any():
                findings.warning(folder, f"rois, {name}", "holds no voxel")


def _compare_subjects(findings: Findings, root: Path, folders: dict[int, Path], tables: dict[int, TrialLines]) -> None:
    numbers = sorted(folders)
    if numbers:
        findings.fact(root, f"subjects {', '.join(map(str, numbers))}")
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


def _check_images(
    findings: Findings, root: Path, images: FolderImages | Hdf5Images, is_shared: np.ndarray, used: np.ndarray
) -> None:
    path = images.folder if isinstance(images, FolderImages) else images.path
    captions: list[tuple[str, ...]] = []
    for number in range(images.shape[0]):
        captions.append(())
        with findings.catching(path, "captions"):
            captions[-1] = images.captions(number)
    names = list(images.names)
    check_stimuli(findings, path, Stimuli(images, captions, is_shared, str(path)), names, used)
    sizes = []
    for number in range(images.shape[0]):
        try:
            sizes.append(images.size(number))
        except (OSError, ValueError, SyntaxError, UserError):
            continue  # reported above: it cannot be read
    check_sizes(findings, path, sizes)
