"""Dropout for a batch that several processes share; and a sum over samples whose way back is gone before the next samples
come: the memory of few, the gradient of all."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

Term = Callable[[Tensor, Tensor], Tensor]  # (inputs (n, ...), rows (m,)) -> the sum's share of these rows, a scalar


def sum_in_parts(term: Term, inputs: Tensor, rows: Tensor, weights: list[nn.Parameter], at_once: int) -> Tensor:
    """``sum of term(inputs, part)`` over parts of ``rows`` of about equal size, at most ``at_once`` each.

    Value and gradients (of ``inputs`` and ``weights``, which must be all of what ``term`` uses that requires one) are
    those of ``term(inputs, rows)`` up to the order of summation. With several parts each goes forth and back at once, so
    that the activations of one part only are ever held. Such a sum can be differentiated once, not twice.
    """
    wanted = torch.is_grad_enabled() and (inputs.requires_grad or weights)
    if len(rows) <= at_once or not wanted:
        return term(inputs, rows)
    return _ForthAndBack.apply(term, equal_parts(rows, at_once), inputs, *weights)


def equal_parts(rows: Tensor, at_once: int) -> tuple[Tensor, ...]:
    """``rows`` in as few parts as hold at most ``at_once`` each, which differ by one row at most; no rows are one part."""
    return rows.tensor_split(max(1, -(-len(rows) // at_once)))


class Dropout(nn.Module):
    """nn.Dropout of rows (n, ...), number for number on a CPU. Where several processes train on one batch, ``drawn`` is (how
    many rows the whole batch has, places (n,) of the own ones): all draw for the whole batch, so who has which rows
    changes nothing."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.drawn: tuple[int, np.ndarray] | None = None

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        total = len(x) if self.drawn is None else self.drawn[0]
        kept = x.new_empty(total, *x.shape[1:]).bernoulli_(1 - self.p).div_(1 - self.p)
        return x * (kept if self.drawn is None else kept[self.drawn[1]])


class _ForthAndBack(torch.autograd.Function):
    """The gradients are computed in ``forward``, and multiplied by that of the sum in ``backward``."""

    @staticmethod
    def forward(ctx, term: Term, parts: tuple[Tensor, ...], inputs: Tensor, *weights: Tensor) -> Tensor:
        own = inputs.detach().requires_grad_(ctx.needs_input_grad[2])
        leaves = [leaf for leaf in (own, *weights) if leaf.requires_grad]
        total, gradients = None, None
        for part in parts:
            with torch.enable_grad():
                value = term(own, part)
            found = torch.autograd.grad(value, leaves, allow_unused=True, materialize_grads=True)
            total = value.detach() if total is None else total + value.detach()
            if gradients is None:
                gradients = found
            else:
                torch._foreach_add_(gradients, found)
        ctx.save_for_backward(*gradients)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        scaled = iter(torch._foreach_mul(ctx.saved_tensors, gradient))
        return None, None, *(next(scaled) if wanted else None for wanted in ctx.needs_input_grad[2:])
