"""What ``check`` looks at in one subject of raw NSD: masks, sessions, trials and betas."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import nibabel
import numpy as np

from mindtuner.data import nsd
from mindtuner.data.dataset import Trials
from mindtuner.data.rows import open_hdf5
from mindtuner.formats.checks.betas import Labels, check_betas
from mindtuner.formats.checks.findings import Findings, some
from mindtuner.formats.checks.parts import check_trials
from mindtuner.formats.nsd_raw import read as layout_b
from mindtuner.formats.nsd_raw.read import Design
from mindtuner.formats.nsd_raw.volumes import VISUAL, read_mask, read_rois, read_session, session_trials
from mindtuner.formats.nsd_release.read import count_repeats

PER_SESSION = 750  # trials in each of NSD's sessions
SD_LIMITS = (0.05, 50)  # percent signal change, median over voxels: outside, the numbers are not percent x 300
LIMITS = -(2**15) / nsd.BETA_SCALE, (2**15 - 1) / nsd.BETA_SCALE


def check_subject(findings: Findings, root: Path, number: int, design: Design | None) -> Trials | None:
    """Report on one subject; its trials, in the order of its sessions, where the files say them."""
    folder, known = layout_b.betas_folder(root, number), 1 <= number <= nsd.SUBJECTS
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
            _check_storage(findings, path, layout_b.roi_folder(root, number) / "nsdgeneral.nii.gz")
    per_session = _trials_per_session(findings, files, counts, design)
    trials = None
    whole = [session for session in sorted(counts) if counts[session] == per_session]
    if whole and design is not None and known and number <= len(design.images):
        most = len(design.order) // per_session
        for session in (session for session in whole if session > most):
            findings.error(
                files[session],
                "betas",
                f"is beyond the design; expected at most {most} sessions ({layout_b.DESIGN.name}: masterordering)",
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
    path = layout_b.roi_folder(root, number) / "nsdgeneral.nii.gz"
    mask = None
    with findings.catching(path, "mask"):
        mask = read_mask(root, number)
        own = nsd.VOXELS[number - 1] if 1 <= number <= nsd.SUBJECTS else None
        findings.fact(path, f"{mask.sum()} voxels of {' x '.join(map(str, mask.shape))}")
        if own is not None and mask.sum() != own:
            findings.warning(path, "mask", f"{mask.sum()} voxels are above 0; NSD's own nsdgeneral has {own}")
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
    labels = np.asanyarray(nibabel.load(path, mmap=False).dataobj)
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
    folder, found = layout_b.betas_folder(root, number), {}
    with findings.catching(folder, "session"):
        layout_b.find_sessions(root, number)
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
    """Values that were declared but never written, or volumes that lie elsewhere than the mask. Its header is sound."""
    if path.suffix == ".hdf5":
        with open_hdf5(path) as file:
            data = file["betas"]
            packed = data.id.get_create_plist().get_nfilters() > 0
            written, whole = data.id.get_storage_size(), data.nbytes
        if not packed and written < whole:
            findings.warning(path, "betas", f"{written} of {whole} bytes were ever written; the rest reads as 0")
        return
    affines = [nibabel.load(name, mmap=False).affine for name in (path, mask)]
    if not np.allclose(*affines, atol=1e-3):
        findings.warning(path, "affine", f"differs from that of {mask.name}; expected volumes in the same place")


def _trials_per_session(findings: Findings, files: dict[int, Path], counts: dict[int, int], design: Design | None) -> int:
    """What most sessions hold; those that hold something else are reported."""
    if not counts:
        return PER_SESSION
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
    if usual != PER_SESSION:
        findings.note(files[min(counts)], "betas", f"NSD's sessions have {PER_SESSION} trials, these {usual}; taken as it is")
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
