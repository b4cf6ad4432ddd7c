"""Test images that a base or a subject was trained on are refused by name, or left out where that is asked for."""

import dataclasses
import logging
from types import SimpleNamespace

import numpy as np
import pytest

from mindtuner.data import Stimuli, Subject, Trials
from mindtuner.data.pictures import Pictures
from mindtuner.errors import UserError
from mindtuner.pipeline import known
from mindtuner.pipeline.known import refuse_known, to_leave_out, without_tests


@pytest.fixture(scope="module")
def stimuli():
    """Eight pictures of noise, the last four of them shared."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 224, 224)) / np.float16(255)
    names = [f"{k}.png" for k in range(8)]
    return Stimuli(pixels.astype(np.float16), [["a thing"]] * 8, np.arange(8) >= 4, "stimuli", names)


@pytest.fixture(scope="module")
def pictures(stimuli):
    return Pictures.of(stimuli, np.arange(8))


def tuned(pictures, of_base, of_subject):
    """A subject whose base and whose one method were trained on these images; None for cards that do not say."""
    card = lambda images: {} if images is None else {"trained_on": pictures.on_card(np.array(images, int))}
    base = SimpleNamespace(card=card(of_base), where="base.safetensors")
    cards = {"mindtuner": card(of_subject), "ridge": card(of_subject)}
    return SimpleNamespace(base=base, cards=cards, files={"mindtuner": "tuned.safetensors", "ridge": "ridge.safetensors"})


TESTED = np.arange(4, 8)


def test_nothing_is_left_out_where_nothing_is_known(stimuli, pictures):
    assert to_leave_out(tuned(pictures, [0, 1], [2]), stimuli, TESTED, pictures, False).size == 0


@pytest.mark.parametrize("looked_at", [True, False])
@pytest.mark.parametrize("who", ["base", "subject", "both"])
def test_what_the_base_or_the_subject_knows_is_refused_or_left_out(stimuli, pictures, who, looked_at, caplog):
    seen = {"base": ([0, 5], [1]), "subject": ([0], [1, 5]), "both": ([5, 6], [5])}[who]
    images = [5, 6] if who == "both" else [5]
    one, given = tuned(pictures, *seen), pictures if looked_at else None
    by = {"base": "by base base.safetensors", "subject": "by tuned.safetensors"}
    by["both"] = "by base base.safetensors and tuned.safetensors"  # of methods that know the same, one
    names = ", ".join(f"{k}.png" for k in images)
    said = rf"stimuli: {len(images)} of 4 test images \({names}\) were trained on, as they are or stored otherwise, {by[who]}"
    with pytest.raises(UserError, match=said + "; expected images that no training saw, or `leave_out_known` to go on"):
        to_leave_out(one, stimuli, TESTED, given, False)
    with caplog.at_level(logging.WARNING, "mindtuner"):
        assert to_leave_out(one, stimuli, TESTED, given, True).tolist() == images
    assert "they are left out" in caplog.text


def test_all_cannot_be_left_out(stimuli, pictures):
    with pytest.raises(UserError, match="4 of 4 test images .* and others.* that no training saw$"):
        to_leave_out(tuned(pictures, TESTED, [0]), stimuli, TESTED, pictures, True)
    with pytest.raises(UserError, match="1 of 4 test images"):
        refuse_known({"base": {"trained_on": pictures.on_card(np.array([7]))}}, stimuli, TESTED, pictures)


def test_what_does_not_say_is_told_once(stimuli, pictures, caplog):
    known._warn.cache_clear()
    with caplog.at_level(logging.WARNING, "mindtuner"):
        for _ in range(2):
            assert to_leave_out(tuned(pictures, None, [0]), stimuli, TESTED, pictures, False).size == 0
    assert caplog.text.count("base base.safetensors: does not say what it was trained on") == 1


def test_test_trials_alone_are_taken_away(stimuli):
    trials = Trials(np.arange(4), [0, 4, 5, 5], [1, 1, 1, 2], [0, 0, 0, 1], [False, True, True, True])
    subject = Subject(1, trials, {}, np.zeros((4, 2), np.float32), stimuli.is_shared, "memory")
    assert without_tests(subject, np.array([5, 0])).trials.row.tolist() == [0, 1]
    assert dataclasses.asdict(without_tests(subject, np.zeros(0, int)).trials)["row"].tolist() == [0, 1, 2, 3]
