"""Folds of one subject: who is tested when, what betas are z-scored by, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mindtuner.data import Dataset, Stimuli, Subject, Trials
from mindtuner.data.folds import categories, folds_of
from mindtuner.data.zscore import zscore
from mindtuner.errors import UserError

VOXELS = 5


class Distinct:
    """Images of one colour each, made when they are asked for; ``same`` gives an image the colour of another."""

    def __init__(self, count, same=()):
        self.shape, self.dtype = (count, 3, 224, 224), np.dtype(np.float16)
        self.colour = np.arange(count) / 256
        for one, other in same:
            self.colour[one] = self.colour[other]

    def __getitem__(self, ids):
        return np.broadcast_to(self.colour[ids, None, None, None], (len(ids), *self.shape[1:])).astype(np.float16)


def world(images=12, repeats=2, sessions=2, captions=None, same=(), run=None, betas=None, seed=0):
    """Each image so often, in random order; image 3 is a test image of the dataset itself."""
    rng = np.random.default_rng(seed)
    stimulus = rng.permutation(np.repeat(np.arange(images), repeats))
    n = len(stimulus)
    session = np.sort(np.arange(n) % sessions) + 1
    shared = np.arange(images) == 3
    trials = Trials(np.arange(n), stimulus, session, np.zeros(n), shared[stimulus], [] if run is None else run)
    if betas is None:
        betas = (rng.normal(size=(n, VOXELS)) * session[:, None] + 10 * session[:, None]).astype(np.float32)
    subject = Subject(1, trials, {}, betas, shared, "memory")
    stimuli = Stimuli(Distinct(images, same), captions or [[]] * images, shared, "memory")
    return Dataset(Path("memory"), {1: subject}, stimuli, {"simulated": False, "zscore": "none"})


@settings(deadline=None, max_examples=25)
@given(st.integers(4, 15), st.integers(1, 3), st.integers(2, 5), st.integers(0, 9))
def test_each_image_is_tested_once_and_is_in_no_training_of_its_fold(images, repeats, folds, seed):
    dataset = world(images, repeats)
    folds = min(folds, images // 2)
    parts = folds_of(dataset, 1, folds, seed)
    tested = [set(part.subject(1).test.stimulus.tolist()) for part in parts]
    assert sorted(image for one in tested for image in one) == list(range(images))
    assert max(map(len, tested)) - min(map(len, tested)) <= 1
    for part, own in zip(parts, tested, strict=True):
        subject = part.subject(1)
        assert own.isdisjoint(subject.train.stimulus.tolist()) and own.isdisjoint(part.stimuli.training_images.tolist())
        assert len(subject.train) + len(subject.test) == images * repeats
        assert own == set(np.flatnonzero(part.stimuli.is_shared).tolist())


def test_betas_are_z_scored_by_the_training_trials_of_the_fold_alone():
    dataset = world(24, 2)
    raw = np.asarray(dataset.subject(1).source, np.float64)
    for part in folds_of(dataset, 1, 3, 0):
        subject = part.subject(1)
        trials = subject.trials
        expected = zscore(raw, trials.session, ~trials.is_test)
        np.testing.assert_allclose(subject.betas(trials.row), expected, atol=1e-5)
        elsewhere = raw.copy()
        elsewhere[trials.is_test] += 100  # what test trials hold is nothing to training
        other = [one for one in folds_of(world(24, 2, betas=elsewhere), 1, 3, 0) if one.card["fold"] == part.card["fold"]][0]
        np.testing.assert_allclose(other.subject(1).betas(subject.train.row), subject.betas(subject.train.row), atol=1e-4)
        assert part.card["zscore"] == "train_trials"


def test_an_earlier_z_score_by_session_leaves_nothing_behind():
    dataset = world(24, 2)
    raw, session = np.asarray(dataset.subject(1).source, np.float64), dataset.subject(1).trials.session
    before = np.empty_like(raw)
    for number in np.unique(session):  # of all trials, test trials too
        before[session == number] = (raw[session == number] - raw[session == number].mean(0)) / raw[session == number].std(0)
    for plain, scored in zip(folds_of(dataset, 1, 4, 1), folds_of(world(24, 2, betas=before), 1, 4, 1), strict=True):
        rows = plain.subject(1).trials.row
        np.testing.assert_allclose(plain.subject(1).betas(rows), scored.subject(1).betas(rows), atol=1e-4)


def test_equal_pictures_stay_together():
    same = [(1, 0), (2, 0), (7, 6)]
    for seed in range(10):
        for part in folds_of(world(12, same=same), 1, 3, seed):
            shared = part.stimuli.is_shared
            assert all(shared[one] == shared[other] for one, other in same)


def test_images_of_each_category_are_spread_over_the_folds():
    captions = [["cat"]] * 6 + [["dog"]] * 6
    for part in folds_of(world(12, captions=captions), 1, 3, 0):
        assert part.stimuli.is_shared[:6].sum() == 2 == part.stimuli.is_shared[6:].sum()


def test_each_run_is_left_out_where_images_are_of_one_run():
    dataset = world(12, 1, sessions=2, run=np.tile(np.repeat([1, 2, 3], 2), 2))
    trials = dataset.subject(1).trials
    parts = folds_of(dataset, 1, "run", 0)
    assert [part.card["fold"] for part in parts] == [f"session {s}, run {r}" for s in (1, 2) for r in (1, 2, 3)]
    for part, (session, run) in zip(parts, [(s, r) for s in (1, 2) for r in (1, 2, 3)], strict=True):
        np.testing.assert_array_equal(part.subject(1).trials.is_test, (trials.session == session) & (trials.run == run))
    assert [part.card["fold"] for part in folds_of(dataset, 1, "session", 0)] == ["session 1", "session 2"]


@pytest.mark.parametrize(
    ("change", "by", "says"),
    [
        ({}, 1, r"folds: is 1; expected 2 to 6, as subject 1 saw 12 images"),
        ({}, 7, r"folds: is 7; expected 2 to 6"),
        ({"same": [(1, 0), (3, 2)]}, 6, r"folds: is 6; expected 2 to 5, as subject 1 saw 10 images"),
        ({}, "day", r"leave: is 'day'; expected one of run, session"),
        ({}, "run", r"leave: is run, and 24 of 24 trials of subject 1 have none; expected a column run"),
        ({"sessions": 2}, "session", r"leave: is session, and image \d+ was shown in several"),
        ({"repeats": 1, "sessions": 1}, "session", r"leave: is session, and subject 1 has one session; expected 2"),
        ({"repeats": 1, "run": [1] * 6 + [2] + [3] * 5, "sessions": 1}, "run", r"session 1, run 2 has one image"),
        ({"repeats": 1, "sessions": 2, "same": [(k, 0) for k in range(1, 12)]}, "session", r"image 0 was shown in several"),
    ],
)
def test_what_cannot_be_left_out_is_one_line(change, by, says):
    with pytest.raises(UserError, match=says) as error:
        folds_of(world(**change), 1, by, 0)
    assert "\n" not in str(error.value) and "expected" in str(error.value)


def test_captions_are_categories_where_each_image_has_one_that_others_have_too():
    assert categories([["a"], ["b"], ["a"], ["b"]]) == ["a", "b", "a", "b"]
    for other in ([["a"], ["a"]], [["a"], ["b"], ["a"]], [["a", "b"], ["a"], ["b"], ["b"]], [[], ["a"], ["a"]], []):
        assert categories(other) is None
