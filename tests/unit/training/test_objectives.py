"""The losses against closed forms, plain loops and scipy."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta, kstest, pearsonr

from mindtuner.training import objectives as o


def rows(n, d, seed):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def test_bimixco_at_lambda_one_is_infonce():
    p, z, n = rows(6, 5, 0), rows(6, 5, 1), 6
    scores = F.normalize(p, dim=1) @ F.normalize(z, dim=1).T / 0.05
    infonce = 0.5 * (F.cross_entropy(scores, torch.arange(n)) + F.cross_entropy(scores.T, torch.arange(n)))
    mixed = o.bimixco(p, z, torch.roll(torch.arange(n), 1), torch.ones(n), tau=0.05)
    torch.testing.assert_close(mixed, infonce)


def test_bimixco_against_plain_loops():
    n, tau = 5, 0.1
    p, z = rows(n, 4, 2).double(), rows(n, 4, 3).double()
    partner, lam = [3, 1, 0, 4, 2], [0.2, 0.7, 1.0, 0.9, 0.5]
    s = np.array([[float(F.cosine_similarity(a, b, dim=0)) / tau for b in z] for a in p])
    total = 0.0
    for i in range(n):
        for weight, j in ((lam[i], i), (1 - lam[i], partner[i])):
            forth = s[i, j] - math.log(sum(math.exp(s[i, k]) for k in range(n)))
            back = s[i, j] - math.log(sum(math.exp(s[k, j]) for k in range(n)))
            total -= weight * (forth + back)
    got = o.bimixco(p, z, torch.tensor(partner), torch.tensor(lam), tau=tau)
    assert got.item() == pytest.approx(total / (2 * n), rel=1e-5)


def test_a_trial_mixed_with_itself_has_target_one():
    p, z = rows(4, 3, 4), rows(4, 3, 5)
    own = torch.arange(4)
    torch.testing.assert_close(
        o.bimixco(p, z, own, torch.full((4,), 0.3), tau=0.1), o.bimixco(p, z, own, torch.ones(4), tau=0.1)
    )


def test_bimixco_finds_both_copies_of_an_image_equally_right():
    z, p, lam = rows(4, 6, 6), rows(4, 6, 7), torch.tensor([0.4, 1.0, 1.0, 0.7])
    z[2] = z[0]
    here = o.bimixco(p, z, torch.tensor([3, 1, 0, 2]), lam, tau=0.1)
    there = o.bimixco(p, z, torch.tensor([3, 1, 2, 0]), lam, tau=0.1)
    torch.testing.assert_close(here, there)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), seed=st.integers(0, 2**31))
def test_half_of_the_trials_are_mixed_with_a_trial_of_the_same_batch(n, seed):
    partner, lam = o.draw_mixco(n, np.random.default_rng(seed))
    assert sorted(partner) == list(range(n))
    assert ((lam >= 0) & (lam <= 1)).all()
    assert (lam == 1).sum() >= n - n // 2


def test_lambda_follows_the_beta_distribution():
    _, lam = o.draw_mixco(4000, np.random.default_rng(0))
    # float32 rounds the extreme draws onto 0 and 1 exactly; kstest sees ties there, hence the middle only.
    middle = np.sort(lam[(lam > 0.01) & (lam < 0.99)])
    low, high = beta.cdf([0.01, 0.99], 0.15, 0.15)
    assert kstest(middle, lambda x: (beta.cdf(x, 0.15, 0.15) - low) / (high - low)).pvalue > 0.01
    assert abs(len(middle) / 2000 - (high - low)) < 0.05


def test_mix_by_hand():
    voxels = torch.tensor([[0.0, 8.0], [4.0, 0.0]])
    mixed = o.mix(voxels, torch.tensor([1, 0]), torch.tensor([0.75, 1.0]))
    torch.testing.assert_close(mixed, torch.tensor([[1.0, 6.0], [4.0, 0.0]]))


def test_soft_clip_against_plain_loops():
    n, tau = 5, 0.3
    p, z = rows(n, 4, 8).double(), rows(n, 4, 9).double()
    cos = lambda a, b: float(F.cosine_similarity(a, b, dim=0)) / tau
    total = 0.0
    for i in range(n):
        q = np.exp([cos(z[i], z[j]) for j in range(n)])
        q /= q.sum()
        for scores in ([cos(p[i], z[j]) for j in range(n)], [cos(p[j], z[i]) for j in range(n)]):
            total -= float(np.sum(q * (np.array(scores) - np.log(np.sum(np.exp(scores))))))
    assert o.soft_clip(p, z, tau).item() == pytest.approx(total / (2 * n), rel=1e-5)


def test_soft_clip_treats_two_copies_of_an_image_alike():
    z = rows(3, 8, 10)
    z = torch.cat([z, z[:1]])
    p = rows(4, 8, 11)
    exchanged = p[[3, 1, 2, 0]]
    torch.testing.assert_close(o.soft_clip(p, z, 0.1), o.soft_clip(exchanged, z, 0.1))


def test_soft_clip_tau_runs_from_004_to_0075():
    assert o.soft_clip_tau(0) == pytest.approx(0.004)
    assert o.soft_clip_tau(1) == pytest.approx(0.0075)
    assert o.soft_clip_tau(0.5) == pytest.approx(0.00575)
    assert o.soft_clip_tau(0.1) < o.soft_clip_tau(0.2)


def test_soft_contrastive_against_each_position_apart():
    n, positions, tau = 4, 3, 0.2
    p, f, a = (torch.randn(n, positions, 5, generator=torch.Generator().manual_seed(s)) for s in (12, 13, 14))
    total = 0.0
    for k in range(positions):
        pk, fk, ak = (F.normalize(x[:, k], dim=1) for x in (p, f, a))
        for student, teacher in ((pk @ ak.T, fk @ ak.T), (ak @ pk.T, ak @ fk.T)):
            total -= ((teacher / tau).softmax(1) * (student / tau).log_softmax(1)).sum(1).mean() / 2
    torch.testing.assert_close(o.soft_contrastive(p, f, a), total / positions)


def test_l_skip_is_the_absolute_pearson_correlation():
    linear, skip = rows(3, 50, 15), rows(3, 50, 16)
    other = [(rows(3, 20, 17), -2 * rows(3, 20, 17) + rows(3, 20, 18))]
    expected = [
        np.mean([abs(pearsonr(a.numpy(), b.numpy()).statistic) for a, b in zip(x, s)]) for x, s in [(linear, skip), *other]
    ]
    assert o.l_skip([(linear, skip), *other]).item() == pytest.approx(np.mean(expected), rel=1e-4)


def test_l_skip_gradient_reaches_the_skip_side_only():
    linear, skip = rows(4, 30, 19).requires_grad_(), rows(4, 30, 20).requires_grad_()
    o.l_skip([(linear, skip)]).backward()
    assert linear.grad is None
    assert skip.grad.norm() > 0.01


@pytest.mark.parametrize("scale", [0.0, 1e-12, 1e-6, 1e-3])
def test_l_skip_is_small_and_finite_at_the_zero_start(scale):
    linear, skip = rows(4, 30, 21), (scale * rows(4, 30, 22)).requires_grad_()
    loss = o.l_skip([(linear, skip)])
    loss.backward()
    assert 0 <= loss.item() <= 100 * scale
    # d/ds of cov(x, s) / (.01 sd_x^2) has norm below 100 / (sd_x sqrt(d)) a sample.
    assert torch.isfinite(skip.grad).all() and skip.grad.norm() < 100


def test_l_skip_of_constant_features_is_finite():
    skip = rows(2, 10, 23).requires_grad_()
    loss = o.l_skip([(torch.ones(2, 10), skip)])
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-6) and torch.isfinite(skip.grad).all()


def test_image_to_text_is_infonce_and_counts_equal_captions_as_right():
    image, text = rows(4, 6, 24), rows(4, 6, 25)
    scores = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T / 0.1
    torch.testing.assert_close(o.image_to_text(image, text, 0.1), F.cross_entropy(scores, torch.arange(4)))
    text[3] = text[1]
    scores = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T / 0.1
    p = scores.softmax(1)
    right = torch.stack([p[0, 0], p[1, 1] + p[1, 3], p[2, 2], p[3, 1] + p[3, 3]])
    torch.testing.assert_close(o.image_to_text(image, text, 0.1), -right.log().mean())
