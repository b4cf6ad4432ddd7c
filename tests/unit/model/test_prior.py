"""The diffusion prior against slow restatements of its formulas, and its sampler against known answers."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mindtuner.config import ModelConfig
from mindtuner.model.attention import (
    GainNorm,
    MultiQueryAttention,
    PriorTransformer,
    Rotary,
    SwiGLUFeedForward,
    attend_fused,
    attend_written_out,
    position_buckets,
)
from mindtuner.model.prior import DiffusionPrior


def tiny(tokens=3, width=8, depth=2, heads=2, head_dim=6):
    return ModelConfig(
        hidden=16,
        blocks=2,
        tokens=tokens,
        width=width,
        text_width=5,
        backbone_dropout=0.1,
        prior_depth=depth,
        prior_heads=heads,
        prior_head_dim=head_dim,
        latent_channels=4,
        latent_side=8,
        lowlevel_channels=(8, 4),
        lowlevel_side=2,
        feature_positions=4,
        feature_width=6,
    )


@pytest.fixture
def prior():
    torch.manual_seed(0)
    return DiffusionPrior(tiny()).eval()


def alpha_bar(t):
    """The cosine schedule's share of signal variance after step t (betas clipped), straight from its definition."""

    def f(u):
        return math.cos((u / 100 + 0.008) / 1.008 * math.pi / 2) ** 2

    return math.prod(1 - min(1 - f(i + 1) / f(i), 0.999) for i in range(t + 1))


def norm_slowly(row, gain, eps=1e-5):
    mean = sum(row) / len(row)
    variance = sum((x - mean) ** 2 for x in row) / len(row)
    return [(x - mean) / math.sqrt(variance + eps) * g for x, g in zip(row, gain)]


def rotate_slowly(row, position, dims):
    row = list(row)
    for i in range(dims // 2):
        angle = position * 10000 ** (-2 * i / dims)
        a, b = row[2 * i], row[2 * i + 1]
        row[2 * i] = a * math.cos(angle) - b * math.sin(angle)
        row[2 * i + 1] = a * math.sin(angle) + b * math.cos(angle)
    return row


def unit_times_four(row):
    length = math.sqrt(sum(x * x for x in row))
    return [4 * x / length for x in row]


def attend_slowly(layer, x, bias, head_dim, dims):
    """One sample, lists and loops only: q times 16, rotary, null key in front, both to length sqrt(16)."""
    matrix = {name: p.tolist() for name, p in layer.named_parameters()}

    def apply(weight, row):
        return [sum(w * r for w, r in zip(line, row)) for line in weight]

    rows = [norm_slowly(row, matrix["norm.gain"]) for row in x.tolist()]
    kv = [apply(matrix["to_kv.weight"], row) for row in rows]
    keys = [matrix["null_kv"][0]] + [rotate_slowly(r[:head_dim], i, dims) for i, r in enumerate(kv)]
    values = [matrix["null_kv"][1]] + [r[head_dim:] for r in kv]
    keys = [unit_times_four(k) for k in keys]
    result = []
    for i, row in enumerate(rows):
        q_all, heads_out = [16 * q for q in apply(matrix["to_q.weight"], row)], []
        for head in range(layer.heads):
            q = unit_times_four(rotate_slowly(q_all[head * head_dim : (head + 1) * head_dim], i, dims))
            scores = [sum(a * b for a, b in zip(q, k)) + bias[head][i][j] for j, k in enumerate(keys)]
            weights = [math.exp(s) for s in scores]
            heads_out += [sum(w * v[d] for w, v in zip(weights, values)) / sum(weights) for d in range(head_dim)]
        result.append(norm_slowly(apply(matrix["to_out.weight"], heads_out), matrix["out_norm.gain"]))
    return torch.tensor(result, dtype=torch.float64)


@pytest.mark.parametrize("head_dim", [4, 34])  # all dims rotated; 32 of 34 rotated
def test_attention_equals_the_formula_in_plain_loops(head_dim):
    torch.manual_seed(1)
    heads, length, width, dims = 3, 4, 5, min(32, head_dim)
    layer = MultiQueryAttention(width, heads, head_dim).double()
    for parameter in (layer.norm.gain, layer.out_norm.gain):
        parameter.data.uniform_(0.5, 2)
    bias = torch.randn(heads, length, length + 1, dtype=torch.float64)
    x = torch.randn(2, length, width, dtype=torch.float64)
    out = layer(x, bias, Rotary(dims, length))
    for sample in range(2):
        expected = attend_slowly(layer, x[sample], bias.tolist(), head_dim, dims)
        torch.testing.assert_close(out[sample], expected, atol=1e-5, rtol=1e-5)  # the rotary table is float32


@pytest.mark.parametrize("attend", [attend_fused, attend_written_out])
def test_both_ways_to_attend_are_the_formula(attend):
    torch.manual_seed(2)
    q, k, v, bias = leaves = [
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 10, 6), (3, 5, 6), (3, 5, 6), (10, 5))
    ]
    expected = torch.einsum("nml,nld->nmd", torch.softmax(16 * torch.einsum("nmd,nld->nml", q, k) + bias, -1), v)
    found = attend(*leaves)
    torch.testing.assert_close(found, expected)
    gradients = (torch.autograd.grad(out.square().sum(), leaves) for out in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_attention_in_bfloat16_is_that_of_float32_but_for_its_rounding():
    torch.manual_seed(2)
    layer, bias, x = MultiQueryAttention(16, 3, 8), torch.randn(3, 7, 8), torch.randn(4, 7, 16)
    exact = layer(x, bias, Rotary(8, 7))
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(x, bias, Rotary(8, 7))
    assert 1e-4 < (half - exact).norm() / exact.norm() < 0.05


def test_position_buckets_follow_t5_with_the_null_key_in_column_0():
    buckets = position_buckets(300)
    assert buckets.shape == (300, 301)
    for query in (0, 1, 15, 16, 17, 31, 64, 127, 128, 299):
        for key in (0, 1, 2, 15, 16, 90, 128, 200, 300):
            n = max(query - key, 0)
            if n >= 16:
                n = min(16 + int(math.log(n / 16) / math.log(128 / 16) * 16), 31)
            assert buckets[query, key] == n
    place = torch.arange(300)
    assert buckets[:4, 0].tolist() == [0, 1, 2, 3]  # the null key stands where the first token would
    assert (buckets[place, place + 1] == 0).all()  # a token's own key, one column further, and the one before it
    assert (buckets[place, place] == 0).all()
    assert (buckets[place[1:], place[:-1]] == 1).all()
    assert buckets.triu(1).sum() == 0  # all later keys share bucket 0
    assert buckets.max() == 31


def test_stable_norm_and_feed_forward_follow_their_formulas():
    torch.manual_seed(2)
    x = torch.randn(4, 7) * 100
    norm = GainNorm(7, stable=True)
    norm.gain.data.uniform_(0.5, 2)
    scaled = x / x.max(dim=1, keepdim=True).values
    for row, expected in zip(norm(x), scaled.tolist()):
        torch.testing.assert_close(row, torch.tensor(norm_slowly(expected, norm.gain.tolist())))
    feed_forward = SwiGLUFeedForward(7)
    assert feed_forward.up.weight.shape == (56, 7) and feed_forward.down.weight.shape == (7, 28)
    normed = torch.tensor([norm_slowly(row, [1.0] * 7) for row in x.tolist()])
    value, gate = (normed @ feed_forward.up.weight.T).split(28, dim=1)
    expected = (value * gate / (1 + torch.exp(-gate))) @ feed_forward.down.weight.T
    torch.testing.assert_close(feed_forward(x), expected)


def test_transformer_keeps_exactly_the_last_rows_of_the_full_computation():
    torch.manual_seed(3)
    full = PriorTransformer(8, 2, 2, 6, length=7, keep=7)
    kept = PriorTransformer(8, 2, 2, 6, length=7, keep=3)
    kept.load_state_dict(full.state_dict())
    x = torch.randn(2, 7, 8)
    torch.testing.assert_close(kept(x), full(x)[:, -3:])


def test_schedule_is_the_clipped_cosine(prior):
    measured = prior.schedule.alphas_cumprod.double()
    expected = torch.tensor([alpha_bar(t) for t in range(100)], dtype=torch.float64)
    torch.testing.assert_close(measured, expected, atol=1e-6, rtol=1e-3)
    assert prior.schedule.betas.max() <= 0.999


def test_time_reaches_the_prediction_through_the_stated_sinusoid(prior):
    seen = []
    prior.time.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.randn(2, 3, 8)
    out = prior(x, torch.tensor([7, 93]), x)
    for row, t in zip(seen[0], (7, 93)):
        angles = [t * math.exp(-math.log(10000) * i / 3) for i in range(4)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        torch.testing.assert_close(row, torch.tensor(expected), atol=1e-4, rtol=1e-4)
    assert not torch.equal(prior(x, torch.tensor([8, 93]), x)[0], out[0])


@given(steps=st.sampled_from([1, 2, 4, 5, 10, 20, 25, 50, 100]), eta=st.floats(0, 1), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_a_perfect_oracle_gets_its_tokens_back(steps, eta, seed):
    prior = DiffusionPrior(tiny(depth=1)).eval()
    truth = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(seed))
    prior.forward = lambda noisy, timestep, brain, *nulls: truth
    generator = torch.Generator().manual_seed(seed + 1)
    torch.testing.assert_close(prior.sample(truth, steps, eta, generator=generator), truth)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_the_optimal_denoiser_of_a_gaussian_samples_that_gaussian(prior, eta):
    mean, sd = 2.0, 0.5

    def optimal(noisy, timestep, brain, *nulls):
        a = alpha_bar(int(timestep[0]))
        return mean + sd**2 * math.sqrt(a) * (noisy - math.sqrt(a) * mean) / (sd**2 * a + 1 - a)

    prior.forward = optimal
    generator = torch.Generator().manual_seed(0)
    samples = prior.sample(torch.zeros(2000, 3, 8), 100, eta, generator=generator)
    assert samples.mean().item() == pytest.approx(mean, abs=0.02)
    assert samples.std().item() == pytest.approx(sd, rel=0.06)


def test_guidance_extrapolates_from_the_branch_without_brain_and_noisy_tokens(prior):
    brain, every = torch.randn(4, 3, 8), torch.ones(4, dtype=torch.bool)
    start = torch.randn(4, 3, 8, generator=torch.Generator().manual_seed(5))
    time = torch.full((4,), 99)
    with torch.no_grad():
        clean, null = prior(start, time, brain), prior(start, time, brain, every, every)
        assert torch.equal(null, prior(start + 1, time, brain - 1, every, every))  # knows neither of the two
        assert not torch.equal(null, prior(start, time, brain, every, None))
        assert not torch.equal(null, prior(start, time, brain, None, every))
    for guidance in (0.0, 1.0, 2.5):
        guided = prior.sample(brain, 1, guidance=guidance, generator=torch.Generator().manual_seed(5))
        torch.testing.assert_close(guided, null + guidance * (clean - null))


def test_sampling_is_repeatable_and_eta_adds_noise(prior):
    brain = torch.randn(2, 3, 8)
    draws = [prior.sample(brain, 10, eta, generator=torch.Generator().manual_seed(1)) for eta in (0, 0, 1, 1)]
    assert torch.equal(draws[0], draws[1]) and torch.equal(draws[2], draws[3])
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("steps", [0, -5, 3, 101])
def test_steps_must_divide_the_schedule(prior, steps):
    with pytest.raises(ValueError, match=f"steps is {steps}.*divisor of 100"):
        prior.sample(torch.zeros(1, 3, 8), steps)


def test_loss_is_the_squared_error_to_clean_tokens_from_correctly_noised_ones(prior):
    tokens, calls = torch.randn(3000, 3, 8) + 1, []

    def spy(noisy, timestep, brain, null_brain, null_image):
        calls.append((noisy, timestep, null_brain, null_image))
        return torch.zeros_like(tokens)

    prior.forward = spy
    loss = prior.loss(tokens, tokens, torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss, (tokens**2).mean())
    noisy, timestep, null_brain, null_image = calls[0]
    assert null_brain is None and null_image is None  # evaluation mode drops nothing
    assert timestep.unique().tolist() == list(range(100))
    share = torch.tensor([alpha_bar(t) for t in timestep.tolist()])[:, None, None]
    noise = (noisy - share.sqrt() * tokens) / (1 - share).sqrt()
    assert noise.mean().abs() < 0.02 and (noise.std() - 1).abs() < 0.02
    assert (noise.flatten(1).std(dim=1)[timestep < 5].mean() - 1).abs() < 0.1

    prior.train().loss(tokens, tokens, torch.Generator().manual_seed(0))
    _, _, null_brain, null_image = calls[1]
    assert null_brain.float().mean().item() == pytest.approx(0.2, abs=0.025)
    assert null_image.float().mean().item() == pytest.approx(0.2, abs=0.025)
    assert (null_brain & null_image).float().mean().item() == pytest.approx(0.04, abs=0.015)  # independent


def test_training_reaches_every_parameter_and_the_brain(prior):
    tokens = torch.randn(64, 3, 8)
    brain = torch.randn(64, 3, 8, requires_grad=True)
    prior.train().loss(brain, tokens, torch.Generator().manual_seed(0)).backward()
    silent = [name for name, p in prior.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []
    dropped = (brain.grad.flatten(1).abs().sum(dim=1) == 0).float().mean().item()
    assert 0.05 < dropped < 0.4


@pytest.mark.parametrize("tokens,width,depth,heads,head_dim", [(1, 4, 1, 1, 2), (16, 12, 3, 4, 7), (5, 6, 1, 2, 52)])
def test_shapes_at_several_sizes(tokens, width, depth, heads, head_dim):
    prior = DiffusionPrior(tiny(tokens, width, depth, heads, head_dim))
    brain = torch.randn(2, tokens, width)
    assert prior.loss(brain, brain).shape == ()
    assert prior.sample(brain, 2).shape == brain.shape
    assert prior.transformer.rotary.dims == min(32, head_dim // 2 * 2)


def value_and_gradients(prior, brain, tokens, seed=4):
    brain = brain.clone().requires_grad_()
    prior.zero_grad()
    loss = prior.loss(brain, tokens, torch.Generator().manual_seed(seed))
    (3 * loss).backward()
    return loss.detach(), brain.grad, {name: p.grad for name, p in prior.named_parameters()}


def test_loss_in_parts_has_the_value_and_gradients_of_the_whole(monkeypatch):
    torch.manual_seed(5)
    prior = DiffusionPrior(tiny()).double().train()
    brain, tokens = torch.randn(2, 7, 3, 8, dtype=torch.float64)
    whole = value_and_gradients(prior, brain, tokens)
    monkeypatch.setattr("mindtuner.model.prior.PART_BYTES", 2 * 8 * 7 * 8 * 8)  # two samples at once, and one in the end
    sizes = []
    prior.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    parts = value_and_gradients(prior, brain, tokens)
    assert sizes == [2, 2, 2, 1]
    torch.testing.assert_close(parts, whole)
    with torch.no_grad():  # nothing wants a gradient: one pass
        torch.testing.assert_close(prior.loss(brain, tokens, torch.Generator().manual_seed(4)), whole[0])
    assert sizes[4:] == [7]


def test_parts_are_equal_and_hold_twice_as_many_samples_in_bfloat16(monkeypatch):
    prior = DiffusionPrior(tiny()).train()
    brain, tokens = torch.randn(2, 9, 3, 8)
    brain.requires_grad_()
    monkeypatch.setattr("mindtuner.model.prior.PART_BYTES", 4 * 4 * 7 * 8 * 8)  # four samples at once in float32
    sizes = []
    prior.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    prior.loss(brain, tokens)
    with torch.autocast("cpu", torch.bfloat16):
        prior.loss(brain, tokens)
    assert sizes == [3, 3, 3, 5, 4]


def test_nobody_is_sampled_as_nothing(prior):
    assert prior.sample(torch.zeros(0, 3, 8), 2, guidance=1.0).shape == (0, 3, 8)


def test_a_frozen_prior_leaves_out_dropped_brains_and_gives_the_same_gradient():
    torch.manual_seed(6)
    prior = DiffusionPrior(tiny()).train()
    brain, tokens = torch.randn(2, 40, 3, 8)
    sizes = []
    prior.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    value, gradient, _ = value_and_gradients(prior, brain, tokens)
    prior.requires_grad_(False)
    frozen_value, frozen_gradient, _ = value_and_gradients(prior, brain, tokens)
    dropped = (gradient == 0).all((1, 2))
    assert 0 < dropped.sum() < 40 and sizes == [40, 40 - dropped.sum()]
    torch.testing.assert_close(frozen_gradient, gradient)
    assert frozen_value < value  # what was left out counts as 0
    prior.eval()
    assert prior.loss(brain, tokens) > 0 and sizes[-1] == 40  # evaluation drops nothing


def test_a_frozen_prior_that_sees_dropped_brains_alone_teaches_nothing():
    prior = DiffusionPrior(tiny()).train().requires_grad_(False)
    brain, tokens = torch.randn(2, 1, 3, 8)
    seed = next(seed for seed in range(100) if value_and_gradients(prior, brain, tokens, seed)[0] == 0)
    assert (value_and_gradients(prior, brain, tokens, seed)[1] == 0).all()
