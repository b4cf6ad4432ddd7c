"""LoRA and Skip-LoRA against their equations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mindtuner.model.lora import LoRALinear, SkipLoRA, add_lora


@given(
    rank=st.integers(1, 9),
    alpha=st.floats(0.5, 32),
    inputs=st.integers(1, 12),
    outputs=st.integers(1, 12),
    bias=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=40, deadline=None)
def test_lora_starts_at_the_frozen_function_and_merges_into_one_linear(rank, alpha, inputs, outputs, bias, seed):
    torch.manual_seed(seed)
    linear = nn.Linear(inputs, outputs, bias=bias)
    lora, x = LoRALinear(linear, rank, alpha), torch.randn(5, inputs)
    assert torch.equal(lora(x), linear(x))
    lora.B.data.normal_()
    update = (lora.B @ lora.A * (alpha / rank)).detach()
    expected = linear(x) + x @ update.T
    torch.testing.assert_close(lora(x), expected, rtol=1e-4, atol=1e-4)
    merged = lora.merge()
    assert type(merged) is nn.Linear and (merged.bias is not None) == bias
    assert (merged(x) - lora(x)).norm() <= 1e-5 * (1 + lora(x).norm())


def test_lora_trains_its_factors_only():
    lora = LoRALinear(nn.Linear(4, 3), rank=2, alpha=2.0)
    lora(torch.randn(6, 4)).square().mean().backward()
    assert lora.linear.weight.grad is None and lora.linear.bias.grad is None
    assert lora.B.grad.any() and not lora.A.grad.any()  # at the zero start only B moves


def test_add_lora_wraps_every_linear_and_nothing_else():
    module = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Sequential(nn.GELU(), nn.Linear(4, 2)))
    add_lora(module, rank=1, alpha=1.0)
    assert [type(m).__name__ for m in (module[0], module[1], module[2][1])] == ["LoRALinear", "LayerNorm", "LoRALinear"]
    assert module(torch.randn(2, 3)).shape == (2, 2)


def test_skip_lora_applies_gelu_after_the_product():
    torch.manual_seed(0)
    skip, voxels = SkipLoRA(7, 5, rank=2, alpha=6.0), torch.randn(4, 7)
    assert torch.equal(skip(voxels), torch.zeros(4, 5))
    skip.B.data.normal_()
    product = 3.0 * voxels @ skip.A.T @ skip.B.T
    gelu = 0.5 * product * (1 + torch.erf(product / 2**0.5))
    torch.testing.assert_close(skip(voxels), gelu)
    # were the GELU before the last factor, outputs would go as far down as up; after it they stop at its minimum
    assert skip(100 * voxels).min() >= -0.17 and skip(100 * voxels).max() > 10


def test_skip_lora_gets_gradient_at_its_zero_start():
    skip = SkipLoRA(7, 5, rank=2, alpha=2.0)
    skip(torch.randn(4, 7)).sum().backward()
    assert skip.B.grad.any() and skip.B.grad.isfinite().all()


@pytest.mark.parametrize("rank", [0, -1])
def test_rank_below_one_is_refused(rank):
    with pytest.raises(ValueError, match="rank"):
        LoRALinear(nn.Linear(2, 2), rank, 1.0)
    with pytest.raises(ValueError, match="rank"):
        SkipLoRA(2, 2, rank, 1.0)
