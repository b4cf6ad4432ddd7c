"""What ``check`` looks at in the files of the public MindEye2 release."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from mindtuner.data import Stimuli, Trials
from mindtuner.data.dataset import CARD, count_repeats
from mindtuner.data.lazy import LazyArray, open_rows
from mindtuner.formats.checks.betas import check_betas
from mindtuner.formats.checks.findings import Findings, some
from mindtuner.formats.checks.parts import check_stimuli, check_trials
from mindtuner.formats.nsd_release import read as release

UNKNOWN = np.iinfo(np.int64).max


def check(root: Path, findings: Findings) -> None:
    """Report on the card, the stimuli, and each subject's betas, behaviour, indices and regions."""
    card = {"zscore": "publisher"}
    with findings.catching(root / CARD, "card"):
        card = release.load_card(root)
    findings.fact(root / CARD, f"zscore {card['zscore']}")
    images, captions, shared = _open_stimuli(root, findings)
    numbers = _subjects(root)
    if not numbers:
        findings.error(root, "subjects", "no subject; expected files betas_all_subj0N_fp32_renorm.hdf5")
    used = np.zeros(len(shared) if shared is not None else 0, bool)
    for number in numbers:
        trials = _check_subject(root, number, findings, images, shared, card.get("sessions", {}).get(str(number)))
        if trials is not None:
            used[trials.stimulus[(trials.stimulus >= 0) & (trials.stimulus < len(used))]] = True
    if images is not None:
        with findings.catching(root / release.IMAGES, "images"):
            count = images.shape[0]
            texts = [row.tolist() for row in captions] if captions is not None else [()] * count
            stimuli = Stimuli(images, texts, np.zeros(count, bool) if shared is None else shared, str(root / release.IMAGES))
            check_stimuli(
                findings,
                root / release.IMAGES,
                stimuli,
                [f"image {i}" for i in range(count)],
                used if len(used) == count else np.ones(count, bool),
            )
    findings.take_whole(lambda: release.load(root))


def _subjects(root: Path) -> list[int]:
    """All that have betas, or only behaviour."""
    names = [path.name for path in root.iterdir()] + [f"{path.name}/" for path in (root / "wds").glob("subj0*")]
    found = (re.fullmatch(r"betas_all_subj0(\d+)_fp32_renorm\.hdf5|subj0(\d+)/", name) for name in names)
    return sorted({int(match[1] or match[2]) for match in found if match})


def _open_stimuli(root: Path, findings: Findings) -> tuple[LazyArray | None, np.ndarray | None, np.ndarray | None]:
    """Images, captions and which images are shared; None for each that cannot be opened."""
    images, captions, shared = None, None, None
    with findings.catching(root / release.IMAGES, "images"):
        images = open_rows(root / release.IMAGES, "images", 4, ("float16", "float32"))
        findings.fact(root / release.IMAGES, f"{images.shape[0]} images, {images.dtype.name}")
    with findings.catching(root / release.SHARED, "shared images"):
        count = None if images is None else images.shape[0]
        shared = np.array(release.load_npy(root / release.SHARED, "b", (count,), "booleans"))
        findings.fact(root / release.SHARED, f"{shared.sum()} of {len(shared)} images are shared test images")
    count = images.shape[0] if images is not None else len(shared) if shared is not None else None
    if count is not None:
        with findings.catching(root / release.CAPTIONS, "captions"):
            shape = (count, release.CAPTIONS_PER_IMAGE)
            captions = release.load_npy(root / release.CAPTIONS, "U", shape, "fixed-width unicode captions")
    return images, captions, shared


def _check_subject(
    root: Path,
    number: int,
    findings: Findings,
    images: LazyArray | None,
    shared: np.ndarray | None,
    sessions: list[int] | None,
) -> Trials | None:
    """``sessions``: the training sessions that are there by the card; None where it lists none, so all should be."""
    path, betas = release.betas_path(root, number), None
    with findings.catching(path, "betas"):
        betas = open_rows(path, "betas", 2, ("float32",))
        findings.fact(path, f"{betas.shape[0]} trials x {betas.shape[1]} voxels, {betas.dtype.name}")
    limit = images.shape[0] if images is not None else len(shared) if shared is not None else UNKNOWN
    trials = _check_behaviour(root, number, findings, UNKNOWN if betas is None else betas.shape[0], limit, sessions)
    if trials is not None:
        folder = release.behaviour_folder(root, number)
        if shared is not None:
            check_trials(findings, folder, trials, shared, lambda i: f"image {i}")
        if betas is not None and len(trials) and trials.row[-1] < betas.shape[0]:
            with findings.catching(root / release.INDICES, f"subj0{number}"):
                shown = release.load_indices(root / release.INDICES, number, betas.shape[0])
                release.check_indices(root / release.INDICES, number, shown, trials)
    if betas is not None:
        session = np.zeros(betas.shape[0], np.int64)
        if trials is not None:
            session[trials.row] = trials.session
        check_betas(findings, path, betas, session, zscored=True)
        _check_regions(root, number, findings, betas.shape[1])
    return trials


def _check_behaviour(
    root: Path, number: int, findings: Findings, rows: int, images: int, sessions: list[int] | None
) -> Trials | None:
    """The trials of all tars that can be read, in the order of betas rows."""
    folder = release.behaviour_folder(root, number)
    stems = [path.stem for path in (folder / "train").glob("*.tar")]
    found = sorted(int(stem) for stem in stems if stem.isdecimal())
    if not found:
        findings.error(folder / "train", "behaviour", "no behaviour; expected 0.tar, 1.tar, ... one per session")
        return None
    expected = set(range(found[-1])) if sessions is None else {session - 1 for session in sessions}
    gaps = [f"{i}.tar" for i in sorted(expected - set(found))]
    if gaps:
        which = f"0.tar to {found[-1]}.tar, one per session" if sessions is None else f"all that {CARD} lists"
        findings.error(folder / "train", "session", f"{some(gaps)} missing; expected {which}")
    if sessions is not None:
        findings.note(
            folder / "train",
            "session",
            f"{len(sessions)} training sessions are there, as {CARD} says; the betas hold more",
        )
    tables, whole = [], not gaps and sessions is None
    paths = [(folder / "train" / f"{i}.tar", i + 1) for i in found] + [(folder / "new_test" / "0.tar", None)]
    for path, session in paths:
        before = len(tables)
        with findings.catching(path, "behaviour"):
            tables.append((release.load_behaviour(path, number, rows, images, session), session is None))
        whole &= len(tables) > before
    if not any(len(table) for table, _ in tables):
        return None
    table = np.concatenate([table for table, _ in tables])
    is_test = np.concatenate([np.full(len(table), test) for table, test in tables])
    order = np.argsort(table[:, release.ROW], kind="stable")
    table, is_test = table[order], is_test[order]
    _check_rows(findings, folder, table[:, release.ROW], rows if whole else None)
    _check_old(findings, folder, table, whole)
    repeat = count_repeats(table[:, release.STIMULUS])
    return Trials(table[:, release.ROW], table[:, release.STIMULUS], table[:, release.SESSION], repeat, is_test)


def _check_rows(findings: Findings, folder: Path, row: np.ndarray, rows: int | None) -> None:
    """Every betas row belongs to one trial; ``rows`` None: some trials could not be read."""
    twice = np.unique(row[1:][np.diff(row) == 0])
    if len(twice):
        findings.error(
            folder,
            "global trial",
            f"{len(twice)} betas rows belong to two trials: row {some(twice)}; expected one trial each",
        )
    if rows is not None and rows != UNKNOWN:
        missing = np.setdiff1d(np.arange(rows), row)
        if len(missing):
            findings.error(
                folder,
                "global trial",
                f"{len(missing)} of {rows} betas rows have no trial: row {some(missing)}; expected one each",
            )


def _check_old(findings: Findings, folder: Path, table: np.ndarray, whole: bool) -> None:
    """The behaviour says whether the subject had seen the image before; the trials must say so too."""
    said, counted = table[:, release.IS_OLD], count_repeats(table[:, release.STIMULUS]) > 0
    for value, wrong, what in (
        (1, ~counted, "are said to repeat an image that no earlier trial shows"),
        (0, counted, "are said to be the first of an image that an earlier trial shows"),
    ):
        rows = table[(said == value) & wrong, release.ROW]
        if whole and len(rows):
            findings.warning(folder, "is-old", f"{len(rows)} trials {what}: betas row {some(rows)}")


def _check_regions(root: Path, number: int, findings: Findings, voxels: int) -> None:
    path = root / release.MASKS
    with findings.catching(path, f"subj0{number}"):
        rois = release.load_rois(path, number, voxels)
        findings.fact(path, f"subj0{number}: " + ", ".join(f"{name} {mask.sum()}" for name, mask in rois.items()))
        if assumed := release.missing_rois(rois):
            findings.note(path, f"subj0{number}", assumed)
        for name, mask in rois.items():
            if not mask.any():
                findings.warning(path, f"subj0{number}/{name}", "holds no voxel")
