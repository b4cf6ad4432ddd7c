"""The checks of trials and stimuli, which are alike in all formats."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from mindtuner.data import Stimuli, Trials
from mindtuner.data.pictures import NEAR, differing, look
from mindtuner.errors import UserError
from mindtuner.formats.checks.findings import Findings, some
from mindtuner.formats.image_files import SIDE
from mindtuner.runtime import progress


def check_trials(
    findings: Findings, path: Path, trials: Trials, is_shared: np.ndarray, name_of: Callable[[int], str]
) -> None:
    """Report sessions that are missing or uneven, how often images were seen, and leaks; and what there is, as a fact."""
    train, test = trials.select(~trials.is_test), trials.select(trials.is_test)
    numbers, counts = np.unique(trials.session, return_counts=True)
    if len(numbers):
        lengths = str(counts[0]) if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
        findings.fact(path, f"{len(numbers)} sessions of {lengths} trials")
        gaps = sorted(set(range(1, int(numbers[-1]) + 1)) - set(numbers.tolist()))
        if gaps:
            findings.warning(path, "session", f"session {some(gaps)} missing between 1 and {numbers[-1]}")
    for part, what in ((train, "training"), (test, "test")):
        _, seen = np.unique(part.stimulus, return_counts=True)
        findings.fact(
            path, f"{len(part)} {what} trials of {len(seen)} images" + (f", each seen {_spread(seen)}" if len(seen) else "")
        )
        if len(seen) and seen.min() < seen.max():
            often = "; ".join(f"{(seen == k).sum()} images {k} times" for k in np.unique(seen))
            findings.note(
                path, "repeat", f"{what} images were seen unequally often ({often}); averages over trials take what there is"
            )
    if len(train) == 0:
        findings.warning(path, "split", "no training trial: nothing can be tuned on this subject")
    if len(test) == 0:
        findings.warning(path, "split", "no test trial: nothing can be scored on this subject")
    inside = (trials.stimulus >= 0) & (trials.stimulus < len(is_shared))
    shared = np.zeros(len(trials), bool)
    shared[inside] = is_shared[trials.stimulus[inside]]
    for wrong, message in (
        (shared & ~trials.is_test, "training trials show a shared test image"),
        (~shared & trials.is_test & inside, "test trials show an image that is not shared"),
    ):
        if wrong.any():
            names = some(name_of(i) for i in np.unique(trials.stimulus[wrong]))
            findings.error(
                path,
                "split",
                f"{wrong.sum()} {message}: {names} (first in betas row "
                f"{trials.row[wrong][0]}); expected shared images in test trials, and only them",
            )


def _spread(seen: np.ndarray) -> str:
    return f"{seen.min()} times" if seen.min() == seen.max() else f"{seen.min()} to {seen.max()} times"


def check_stimuli(findings: Findings, path: Path, stimuli: Stimuli, names: Sequence[str], used: np.ndarray) -> None:
    """Read all images; report those that cannot be read, are blank, or equal another, and missing captions.

    ``used``: bool (N,), shown in some trial.
    """
    check_pictures(findings, path, lambda number: stimuli.images([number])[0], names, stimuli.is_shared, used)
    check_captions(findings, path, stimuli.captions, names)


def check_pictures(
    findings: Findings,
    path: Path,
    read: Callable[[int], np.ndarray],
    names: Sequence[str],
    is_shared: np.ndarray,
    used: np.ndarray,
) -> None:
    """The images of ``check_stimuli``; ``read(number)`` is the pixels of one, in any form."""
    alike: dict[bytes, list[int]] = {}  # by pixels
    hashes: dict[int, np.ndarray] = {}  # of those shown that have more than one colour
    errors, blank = [], []
    for number in progress(range(len(names)), f"{findings.name(path)}", unit="image"):
        try:
            image = read(number)
        except UserError as error:
            errors.append(error)
            continue
        alike.setdefault(hashlib.blake2b(image.tobytes(), digest_size=16).digest(), []).append(number)
        if image.min() == image.max():
            blank.append(names[number])
        elif used[number]:
            hashes[number] = look(image)
    for error in errors[:10]:
        with findings.catching(path, "images"):
            raise error
    if len(errors) > 10:
        findings.error(path, "images", f"{len(errors) - 10} further images cannot be read")
    if blank:
        findings.warning(path, "images", f"{len(blank)} images have one colour: {some(blank)}")
    leaks, twins = _twins(alike.values(), is_shared & used, ~is_shared & used)
    told = lambda pairs, sign: some(f"{names[number]} {sign} {names[other]}" for number, other in pairs)
    if leaks:
        (findings.warning if findings.allow_twins else findings.error)(
            path,
            "images",
            f"{len(leaks)} test images have the same pixels as a training image: {told(leaks, '=')}; scores on them are too "
            "high (leave one of the two out, or give both to one split)",
        )
    if twins:
        findings.warning(path, "images", f"{len(twins)} images have the same pixels as another: {told(twins, '=')}")
    near = _near_twins(hashes, is_shared, {number for number, _ in leaks})
    if near:
        findings.warning(
            path,
            "images",
            f"{len(near)} test images look like a training image: {told(near, '~')}; one picture, stored or scaled twice? "
            "scores on it are then too high",
        )
    if not used.all():
        findings.note(path, "images", f"{(~used).sum()} of {len(names)} images are shown in no trial")


def _twins(
    groups: Iterable[list[int]], tested: np.ndarray, trained: np.ndarray
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Of groups of images with the same pixels: (test image, training image); and (image, first one) of all other groups."""
    leaks, twins = [], []
    for group in groups:
        training = [number for number in group if trained[number]]
        own = [(number, training[0]) for number in group if tested[number] and training]
        leaks += own
        twins += [(number, group[0]) for number in group[1:]] if not own else []
    return leaks, twins


def _near_twins(hashes: dict[int, np.ndarray], is_shared: np.ndarray, known: set[int]) -> list[tuple[int, int]]:
    """(test image, most similar training image) of those whose hashes nearly agree, without the ``known`` test images."""
    training = np.array([number for number in hashes if not is_shared[number]], np.int64)
    if len(training) == 0:
        return []
    bits = np.packbits([hashes[number] for number in training], axis=1)
    near = []
    for number, own in hashes.items():
        if is_shared[number] and number not in known:
            distance = differing(np.packbits(own), bits)
            if distance.min() <= NEAR:
                near.append((number, int(training[distance.argmin()])))
    return near


def check_captions(findings: Findings, path: Path, captions: Sequence[Sequence[str]], names: Sequence[str]) -> None:
    """Report the images without a caption."""
    without = [names[i] for i, texts in enumerate(captions) if not texts]
    total = sum(map(len, captions))
    findings.fact(path, f"{len(captions)} images, {len(captions) - len(without)} with captions ({total} in all)")
    if len(without) == len(captions):
        findings.note(
            path,
            "captions",
            "no image has a caption: a subject can be tuned, but no base pretrained (its "
            "projector learns from captions) and no words scored",
        )
    elif without:
        findings.warning(
            path,
            "captions",
            f"{len(without)} of {len(captions)} images have no caption: {some(without)}; they are left out where words count",
        )


def check_sizes(findings: Findings, path: Path, sizes: Sequence[tuple[int, int]]) -> None:
    """Say what happens to pictures, (width, height) each, that are not square or smaller than needed."""
    cropped, small = sum(w != h for w, h in sizes), sum(min(size) < SIDE for size in sizes)
    if cropped:
        findings.note(path, "images", f"{cropped} images are not square: their central square is used")
    if small:
        findings.note(path, "images", f"{small} images have a side below {SIDE} pixels and are enlarged")
