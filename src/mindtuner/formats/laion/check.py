"""What ``check`` looks at in LAION-fMRI: masks, regions, noise ceilings, trial tables, betas, pictures and splits."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np

from mindtuner.data import Stimuli
from mindtuner.data.lazy import Columns
from mindtuner.formats.checks.betas import Labels, check_betas
from mindtuner.formats.checks.findings import Findings, some
from mindtuner.formats.checks.parts import check_sizes, check_stimuli
from mindtuner.formats.image_files import FolderImages
from mindtuner.formats.laion import read as laion
from mindtuner.formats.laion.convert import DROPPED_AT_MOST, SPLITS, blocks_of, finite_and_varying, without_betas
from mindtuner.formats.laion.splits import read_split
from mindtuner.formats.nifti import say_mask


def check(root: Path, findings: Findings) -> None:
    """Report on everybody's files, on the pictures that trials show, and on splits where they lie in the folder."""
    people = laion.find_people(root)
    if not people:
        findings.error(root / laion.BETAS, "subjects", "no subject; expected folders sub-01 and so on")
    shown: set[str] = set()
    for person in people.values():
        labels = _check_person(findings, root, person)
        shown |= labels
    _check_pictures(findings, root, shown)
    for path in sorted((root / SPLITS).glob("**/*.json")):
        with findings.catching(path, "split"):
            split = read_split(path)
            findings.fact(path, f"split {split.name}: {len(split.train)} training and {len(split.test)} test images")
    findings.note(
        root,
        "format",
        "is converted before use, once for each split: mindtuner convert laion ROOT OUT --split NAME --split-files DIR",
    )


def _check_person(findings: Findings, root: Path, person: str) -> set[str]:
    """Report on one person; the labels of all trials that could be read."""
    labels: set[str] = set()
    mask = None
    with findings.catching(laion.mask_path(root, person), "mask"):
        mask, image = laion.read_mask(root, person, findings.mask_values)
        findings.fact(laion.mask_path(root, person), f"{mask.sum()} of {mask.size} voxels, {mask.shape}")
        if said := say_mask(laion.mask_path(root, person), findings.mask_values):
            chosen = "; to choose, --mask-values" if findings.mask_values is None else ""
            findings.note(laion.mask_path(root, person), "values", said + chosen)
    if mask is None:
        return labels
    with findings.catching(root / laion.ATLASES / person, "rois"):
        rois = laion.read_rois(root, person, image)
        sizes = ", ".join(f"{name} {(region & mask).sum()}" for name, region in rois.items())
        findings.fact(root / laion.ATLASES / person, f"regions: {sizes or 'none'}")
        for name, region in rois.items():
            if not (region & mask).any():
                findings.warning(root / laion.ATLASES / person, f"rois, {name}", "holds no voxel of the mask")
    for name, path in laion.find_ceilings(root, person).items():
        with findings.catching(path, "noise ceiling"):
            values = laion.read_ceiling(path, mask, image)
            findings.fact(path, f"{name}: median {np.median(values):.1f} %, highest {values.max():.1f} %")
            if 0 < values.max() <= 1:
                findings.warning(path, "noise ceiling", f"is at most {values.max():.2g}; expected percent, 0 to 100")
    usable, numbers = np.ones(int(mask.sum()), bool), []
    with findings.catching(root / laion.BETAS / person, "sessions"):
        for session in laion.find_sessions(root, person):
            numbers.append(session.number)
            own, found = _check_session(findings, session, mask, image)
            usable &= own
            labels |= found
        if absent := without_betas(root, person):
            findings.note(root / laion.BETAS / person, "sessions", f"{some(absent)} hold no betas and are passed over")
    findings.fact(root / laion.BETAS / person, f"{len(numbers)} sessions with betas, {len(labels)} images")
    if not usable.all():
        (findings.note if (~usable).mean() <= DROPPED_AT_MOST else findings.warning)(
            root / laion.BETAS / person,
            "betas",
            f"{(~usable).sum()} of {len(usable)} voxels lack a value in some trial or do not vary in some session: "
            f"{_places(mask, ~usable)} (X, Y, Z from 0); convert leaves them out",
        )
    return labels


def _places(mask: np.ndarray, which: np.ndarray) -> str:
    return some(tuple(map(int, place)) for place in np.argwhere(mask)[which])


def _check_session(
    findings: Findings, session: laion.Session, mask: np.ndarray, image: nibabel.Nifti1Image
) -> tuple[np.ndarray, set[str]]:
    """Report on one session; which voxels are finite and vary, bool (V,), and its labels."""
    usable, labels = np.ones(int(mask.sum()), bool), set()
    with findings.catching(session.betas, "betas"):
        betas = laion.open_session(session, mask, image)
        findings.fact(session.betas, f"betas: {betas.shape[0]} trials, {betas.stored}")
        with findings.catching(session.trials, "trials"):
            labels = {label for _, label in laion.read_trials(session, betas.shape[0])}
            findings.fact(session.trials, f"{betas.shape[0]} trials of {len(labels)} images")
        usable = finite_and_varying(blocks_of(betas))
        if not usable.any():
            findings.error(session.betas, "betas", "no voxel of the mask is finite and varies; expected betas")
            return usable, labels
        columns = np.flatnonzero(usable)
        places = np.argwhere(mask)[usable]
        at = Labels("volume {}".format, lambda i: f"voxel {tuple(map(int, places[i]))}")
        check_betas(findings, session.betas, Columns(betas, columns), None, zscored=False, labels=at)
    return usable, labels


def _check_pictures(findings: Findings, root: Path, shown: set[str]) -> None:
    """Pictures have terms of their own, so a folder may be without them; then nothing can be converted yet."""
    folder = root / laion.STIMULI
    missing = sorted(label for label in shown if not (folder / label).is_file())
    if missing:
        findings.warning(
            folder,
            "stimuli",
            f"lacks {len(missing)} of {len(shown)} pictures: {some(missing)}; convert needs all that a split names "
            "(mindtuner fetch laion --stimuli)",
        )
    if not folder.is_dir():
        return
    with findings.catching(folder, "stimuli"):
        images = FolderImages(folder)
        names = list(images.names)
        captions: list[tuple[str, ...]] = []
        for number in range(len(names)):
            captions.append(())
            with findings.catching(folder, "captions"):
                captions[-1] = images.captions(number)
        none = np.zeros(len(names), bool)  # which of them are test images is for the split to say
        used = np.array([name in shown for name in names], bool)
        check_stimuli(findings, folder, Stimuli(images, captions, none, str(folder)), names, used)
        check_sizes(findings, folder, [images.size(i) for i in range(len(names))])
