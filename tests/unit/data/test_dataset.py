"""How a dataset and its parts print themselves: in a few lines, without reading betas or images."""

import dataclasses
import re

import numpy as np
import pytest

from mindtuner.data import Dataset, Stimuli, Subject, Trials
from mindtuner.data.zscore import SessionZScored
from mindtuner.errors import UserError


class Unread:
    """A shape that nothing may be read of."""

    def __init__(self, shape, dtype):
        self.shape, self.dtype = shape, np.dtype(dtype)

    def __getitem__(self, rows):
        raise AssertionError("read for printing")


@pytest.fixture
def trials():
    return Trials(
        range(6), [0, 1, 2, 0, 3, 2], [1, 1, 1, 3, 3, 3], [0, 0, 0, 1, 0, 1], [False, True, False, False, True, False]
    )


@pytest.fixture
def stimuli():
    return Stimuli(Unread((5, 3, 224, 224), np.float16), [()] * 5, np.array([False, True, False, True, False]), "memory")


def subject_of(trials, number=1, rois=2, vertices=None):
    masks = {f"R{i}": np.arange(7) < i for i in range(rois)}
    return Subject(number, trials, masks, Unread((6, 7), np.float32), np.zeros(5, bool), "memory", vertices)


def test_trials(trials):
    assert repr(trials).splitlines() == [
        "Trials: 6 in 2 sessions",
        "  training  4 trials of 2 images",
        "  test      2 trials of 2 images",
    ]
    assert repr(trials.select([1])).splitlines() == [
        "Trials: 1 in 1 session",
        "  training  none",
        "  test      1 trial of 1 image",
    ]


def test_subject(trials):
    assert repr(subject_of(trials)).splitlines() == [
        "Subject 1: 7 voxels, 6 trials in 2 sessions",
        "  training  4 trials of 2 images",
        "  test      2 trials of 2 images",
        "  regions   R0 0, R1 1",
    ]
    assert repr(subject_of(trials, rois=0)).splitlines()[-1] == "  regions   none"
    many = repr(subject_of(trials, rois=30, vertices=np.arange(7))).splitlines()
    assert many[-2].endswith("R7 7 and 22 more") and many[-1] == "  vertices  of the fsLR-32k surface"
    assert repr(subject_of(trials).sessions(1)).splitlines()[:2] == [
        "Subject 1: 7 voxels, 4 trials in 2 sessions",
        "  training  2 trials of 2 images",
    ]


def test_stimuli(stimuli):
    assert repr(stimuli) == "Stimuli: 5 images, float16, 2 shared (test), 3 for training"
    stimuli.category, stimuli.of_category = "dog", np.array([True, True, False, False, False])
    assert repr(stimuli) == "Stimuli: 5 images, float16, 2 shared (test), 2 for training, 'dog' held out"


def test_as_many_names_as_images():
    with pytest.raises(UserError, match="memory: 5 images but 2 names; expected as many"):
        Stimuli(Unread((5, 3, 224, 224), np.float16), [()] * 5, np.zeros(5, bool), "memory", ["a.png", "b.png"])


def test_dataset(trials, stimuli):
    subjects = {number: subject_of(trials, number) for number in (2, 101)}
    card = {"simulated": True, "zscore": "train_trials"}
    assert repr(Dataset("mine", subjects, stimuli, card)).splitlines() == [
        "Dataset mine: 2 simulated subjects, 5 images",
        "  subject 2   7 voxels, 2 sessions, 4 training trials, 2 test trials",
        "  subject 101 7 voxels, 2 sessions, 4 training trials, 2 test trials",
        "  regions     R0, R1",
        "  betas       z-scored by train_trials",
    ]
    one = repr(Dataset("mine", {2: subjects[2]}, stimuli, {"simulated": False, "zscore": "publisher"})).splitlines()
    assert one[0] == "Dataset mine: 1 subject, 5 images" and one[-1] == "  betas       z-scored by publisher"
    everybody = {number: subject_of(trials, number) for number in range(1, 94)}
    lines = repr(Dataset("mosaic", everybody, stimuli, card)).splitlines()
    assert len(lines) == 12 and lines[9] == "  and 85 more subjects"


def later(trials, stimuli):
    """A subject whose sessions are 21, 23 and, for tests alone, 24."""
    session = np.where(trials.session == 1, 21, 23)
    session[4] = 24
    return Subject(7, dataclasses.replace(trials, session=session), {}, Unread((6, 2), "f4"), stimuli.is_shared, "file")


def test_sessions_are_counted_whatever_their_numbers(trials, stimuli):
    subject = later(trials, stimuli)
    assert subject.training_sessions.tolist() == [21, 23]
    assert subject.sessions(1).train.row.tolist() == [0, 2] and subject.sessions(1).test.row.tolist() == [1, 4]
    for k in (2, "all"):
        assert subject.sessions(k).train.row.tolist() == [0, 2, 3, 5]


@pytest.mark.parametrize("k", [0, 3, "most", -1])
def test_how_many_sessions_there_are_is_said(trials, stimuli, k):
    says = f'sessions: is {k} for subject 7; expected 1 to 2, or "all": 2 of its 3 sessions hold training trials'
    with pytest.raises(UserError, match=re.escape(says)):
        later(trials, stimuli).sessions(k)


def test_a_subject_without_training_trials_has_no_sessions_to_train_on(trials, stimuli):
    subject = later(trials, stimuli)
    alone = dataclasses.replace(subject, trials=subject.test)
    for k in (1, "all"):
        with pytest.raises(UserError, match="expected training trials: 0 of its 2 sessions hold training trials"):
            alone.sessions(k)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38, -1e25, 1.1e6])
@pytest.mark.parametrize("zscored", [False, True])
def test_a_beta_that_is_no_measurement_is_refused_where_it_is_read(value, zscored):
    betas = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
    betas[7, 2] = value
    session, training = np.repeat([1, 2], 6), np.arange(12) % 3 > 0
    source = SessionZScored(betas, session, training, "a.npy") if zscored else betas
    trials = Trials(np.arange(12), np.arange(12), session, np.zeros(12), ~training)
    subject = Subject(1, trials, {}, source, ~training, "a.npy")
    assert np.isfinite(subject.betas(np.arange(6))).all()
    with pytest.raises(UserError, match="a.npy: betas row 7, voxel 2 is .*; expected a finite number of at most a million"):
        subject.betas([7])
