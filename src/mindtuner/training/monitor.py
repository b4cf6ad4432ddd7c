"""What is looked at while training: losses, gradients, and TensorBoard's curves."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from mindtuner.errors import TrainingDiverged, UserError
from mindtuner.processes import processes
from mindtuner.training.checkpoint import Progress
from mindtuner.training.distributed import all_reduce_sum

Log = Callable[[dict], None]  # takes one record of an epoch


def gradient_norms(weighted: dict[str, Tensor], parameters: list[nn.Parameter], scale: float = 1.0) -> dict[str, float]:
    """L2 norm of each weighted loss's gradient: which term drives training.

    ``scale``: what half precision multiplies losses by. A norm that overflows at this scale is left out.
    """
    norms = {}
    for name, loss in weighted.items():
        if not loss.requires_grad:  # nothing that trains has a part in it
            continue
        gradients = torch.autograd.grad(scale * loss, parameters, retain_graph=True, allow_unused=True)
        if processes().count > 1:  # of the whole batch
            gradients = [
                all_reduce_sum(torch.zeros_like(p) if g is None else g.contiguous())
                for p, g in zip(parameters, gradients, strict=True)
            ]
        norms[name] = torch.stack([g.norm() for g in gradients if g is not None]).norm().item() / scale
    return {name: norm for name, norm in norms.items() if math.isfinite(norm)}


def mean_losses(losses: list[dict[str, Tensor]]) -> dict[str, float]:
    """Means over an epoch's batches."""
    return {name: torch.stack([batch[name] for batch in losses]).mean().item() for name in losses[0]}


def refuse_broken(now: Progress, accumulate: int, title: str, last_good: str) -> None:
    """Raise TrainingDiverged where a loss or gradient of this epoch is not finite.

    Called before a checkpoint is written and at the end of an epoch only, so that no step waits for an accelerator.
    """
    first = now.step - len(now.gradients)
    broken = [
        (step // accumulate, f"loss term {name!r}")
        for name in now.losses[0]
        for step in _not_finite([batch[name] for batch in now.losses])
    ]
    broken += [(step, "the gradient") for step in _not_finite(now.gradients)]  # last: it breaks where a loss does, too
    if broken:
        step, what = min(broken, key=lambda found: found[0])
        raise TrainingDiverged(
            f"{title}: {what} is not finite at step {first + step}; last good checkpoint: {last_good}; "
            "lower the learning rate or look for extreme values in betas and targets"
        )


def _not_finite(values: list[Tensor]) -> list[int]:
    return (~torch.stack(values).isfinite()).nonzero().flatten().tolist()


def tensorboard_to(folder: str | Path) -> Log:
    """A log for ``pretrain`` and ``tune`` that writes each stage's curves into a folder of its own in ``folder``.

    A run that goes on sends its records again; they take the place of those that are there.
    Raises UserError where TensorBoard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError(
            "tensorboard: is not installed; expected it where its log is asked for (pip install tensorboard)"
        ) from error
    writers: dict[str, SummaryWriter] = {}

    def write(record: dict) -> None:
        stage, step = record["stage"], record["step"]
        if stage not in writers:
            writers[stage] = SummaryWriter(str(Path(folder) / stage), purge_step=step)
        for group in ("losses", "gradients", "validation"):
            for name, value in record.get(group, {}).items():
                writers[stage].add_scalar(f"{group}/{name}", value, step)
        if "lr" in record:
            writers[stage].add_scalar("lr", record["lr"], step)
        writers[stage].flush()

    return write
