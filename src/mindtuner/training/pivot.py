"""The Pivot's Adaptive Projector: image tokens into text space, without any brain data."""

from __future__ import annotations

import dataclasses
import itertools
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from mindtuner import runtime
from mindtuner.config import PivotConfig
from mindtuner.errors import TrainingDiverged, UserError
from mindtuner.training.checkpoint import Checkpoint, Progress, RandomStreams, Weights, digest
from mindtuner.training.monitor import Log
from mindtuner.training.objectives import image_to_text
from mindtuner.training.optimiser import one_cycle
from mindtuner.training.targets import Targets

WARMUP = 0.05
BLOCK = 4096  # stimuli whose text is in memory at a time


def train_pivot(
    projector: nn.Module,
    targets: Targets,
    stimuli: np.ndarray,
    config: PivotConfig,
    seed: int,
    log: Log | None = None,
    checkpoint: str | Path | None = None,
) -> None:
    """Train ``projector`` (n, T, D) -> (n, d) in place on pairs of an image's tokens and its caption's embedding.

    See the MindTuner paper, Pivot.

    ``stimuli``: ids of training stimuli; those without a caption are left out. The loss is InfoNCE from image
    to text only: brains will be asked for texts and never the reverse, and that direction's softmax is the
    one that keeps a text from being everybody's nearest. Images with the same caption count as equally right.
    ``checkpoint``: as for ``fit``, written at the end of every epoch.
    Raises UserError where no stimulus has a caption or the checkpoint is of another run, TrainingDiverged where the loss
    is not finite.
    """
    stimuli = np.unique(stimuli)
    blocks = np.array_split(stimuli, 1 + len(stimuli) // BLOCK)
    stimuli = np.concatenate([ids[np.abs(targets.text[ids]).sum(1) > 0] for ids in blocks])
    if len(stimuli) == 0:
        raise UserError("targets: text holds no caption of a training stimulus; expected at least one")
    device = runtime.device()
    projector.to(device).train()
    parameters = list(projector.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=config.lr, fused=True)
    rng = np.random.default_rng(runtime.derive_seed(seed, "pivot"))
    per_epoch = max(1, round(len(stimuli) / config.batch))
    steps = max(1, round(config.epochs * per_epoch))
    now = Progress()
    state = Checkpoint(
        checkpoint,
        lambda: {
            **dataclasses.asdict(config),
            "seed": seed,
            "starting weights": digest(parameters),
            "captions": digest(itertools.chain([stimuli], (targets.rows("text", ids) for ids in blocks))),
        },
        {
            "progress": now,
            "weights": Weights(projector.named_parameters()),
            "optimizer": optimizer,
            "random": RandomStreams(device, order=rng),
        },
    )
    if state.restore(now):
        for record in now.records if log is not None else ():
            log(record)
    losses: list[torch.Tensor] = []
    start = time.perf_counter() - now.seconds
    for step in runtime.progress(range(now.step, steps), "pivot", unit="step"):
        if step % per_epoch == 0:
            parts = np.array_split(rng.permutation(stimuli), per_epoch)
        ids = parts[step % per_epoch]
        tokens, text = targets.rows("tokens", ids).to(device), targets.rows("text", ids).to(device)
        loss = image_to_text(projector(tokens), text, config.temperature)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = one_cycle(step, steps, config.lr, WARMUP)
        optimizer.step()
        losses.append(loss.detach())
        if (step + 1) % per_epoch == 0 or step + 1 == steps:
            mean = torch.stack(losses).mean().item()
            if not np.isfinite(mean):
                raise TrainingDiverged(
                    f"pivot: loss is not finite by step {step}; last good checkpoint: {state.last_good}; "
                    "lower the learning rate"
                )
            now.step, now.seconds = step + 1, time.perf_counter() - start
            now.records.append(
                {
                    "stage": "pivot",
                    "epoch": step // per_epoch + 1,
                    "step": step + 1,
                    "seconds": now.seconds,
                    "losses": {"pivot": mean},
                }
            )
            losses = []
            state.save(now)
            if log is not None:
                log(now.records[-1])
    projector.eval()
