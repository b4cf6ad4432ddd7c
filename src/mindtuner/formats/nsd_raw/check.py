"""What ``check`` looks at in NSD as its authors publish it: the design, the table of stimuli, stimuli, captions and subjects.

NSD counts trials, images and subjects from 1, and so do the messages that
name an entry of NSD's own files; ``image N`` is row N of ``imgBrick``, from 0, as ``nsdId`` counts.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mindtuner.data import Trials, nsd
from mindtuner.data.dataset import count_repeats
from mindtuner.data.lazy import open_rows
from mindtuner.formats.checks.betas import Labels, check_betas
from mindtuner.formats.checks.findings import Findings, some
from mindtuner.formats.checks.parts import check_captions, check_pictures, check_trials
from mindtuner.formats.nifti import open_nifti, read_data
from mindtuner.formats.nsd_raw import read as raw
from mindtuner.formats.nsd_raw.convert import find_scans
from mindtuner.formats.nsd_raw.read import Design
from mindtuner.formats.nsd_raw.volumes import VISUAL, read_mask, read_rois, read_session, session_trials
from mindtuner.inputs import read_text

IMAGES, SIDE = 73_000, 425  # of NSD's own stimuli
SD_LIMITS = (0.05, 50)  # percent signal change, median over voxels: outside, the numbers are not percent x 300
LIMITS = -(2**15) / nsd.BETA_SCALE, (2**15 - 1) / nsd.BETA_SCALE


def check(root: Path, findings: Findings) -> None:
    """Report on the design, the stimuli, their table and captions, and each subject's masks and sessions."""
    count = None
    with findings.catching(root / raw.STIMULI, "imgBrick"):
        count = raw.count_stimuli(root)
    design = None
    with findings.catching(root / raw.DESIGN, "design"):
        design = raw.read_design(root, count or IMAGES)
        _check_design(findings, root / raw.DESIGN, design)
    captions = None
    if count is not None and design is not None:
        captions = _check_table(findings, root, design)
    numbers = raw.find_subjects(root)
    if not numbers:
        findings.error(root / raw.BETAS, "subjects", f"no subject; expected folders subj01/{raw.BETAS_VERSION}")
    used = np.zeros(count or IMAGES, bool)
    for number in numbers:
        trials = _check_subject(findings, root, number, design)
        if trials is not None:
            used[trials.stimulus] = True
    if count is not None:
        is_shared = np.zeros(count, bool) if design is None else design.is_shared
        _check_images(findings, root, is_shared, used if design is not None else np.ones(count, bool))
        if captions is not None:
            check_captions(findings, root / raw.STIMULUS_TABLE, captions, [f"image {i}" for i in range(count)])
    findings.take_whole(lambda: _compare(root, findings.mask_values))


def _compare(root: Path, mask_values: Sequence[float] | None) -> None:
    """All that ``convert_nsd`` compares before it writes anything. Raises UserError as it does."""
    design = raw.read_design(root, raw.count_stimuli(root))
    raw.read_coco_ids(root, design.is_shared)
    find_scans(root, design, raw.find_subjects(root), mask_values)


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
    path = root / raw.STIMULUS_TABLE
    coco = None
    with findings.catching(path, "table"):
        coco = raw.read_coco_ids(root, design.is_shared)
        _check_lines(findings, path)
    places = [place for place in (root, root / "annotations") if any((place / n).is_file() for n in raw.CAPTION_FILES)]
    if not places:
        findings.note(
            root,
            "captions",
            f"no {' or '.join(raw.CAPTION_FILES)} here or in annotations/: captions were "
            "not checked; convert_nsd(..., captions=...) or 'mindtuner convert nsd --captions' takes them from anywhere",
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
            return raw.read_captions(raw.caption_files(places), coco)
    return None


def _check_lines(findings: Findings, path: Path) -> None:
    """Lines that break off after what the reader needs of them."""
    rows = list(csv.reader(io.StringIO(read_text(path, "NSD's table of stimuli"), newline="")))
    found = (
        (f"line {number}", f"has {len(row)} cells; expected {len(rows[0])}, as in the first line")
        for number, row in enumerate(rows, 1)
        if row and len(row) != len(rows[0])
    )
    findings.errors(path, found)


def _check_images(findings: Findings, root: Path, is_shared: np.ndarray, used: np.ndarray) -> None:
    path = root / raw.STIMULI
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


# ---- one subject: masks, sessions, trials and betas


def _check_subject(findings: Findings, root: Path, number: int, design: Design | None) -> Trials | None:
    """Report on one subject; its trials, in the order of its sessions, where the files say them."""
    folder, known = raw.betas_folder(root, number), 1 <= number <= nsd.SUBJECTS
    if not known or design is not None and number > len(design.images):
        findings.error(
            folder,
            "subject",
            f"{number} is not in NSD's design; expected 1 to "
            f"{nsd.SUBJECTS if design is None else min(nsd.SUBJECTS, len(design.images))}",
        )
    mask = _check_masks(findings, root, number)
    files = _check_files(findings, root, number)
    if mask is None:
        return None
    counts: dict[int, int] = {}
    for session, path in files.items():
        with findings.catching(path, "betas"):
            counts[session] = session_trials(path, mask)
            _check_storage(findings, path, raw.roi_folder(root, number) / "nsdgeneral.nii.gz")
    per_session = _trials_per_session(findings, files, counts, design)
    trials = None
    whole = [session for session in sorted(counts) if counts[session] == per_session]
    if whole and design is not None and known and number <= len(design.images):
        most = len(design.order) // per_session
        for session in (session for session in whole if session > most):
            findings.error(
                files[session],
                "betas",
                f"is beyond the design; expected at most {most} sessions ({raw.DESIGN.name}: masterordering)",
            )
        inside = [session for session in whole if session <= most]
        if inside:
            trials = _trials(design, number, inside, per_session)
            check_trials(findings, folder, trials, design.is_shared, "image {}".format)
    if counts:
        places = np.argwhere(mask)
        rows = _Sessions(files, dict(sorted(counts.items())), mask)
        labels = Labels(rows.trial, lambda voxel: f"voxel ({', '.join(map(str, places[voxel]))})")
        check_betas(findings, folder, rows, rows.session, False, labels, zeroed=True)
        rows.report(findings, folder)
    return trials


def _check_masks(findings: Findings, root: Path, number: int) -> np.ndarray | None:
    """Which voxels are in nsdgeneral, bool (X, Y, Z)."""
    path = raw.roi_folder(root, number) / "nsdgeneral.nii.gz"
    mask = None
    with findings.catching(path, "mask"):
        mask = read_mask(root, number, findings.mask_values)
        own = nsd.VOXELS[number - 1] if 1 <= number <= nsd.SUBJECTS else None
        findings.fact(path, f"{mask.sum()} voxels of {' x '.join(map(str, mask.shape))}")
        if own is not None and mask.sum() != own:
            findings.warning(path, "mask", f"{mask.sum()} voxels are taken; NSD's own nsdgeneral has {own}")
        _check_labels(findings, path, np.arange(-1, 2))
    if mask is None:
        return None
    path = path.with_name(VISUAL)
    with findings.catching(path, "regions"):
        rois, assumed = read_rois(root, number, mask)
        findings.fact(path, ", ".join(f"{name} {region.sum()}" for name, region in rois.items()))
        if assumed:
            findings.note(path, "regions", assumed)
        else:
            _check_labels(findings, path, np.arange(-1, 8))
            for name in (name for name, region in rois.items() if not region.any()):
                findings.warning(path, "regions", f"{name} holds no voxel")
    return mask


def _check_labels(findings: Findings, path: Path, expected: np.ndarray) -> None:
    """``path`` has been read already."""
    labels = read_data(path, open_nifti(path))
    odd = ~np.isin(labels, expected)
    if odd.any():
        findings.warning(
            path,
            "labels",
            f"{odd.sum()} voxels are {some(np.unique(labels[odd]))}; expected whole numbers "
            f"from {expected[0]} to {expected[-1]}",
        )


def _check_files(findings: Findings, root: Path, number: int) -> dict[int, Path]:
    """The file of each session that is there. Gaps and files that nobody reads are reported."""
    folder, found = raw.betas_folder(root, number), {}
    with findings.catching(folder, "session"):
        raw.find_sessions(root, number)
    for path in sorted(folder.glob("betas_session*")):  # .hdf5 comes before .nii.gz
        match = re.fullmatch(r"betas_session(\d\d)\.(hdf5|nii\.gz|nii)", path.name)
        if match is None:
            findings.warning(
                path, "session", "is passed over; expected a name such as betas_session01.hdf5 or betas_session01.nii.gz"
            )
        elif found.setdefault(int(match[1]), path) != path:
            findings.note(path, "session", f"is passed over: {found[int(match[1])].name} is read instead")
    if 1 <= number <= nsd.SUBJECTS and 0 < len(found) < nsd.SESSIONS[number - 1]:
        findings.note(folder, "session", f"{len(found)} of NSD's {nsd.SESSIONS[number - 1]} sessions are there")
    if 0 in found:
        findings.warning(found.pop(0), "session", "is passed over; expected sessions from 01 on")
    return found


def _check_storage(findings: Findings, path: Path, mask: Path) -> None:
    """Volumes that lie elsewhere than the mask. Its header is sound."""
    if path.suffix == ".hdf5":
        return
    affines = [open_nifti(name).affine for name in (path, mask)]
    if not np.allclose(*affines, atol=1e-3):
        findings.warning(path, "affine", f"differs from that of {mask.name}; expected volumes in the same place")


def _trials_per_session(findings: Findings, files: dict[int, Path], counts: dict[int, int], design: Design | None) -> int:
    """What most sessions hold; those that hold something else are reported."""
    if not counts:
        return nsd.TRIALS
    often = Counter(counts.values())
    fitting = [n for n in often if design is None or len(design.order) % n == 0]
    if not fitting:
        findings.error(
            files[min(counts)],
            "betas",
            f"holds {counts[min(counts)]} trials; expected a number that divides the design's {len(design.order)} trials",
        )
    usual = max(fitting or often, key=often.__getitem__)
    for session, trials in counts.items():
        if trials != usual:
            findings.error(files[session], "betas", f"holds {trials} trials; expected {usual}, in every session")
    if usual != nsd.TRIALS:
        findings.note(files[min(counts)], "betas", f"NSD's sessions have {nsd.TRIALS} trials, these {usual}; taken as it is")
    return usual


def _trials(design: Design, number: int, sessions: list[int], per_session: int) -> Trials:
    """The trials of these sessions; row i is trial i of those that the design holds."""
    stimulus = design.stimulus(number, max(sessions) * per_session)
    repeat = count_repeats(stimulus)
    session = np.repeat(np.arange(1, max(sessions) + 1), per_session)
    row = np.flatnonzero(np.isin(session, sessions))
    return Trials(row, stimulus[row], session[row], repeat[row], design.is_shared[stimulus[row]])


class _Sessions:
    """Betas of one subject in percent signal change, for one reading from the first session to the last.

    ``rows[ids]`` is float64 (n, V), all ids of one session, which is kept until another is asked for. ``session`` int64
    (rows,).
    """

    def __init__(self, files: dict[int, Path], counts: dict[int, int], mask: np.ndarray):
        self._files, self._mask = files, mask
        self.session = np.repeat(list(counts), list(counts.values()))
        self._first = dict(zip(counts, np.cumsum([0, *counts.values()]).tolist(), strict=False))
        self._number, self._betas = 0, np.empty(0)
        self.limits, self.scales = 0, []  # values at the ends of int16; sessions whose betas are no percent x 300
        self.shape, self.dtype = (len(self.session), int(mask.sum())), np.dtype(np.float64)

    def __getitem__(self, ids: np.ndarray) -> np.ndarray:
        number = int(self.session[ids[0]])
        if number != self._number:
            self._betas = read_session(self._files[number], self._mask)
            self._number = number
            self._look()
        return self._betas[ids - self._first[number]]

    def _look(self) -> None:
        self.limits += int(((self._betas <= LIMITS[0]) | (self._betas >= LIMITS[1])).sum())
        sd = np.median(self._betas.std(axis=0))
        if not SD_LIMITS[0] <= sd <= SD_LIMITS[1]:
            self.scales.append(f"{self._files[self._number].name} ({sd:.3g})")

    def trial(self, row: int) -> str:
        number = int(self.session[row])
        return f"{self._files[number].name}, trial {row - self._first[number] + 1}"

    def report(self, findings: Findings, path: Path) -> None:
        if self.limits:
            findings.note(path, "dtype", f"{self.limits} values are the smallest or largest of int16: cut off there?")
        if self.scales:
            findings.warning(
                path,
                "scale",
                f"the median sd of voxels, in percent, is odd in {some(self.scales)}; expected "
                f"{SD_LIMITS[0]} to {SD_LIMITS[1]} (int16 is percent x {nsd.BETA_SCALE})",
            )
