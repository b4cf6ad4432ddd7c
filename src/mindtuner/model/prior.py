"""The diffusion prior: backbone tokens of a brain -> image tokens (the DALL-E 2 prior's form, as in MindEye2)."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from diffusers.models.embeddings import get_timestep_embedding
from torch import nn
from torch.distributed.fsdp import FSDPModule

from mindtuner.config import TIMESTEPS, ModelConfig
from mindtuner.model.attention import PriorTransformer

NULL_PROBABILITY = 0.2  # of each of the two conditions, in training
PART_BYTES = 2**24  # of the widest activation of the samples that pass together on a CPU
# (inputs (n, ...), rows (m,)) -> the sum's share of these rows, a scalar
Term = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class DiffusionPrior(nn.Module):
    """Denoises image tokens given backbone tokens, both standardised by the encoder.

    It has the DALL-E 2 prior's form, as in MindEye2.

    The transformer reads ``[backbone tokens; time token; noisy tokens + learned positions]`` and its last T outputs are the
    prediction of the clean tokens (x0). 100 timesteps of the cosine schedule (s = 0.008, betas at most 0.999).

    Parameters
    ----------
    config : ModelConfig

    Examples
    --------
    >>> from mindtuner.config import load_config
    >>> prior = DiffusionPrior(load_config("quick").model).eval()
    >>> prior.sample(torch.zeros(2, 16, 128), steps=1).shape
    torch.Size([2, 16, 128])
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        tokens, width = config.tokens, config.width
        self.time = nn.Sequential(
            nn.Linear(width, 2 * width),
            nn.SiLU(),
            nn.Linear(2 * width, 2 * width),
            nn.SiLU(),
            nn.Linear(2 * width, width),
        )
        self.positions = nn.Parameter(torch.randn(tokens, width) * width**-0.5)
        self.null_brain = nn.Parameter(torch.randn(tokens, width))
        self.null_image = nn.Parameter(torch.randn(tokens, width))
        self.transformer = PriorTransformer(
            width, config.prior_depth, config.prior_heads, config.prior_head_dim, length=2 * tokens + 1, keep=tokens
        )
        self.schedule = new_schedule()

    def forward(
        self,
        noisy: torch.Tensor,
        timestep: torch.Tensor,
        brain_tokens: torch.Tensor,
        null_brain: torch.Tensor | None = None,
        null_image: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict the clean tokens.

        Parameters
        ----------
        noisy : tensor (n, T, D)
        timestep : tensor, int64 (n,)
            In 0..99.
        brain_tokens : tensor (n, T, D)
        null_brain, null_image : tensor, bool (n,), optional
            The samples whose brain or noisy tokens give way to the learned null embedding; none by default.

        Returns
        -------
        tensor (n, T, D)
        """
        if null_brain is not None:
            brain_tokens = torch.where(null_brain[:, None, None], self.null_brain, brain_tokens)
        if null_image is not None:
            noisy = torch.where(null_image[:, None, None], self.null_image, noisy)
        sinusoid = get_timestep_embedding(timestep, noisy.shape[-1], downscale_freq_shift=1)
        time_token = self.time(sinusoid.to(self.positions.dtype)).unsqueeze(1)
        sequence = torch.cat((brain_tokens, time_token.to(brain_tokens.dtype), noisy + self.positions), dim=1)
        return self.transformer(sequence)

    def loss(
        self,
        brain_tokens: torch.Tensor,
        tokens: torch.Tensor,
        generator: torch.Generator | None = None,
        own: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Mean squared error of the predicted clean tokens at random timesteps (MindEye2 paper, L_prior).

        In training mode each of the two conditions is dropped with probability 0.2, sample by sample. Where only the brain
        tokens want a gradient (a frozen prior), samples whose brain is dropped teach nothing: they are left out of the pass
        and count 0 in the mean, so that every gradient is what it would be with them.

        Parameters
        ----------
        brain_tokens : tensor (n, T, D), or (k, T, D) with ``own``
        tokens : tensor (n, T, D)
            Of the images.
        generator : torch.Generator, optional
        own : tensor, int64 (k,), optional
            Places among the n samples of those whose brain tokens are given, all by default; timesteps and noise are drawn
            for all, and the mean is over these.

        Returns
        -------
        tensor, scalar
        """
        n, device = len(tokens), tokens.device
        timestep = torch.randint(TIMESTEPS, (n,), generator=generator, device=device)
        noise = torch.randn(tokens.shape, generator=generator, device=device, dtype=tokens.dtype)
        null_brain = null_image = None
        if self.training:
            null_brain, null_image = torch.rand(2, n, generator=generator, device=device) < NULL_PROBABILITY
        if own is not None:
            tokens, noise, timestep, n = tokens[own], noise[own], timestep[own], len(own)
            if null_brain is not None:
                null_brain, null_image = null_brain[own], null_image[own]
        noisy = self.schedule.add_noise(tokens, noise, timestep)

        def error(brain_tokens: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
            nulls = (None, None) if null_brain is None else (null_brain[rows], null_image[rows])
            clean = self(noisy[rows], timestep[rows], brain_tokens[rows], *nulls)
            return F.mse_loss(clean, tokens[rows], reduction="sum") / tokens.numel()

        rows = torch.arange(n, device=device)
        weights = [weight for weight in self.parameters() if weight.requires_grad]
        if null_brain is not None and brain_tokens.requires_grad and not weights and device.type != "meta":
            rows = rows[~null_brain]
            if len(rows) == 0:  # another process may be passing some, and a prior in shards runs on all or none
                return 0 * (brain_tokens.sum() if own is None else error(brain_tokens, own.new_zeros(1)))
        return sum_in_parts(error, brain_tokens, rows, weights, self._rows_at_once(device))

    def _rows_at_once(self, device: torch.device) -> int:
        """How many samples pass together.

        On a CPU so few that their activations are small and the next samples use the same memory; elsewhere, and where a
        prior in shards would be gathered each time, all.
        """
        if device.type != "cpu" or isinstance(self, FSDPModule):
            return sys.maxsize
        tokens, width = self.positions.shape
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else self.positions.dtype
        return max(1, PART_BYTES // (dtype.itemsize * (2 * tokens + 1) * 8 * width))

    @torch.no_grad()
    def sample(
        self,
        brain_tokens: torch.Tensor,
        steps: int = 20,
        eta: float = 0.0,
        guidance: float = 1.0,
        generator: torch.Generator | None = None,
        start: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Image tokens for backbone tokens, by DDIM from pure noise at the last timestep. Call it in evaluation mode.

        Parameters
        ----------
        brain_tokens : tensor (n, T, D)
        steps : int
            A divisor of 100.
        eta : float
            0 is deterministic after the first draw, 1 as noisy as DDPM.
        guidance : float
            g gives ``null + g (prediction - null)``, the null branch with both conditions replaced; at 1 it is not computed.
        generator : torch.Generator, optional
        start : tensor (n, T, D), optional
            The noise to begin with, drawn from ``generator`` when not given.

        Returns
        -------
        tensor (n, T, D)

        Raises
        ------
        ValueError
            Where ``steps`` does not divide 100.
        """
        if steps < 1 or TIMESTEPS % steps:
            raise ValueError(f"prior steps is {steps}; expected a divisor of {TIMESTEPS}")
        schedule = new_schedule()
        schedule.set_timesteps(steps)
        every = torch.ones(len(brain_tokens), dtype=torch.bool, device=brain_tokens.device)
        shape, device, dtype = brain_tokens.shape, brain_tokens.device, brain_tokens.dtype
        x = torch.randn(shape, generator=generator, device=device, dtype=dtype) if start is None else start.to(device, dtype)
        room = 2 * self._rows_at_once(device)  # twice as many as in training, since nothing is kept for a way back
        parts = equal_parts(torch.arange(len(x), device=device), room)
        for t in schedule.timesteps.tolist():
            timestep = torch.full_like(every, t, dtype=torch.long)
            clean = torch.cat([self(x[rows], timestep[rows], brain_tokens[rows]) for rows in parts])
            if guidance != 1.0:  # the null branch knows neither brain nor noisy tokens: it is the same for all samples
                null = self(x[:1], timestep[:1], brain_tokens[:1], every[:1], every[:1])
                clean = null + guidance * (clean - null)
            x = schedule.step(clean, t, x, eta=eta, generator=generator).prev_sample
        return x


def new_schedule() -> DDIMScheduler:
    """The cosine schedule with x0 prediction; steps end at t = -1, so the last step returns x0 itself."""
    return DDIMScheduler(
        num_train_timesteps=TIMESTEPS,
        beta_schedule="squaredcos_cap_v2",
        prediction_type="sample",
        clip_sample=False,
        timestep_spacing="trailing",
    )


def sum_in_parts(
    term: Term, inputs: torch.Tensor, rows: torch.Tensor, weights: list[nn.Parameter], at_once: int
) -> torch.Tensor:
    """``sum of term(inputs, part)`` over parts of ``rows`` of about equal size, at most ``at_once`` each.

    Value and gradients (of ``inputs`` and ``weights``, which must be all of what ``term`` uses that requires one) are
    those of ``term(inputs, rows)`` up to the order of summation. With several parts each goes forth and back at once, so
    that the activations of one part only are ever held. Such a sum can be differentiated once, not twice.
    """
    wanted = torch.is_grad_enabled() and (inputs.requires_grad or weights)
    if len(rows) <= at_once or not wanted:
        return term(inputs, rows)
    return _SumInParts.apply(term, equal_parts(rows, at_once), inputs, *weights)


def equal_parts(rows: torch.Tensor, at_once: int) -> tuple[torch.Tensor, ...]:
    """``rows`` in as few parts as hold at most ``at_once`` each, which differ by one row at most; no rows are one part."""
    return rows.tensor_split(max(1, -(-len(rows) // at_once)))


class _SumInParts(torch.autograd.Function):
    """The gradients are computed in ``forward``, and multiplied by that of the sum in ``backward``."""

    @staticmethod
    def forward(
        ctx, term: Term, parts: tuple[torch.Tensor, ...], inputs: torch.Tensor, *weights: torch.Tensor
    ) -> torch.Tensor:
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
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        scaled = iter(torch._foreach_mul(ctx.saved_tensors, gradient))
        return None, None, *(next(scaled) if wanted else None for wanted in ctx.needs_input_grad[2:])
