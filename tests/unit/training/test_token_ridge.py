"""The plain regression: scikit-learn's ridge on the tokens themselves, no base, and answers without a trial's image."""

import dataclasses

import numpy as np
import pytest
import torch
from linear_world import CONFIG, QUICK, TESTED, D, T, top1, world
from sklearn.linear_model import Ridge as PlainRidge

from mindtuner.data.splits import image_folds
from mindtuner.decoding.decoder import Decoder
from mindtuner.runtime import derive_seed
from mindtuner.training import load_network, pretrain, save_network, tune
from mindtuner.training.batches import make_feeds, training_trials
from mindtuner.training.ridge import FOLDS, PENALTIES
from mindtuner.training.token_ridge import principal, regress_tokens


@pytest.fixture(scope="module")
def quick():
    dataset, targets = world()
    return pretrain(dataset.without(subject=1), targets, QUICK, seed=0), dataset.subject(1), targets


def by_hand(x, y, images, seed):
    """scikit-learn's ridge on all T·D numbers, with the penalty of the least squared error over folds of images."""
    alphas = PENALTIES * np.square(x - x.mean(0)).sum(1).mean()
    xc, yc = x - x.mean(0), y - y.mean(0)
    folds = image_folds(images, FOLDS, derive_seed(seed, "folds"))
    errors = [
        sum(
            np.square(yc[out] - PlainRidge(alpha, fit_intercept=False).fit(xc[fit], yc[fit]).predict(xc[out])).mean()
            for fit, out in folds
        )
        for alpha in alphas
    ]
    return PlainRidge(alphas[int(np.argmin(errors))]).fit(x, y)


def test_it_is_the_cross_validated_ridge_on_all_tokens(quick):
    base, subject, targets = quick
    hour = subject.sessions(1)
    network = tune(base, hour, targets, QUICK, 4, "ridge")
    trials, voxels = hour.train, hour.betas(hour.train.row)
    tokens = targets.rows("tokens", trials.stimulus).numpy().reshape(len(trials), -1)
    theirs = by_hand(voxels.astype(float), tokens.astype(float), trials.stimulus, 4)
    asked = torch.from_numpy(subject.betas(subject.test.row))
    said = network(asked, "subj01")
    np.testing.assert_allclose(said.backbone_tokens.flatten(1), theirs.predict(asked.numpy()), atol=1e-4)
    assert said.retrieval_tokens is said.backbone_tokens and said.latents is None
    assert top1(network, subject, targets)[0] > 12 / TESTED


def test_nothing_of_the_base_counts_but_its_projector(quick):
    base, subject, targets = quick
    other = pretrain(dataclasses.replace(subject_world(), subjects={3: subject_world().subject(3)}), targets, QUICK, seed=9)
    ours, theirs = (tune(one, subject, targets, QUICK, 0, "ridge").state_dict() for one in (base, other))
    differ = {name for name in ours if not torch.equal(ours[name], theirs[name])}
    assert differ == {"projector.matrix.weight"}


def subject_world():
    return world()[0]


def test_a_shift_is_the_answer_of_a_fit_without_the_image(quick):
    base, subject, targets = quick
    hour = subject.sessions(1)
    feed = make_feeds({"subj01": hour}, {"subj01": training_trials(hour, len(targets))}, 0)[0]
    network = regress_tokens(base, feed, targets, 0)
    voxels, stimulus = hour.betas(feed.trials.row), feed.trials.stimulus
    fit, held = image_folds(stimulus, FOLDS, derive_seed(0, "folds"))[0]
    tokens = targets.rows("tokens", stimulus).numpy().reshape(len(stimulus), -1)
    x, y = voxels - voxels.mean(0), tokens - tokens.mean(0)
    errors = []
    for alpha in PENALTIES * np.square(x).sum(1).mean():  # the penalty is one of these
        without = PlainRidge(alpha, fit_intercept=False).fit(x[fit], y[fit]).predict(x[held]) + tokens.mean(0)
        said = network(torch.from_numpy(voxels[held]), "subj01", torch.from_numpy(feed.shift[held]))
        errors.append(np.abs(said.backbone_tokens.flatten(1).numpy() - without).max())
    assert min(errors) < 1e-3 < sorted(errors)[1]


def test_it_is_kept_whole_and_paints_from_what_it_says(quick, tmp_path):
    base, subject, targets = quick
    network = tune(base, subject, targets, CONFIG, 0, "ridge")
    save_network(tmp_path / "ridge.safetensors", network, {})
    again = load_network(tmp_path / "ridge.safetensors")
    betas, shown = subject.betas(subject.test.row), subject.test.stimulus
    said, kept = (Decoder(one, "subj01", CONFIG.decode, 0).predict(betas, shown) for one in (network, again))
    np.testing.assert_array_equal(said.backbone_tokens, kept.backbone_tokens)
    decoder = Decoder(again, "subj01", CONFIG.decode, 0)
    np.testing.assert_array_equal(decoder.image_tokens(said.backbone_tokens, said.images), said.backbone_tokens)


def test_one_image_is_answered_by_itself(quick):
    base, subject, targets = quick
    only = subject.trials.select(subject.trials.stimulus == subject.train.stimulus[0])
    network = tune(base, dataclasses.replace(subject, trials=only), targets, QUICK, 0, "ridge")
    said = network(torch.from_numpy(subject.betas(subject.test.row[:2])), "subj01").backbone_tokens
    np.testing.assert_allclose(said, targets.rows("tokens", only.stimulus[:1]).expand(2, T, D), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rows_are_their_principal_coordinates(dtype):
    """Also in single precision, where rounding must not pass for a direction."""
    rows = (np.random.default_rng(0).normal(size=(7, 300)) + 3).astype(dtype)
    mean, coordinates, directions = principal(rows)
    assert coordinates.shape == (7, 6) and directions.dtype == dtype
    close = 1e-10 if dtype is np.float64 else 1e-5
    np.testing.assert_allclose(mean + coordinates @ directions, rows, atol=close)
    np.testing.assert_allclose(directions @ directions.T, np.eye(6), atol=close)
    repeated = np.concatenate([rows, rows[:3]])
    assert principal(repeated)[1].shape == (10, 6)
