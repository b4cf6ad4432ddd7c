"""The closed-form start: ridges against scikit-learn, folds by image, and a planted world where the answer is known."""

import dataclasses

import numpy as np
import pytest
import torch
from linear_world import CONFIG, QUICK, top1, weights, world
from sklearn.linear_model import Ridge as PlainRidge

from mindtuner.config import FingerprintConfig
from mindtuner.data.splits import image_folds
from mindtuner.errors import UserError
from mindtuner.model.lora import LoRALinear
from mindtuner.runtime import derive_seed
from mindtuner.training import load_fingerprint, load_network, pretrain, save_fingerprint, save_network, tune
from mindtuner.training.batches import make_feeds, training_trials
from mindtuner.training.closed_form import fit_hidden, solve_ridge
from mindtuner.training.ridge import FOLDS, PENALTIES, FoldSums, ridge_regression, smoothing, voxel_regression

CLOSED = dataclasses.replace(CONFIG, tune=dataclasses.replace(CONFIG.tune, start="closed_form"))
ALONE = dataclasses.replace(CLOSED, tune=dataclasses.replace(CLOSED.tune, train_ridge=False, mixco_share=0))
ALONE = dataclasses.replace(ALONE, fingerprint=FingerprintConfig(lora=False, skip=False))
ONCE = dataclasses.replace(CLOSED, tune=dataclasses.replace(CLOSED.tune, epochs=1))  # every trial once


@pytest.fixture(scope="module")
def trained():
    dataset, targets = world()
    return pretrain(dataset.without(subject=1), targets, CONFIG, seed=0), dataset.subject(1), targets


def planted(rows, columns, seed=0, outputs=3):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, rows // 2, rows)
    x = rng.standard_normal((rows, columns))
    y = x @ rng.standard_normal((columns, outputs)) + 2 * rng.standard_normal((rows, outputs)) + 5
    return x, y, images


def folds_of(images, seed):
    return image_folds(images, FOLDS, derive_seed(seed, "folds"))


def by_hand(x, y, images, seed):
    """Penalty by the summed squared error over the same folds, one at a time, with scikit-learn's ridge."""
    alphas = PENALTIES * np.square(x - x.mean(0)).sum(1).mean()
    xc, yc = x - x.mean(0), y - y.mean(0)
    errors = [
        sum(
            np.square(yc[out] - xc[out] @ PlainRidge(alpha, fit_intercept=False).fit(xc[fit], yc[fit]).coef_.T).mean()
            for fit, out in folds_of(images, seed)
        )
        for alpha in alphas
    ]
    return PlainRidge(alphas[int(np.argmin(errors))]).fit(x, y)


@pytest.mark.parametrize("shape", [(40, 12), (24, 60)], ids=["more trials", "more voxels"])
@pytest.mark.parametrize("seed", range(3))
def test_it_is_the_cross_validated_ridge(shape, seed):
    x, y, images = planted(*shape, seed)
    ours, theirs = ridge_regression(x, y, images, seed), by_hand(x, y, images, seed)
    np.testing.assert_allclose(ours.weight.T, theirs.coef_, atol=1e-8)
    np.testing.assert_allclose(ours.intercept, theirs.intercept_, atol=1e-8)


@pytest.mark.parametrize("shape", [(40, 12), (24, 60)], ids=["more trials", "more voxels"])
@pytest.mark.parametrize("seed", range(3))
def test_sums_of_rows_tell_the_same_ridge(shape, seed):
    x, y, images = planted(*shape, seed)
    fold = np.zeros(len(x), int)
    for number, (_, held) in enumerate(folds_of(images, seed)):
        fold[held] = number
    sums = FoldSums(FOLDS, x.shape[1], y.shape[1])
    for some in np.array_split(np.random.default_rng(seed).permutation(len(x)), 7):
        sums.add(fold[some], x[some], y[some])
    theirs = by_hand(x, y, images, seed)
    weight, intercept = sums.ridge(PENALTIES)
    np.testing.assert_allclose(weight.T, theirs.coef_, atol=1e-8)
    np.testing.assert_allclose(intercept, theirs.intercept_, atol=1e-8)


def test_sums_of_a_single_fold_take_the_largest_penalty():
    x, y, _ = planted(20, 4)
    sums = FoldSums(1, 4, 3)
    sums.add(np.zeros(20, int), x, y)
    centred = x - x.mean(0)
    theirs = PlainRidge(PENALTIES[-1] * np.square(centred).sum(1).mean()).fit(x, y)
    np.testing.assert_allclose(sums.ridge(PENALTIES)[0].T, theirs.coef_, atol=1e-8)


@pytest.mark.parametrize("shape", [(40, 12), (24, 60)], ids=["more trials", "more voxels"])
def test_a_prediction_never_saw_its_image(shape):
    """Whatever an image's own rows say, what is predicted for them stays, but for the common mean."""
    x, y, images = planted(*shape)
    other = y.copy()
    own = images == images[0]
    other[own] += 100 * np.random.default_rng(1).standard_normal(other[own].shape)
    alphas = [ridge_regression(x, target - target.mean(0), images, 0) for target in (y, other)]
    folds = folds_of(images, 0)
    ((rows, held),) = [fold for fold in folds if own[fold[1]].any()]
    assert own[held].sum() == own.sum() and not own[rows].any()
    for fit, target in zip(alphas, (y, other), strict=True):
        again = PlainRidge(1.0, fit_intercept=False)
        centred, x_centred = target - target.mean(0), x - x.mean(0)
        found = [
            np.allclose(
                fit.predicted[held],
                x_centred[held] @ again.set_params(alpha=alpha).fit(x_centred[rows], centred[rows]).coef_.T,
                atol=1e-6,
            )
            for alpha in PENALTIES * np.square(x_centred).sum(1).mean()
        ]
        assert any(found)


def test_one_image_alone_gives_its_mean_and_few_have_as_many_folds():
    x, y, _ = planted(6, 4)
    fit = ridge_regression(x, y, np.zeros(6, int), 0)
    assert np.isfinite(fit.weight).all()
    np.testing.assert_allclose(fit.predicted, np.tile(y.mean(0), (6, 1)))
    assert np.isfinite(ridge_regression(x, y, np.arange(6) % 2, 0).predicted).all()


def test_the_base_learns_what_its_subjects_say_of_an_image(trained):
    """Of images that no subject's expectation was fitted to, the mean response over subjects and trials is explained."""
    base, _, targets = trained
    dataset, _ = world()
    held = np.flatnonzero(dataset.stimuli.is_shared)
    truth = np.zeros((len(held), CONFIG.model.hidden))
    spread = []
    for number in (2, 3, 4):
        subject = dataset.subject(number)
        with torch.no_grad():
            x0 = base.embed(torch.from_numpy(subject.betas(subject.test.row)), f"subj{number:02d}").numpy()
            spread.append(
                base.embed(torch.from_numpy(subject.betas(subject.train.row)), f"subj{number:02d}")
                .var(0, correction=0)
                .sum()
                .item()
            )
        for k, image in enumerate(held):
            truth[k] += x0[subject.test.stimulus == image].mean(0) / 3
    said = base.expectation(targets.rows("tokens", held), base.head.linear).detach().numpy()
    assert np.corrcoef((said - said.mean(0)).ravel(), (truth - truth.mean(0)).ravel())[0, 1] > 0.95
    assert float(base.expectation.spread) == pytest.approx(np.mean(spread), rel=1e-4)


def test_voxels_are_averaged_with_those_that_are_tuned_most_like_them():
    rng = np.random.default_rng(0)
    tuning, betas = rng.normal(size=(5, 300)), rng.normal(size=(7, 300)).astype(np.float32)  # more voxels than fit a chunk
    made = betas @ smoothing(tuning, 4)
    for voxel in (0, 17, 255, 256, 299):
        r = np.array([tuning[:, voxel] @ tuning[:, v] / np.linalg.norm(tuning[:, v]) for v in range(300)])
        r[voxel] = -np.inf
        nearest = sorted(range(300), key=lambda v: -r[v])[:4]
        np.testing.assert_allclose(made[:, voxel], (betas[:, voxel] + betas[:, nearest].mean(1)) / 2, rtol=1e-5, atol=1e-6)
    for few in (1, 2, 3):  # not more than there are, and a voxel that says nothing
        tuning = np.eye(4)[:, :few]
        assert (smoothing(tuning, 9).sum(0) > 0.4).all() and smoothing(np.zeros((4, 3)), 9).sum() == pytest.approx(3)


def test_alike_voxels_in_noise_are_worth_more_together():
    """200 noisy voxels of 20 kinds: fitted on 60 trials, the ridge that knows who is alike predicts new ones better."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(560, 12)).astype(np.float32)
    kinds = rng.normal(size=(12, 20)).repeat(10, axis=1)
    betas = (features @ kinds + 6 * rng.normal(size=(560, 200))).astype(np.float32)
    order = rng.permutation(200)
    betas, images, fitted = betas[:, order], np.arange(560), slice(60)
    errors = {}
    for similar in (0, 9):
        ridge = fit_hidden(features[fitted], betas[fitted], images[fitted], float(features.var(0).sum()), 0, similar)
        said = betas[60:] @ ridge.weight + ridge.bias
        errors[similar] = 1 - np.corrcoef(said.ravel(), features[60:].ravel())[0, 1]
    assert errors[9] < 0.9 * errors[0]


@pytest.mark.parametrize("features", (12, 90))  # fewer and more than trials
def test_weights_are_those_of_the_ridge_under_a_prior(features):
    """min ||y - x w||² + penalty w' P^-1 w with P = S S', in closed form; S from the tuning as it is."""
    rng = np.random.default_rng(2)
    y, images = rng.normal(size=(40, features)), np.arange(40)
    betas = y @ rng.normal(size=(features, 60)) + rng.normal(size=(40, 60))
    found = voxel_regression(betas, y, images, 0, 5)
    smooth = smoothing(ridge_regression(y, betas, images, 0).weight, 5).toarray().astype(np.float64)
    x, target = betas - betas.mean(0), y - y.mean(0)
    prior = smooth @ smooth.T
    alphas = PENALTIES * np.square(x @ smooth).sum(1).mean()
    fits = [prior @ x.T @ np.linalg.solve(x @ prior @ x.T + alpha * np.eye(40), target) for alpha in alphas]
    assert min(np.abs(fit - found.weight).max() for fit in fits) < 1e-6 * np.abs(found.weight).max()
    np.testing.assert_allclose(found.intercept, y.mean(0) - betas.mean(0) @ found.weight, atol=1e-10)


def test_the_start_alone_decodes_and_adapters_start_silent(trained):
    """Before a step of training the new subject is decoded nearly as well as after a whole cold tuning."""
    base, subject, targets = trained
    still = dataclasses.replace(
        CLOSED, tune=dataclasses.replace(CLOSED.tune, epochs=0, lr=0.0, weight_decay=0.0, ridge_weight_decay=0.0)
    )
    networks = {method: tune(base, subject, targets, still, 0, method) for method in ("mindtuner", "ridge_only")}
    betas = torch.from_numpy(subject.betas(subject.test.row))
    with torch.no_grad():
        outputs = [network(betas, "subj01").backbone_tokens for network in networks.values()]
    torch.testing.assert_close(*outputs)
    cold = tune(base, subject, targets, CONFIG, 0, "ridge_only")
    image, text = top1(networks["ridge_only"], subject, targets)
    assert image >= 0.9 * top1(cold, subject, targets)[0] and image > 20 / 40
    shuffled = tune(base, subject, targets, still, 0, "shuffled_brain")
    assert top1(shuffled, subject, targets)[0] < 0.2


def test_predicted_features_spread_as_the_base_is_used_to(trained):
    base, subject, targets = trained
    trials = training_trials(subject, len(targets))
    network = tune(
        base,
        subject,
        targets,
        dataclasses.replace(QUICK, tune=dataclasses.replace(QUICK.tune, start="closed_form")),
        0,
        "ridge_only",
    )
    [feed] = make_feeds({"subj01": subject}, {"subj01": trials}, 0)
    solve_ridge(network, base, feed, targets, 0)
    with torch.no_grad():
        x0 = network.embed(torch.from_numpy(feed.betas), "subj01")
    # Predictions for the trials it was fitted to vary a little more than cross-validated ones.
    assert 0.9 < float(x0.var(0, correction=0).sum() / base.expectation.spread) < 1.5


def test_shifts_are_what_ridges_without_the_image_say(trained):
    """Fold by fold with scikit-learn's ridge, of the penalty that was found over all of them."""
    base, subject, targets = trained
    name, trials = "subj01", training_trials(subject, len(targets))
    [feed] = make_feeds({name: subject}, {name: trials}, seed=0)
    network = tune(base, subject, targets, ALONE, 0)
    solve_ridge(network, base, feed, targets, seed=0)
    betas = subject.betas(trials.row).astype(np.float64)
    with torch.no_grad():
        expected = base.expectation(targets.rows("tokens", trials.stimulus), base.head.linear).numpy().astype(np.float64)
        inside = network.embed(torch.from_numpy(betas).float(), name).numpy()
    alpha = by_hand(betas, expected, trials.stimulus, 0).alpha
    outside = np.empty_like(expected)
    for fit, out in folds_of(trials.stimulus, 0):
        x, y = betas[fit] - betas.mean(0), expected[fit] - expected.mean(0)
        plain = PlainRidge(alpha, fit_intercept=False).fit(x, y)
        outside[out] = plain.predict(betas[out] - betas.mean(0)) + expected.mean(0)
    spread = float(base.expectation.spread)
    outside = expected.mean(0) + (spread / outside.var(0).sum()) ** 0.5 * (outside - expected.mean(0))
    np.testing.assert_allclose(inside + feed.shift, outside, atol=1e-3 * spread**0.5)
    error = [np.square(x0 - expected).mean() for x0 in (inside, inside + feed.shift)]
    assert error[0] < error[1]  # the ridge knows its own trials better


def test_adapters_alone_train_where_the_ridge_stays(trained):
    """With shifts and without; switched off, they leave the closed form alone."""
    base, subject, targets = trained
    alone = tune(base, subject, targets, ALONE, 0)
    for share in (0.0, 0.5, 1.0):
        fit = dataclasses.replace(
            ALONE.tune, epochs=2, cross_fitted=share, text_weight=1.0, prior_weight=0, lowlevel_weight=0
        )
        records = []
        config = dataclasses.replace(ALONE, tune=fit, fingerprint=FingerprintConfig(skip=False, rank=2, lora_blocks=False))
        network = tune(base, subject, targets, config, 0, log=records.append)
        assert set(records[-1]["losses"]) == {"clip", "regression", "text"}
        assert torch.equal(network.ridges["subj01"].weight, alone.ridges["subj01"].weight)
        assert not any(isinstance(part, LoRALinear) for part in network.blocks.modules())
        assert network.head.linear.B.abs().max() > 0
        said = network(torch.zeros(1, subject.n_voxels), "subj01").backbone_tokens
        network.head.linear.scale = 0.0
        off = network(torch.zeros(1, subject.n_voxels), "subj01").backbone_tokens
        assert torch.equal(off, alone(torch.zeros(1, subject.n_voxels), "subj01").backbone_tokens) and (off != said).any()


def test_a_tuned_network_knows_its_mean_answer(trained, tmp_path):
    base, subject, targets = trained
    network = tune(base, subject, targets, ONCE, 0)
    with torch.no_grad():
        said = network(torch.from_numpy(subject.betas(subject.train.row)), "subj01")
    for buffer, tokens in (
        (network.centre.backbone, said.backbone_tokens),
        (network.centre.retrieval, said.retrieval_tokens),
    ):
        torch.testing.assert_close(buffer, tokens.mean(0), atol=1e-4, rtol=1e-4)
    save_network(tmp_path / "whole.safetensors", network, {})
    save_fingerprint(tmp_path / "own.safetensors", network, subject, ONCE)
    for found in (
        load_network(tmp_path / "whole.safetensors"),
        load_fingerprint(tmp_path / "own.safetensors", base, subject),
    ):
        assert torch.equal(found.centre.retrieval, network.centre.retrieval)
    assert base.centre is None


def test_tokens_of_test_images_change_nothing(trained):
    base, subject, targets = trained
    first = tune(base, subject, targets, ONCE, 0, "ridge_only")
    changed = targets.tokens.copy()
    changed[subject.is_shared] = 0  # what test images look like
    second = tune(base, subject, dataclasses.replace(targets, tokens=changed), ONCE, 0, "ridge_only")
    assert all(torch.equal(a, b) for a, b in zip(weights(first).values(), weights(second).values(), strict=True))


def test_it_is_saved_with_the_base_and_asked_for_by_name(trained, tmp_path):
    base, subject, targets = trained
    save_network(tmp_path / "base.safetensors", base, {})
    again = load_network(tmp_path / "base.safetensors")
    assert torch.equal(again.expectation.matrix, base.expectation.matrix)
    one, other = (weights(tune(b, subject, targets, ONCE, 0, "mindtuner")) for b in (base, again))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    again.expectation = None
    save_network(tmp_path / "bare.safetensors", again, {})
    bare = load_network(tmp_path / "bare.safetensors")
    with pytest.raises(UserError, match="expected such a base, or start: random"):
        tune(bare, subject, targets, CLOSED, 0)
    tune(bare, subject, targets, QUICK, 0)
    with pytest.raises(ValueError, match="start is 'warm'; expected random or closed_form"):
        dataclasses.replace(CONFIG.tune, start="warm")
    with pytest.raises(ValueError, match="similar_voxels is -1; expected"):
        dataclasses.replace(CONFIG.tune, similar_voxels=-1)
    with pytest.raises(ValueError, match="pretrain.similar_voxels is 5; expected 0"):
        dataclasses.replace(CONFIG, pretrain=dataclasses.replace(CONFIG.pretrain, similar_voxels=5))
