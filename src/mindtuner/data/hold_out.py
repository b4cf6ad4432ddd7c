"""A category that no training sees: which images show it, by their captions."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mindtuner.data.words import WORD
from mindtuner.errors import UserError

if TYPE_CHECKING:
    from mindtuner.data.dataset import Dataset


def category_words(category: str) -> tuple[str, ...]:
    """The words of a category, in lower case: "Ice cream" -> ("ice", "cream"). Raises UserError where it has none."""
    words = tuple(re.findall(WORD, category.lower()))
    if not words:
        raise UserError(f"hold_out_category: is {category!r}; expected a word or more, such as dog")
    return words


def shows(captions: Iterable[str], category: str) -> bool:
    """Whether a caption names the category: its words, whole, one after another, the last of them maybe in the plural.

    The plural is that of rule: dogs, buses, ponies. A caption that says it with another word (puppy) does not count, and one
    that says the word of something else (hot dog) does.

    >>> shows(["Two dogs on a bus"], "dog"), shows(["a hotdog"], "dog"), shows(["ice creams"], "ice cream")
    (True, False, True)
    """
    *first, last = category_words(category)
    endings = {last, f"{last}s", f"{last}es", *([f"{last[:-1]}ies"] if last.endswith("y") else [])}
    for caption in captions:
        words = re.findall(WORD, caption.lower())
        for at in range(len(first), len(words)):
            if words[at] in endings and words[at - len(first) : at] == first:
                return True
    return False


def mask(captions: Sequence[Sequence[str]], category: str) -> np.ndarray:
    """Which images show the category, by all captions of each: bool (N,)."""
    return np.array([shows(own, category) for own in captions], bool)


def without_category(dataset: Dataset, category: str) -> Dataset:
    """``dataset`` without the training trials of images that show the category; test trials stay whole.

    Its stimuli know the category and which images show it, so that ``stimuli.training_images`` are the others.

    Raises UserError where no training image shows it, a subject keeps no training trial, or test images are not of both
    kinds: some that show it, some that do not.
    """
    name = " ".join(category_words(category))
    of_category, is_shared = mask(dataset.stimuli.captions, name), dataset.stimuli.is_shared
    if not (of_category & ~is_shared).any():
        raise UserError(
            f"hold_out_category: {name!r} is in no caption of a training image of {dataset.root}; expected a "
            f"word of its captions{_examples(dataset)}"
        )
    count, tests = int((of_category & is_shared).sum()), int(is_shared.sum())
    if not 0 < count < tests:
        raise UserError(
            f"hold_out_category: {name!r} is shown by {count} of the {tests} test images of {dataset.root}; "
            "expected some that show it and some that do not"
        )
    stimuli = copy.copy(dataset.stimuli)
    stimuli.category, stimuli.of_category = name, of_category
    subjects = {}
    for number, subject in dataset.subjects.items():
        trials = subject.trials.select(subject.trials.is_test | ~of_category[subject.trials.stimulus])
        if len(subject.train) and trials.is_test.all():
            raise UserError(
                f"hold_out_category: {name!r} is shown by all training images of subject {number} of "
                f"{dataset.root}; expected some that do not show it"
            )
        subjects[number] = dataclasses.replace(subject, trials=trials)
    return dataclasses.replace(dataset, subjects=subjects, stimuli=stimuli)


def _examples(dataset: Dataset) -> str:
    """The most frequent words of five letters or more in captions, for a message; nothing where there are none."""
    counts: dict[str, int] = {}
    for own in dataset.stimuli.captions:
        for word in set(re.findall(WORD, " ".join(own).lower())):
            if len(word) > 4:
                counts[word] = counts.get(word, 0) + 1
    most = sorted(counts, key=lambda word: (-counts[word], word))[:3]
    return f" such as {', '.join(most)}" if most else ""
