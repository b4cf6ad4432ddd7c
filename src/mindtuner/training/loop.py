"""The one training loop, for pretraining on many subjects and for tuning on one."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from mindtuner import runtime
from mindtuner.config import FitConfig
from mindtuner.data import Trials
from mindtuner.model import BrainNetwork, BrainOutputs
from mindtuner.training import objectives
from mindtuner.training.batches import Batch, Feed, batches, steps_per_epoch
from mindtuner.training.targets import Targets

Log = Callable[[dict], None]


def fit(network: BrainNetwork, feeds: list[Feed], targets: Targets, config: FitConfig, seed: int, title: str,
        log: Log | None = None, held_out: dict[str, Trials] | None = None) -> None:
    """Train, in place, the parameters of ``network`` that require a gradient.

        L = prior_weight L_prior + clip_weight L_CLIP + lowlevel_weight (L1 + softcont_weight L_softcont)
            + regression_weight L_regression [+ skip_weight L_skip where the network has skips]

    (MindTuner paper, training objectives; L_regression, the squared error of the backbone tokens themselves, is
    ours: without it only the prior tells B what to be, which takes far longer than a demo trains.)
    L_CLIP is BiMixCo for the first ``mixco_share`` of the steps and
    SoftCLIP afterwards. ``log`` gets one dict per epoch: the mean of each loss under "losses", the learning rate, at the
    first, middle and last epoch the norm of each weighted loss's gradient under "gradients", and scores under
    "validation" where trials are ``held_out``. Raises RuntimeError naming step and loss term where a loss is not finite.
    """
    device = runtime.device()
    network.to(device).train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameter_groups(network, config), lr=config.lr, fused=True)
    per_epoch = steps_per_epoch(feeds, config.batch_per_subject)
    steps = max(1, round(config.epochs * per_epoch))
    epochs = math.ceil(steps / per_epoch)
    mixco_steps = round(config.mixco_share * steps)
    mixco_rng, heads_rng = (np.random.default_rng(runtime.derive_seed(seed, use)) for use in ("mixco", "heads"))
    history: list[dict[str, Tensor]] = []
    norms: dict[str, float] = {}
    stream = batches(feeds, config.batch_per_subject, steps)
    start = time.perf_counter()
    for step, batch in enumerate(runtime.progress(stream, title, total=steps, unit="step")):
        epoch = step // per_epoch
        mixing = Mixing(batch, mixco_rng, device) if step < mixco_steps else None
        whole = np.arange(len(batch.stimulus)) if mixing is None else mixing.whole
        heads = heads_rng.permutation(whole)[:config.head_trials]
        tau = objectives.soft_clip_tau((step - mixco_steps) / max(1, steps - mixco_steps - 1))
        losses = compute_losses(network, batch, targets, mixing, whole, heads, tau, device)
        weighted = {name: loss_weight(config, name) * loss for name, loss in losses.items()}
        if step == epoch * per_epoch and log is not None and epoch in (0, epochs // 2, epochs - 1):
            norms = gradient_norms(weighted, parameters)
        optimizer.zero_grad(set_to_none=True)
        torch.stack(list(weighted.values())).sum().backward()
        nn.utils.clip_grad_norm_(parameters, config.grad_clip)
        lr = one_cycle(step, steps, config.lr, config.warmup)
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        history.append({name: loss.detach() for name, loss in losses.items()})
        if (step + 1) % per_epoch == 0 or step + 1 == steps:
            record = {"stage": title, "epoch": epoch + 1, "step": step + 1, "lr": lr,
                      "seconds": time.perf_counter() - start, "gradients": norms,
                      "losses": mean_losses(history, step + 1 - len(history), title)}
            if held_out:
                record["validation"] = validate(network, feeds, held_out, targets, device)
            history, norms = [], {}
            if log is not None:
                log(record)
    network.eval()


class Mixing:
    """BiMixCo of one batch. Voxels are mixed in place; ``partner`` and ``lam`` (n,) index the joined batch.

    ``whole``: positions of the trials whose voxels are still one trial's alone.
    """

    def __init__(self, batch: Batch, rng: np.random.Generator, device: torch.device):
        partners, lams, offset = [], [], 0
        for name, voxels in batch.voxels.items():
            partner, lam = objectives.draw_mixco(len(voxels), rng)
            batch.voxels[name] = objectives.mix(voxels, torch.from_numpy(partner), torch.from_numpy(lam))
            partners.append(partner + offset)
            lams.append(lam)
            offset += len(voxels)
        partner, lam = np.concatenate(partners), np.concatenate(lams)
        self.whole = np.flatnonzero((lam == 1) | (partner == np.arange(offset)))
        self.partner = torch.from_numpy(partner).to(device)
        self.lam = torch.from_numpy(lam).to(device)


def compute_losses(network: BrainNetwork, batch: Batch, targets: Targets, mixing: Mixing | None,
                   whole: np.ndarray, heads: np.ndarray, tau: float, device: torch.device) -> dict[str, Tensor]:
    """The unweighted loss terms of one batch (scalars).

    ``whole``: positions of the trials that are not mixed; ``heads``: those of them that train the prior and the
    low-level module.

    Neither holds mixed trials, which take part in BiMixCo and L_skip only. A mixture of two brains has no
    image of its own, so asking those heads for the first one's image would be wrong, and the mean of two
    images' tokens is no image's.
    """
    rows = torch.from_numpy(heads).to(device)
    tokens = targets.rows("tokens", batch.stimulus).to(device)
    with runtime.autocast(), only_rows(network.lowlevel, rows):
        outputs = forward(network, batch.voxels, device)
    with runtime.autocast():
        prior = network.prior.loss(outputs.backbone_tokens[rows], tokens[rows])
    if mixing is None:
        clip = objectives.soft_clip(outputs.retrieval_tokens, tokens, tau)
    else:
        clip = objectives.bimixco(outputs.retrieval_tokens, tokens, mixing.partner, mixing.lam)
    latents, plain, augmented = (targets.rows(name, batch.stimulus[heads]).to(device)
                                 for name in ("latents", "features", "features_augmented"))
    losses = {"prior": prior, "clip": clip,
              "lowlevel": (outputs.latents.float() - latents).abs().mean(),
              "softcont": objectives.soft_contrastive(outputs.features, plain, augmented),
              "regression": nn.functional.mse_loss(outputs.backbone_tokens[whole].float(), tokens[whole])}
    if outputs.skips:
        losses["skip"] = objectives.l_skip(outputs.skips)
    return losses


@contextlib.contextmanager
def only_rows(module: nn.Module, rows: Tensor) -> Iterator[None]:
    """Inside the block ``module`` sees, and answers for, these rows of its one input only."""
    hook = module.register_forward_pre_hook(lambda _, inputs: (inputs[0][rows],))
    try:
        yield
    finally:
        hook.remove()


def forward(network: BrainNetwork, voxels: dict[str, Tensor], device: torch.device) -> BrainOutputs:
    """Outputs of all subjects, joined in the order of ``voxels`` (name -> (m, V)): one pass through what they
    share."""
    if len(voxels) == 1:
        [(name, betas)] = voxels.items()
        return network(betas.to(device), name)
    embedded = [network.embed(betas.to(device), name) for name, betas in voxels.items()]
    return network.decode_hidden(torch.cat(embedded))


def loss_weight(config: FitConfig, name: str) -> float:
    """The weight of one term in the sum; L_softcont stands inside the low-level bracket."""
    return {"prior": config.prior_weight, "clip": config.clip_weight, "lowlevel": config.lowlevel_weight,
            "softcont": config.lowlevel_weight * config.softcont_weight, "regression": config.regression_weight,
            "skip": config.skip_weight}[name]


def parameter_groups(network: BrainNetwork, config: FitConfig) -> list[dict]:
    """Trainable parameters in three groups: ridge weights, other matrices, and (never decayed) biases and
    norm gains."""
    ridge, matrices, vectors = [], [], []
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            chosen = vectors if parameter.ndim < 2 else ridge if name.startswith("ridges.") else matrices
            chosen.append(parameter)
    decays = (config.ridge_weight_decay, config.weight_decay, 0.0)
    return [{"params": group, "weight_decay": decay}
            for group, decay in zip((ridge, matrices, vectors), decays, strict=True) if group]


def one_cycle(step: int, steps: int, lr: float, warmup: float) -> float:
    """Learning rate of step 0 .. steps - 1: cosine from lr/25 up to lr at share ``warmup`` of the steps, then
    cosine down to lr/25,000 (MindEye2 paper, training)."""
    start, end = lr / 25, lr / 25_000
    peak, last = max(warmup * steps - 1, 0), steps - 1
    if step < peak:
        return lr + (start - lr) * (1 + math.cos(math.pi * step / peak)) / 2
    share = (step - peak) / max(1, last - peak)
    return end + (lr - end) * (1 + math.cos(math.pi * share)) / 2


def gradient_norms(weighted: dict[str, Tensor], parameters: list[nn.Parameter]) -> dict[str, float]:
    """L2 norm of each weighted loss's gradient: which term drives training."""
    norms = {}
    for name, loss in weighted.items():
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        norms[name] = torch.stack([g.norm() for g in gradients if g is not None]).norm().item()
    return norms


def mean_losses(history: list[dict[str, Tensor]], first_step: int, title: str) -> dict[str, float]:
    """Means over an epoch. Losses are looked at once an epoch, so that no step waits for an accelerator."""
    means = {}
    for name in history[0]:
        values = torch.stack([losses[name] for losses in history]).cpu()
        if not values.isfinite().all():
            step = first_step + int((~values.isfinite()).nonzero()[0])
            raise RuntimeError(f"{title}: loss term {name!r} is not finite at step {step}; lower the "
                               "learning rate or look for extreme values in betas and targets")
        means[name] = values.mean().item()
    return means


@torch.no_grad()
def validate(network: BrainNetwork, feeds: list[Feed], held_out: dict[str, Trials], targets: Targets,
             device: torch.device, chunk: int = 256) -> dict[str, float]:
    """Held-out training trials: top-1 retrieval of the image among the held-out images of that subject, its
    chance, and L1 of the latents, each the mean over subjects."""
    network.eval()
    top1, chance, l1 = [], [], []
    for feed in feeds:
        trials = held_out[feed.name]
        images, own = np.unique(trials.stimulus, return_inverse=True)
        if len(images) == 0:
            continue
        candidates = nn.functional.normalize(targets.rows("tokens", images).flatten(1), dim=1)
        right, error = 0, 0.0
        for start in range(0, len(trials), chunk):
            part = slice(start, start + chunk)
            voxels = torch.from_numpy(feed.subject.betas(trials.row[part])).to(device)
            with runtime.autocast():
                outputs = network(voxels, feed.name)
            scores = outputs.retrieval_tokens.flatten(1).float().cpu() @ candidates.T
            right += int((scores.argmax(1).numpy() == own[part]).sum())
            truth = targets.rows("latents", trials.stimulus[part])
            error += (outputs.latents.float().cpu() - truth).abs().mean((1, 2, 3)).sum().item()
        top1.append(right / len(trials))
        chance.append(1 / len(images))
        l1.append(error / len(trials))
    network.train()
    if not top1:
        return {}
    return {"top1": float(np.mean(top1)), "chance": float(np.mean(chance)),
            "lowlevel": float(np.mean(l1))}
