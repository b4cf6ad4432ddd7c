"""Where pretraining starts: against exact decompositions, scikit-learn's ridge, and a world whose answer is known."""

import dataclasses

import numpy as np
import pytest
import torch
from linear_world import CONFIG, SMALL, D, T, same, top1, weights, world
from sklearn.linear_model import Ridge as PlainRidge

from mindtuner.data.splits import image_folds
from mindtuner.model import BrainNetwork
from mindtuner.runtime import derive_seed, seed_everything
from mindtuner.training import Targets, pretrain, tune
from mindtuner.training.batches import training_trials
from mindtuner.training.first_weights import FOLDS, JUDGED, cross_fitted_ridge, principal_head, start_in_closed_form
from mindtuner.training.ridge import PENALTIES

STARTED = dataclasses.replace(CONFIG, pretrain=dataclasses.replace(CONFIG.pretrain, start="closed_form"))


def targets_of(tokens):
    zeros = np.zeros((len(tokens), 1), np.float32)
    return Targets(tokens.reshape(len(tokens), T, D).astype(np.float32), zeros)


def network_of(hidden=32, **voxels):
    seed_everything(0)
    return BrainNetwork(dataclasses.replace(CONFIG.model, hidden=hidden), voxels)


def test_the_head_holds_the_directions_of_most_variance():
    """Those of an exact decomposition, where their variances are well apart."""
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((48, 16)) * 0.4 ** np.arange(16) @ np.linalg.qr(rng.standard_normal((T * D, 16)))[0].T + 3
    network = network_of(hidden=6)
    assert principal_head(network, targets_of(tokens), np.arange(48), seed=0) == 6
    head, centred = network.head.linear, tokens - tokens.mean(0)
    exact = np.linalg.svd(centred, full_matrices=False)[2][:6]
    cosines = np.abs(np.sum(exact * head.weight.detach().numpy().T, axis=1))
    np.testing.assert_allclose(cosines, 1, atol=1e-3)
    np.testing.assert_allclose(head.weight.T.detach() @ head.weight.detach(), np.eye(6), atol=1e-5)
    np.testing.assert_allclose(head.bias.detach(), tokens.mean(0), atol=1e-5)


@pytest.mark.parametrize("images", [1, 5, 100], ids=["one image", "fewer images than features", "fewer directions"])
def test_what_the_tokens_do_not_fill_is_not_read(images):
    rng = np.random.default_rng(0)
    tokens = rng.standard_normal((images, 8)) @ rng.standard_normal((8, T * D))
    network = network_of()
    rank = principal_head(network, targets_of(tokens), np.arange(images), seed=0)
    assert rank == max(1, min(8, images - 1))
    directions = network.head.linear.weight.detach().numpy()[:, :rank]
    centred = tokens - tokens.mean(0)
    np.testing.assert_allclose(centred @ directions @ directions.T, centred, atol=1e-3)
    assert not network.head.linear.weight[:, rank:].any()


@pytest.mark.parametrize("shape", [(60, 12), (30, 80)], ids=["more trials", "more voxels"])
@pytest.mark.parametrize("noise", [0.1, 30.0])
def test_the_ridge_is_the_plain_one_with_the_penalty_of_a_held_out_third(shape, noise):
    rng = np.random.default_rng(0)
    images = rng.integers(0, shape[0] // 2, shape[0])
    x = rng.standard_normal(shape) + 1
    y = x @ rng.standard_normal((shape[1], JUDGED + 3)) + noise * rng.standard_normal((shape[0], JUDGED + 3)) + 5
    fit = cross_fitted_ridge(torch.from_numpy(x), torch.from_numpy(y), images, seed=0)
    folds = image_folds(images, FOLDS, derive_seed(0, "first ridges"))
    rows, held = folds[0]

    def plain(some, penalty, columns):
        scale = np.square(x[some] - x[some].mean(0)).sum(1).mean()
        return PlainRidge(penalty * scale).fit(x[some], y[some][:, :columns])

    errors = [np.square(plain(rows, one, JUDGED).predict(x[held]) - y[held][:, :JUDGED]).sum() for one in PENALTIES]
    assert fit.penalty == PENALTIES[int(np.argmin(errors))]
    theirs = plain(np.arange(len(x)), fit.penalty, None)
    np.testing.assert_allclose(fit.weight.T, theirs.coef_, atol=1e-7)
    np.testing.assert_allclose(fit.intercept, theirs.intercept_, atol=1e-7)
    for rows, held in folds:
        np.testing.assert_allclose(fit.predicted[held], plain(rows, fit.penalty, None).predict(x[held]), atol=1e-7)


def test_a_single_image_has_nothing_to_be_judged_by():
    x, y = torch.randn(4, 3), torch.randn(4, 2)
    fit = cross_fitted_ridge(x, y, np.zeros(4, int), seed=0)
    assert fit.penalty == PENALTIES[-1] and torch.allclose(fit.predicted, y.double().mean(0).expand(4, 2))


def test_where_brains_are_linear_nothing_is_left_to_train():
    """Tokens of test images, which nothing was fitted to, from betas without noise, before any step."""
    dataset, targets = world(noise=0.0)
    network = network_of(**{f"subj{n:02d}": s.n_voxels for n, s in dataset.subjects.items()}).eval()
    trials = {f"subj{n:02d}": training_trials(s, len(targets)) for n, s in dataset.subjects.items()}
    start_in_closed_form(network, {f"subj{n:02d}": s for n, s in dataset.subjects.items()}, trials, targets, seed=0)
    for number, subject in dataset.subjects.items():
        test = subject.test
        with torch.no_grad():
            x0 = network.embed(torch.from_numpy(subject.betas(test.row)), f"subj{number:02d}")
            said = network.decode_hidden(x0).backbone_tokens
        wanted = targets.rows("tokens", test.stimulus)
        assert (said - wanted).square().mean() < 1e-3 * wanted.square().mean()


def test_a_few_steps_from_there_are_worth_many_from_random_weights():
    dataset, targets = world(noise=1.0)
    few = dataclasses.replace(CONFIG.pretrain, epochs=2)
    others = dataset.without(subject=1)
    found = {
        start: pretrain(others, targets, dataclasses.replace(CONFIG, pretrain=dataclasses.replace(few, start=start)), seed=0)
        for start in ("random", "closed_form")
    }
    image = {start: np.mean([top1(base, s, targets)[0] for s in others.subjects.values()]) for start, base in found.items()}
    assert image["closed_form"] > image["random"] + 0.1, image


def test_no_test_trial_is_read():
    dataset, targets = world()
    pretrain(dataset.without(subject=1), targets, STARTED, seed=0)
    for number in (2, 3, 4):
        subject = dataset.subject(number)
        assert subject.source.seen <= set(subject.train.row.tolist())


def test_from_scratch_starts_as_pretraining_does():
    dataset, targets = world(noise=1.0)
    once = dataclasses.replace(STARTED.pretrain, epochs=4)
    base = pretrain(dataset.without(subject=1), targets, dataclasses.replace(STARTED, pretrain=once), seed=0)
    image = {}
    for start in ("random", "closed_form"):
        config = dataclasses.replace(STARTED, pretrain=dataclasses.replace(once, start=start))
        tuned = tune(base, dataset.subject(1), targets, config, 0, "from_scratch")
        image[start] = top1(tuned, dataset.subject(1), targets)[0]
    assert image["closed_form"] > image["random"] + 0.1, image


def test_what_goes_on_from_a_checkpoint_ends_the_same(tmp_path):
    dataset, targets = world(0, 3)
    config = dataclasses.replace(SMALL, pretrain=dataclasses.replace(SMALL.pretrain, start="closed_form"))
    others = dataset.without(subject=1)
    whole = pretrain(others, targets, config, 3, holdout=0.2)

    class Stop(Exception):
        pass

    def stop(entry):
        if entry["stage"] == "pretrain":
            raise Stop

    with pytest.raises(Stop):
        pretrain(others, targets, config, 3, stop, holdout=0.2, checkpoint=tmp_path / "checkpoint")
    again = pretrain(others, targets, config, 3, lambda entry: None, holdout=0.2, checkpoint=tmp_path / "checkpoint")
    assert same(weights(again), weights(whole))
