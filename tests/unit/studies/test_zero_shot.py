"""A ridge for a subject without tuning data, in worlds where the hidden features that it should give are known."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mindtuner.data import Subject, Trials
from mindtuner.errors import UserError
from mindtuner.studies import zero_shot

HIDDEN, REGIONS, IMAGES, REPEATS = 5, 6, 80, 4
RNG = np.random.default_rng(0)
SEEN = RNG.standard_normal((IMAGES, REGIONS)) * 3 + RNG.standard_exponential((IMAGES, REGIONS)) * np.arange(REGIONS)
TRUE = SEEN @ RNG.standard_normal((REGIONS, HIDDEN))  # x0 of each image, alike in all brains


def person(number, mixing, noise=0.1, rois=None, shared=None):
    """A subject who saw every image REPEATS times; its betas are SEEN @ mixing (REGIONS, V), and noise."""
    rng = np.random.default_rng(number)
    stimulus = np.tile(np.arange(IMAGES), REPEATS)
    betas = (SEEN @ mixing)[stimulus] + noise * rng.standard_normal((len(stimulus), mixing.shape[1]))
    rows, zeros = np.arange(len(stimulus)), np.zeros(len(stimulus), int)
    shared = np.zeros(IMAGES, bool) if shared is None else shared
    trials = Trials(rows, stimulus, zeros + 1, np.repeat(np.arange(REPEATS), IMAGES), shared[stimulus])
    return Subject(number, trials, rois or {}, betas.astype(np.float32), shared, f"subject {number}")


def base_of(weights):
    """A base whose subjects' voxels give TRUE by these weights {number: (V, HIDDEN)}."""
    ridges = {}
    for number, weight in weights.items():
        ridges[f"subj{number:02d}"] = ridge = torch.nn.Linear(len(weight), HIDDEN)
        ridge.weight.data, ridge.bias.data = torch.from_numpy(weight.T).float(), torch.zeros(HIDDEN)
    return SimpleNamespace(
        config=SimpleNamespace(hidden=HIDDEN),
        ridges=ridges,
        expectation=SimpleNamespace(spread=torch.tensor(TRUE.var(0).sum())),
    )


def agreement(ridge, subject, images=None):
    """Correlation of x0 with the truth, over trials and features, each around its mean."""
    trials = subject.trials if images is None else zero_shot.of_images(subject.trials, images)
    x0, true = subject.betas(trials.row) @ ridge.weight + ridge.bias, TRUE[trials.stimulus]
    return np.corrcoef((x0 - x0.mean(0)).ravel(), (true - true.mean(0)).ravel())[0, 1]


def in_regions(number, sizes):
    """A subject whose regions respond as one each, its region of each voxel, and the weights that then give TRUE."""
    region = np.repeat(np.arange(REGIONS), sizes)
    rois = {f"R{k}": region == k for k in range(REGIONS)}
    mixing = (region == np.arange(REGIONS)[:, None]).astype(float)
    to_hidden = np.linalg.lstsq(SEEN, TRUE, rcond=None)[0]
    return person(number, mixing, rois=rois), region, to_hidden[region] / np.array(sizes)[region][:, None]


@pytest.fixture(scope="module")
def regions():
    subjects, weights = {}, {}
    for number, sizes in ((1, [4, 9, 3, 12, 6, 5]), (2, [8, 3, 10, 4, 4, 7]), (3, [3, 6, 5, 9, 11, 4])):
        subjects[number], _, weights[number] = in_regions(number, sizes)
    return subjects, base_of({number: weights[number] for number in (2, 3)})


def mixed_up(subject):
    order = np.random.default_rng(1).permutation(subject.n_voxels)
    return Subject(
        subject.number,
        subject.trials,
        {name: mask[order] for name, mask in subject.rois.items()},
        subject.source,
        subject.is_shared,
        subject.where,
    )


@pytest.mark.parametrize("way", ["by_regions", "by_connectome"])
def test_regions_that_respond_alike_are_read_alike(regions, way):
    subjects, base = regions
    others, betas = {number: subjects[number] for number in (2, 3)}, subjects[1].betas(subjects[1].trials.row)

    def found(subject):
        seed = (0,) if way == "by_connectome" else ()
        return getattr(zero_shot, way)(base, others, subject, betas, *seed)

    ridge = found(subjects[1])
    assert agreement(ridge, subjects[1]) > 0.99
    x0 = betas @ ridge.weight + ridge.bias
    assert x0.var(0).sum() == pytest.approx(float(base.expectation.spread), rel=1e-3)  # what the base is used to
    assert agreement(found(mixed_up(subjects[1])), subjects[1]) < 0.8


def test_shared_images_give_the_ridge_of_the_others():
    rng = np.random.default_rng(2)
    shared = np.ones(IMAGES, bool)
    mixings = {number: rng.standard_normal((REGIONS, 20 + number)) for number in (1, 2, 3)}
    subjects = {number: person(number, mixing, shared=shared) for number, mixing in mixings.items()}
    weights = {number: np.linalg.pinv(mixings[number]) @ np.linalg.lstsq(SEEN, TRUE, rcond=None)[0] for number in (2, 3)}
    others = {number: subjects[number] for number in (2, 3)}
    used, asked = np.arange(0, IMAGES, 2), np.arange(1, IMAGES, 2)
    ridge = zero_shot.by_shared_images(base_of(weights), others, subjects[1], used, 0)
    assert agreement(ridge, subjects[1], asked) > 0.99
    order = np.random.default_rng(3).permutation(len(subjects[1].trials.row))
    t = subjects[1].trials
    mixed = Trials(t.row[order], t.stimulus, t.session, t.repeat, t.is_test)
    shuffled = Subject(1, mixed, {}, subjects[1].source, shared, "x")
    assert abs(agreement(zero_shot.by_shared_images(base_of(weights), others, shuffled, used, 0), subjects[1], asked)) < 0.5


def test_what_cannot_be_aligned_is_refused(regions):
    subjects, base = regions
    betas = subjects[1].betas(subjects[1].trials.row)
    strange = dataclasses.replace(subjects[1], rois={"other": subjects[1].rois["R0"]}, where="x")
    others = {2: subjects[2]}
    with pytest.raises(UserError, match="x: regions are no region, other; expected one that another subject has"):
        zero_shot.by_regions(base, others, strange, betas)
    with pytest.raises(UserError, match="expected one in common"):
        zero_shot.by_connectome(base, others, strange, betas, 0)
    with pytest.raises(UserError, match="images: 0 is not a shared image"):
        zero_shot.by_shared_images(base, others, subjects[1], np.array([0]), 0)
    with pytest.raises(UserError, match="base: has no ridge of subj01; expected one of subj02, subj03"):
        zero_shot.ridge_weight(base, 1)
