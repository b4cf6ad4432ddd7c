"""Cross-validation of one subject: datasets that share its trials, in each of which other images are the test images."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from mindtuner.data.dataset import Dataset, Trials
from mindtuner.data.pictures import Pictures
from mindtuner.data.splits import FOLD
from mindtuner.data.stimuli import Stimuli
from mindtuner.data.zscore import SessionZScored
from mindtuner.errors import UserError
from mindtuner.runtime import derive_seed

LEAVE = ("run", "session")
_FEWEST = 2  # test images of a fold: retrieval is among these


def folds_of(dataset: Dataset, number: int, by: int | str, seed: int) -> list[Dataset]:
    """Datasets in which each image that a subject saw is a test image once, and in training in all others.

    Training and test of the dataset itself do not count: all its trials are used. Betas are z-scored anew, session by
    session, by the training trials of each fold. Those that were z-scored by session before come out as if they had not been,
    since a z-score undoes any earlier shift and scale of a voxel in a session.

    Parameters
    ----------
    dataset : Dataset
    number : int
        Of the subject.
    by : int, "run" or "session"
        How many folds of images at random, those of each category spread over all folds where captions are categories
        (``categories``); or which images are left out together. Pictures that are equal stay together.
    seed : int
        Decides the folds of images.

    Returns
    -------
    list of Dataset
        Of that subject alone. The card's ``fold`` tells each.

    Raises
    ------
    UserError
        Where there are too few images, nobody knows the runs, or an image was shown in several.

    Examples
    --------
    >>> from pathlib import Path
    >>> from mindtuner.data import Stimuli, Subject
    >>> trials = Trials(range(6), range(6), [1] * 6, [0] * 6, [False] * 6, run=[1, 1, 2, 2, 3, 3])
    >>> nothing = np.zeros(6, bool)
    >>> subject = Subject(1, trials, {}, np.arange(12.0).reshape(6, 2), nothing, "memory")
    >>> stimuli = Stimuli(np.random.default_rng(0).random((6, 3, 224, 224), np.float32), [[]] * 6, nothing, "memory")
    >>> dataset = Dataset(Path("memory"), {1: subject}, stimuli, {"simulated": False, "zscore": "none"})
    >>> [fold.subject(1).test.stimulus.tolist() for fold in folds_of(dataset, 1, "run", seed=0)]
    [[0, 1], [2, 3], [4, 5]]
    """
    trials, where = dataset.subject(number).trials, f"subject {number}"
    images = np.unique(trials.stimulus)
    together = _equal_pictures(dataset.stimuli, images)
    if isinstance(by, str):
        groups = _left_out(trials, images, together, by, dataset.stimuli.names, where)
    else:
        groups = _at_random(images, together, by, dataset.stimuli, seed, where)
    return [_fold(dataset, number, name, tested) for name, tested in groups.items()]


def categories(captions: Sequence[Sequence[str]]) -> list[str] | None:
    """The category of each image where captions are categories: one for each image, each on two images or more.

    Parameters
    ----------
    captions : sequence of n sequences of str

    Returns
    -------
    list of n str, or None
        None where captions are something else, or all the same.

    Examples
    --------
    >>> categories([["face"], ["house"], ["face"], ["house"]])
    ['face', 'house', 'face', 'house']
    >>> categories([["a red bird"], ["a car on the beach"]]) is None
    True
    """
    if not captions or any(len(group) != 1 for group in captions):
        return None
    names = [group[0] for group in captions]
    counts = np.unique(names, return_counts=True)[1]
    return names if len(counts) > 1 and counts.min() > 1 else None


def _at_random(
    images: np.ndarray, together: np.ndarray, count: int, stimuli: Stimuli, seed: int, where: str
) -> dict[str, np.ndarray]:
    different = np.unique(together)
    if not 2 <= count <= len(different) // _FEWEST:
        raise UserError(
            f"folds: is {count}; expected 2 to {len(different) // _FEWEST}, as {where} saw {len(different)} images and each "
            f"fold tests {_FEWEST} at least"
        )
    order = np.random.default_rng(derive_seed(seed, "folds of images")).permutation(different)
    kinds = categories([stimuli.captions[int(image)] for image in order])
    if kinds is not None:
        order = order[np.argsort(kinds, kind="stable")]
    return {f"{k + 1} of {count}": images[np.isin(together, order[k::count])] for k in range(count)}


def _left_out(
    trials: Trials, images: np.ndarray, together: np.ndarray, by: str, names: Sequence[str], where: str
) -> dict[str, np.ndarray]:
    if by not in LEAVE:
        raise UserError(f"leave: is {by!r}; expected one of {', '.join(LEAVE)}")
    if by == "run" and (trials.run == 0).any():
        raise UserError(
            f"leave: is run, and {int((trials.run == 0).sum())} of {len(trials)} trials of {where} have none; expected a "
            "column run of 1, 2, ... in the table of trials"
        )
    keys = np.stack([trials.session, trials.run if by == "run" else np.zeros_like(trials.session)], 1)
    units, unit = np.unique(keys, axis=0, return_inverse=True)
    unit = unit.reshape(-1)
    kind = together[np.searchsorted(images, trials.stimulus)]
    for image in np.unique(kind):
        if len(np.unique(unit[kind == image])) > 1:
            raise UserError(
                f"leave: is {by}, and {names[image]} was shown in several; expected images of one {by} each, so that no test "
                "image is in training (folds of images split these)"
            )
    groups = {
        f"session {session}" + (f", run {run}" if by == "run" else ""): np.unique(trials.stimulus[unit == k])
        for k, (session, run) in enumerate(units)
    }
    small = [name for name, tested in groups.items() if len(tested) < _FEWEST]
    if len(groups) < 2 or small:
        found = f"{small[0]} has one image" if small else f"{where} has one {by}"
        raise UserError(f"leave: is {by}, and {found}; expected 2 at least, each of {_FEWEST} images at least")
    return groups


def _equal_pictures(stimuli: Stimuli, images: np.ndarray) -> np.ndarray:
    """For each of the images (n,) the first one of the same picture, also where that was stored again or scaled."""
    return images[Pictures.of(stimuli, images).first] if stimuli.pictured else images


def _fold(dataset: Dataset, number: int, name: str, tested: np.ndarray) -> Dataset:
    subject = dataset.subject(number)
    is_shared = np.zeros(len(dataset.stimuli), bool)
    is_shared[tested] = True
    trials = dataclasses.replace(subject.trials, is_test=is_shared[subject.trials.stimulus])
    session, training = np.zeros(subject.source.shape[0], np.int64), np.zeros(subject.source.shape[0], bool)
    session[trials.row], training[trials.row] = trials.session, ~trials.is_test
    source = SessionZScored(subject.source, session, training, subject.where)
    own = dataclasses.replace(subject, trials=trials, is_shared=is_shared, source=source, files=())
    card = {**dataset.card, "zscore": "train_trials", FOLD: name}
    return Dataset(dataset.root, {number: own}, dataset.stimuli.tested_on(is_shared), card)
