"""Test images that a network was trained on: found by their pixels and looks, refused, or left out."""

from __future__ import annotations

import dataclasses
import functools
import logging
from collections.abc import Mapping

import numpy as np

from mindtuner.data import Stimuli, Subject
from mindtuner.data.identity import Inputs, inputs_on
from mindtuner.data.pictures import TRAINED_ON, Pictures
from mindtuner.errors import UserError
from mindtuner.pipeline.subject import TunedSubject

NAMED = 3  # images that a message names
_logger = logging.getLogger(__name__)


def known_by(
    cards: Mapping[str, Mapping], stimuli: Stimuli, images: np.ndarray, pictures: Pictures | None
) -> dict[str, np.ndarray]:
    """By network, those of ``images``, ids (n,), that it was trained on: ids (k,), of those networks that know some.

    Parameters
    ----------
    cards : mapping of str to mapping
        Of the networks, by what to call each in messages. One that does not say what it was trained on is named in a warning.
    stimuli : Stimuli
    images : int64 (n,)
        Ids of stimuli.
    pictures : Pictures, optional
        Of all stimuli. Without them the images are read.
    """
    found: dict[str, np.ndarray] = {}
    if not stimuli.pictured:  # labels, which training and test share
        return found
    tested = Pictures.of(stimuli, images) if pictures is None else pictures.select(images)
    for name, card in cards.items():
        try:
            known = Pictures.from_card(card)
        except UserError as error:
            raise UserError(f"{name}: {error}") from error
        if known is None:
            _warn(name)
        elif (among := tested.among(known)).any():
            found[name] = images[among]
    return found


def cards_of(subject: TunedSubject) -> dict[str, Mapping]:
    """The cards of what a subject decodes by: its base's and its methods'. Methods that were tuned on the same count once."""
    cards: dict[str, Mapping] = {f"base {subject.base.where}": subject.base.card}
    seen = [subject.base.card.get(TRAINED_ON)]
    for method, card in subject.cards.items():
        if card.get(TRAINED_ON) not in seen or TRAINED_ON not in card:
            cards[str(subject.files.get(method, method))] = card
            seen.append(card.get(TRAINED_ON))
    return cards


def to_leave_out(
    subject: TunedSubject, stimuli: Stimuli, tested: np.ndarray, pictures: Pictures | None, leave_out: bool
) -> np.ndarray:
    """Those of the images ``tested``, ids (n,), that the subject or its base was trained on: ids (k,).

    Raises UserError where there are some, and ``leave_out`` is not given; and where no test image would be left.
    """
    found = known_by(cards_of(subject), stimuli, tested, pictures)
    known = np.unique(np.concatenate([np.zeros(0, np.int64), *found.values()]))
    if len(known) and (len(known) == len(tested) or not leave_out):
        less = "" if len(known) == len(tested) else ", or `leave_out_known` to go on without them"
        raise UserError(f"{_said(found, tested, stimuli)}; expected images that no training saw{less}")
    if len(known):
        _logger.warning("%s; they are left out", _said(found, tested, stimuli))
    return known


def refuse_known(cards: Mapping[str, Mapping], stimuli: Stimuli, tested: np.ndarray, pictures: Pictures | None) -> None:
    """Raise UserError where a network was trained on some of the images ``tested``. Parameters are as in ``known_by``."""
    if found := known_by(cards, stimuli, tested, pictures):
        raise UserError(f"{_said(found, tested, stimuli)}; expected images that no training saw")


def _said(found: Mapping[str, np.ndarray], tested: np.ndarray, stimuli: Stimuli) -> str:
    known = np.unique(np.concatenate(list(found.values())))
    names = ", ".join(stimuli.names[k] for k in known[:NAMED]) + (" and others" if len(known) > NAMED else "")
    return (
        f"{stimuli.where}: {len(known)} of {len(tested)} test images ({names}) were trained on, as they are or stored "
        f"otherwise, by {' and '.join(found)}"
    )


def without_tests(subject: Subject, images: np.ndarray) -> Subject:
    """The subject without the test trials of these images."""
    trials = subject.trials
    return dataclasses.replace(subject, trials=trials.select(~(trials.is_test & np.isin(trials.stimulus, images))))


def refuse_other_trials(subject: TunedSubject, inputs: Inputs) -> None:
    """Raise UserError where ``inputs``, the training trials of a dataset, are not those that the subject was tuned on."""
    before = inputs_on(subject.card, _where(subject))
    own = {field: found for field, found in before.items() if field.endswith(f" of subject {subject.number}")}
    if (field := inputs.changed(own)) is not None:
        raise UserError(
            f"{inputs.files[field]}: {field} changed since {_where(subject)} was tuned (there {own[field]}, now "
            f"{inputs.hashes[field]}); expected the trials that it was tuned on, or one that was tuned on these"
        )


def _where(subject: TunedSubject) -> object:
    method = next(iter(subject.cards))
    return subject.files.get(method, subject.base.where if subject.base.knows(subject.number) else "the subject")


@functools.cache
def _warn(name: str) -> None:
    """Said once."""
    _logger.warning("%s: does not say what it was trained on; whether test images are among that cannot be checked", name)
