"""The wall between training and test, and folds within training.

A test trial is a trial of a shared image, and no other trial is. Folds part images, not trials.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mindtuner.errors import UserError

FOLD = "fold"  # in the card of a fold's dataset (``folds``), and of what was trained on it

if TYPE_CHECKING:
    from mindtuner.data.dataset import Trials


def check_no_leak(trials: Trials, is_shared: np.ndarray, where: str) -> None:
    """Refuse training trials of shared images, and test trials of images that are not shared.

    ``is_shared``: bool (N,), whether each stimulus is one of the shared (test) images. ``where`` names the
    file or subject in the message. Raises UserError naming the first offending trial.
    """
    stimulus = trials.stimulus
    outside = (stimulus < 0) | (stimulus >= len(is_shared))
    if outside.any():
        raise UserError(f"{where}: {_name(trials, outside)} is out of range; expected a stimulus in 0..{len(is_shared) - 1}")
    shared = np.asarray(is_shared, bool)[stimulus]
    leaked = shared & ~trials.is_test
    if leaked.any():
        raise UserError(
            f"{where}: {_name(trials, leaked)} shows a shared test image in training; "
            "expected shared images in test trials only"
        )
    foreign = ~shared & trials.is_test
    if foreign.any():
        raise UserError(
            f"{where}: {_name(trials, foreign)} is a test trial of an image that is not shared; "
            "expected shared images only in test trials"
        )


def _name(trials: Trials, offending: np.ndarray) -> str:
    first = int(np.flatnonzero(offending)[0])
    return f"trial of session {trials.session[first]}, row {trials.row[first]}, stimulus {trials.stimulus[first]}"


def split_of(card: dict) -> dict:
    """What a dataset's card says of its named split, for the cards of networks that are trained on it."""
    return {field: card[field] for field in ("dataset", "split", FOLD) if field in card}


def refuse_other_split(trained: dict, card: dict, where: object) -> None:
    """Raise UserError where a network was trained on another split of the dataset that ``card`` describes.

    ``trained`` is the card of the network, which ``where`` names. One that was trained on another dataset may go on.
    """
    if trained.get(FOLD) != card.get(FOLD):
        raise UserError(
            f"{where}: was trained on fold {trained.get(FOLD, 'none')}, and here the fold is {card.get(FOLD, 'none')}, whose "
            "test images it may know; expected the folder of all folds, with mindtuner evaluate"
        )
    same = "dataset" in card and trained.get("dataset") == card["dataset"]
    if same and trained.get("split") != card.get("split"):
        raise UserError(
            f"{where}: was trained on split {trained.get('split')} of {card['dataset']}; expected {card.get('split')}, the "
            "split of these data, whose test images it may know"
        )


def image_folds(images, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """``folds`` splits of rows into (fitted, left out), int64 positions.

    All rows of an image, by its id in images (n,), are on one side, and each row is left out once.

    Raises UserError for fewer images than folds.
    """
    images = np.asarray(images)
    distinct = np.unique(images)
    if len(distinct) < folds:
        raise UserError(f"images: {len(distinct)} to cross-validate over; expected at least {folds}")
    splits = []
    for out in np.array_split(np.random.default_rng(seed).permutation(distinct), folds):
        left = np.isin(images, out)
        splits.append((np.flatnonzero(~left), np.flatnonzero(left)))
    return splits
