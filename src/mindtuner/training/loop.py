"""The one training loop, for pretraining on many subjects and for tuning on one."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from mindtuner import runtime
from mindtuner.config import FitConfig
from mindtuner.data import Trials
from mindtuner.errors import UserError
from mindtuner.model import BrainNetwork, BrainOutputs
from mindtuner.processes import ended_early
from mindtuner.training import distributed, objectives
from mindtuner.training.batches import Batch, Feed, batches, steps_per_epoch
from mindtuner.training.checkpoint import Checkpoint, Progress, RandomStreams, Weights, run_settings
from mindtuner.training.monitor import Log, gradient_norms, mean_losses, refuse_broken
from mindtuner.training.optimiser import (
    exchanged,
    frozen_in,
    number_format,
    one_cycle,
    parameter_groups,
    take_step,
    update_average,
)
from mindtuner.training.targets import Targets
from mindtuner.training.validation import validate

ENOUGH_STEPS = 50  # below which weights that start at random have hardly left it
_logger = logging.getLogger(__name__)
LOWLEVEL = ("latents", "features", "features_augmented")  # the targets of the low-level module


@ended_early()
def fit(
    network: BrainNetwork,
    feeds: list[Feed],
    targets: Targets,
    config: FitConfig,
    seed: int,
    title: str,
    log: Log | None = None,
    held_out: dict[str, Trials] | None = None,
    checkpoint: str | Path | None = None,
) -> None:
    """Train, in place, the parameters of ``network`` that require a gradient.

        L = prior_weight L_prior + clip_weight L_CLIP + lowlevel_weight (L1 + softcont_weight L_softcont)
            + regression_weight L_regression + text_weight L_text [+ skip_weight L_skip where the network has skips]

    without L_prior or L_lowlevel where the network has no such part, and without a term whose weight is 0 (MindTuner
    paper, training objectives). Two are ours. L_regression is the squared error of the backbone tokens themselves: without
    it only the prior tells B what to be, which takes far longer than a demo trains. L_text is SoftCLIP between what the
    projector makes of B and the captions of the images: it asks B to keep what words need.
    L_CLIP is BiMixCo for the first ``mixco_share`` of the steps and SoftCLIP afterwards. The network ends with the
    running average of its weights where ``ema`` asks for one, and at its best epoch where ``patience`` does.

    ``log`` gets one dict per epoch: the mean of each loss under "losses", the learning rate, at the first, middle and
    last epoch the norm of each weighted loss's gradient under "gradients", and scores under "validation" where trials
    are ``held_out``.

    ``checkpoint`` is a file, written at the end of every epoch and each ``checkpoint_steps`` steps. The same call goes
    on from it: it sends ``log`` the records so far again, for the log may have died with the process, and ends with the
    weights of an unbroken run, to the bit on a CPU with as many threads. The file stays when training is over, since
    the weights are nowhere else yet: ``remove_checkpoint`` it when they are saved.

    Several processes of one launch train together (``training/distributed.py``), all with the same arguments but for
    ``log``, which must be given on all or on none; the first writes the checkpoint, which any number goes on from.

    Raises UserError where config, machine and held-out trials do not fit together or the checkpoint is of another run,
    and TrainingDiverged naming step, loss term and last good checkpoint where a loss is not finite.
    """
    device = runtime.device()
    dtype = distributed.broadcast_from_first(number_format(config, device))
    distributed.check_batch_size(config.batch_per_subject)
    if config.patience and not any(len(trials) for trials in (held_out or {}).values()):
        raise UserError(f"patience: is {config.patience}, but no training image is held out; expected a holdout above 0")
    result, network = network, distributed.prepare(network, device).train()
    trained = Weights({name: p for name, p in network.named_parameters() if p.requires_grad})
    parameters = list(trained.values())
    optimizer = torch.optim.AdamW(parameter_groups(network, config), lr=config.lr, fused=True)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)
    average = trained.clone() if config.ema else Weights()
    best = trained.clone() if config.patience else Weights()
    per_epoch = steps_per_epoch(feeds, config.batch_per_subject * config.accumulate)
    steps = total_steps(config, per_epoch)
    if steps < ENOUGH_STEPS and config.start == "random":
        _logger.warning(
            "%s: %d step%s of training, of %d trials at most; expected %d or more: set least_steps, or more epochs, in the "
            "config",
            title,
            steps,
            "s" if steps > 1 else "",
            max(len(feed.trials) for feed in feeds),
            ENOUGH_STEPS,
        )
    epochs = math.ceil(steps / per_epoch)
    mixco_steps = round(config.mixco_share * steps)
    mixco_rng, heads_rng, fold_rng = (
        np.random.default_rng(runtime.derive_seed(seed, use)) for use in ("mixco", "heads", "cross_fitted")
    )
    now = Progress(dtype=str(dtype).removeprefix("torch."))
    state = Checkpoint(
        checkpoint,
        lambda: run_settings(result, feeds, targets, config, seed, title, held_out),
        {
            "progress": now,
            "weights": trained,
            "optimizer": optimizer,
            "scaler": scaler,
            "average": average,
            "best": best,
            "random": RandomStreams(device, mixco=mixco_rng, heads=heads_rng, cross_fitted=fold_rng),
            **{feed.name: feed for feed in feeds},
        },
    )
    if state.restore(now):
        dtype = getattr(torch, now.dtype)  # what is fastest may have been measured otherwise this time
        for record in now.records if log is not None else ():
            log(record)
    start = time.perf_counter() - now.seconds
    used = ("tokens", *(("text",) if config.text_weight else ()), *(LOWLEVEL if sees_lowlevel(network, config) else ()))
    stream = batches(feeds, config.batch_per_subject, (steps - now.step) * config.accumulate, targets, used)
    stopped_early = 0 < config.patience <= now.waited
    with frozen_in(dtype, network):
        for step in runtime.progress(range(now.step, now.step if stopped_early else steps), title, unit="step"):
            epoch = step // per_epoch
            tau = objectives.soft_clip_tau((step - mixco_steps) / max(1, steps - mixco_steps - 1))
            optimizer.zero_grad(set_to_none=True)
            for batch in itertools.islice(stream, config.accumulate):
                cross_fit(batch, config.cross_fitted, fold_rng)
                mixing = Mixing(batch, mixco_rng, device) if step < mixco_steps else None
                whole = np.arange(len(batch.stimulus)) if mixing is None else mixing.whole
                heads = heads_rng.permutation(whole)[: config.head_trials]
                losses = compute_losses(network, batch, targets, config, mixing, whole, heads, tau, device, dtype)
                weighted = {name: loss_weight(config, name) * loss for name, loss in losses.items()}
                if not now.losses and log is not None and epoch in (0, epochs // 2, epochs - 1):
                    now.norms = {} if distributed.sharded() else gradient_norms(weighted, parameters, scaler.get_scale())
                scaler.scale(torch.stack(list(weighted.values())).sum() / config.accumulate).backward()
                sums = distributed.all_reduce_sum(torch.stack([loss.detach() for loss in losses.values()]))
                now.losses.append(dict(zip(losses, sums.unbind(), strict=True)))
            distributed.all_reduce_gradients(parameters)
            lr = one_cycle(step, steps, config.lr, config.warmup)
            now.gradients.append(take_step(optimizer, scaler, parameters, lr, config.grad_clip))
            if average:
                update_average(average, parameters, config.ema, step)
            now.step, now.seconds = step + 1, time.perf_counter() - start
            epoch_is_over = now.step % per_epoch == 0 or now.step == steps
            if not epoch_is_over:
                if state.path is not None and now.step % config.checkpoint_steps == 0:
                    refuse_broken(now, config.accumulate, title, state.last_good)
                    state.save(now)
                continue
            refuse_broken(now, config.accumulate, title, state.last_good)
            record = {
                "stage": title,
                "epoch": epoch + 1,
                "step": now.step,
                "lr": lr,
                "seconds": now.seconds,
                "gradients": now.norms,
                "losses": mean_losses(now.losses),
            }
            if held_out:
                with exchanged(trained, average):
                    found = validate(network, feeds, held_out, targets, seed, device, dtype)
                    record["validation"] = distributed.broadcast_from_first(found)
            if config.patience and record["validation"]["ranks"] < now.best:
                now.best, now.waited = record["validation"]["ranks"], 0
                best.load_state_dict(average or trained)
            else:
                now.waited += 1
            now.records.append(record)
            now.losses, now.gradients, now.norms = [], [], {}
            state.save(now)
            if log is not None:
                log(record)
            if 0 < config.patience <= now.waited:
                break
    trained.load_state_dict(best or average or trained)
    if result is not network:  # in shards
        weights = dict(result.named_parameters())
        Weights({name: weights[name] for name in trained}).load_state_dict(distributed.gather_shards(trained.state_dict()))
    result.to(device).eval()


def total_steps(config: FitConfig, per_epoch: int) -> int:
    """Steps of a training whose epochs have so many."""
    return max(1, config.least_steps, round(config.epochs * per_epoch))


def cross_fit(batch: Batch, share: float, rng: np.random.Generator) -> None:
    """Leave the shifts of ``share`` of the trials, drawn one by one, in the batch, and 0 for the others; in place."""
    if share == 0:
        batch.shift.clear()
    for shift in batch.shift.values():
        shift[torch.from_numpy(rng.random(len(shift)) >= share)] = 0


class Mixing:
    """BiMixCo of one batch. Voxels, and with them their shifts, are mixed in place.

    ``partner`` and ``lam`` (n,) index the joined batch.
    ``whole``: positions of the trials whose voxels are still one trial's alone.
    """

    def __init__(self, batch: Batch, rng: np.random.Generator, device: torch.device):
        partners, lams, offset = [], [], 0
        for name, voxels in batch.voxels.items():
            partner, lam = objectives.draw_mixco(len(voxels), rng)
            for rows in (batch.voxels, batch.shift):
                if name in rows:
                    rows[name] = objectives.mix(rows[name], torch.from_numpy(partner), torch.from_numpy(lam))
            partners.append(partner + offset)
            lams.append(lam)
            offset += len(voxels)
        partner, lam = np.concatenate(partners), np.concatenate(lams)
        self.whole = np.flatnonzero((lam == 1) | (partner == np.arange(offset)))
        self.partner = torch.from_numpy(partner).to(device)
        self.lam = torch.from_numpy(lam).to(device)


def compute_losses(
    network: BrainNetwork,
    batch: Batch,
    targets: Targets,
    config: FitConfig,
    mixing: Mixing | None,
    whole: np.ndarray,
    heads: np.ndarray,
    tau: float,
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, Tensor]:
    """The unweighted loss terms of one batch (scalars); of several processes, terms that add up to them.

    ``whole``: positions of the trials that are not mixed; ``heads``: those of them that train the prior and the
    low-level module. ``dtype``: of the products. Terms whose weight in ``config`` is 0 are left out.

    Neither holds mixed trials, which take part in BiMixCo and L_skip only. A mixture of two brains has no
    image of its own, so asking those heads for the first one's image would be wrong, and the mean of two
    images' tokens is no image's.
    """

    def wanted(name: str, at: np.ndarray | slice) -> Tensor:
        read = batch.targets.get(name)
        return (targets.rows(name, batch.stimulus[at]) if read is None else read[at]).to(device)

    share = distributed.BatchShare([len(voxels) for voxels in batch.voxels.values()])
    every, own_heads, own_whole = (share.among(at) for at in (np.arange(share.total), heads, whole))
    rows = torch.from_numpy(own_heads.rows).to(device)
    tokens, lowlevel = wanted("tokens", slice(None)), sees_lowlevel(network, config)
    with distributed.shared_dropout(network, every, own_heads):
        with runtime.autocast(dtype), only_rows(network.lowlevel, rows):
            shift = share.voxels(batch.shift) if batch.shift else {}
            outputs = forward(network, share.voxels(batch.voxels), shift, lowlevel, device)
    losses = {}
    if network.prior is not None and config.prior_weight:
        mine = None if share.count == 1 else torch.from_numpy(own_heads.mine).to(device)
        with runtime.autocast(dtype):
            losses["prior"] = own_heads.part(network.prior.loss(outputs.backbone_tokens[rows], tokens[heads], own=mine))
    if config.clip_weight:
        predicted = every.gather(outputs.retrieval_tokens)
        if mixing is None:
            losses["clip"] = distributed.share_of_loss(objectives.soft_clip(predicted, tokens, tau))
        else:
            losses["clip"] = distributed.share_of_loss(objectives.bimixco(predicted, tokens, mixing.partner, mixing.lam))
    if lowlevel:
        latents, plain, augmented = (wanted(name, heads) for name in LOWLEVEL)
        losses["lowlevel"] = own_heads.part((outputs.latents.float() - latents[own_heads.mine]).abs().mean())
        losses["softcont"] = distributed.share_of_loss(
            objectives.soft_contrastive(own_heads.gather(outputs.features), plain, augmented)
        )
    unmixed = outputs.backbone_tokens[own_whole.rows].float()
    if config.regression_weight:
        error = nn.functional.mse_loss(unmixed, tokens[whole[own_whole.mine]])
        losses["regression"] = own_whole.part(error)
    if config.text_weight:
        with runtime.autocast(dtype):
            said = network.projector(unmixed)
        text = wanted("text", whole)
        losses["text"] = distributed.share_of_loss(objectives.brain_to_text(own_whole.gather(said.float()), text))
    if outputs.skips and config.skip_weight:
        losses["skip"] = every.part(objectives.l_skip(outputs.skips))
    if not losses:
        raise UserError("loss weights: are 0 for all that the network has; expected one above 0")
    return losses


def freeze_without_loss(network: BrainNetwork, config: FitConfig) -> None:
    """Freeze the parts that only a loss of weight 0 would teach.

    Weight decay alone would move them, and only where several processes fill in the gradients that they have not.
    """
    for part, weight in (
        (network.retrieval, config.clip_weight),
        (network.prior, config.prior_weight),
        (network.lowlevel, config.lowlevel_weight),
    ):
        if part is not None and not weight:
            part.requires_grad_(False)


def sees_lowlevel(network: BrainNetwork, config: FitConfig) -> bool:
    """Whether training asks the low-level module for anything."""
    return network.lowlevel is not None and config.lowlevel_weight > 0


@contextlib.contextmanager
def only_rows(module: nn.Module | None, rows: Tensor) -> Iterator[None]:
    """Inside the block ``module``, if there is one, sees, and answers for, these rows of its one input only."""
    if module is None:
        yield
        return
    hook = module.register_forward_pre_hook(lambda _, inputs: (inputs[0][rows],))
    try:
        yield
    finally:
        hook.remove()


def forward(
    network: BrainNetwork, voxels: dict[str, Tensor], shift: dict[str, Tensor], lowlevel: bool, device: torch.device
) -> BrainOutputs:
    """Outputs of all subjects, joined in the order of ``voxels`` (name -> (m, V)), with ``shift`` (name -> (m, h)) at x0.

    There is one pass through what they share.
    """
    if len(voxels) == 1:
        [(name, betas)] = voxels.items()
        own = shift[name].to(device) if name in shift else None
        return network(betas.to(device), name, own, lowlevel)
    embedded = [network.embed(betas.to(device), name) for name, betas in voxels.items()]  # only tuning shifts, one subject
    return network.decode_hidden(torch.cat(embedded), lowlevel=lowlevel)


def loss_weight(config: FitConfig, name: str) -> float:
    """The weight of one term in the sum; L_softcont stands inside the low-level bracket."""
    return {
        "prior": config.prior_weight,
        "clip": config.clip_weight,
        "lowlevel": config.lowlevel_weight,
        "softcont": config.lowlevel_weight * config.softcont_weight,
        "regression": config.regression_weight,
        "text": config.text_weight,
        "skip": config.skip_weight,
    }[name]
