"""The prior's transformer: multi-query cosine-similarity attention, rotary and T5 positions, SwiGLU.

The form is that of the DALL-E 2 prior as MindEye2 uses it, parameter for parameter.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

COSINE_SCALE = 16.0  # the scale of the cosine similarities
BUCKETS, MAX_DISTANCE = 32, 128  # of the relative position bias


class GainNorm(nn.Module):
    """LayerNorm with a gain and no bias, eps 1e-5 (1e-3 in half precision); (..., D) -> (..., D).

    ``stable`` first divides by the largest entry (as a constant to the gradient), against overflow in half precision.
    """

    def __init__(self, width: int, stable: bool = False) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.stable = stable

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise the last dimension, (..., D) -> (..., D)."""
        if self.stable:
            x = x / x.amax(dim=-1, keepdim=True).detach()
        eps = 1e-5 if x.dtype in (torch.float32, torch.float64) else 1e-3
        return F.layer_norm(x, self.gain.shape, self.gain, None, eps)


def position_buckets(length: int) -> torch.Tensor:
    """T5's one-directional buckets, (length, length + 1) of query by key position.

    The distance is ``max(query - key, 0)``: later keys all share bucket 0. Distances below 16 have a bucket each, longer
    ones share 16 buckets spaced logarithmically up to 128. "key" counts columns, of which the null key is column 0: a
    token's own key is one column later than its place, and its own and the previous key share bucket 0.
    """
    distance = (torch.arange(length)[:, None] - torch.arange(length + 1)[None, :]).clamp(min=0)
    exact = BUCKETS // 2
    octaves = torch.log(distance.clamp(min=1).double() / exact) / math.log(MAX_DISTANCE / exact)
    far = (exact + (octaves * (BUCKETS - exact)).long()).clamp(max=BUCKETS - 1)
    return torch.where(distance < exact, distance, far)


class PositionBias(nn.Module):
    """A learned bias per bucket and head, shared by all layers; -> (heads, length, length + 1)."""

    def __init__(self, heads: int, length: int) -> None:
        super().__init__()
        self.table = nn.Embedding(BUCKETS, heads)
        self.register_buffer("buckets", position_buckets(length), persistent=False)

    def forward(self) -> torch.Tensor:
        """The bias of each query and key position, (heads, length, length + 1)."""
        return self.table(self.buckets).permute(2, 0, 1)


class Rotary(nn.Module):
    """Rotates neighbouring pairs among the first ``dims`` entries by position * 10000^(-2 i / dims); (..., L, d)."""

    def __init__(self, dims: int, length: int) -> None:
        super().__init__()
        self.dims = dims
        rates = 10000.0 ** (-torch.arange(0, dims, 2).float() / dims)
        angles = torch.arange(length).float()[:, None] * rates
        self.register_buffer("cos", angles.cos(), persistent=False)
        self.register_buffer("sin", angles.sin(), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Fewer than L rows are taken to be the last ones."""
        cos, sin = self.cos[-x.shape[-2] :], self.sin[-x.shape[-2] :]
        turned, rest = x[..., : self.dims], x[..., self.dims :]
        even, odd = turned[..., 0::2], turned[..., 1::2]
        pairs = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
        return torch.cat((pairs.flatten(-2), rest), dim=-1)


class MultiQueryAttention(nn.Module):
    """Pre-norm attention of many query heads to one key/value head and a learned null key/value; (n, L, D) -> same.

    Queries and keys are rotated, L2-normalised and each multiplied by sqrt(16), so similarities are 16 * cosine, plus
    the position bias (heads, L, L + 1). The null key stands in front and is not rotated. (Published code also multiplies
    the queries by 16 before it normalises them, which cancels.)
    """

    def __init__(self, width: int, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = GainNorm(width)
        self.to_q = nn.Linear(width, heads * head_dim, bias=False)
        self.to_kv = nn.Linear(width, 2 * head_dim, bias=False)
        self.null_kv = nn.Parameter(torch.randn(2, head_dim))
        self.to_out = nn.Linear(heads * head_dim, width, bias=False)
        self.out_norm = GainNorm(width)

    def forward(self, x: torch.Tensor, bias: torch.Tensor, rotary: Rotary, keep: int | None = None) -> torch.Tensor:
        """``keep``: only the last so many rows ask and come out, (n, keep, D); all rows by default."""
        n, length, _ = x.shape
        x = self.norm(x)
        asking = x
        if keep is not None and keep < length:
            asking, bias, length = x[:, -keep:], bias[:, -keep:], keep
        q = rotary(self.to_q(asking).unflatten(-1, (self.heads, -1)).transpose(1, 2))
        k, v = self.to_kv(x).chunk(2, dim=-1)
        null_k, null_v = self.null_kv.expand(n, 2, -1).unsqueeze(2).unbind(1)
        k, v = torch.cat((null_k, rotary(k)), dim=1), torch.cat((null_v, v), dim=1)
        # One key/value head serves all query heads, so the heads can stand behind one another as more queries.
        out = attend(F.normalize(q, dim=-1).flatten(1, 2), F.normalize(k, dim=-1), v, bias.flatten(0, 1))
        out = out.unflatten(1, (self.heads, length)).transpose(1, 2).flatten(2)
        return self.out_norm(self.to_out(out))


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """``softmax(16 q k' + bias) v``; q (n, M, d), k and v (n, L, d), bias (M, L) -> (n, M, d).

    Written out in bfloat16 on a CPU, where torch's fused kernel takes about twice as long (docs/performance.md).
    """
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype
    if q.device.type == "cpu" and dtype is torch.bfloat16:
        return attend_written_out(q, k, v, bias.to(dtype))
    return attend_fused(q, k, v, bias.to(q.dtype))


def attend_written_out(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Holds the (n, M, L) weights for the way back."""
    scores = torch.baddbmm(bias.expand(len(q), -1, -1), q, k.mT, alpha=COSINE_SCALE)
    return scores.softmax(dim=-1) @ v


def attend_fused(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """By torch's fused kernel, which sees one head: the heads that ask stand behind one another in M."""
    q, k, v = (x.unsqueeze(1) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=COSINE_SCALE).squeeze(1)


class SwiGLUFeedForward(nn.Module):
    """``LN -> Linear(D, 8 D) -> value * SiLU(gate) -> Linear(4 D, D)``, no biases; (n, L, D) -> same."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = GainNorm(width)
        self.up = nn.Linear(width, 8 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (n, L, D) -> (n, L, D)."""
        value, gate = self.up(self.norm(x)).chunk(2, dim=-1)
        return self.down(value * F.silu(gate))


class PriorTransformer(nn.Module):
    """``depth`` layers of attention and feed-forward over (n, length, D); only the last ``keep`` rows come out.

    Ends with the stable LayerNorm and a bias-free Linear; -> (n, keep, D).
    """

    def __init__(self, width: int, depth: int, heads: int, head_dim: int, length: int, keep: int) -> None:
        super().__init__()
        self.keep = keep
        self.bias = PositionBias(heads, length)
        self.rotary = Rotary(min(32, head_dim) // 2 * 2, length)
        self.layers = nn.ModuleList(
            nn.ModuleList((MultiQueryAttention(width, heads, head_dim), SwiGLUFeedForward(width))) for _ in range(depth)
        )
        self.norm = GainNorm(width, stable=True)
        self.project = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens (n, length, D) -> the last ``keep`` of them, (n, keep, D)."""
        bias = self.bias()
        for index, (attention, feed_forward) in enumerate(self.layers):
            # After the last layer's attention nothing mixes positions, and only the last rows are asked for.
            keep = self.keep if index == len(self.layers) - 1 else x.shape[1]
            x = x[:, -keep:] + attention(x, bias, self.rotary, keep)
            x = x + feed_forward(x)
        return self.project(self.norm(x))
