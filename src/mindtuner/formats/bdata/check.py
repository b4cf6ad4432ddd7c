"""What ``check`` looks at in a folder of BData."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mindtuner.data.dataset import CARD
from mindtuner.errors import UserError
from mindtuner.formats.bdata import read
from mindtuner.formats.bdata.read import Choice, Names, Part
from mindtuner.formats.checks.betas import check_betas
from mindtuner.formats.checks.findings import Findings, some
from mindtuner.formats.checks.parts import check_trials
from mindtuner.formats.image_files import FolderImages, Hdf5Images
from mindtuner.formats.lab_folder.check import check_images, check_numbers, describe_card
from mindtuner.formats.lab_folder.read import load_card, open_images
from mindtuner.formats.nifti import JoinedSessions


def check(root: Path, findings: Findings) -> None:
    """Report on the card, each file's columns, labels and betas, and the stimuli."""
    card, choice = {"zscore": "none", "subject_offset": 0}, Choice()
    with findings.catching(root / CARD, "card"):
        card = load_card(root)
        choice = read.choose(root, card)
    describe_card(findings, root, card)
    images: FolderImages | Hdf5Images | None = None
    names: Names | None = None
    with findings.catching(root, "stimuli"):
        images = open_images(root, card)
        names = Names(root, images)
    with findings.catching(root, "subjects"):
        numbers = read.numbers_of(root, card)
        findings.fact(root, f"subjects {', '.join(f'{number} ({name})' for number, name in numbers.items())}")
        check_numbers(findings, root, card, list(numbers.values()))
    shown: dict[str, set[int]] = {"train": set(), "test": set()}
    with findings.catching(root, "files"):
        for paths in read.people_of(root).values():
            _check_subject(findings, paths, choice, names, shown, card)
    if images is not None:
        is_shared, trained = (np.isin(np.arange(images.shape[0]), list(shown[split])) for split in ("test", "train"))
        check_images(findings, root, images, is_shared, is_shared | trained)
    findings.take_whole(lambda: read.load(root))


def _check_subject(
    findings: Findings, paths: list[Path], choice: Choice, names: Names | None, shown: dict[str, set[int]], card: dict
) -> None:
    parts: list[Part] = []
    for path in paths:
        with findings.catching(path, "file"):
            parts.append(Part(path, choice))
            _describe(findings, parts[-1], choice)
            _check_labels(findings, parts[-1], names, shown)
    if len(parts) < len(paths) or not parts:
        return
    with findings.catching(paths[0], "voxels"):
        read.check_same_voxels(parts)
        betas = JoinedSessions([part.betas() for part in parts])
        check_betas(findings, paths[0], betas, read.sessions_of(parts), zscored=card["zscore"] != "none")
    if names is not None:
        try:
            trials = read.trials_of(parts, names)
        except UserError:
            return  # reported above, label by label
        is_shared = np.zeros(len(names), bool)
        is_shared[trials.stimulus[trials.is_test]] = True
        check_trials(findings, paths[0], trials, is_shared, lambda number: repr(names.name(number)))


def _describe(findings: Findings, part: Part, choice: Choice) -> None:
    rows = read.used(part)
    train, test = (int((rows & (np.array(part.split) == split)).sum()) for split in ("train", "test"))
    findings.fact(
        part.path,
        f"{len(part)} samples, {train} training, {test} test; {part.columns.sum()} voxels ({part.voxels})",
    )
    findings.fact(
        part.path, "regions: " + (", ".join(f"{name} {mask.sum()}" for name, mask in part.rois().items()) or "none")
    )
    if choice.label is None:
        findings.note(part.path, "label", f"{part.label} says which picture was shown; to choose, bdata of {CARD}")
    if not rows.all():
        findings.note(
            part.path, part.label, f"{int((~rows).sum())} samples have no label, or are neither training nor test: unused"
        )
    if choice.session is None and read.SESSION not in part.file.keys:
        findings.note(part.path, "session", f"no metadata is called {read.SESSION}: the file is one session")


def _check_labels(findings: Findings, part: Part, names: Names | None, shown: dict[str, set[int]]) -> None:
    if names is None:
        return
    wrong: dict[str, str] = {}
    own: dict[str, set[int]] = {"train": set(), "test": set()}
    for row in np.flatnonzero(read.used(part)):
        try:
            own[part.split[row]].add(names.find(part.labels[row], part.label))
        except UserError as error:
            wrong.setdefault(str(error), f"row {row}, {part.label}")
    findings.errors(part.path, [(where, message) for message, where in wrong.items()])
    for split, found in own.items():
        shown[split] |= found
    both = own["train"] & shown["test"] | own["test"] & shown["train"]
    if both:
        findings.error(
            part.path, "split", f"{some(map(names.name, sorted(both)))} are in training and test; expected one of them"
        )
