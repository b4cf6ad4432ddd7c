"""How large a network of some config is, what trains in it, and the memory and the work that takes. Nothing is allocated.

Everything is built and run on torch's meta device, where a tensor has a shape and no numbers, so that a
network of two billion parameters takes seconds on a laptop.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from mindtuner.config import Config, FitConfig, ModelConfig
from mindtuner.model import BrainNetwork
from mindtuner.training.batches import Batch, steps_through
from mindtuner.training.loop import compute_losses, loss_weight, total_steps
from mindtuner.training.targets import Targets
from mindtuner.training.tune import starting_network

META = torch.device("meta")


@dataclass(frozen=True)
class Part:
    """One line of the table: a part of BrainNetwork, its parameters in a base, and those that tuning learns."""

    name: str
    shape: str  # of what goes in and what comes out, for one trial
    base: int
    tuned: int


@dataclass(frozen=True)
class Memory:
    """Bytes on the device, numbers in float32.

    ``weights``: parameters and buffers. ``gradients`` and ``optimizer`` (AdamW's two moments): of what trains.
    ``activations``: the most that the rest takes at any moment of a step of ``batch`` trials, targets and temporaries
    included.
    """

    batch: int
    weights: int
    gradients: int
    optimizer: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes of all four together."""
        return self.weights + self.gradients + self.optimizer + self.activations


def build_base(config: Config, voxels: dict[str, int]) -> BrainNetwork:
    """The network that ``pretrain`` makes, on the meta device; voxels, the count V of each subject by name."""
    with META:
        return BrainNetwork(config.model, voxels)


def build_tuned(
    config: Config, voxels: dict[str, int], subject: str, n_voxels: int, method: str = "mindtuner"
) -> BrainNetwork:
    """The network that ``tune`` trains for a new subject by ``method``, on the meta device."""
    with META:
        return starting_network(BrainNetwork(config.model, voxels), subject, n_voxels, config, method)


def count_parts(base: BrainNetwork, tuned: BrainNetwork) -> list[Part]:
    """The table of a base and of a network tuned on it, part by part as BrainNetwork names them."""
    config, subject = base.config, tuned.fingerprint_subject
    hidden, tokens = f"({config.hidden})", f"({config.tokens}, {config.width})"
    latents = f"({config.latent_channels}, {config.latent_side}, {config.latent_side})"
    features = f"({config.feature_positions}, {config.feature_width})"
    voxels, solved = tuned.ridges[subject].in_features, "" if count_trained(tuned.ridges) else ", solved"
    rows = [
        Part(f"ridges, {len(base.ridges)} pretrained", f"(V) -> {hidden}", _count(base.ridges), 0),
        Part(f"ridge, new subject{solved}", f"({voxels}) -> {hidden}", 0, _count(tuned.ridges[subject])),
    ]

    def shared(name: str, shape: str, label: str = "") -> None:
        rows.append(Part(label or name, shape, _count(getattr(base, name)), count_trained(getattr(tuned, name))))

    if base.blocks:
        shared("blocks", f"{hidden} -> {hidden}", f"blocks, {len(base.blocks)}")
    if tuned.new_blocks:
        shared("new_blocks", f"{hidden} -> {hidden}", f"new_blocks, {len(tuned.new_blocks)}")
    shared("head", f"{hidden} -> {tokens}")
    shared("retrieval", f"{tokens} -> {tokens}")
    shared("prior", f"{tokens} -> {tokens}")
    shared("lowlevel", f"{hidden} -> {latents}, {features}")
    shared("projector", f"{tokens} -> ({config.text_width})")
    for index, skip in enumerate(tuned.skips):
        place = "x0" if index == 0 else f"block {index}" if index <= len(tuned.blocks) else "head"
        rows.append(Part(f"skips.{index}, at {place}", f"({voxels}) -> ({skip.B.shape[0]})", 0, count_trained(skip)))
    return rows


def count_trained(module: nn.Module) -> int:
    """How many of its numbers train."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)


def training_memory(network: BrainNetwork, voxels: dict[str, int], fit: FitConfig) -> Memory:
    """Memory of one phase of training on the subjects in ``voxels``.

    Counted in two steps of the loop's own losses (SoftCLIP, where every trial is whole).

    Left out: the one further set of gradients that is held when the log measures each loss's gradient (three times in a
    training), and what kernels and the device's allocator take beside tensors. Attention is counted as if written out;
    fused kernels need less.
    """
    trains = [p for p in network.parameters() if p.requires_grad]
    with PeakMemory(network) as memory:
        # From the second step on, the last gradients are still there while losses are computed.
        _step_without_numbers(network, voxels, fit, times=2)
    gradients = sum(_bytes(p) for p in trains)
    return Memory(fit.batch_per_subject * len(voxels), _weights(network), gradients, 2 * gradients, memory.peak - gradients)


def step_flops(network: BrainNetwork, voxels: dict[str, int], fit: FitConfig) -> int:
    """FLOPs of a step of training on the subjects in ``voxels``: of matrix products, convolutions and attention.

    Counted where every trial is whole, after BiMixCo. AdamW's, a few for each number that trains, are left out.
    """
    with FlopCounterMode(display=False) as counter:
        _step_without_numbers(network, voxels, fit)
    return counter.get_total_flops()


def count_steps(fit: FitConfig, trials: int) -> int:
    """Steps of one phase, where a subject has so many training trials."""
    return total_steps(fit, steps_through(trials, fit.batch_per_subject * fit.accumulate))


def _step_without_numbers(network: BrainNetwork, voxels: dict[str, int], fit: FitConfig, times: int = 1) -> None:
    """Forth and back, with the loop's own losses."""
    network.train()
    n = fit.batch_per_subject * len(voxels)
    targets, every = _empty_targets(network.config, n), np.arange(n)
    heads = every[: fit.head_trials]
    for _ in range(times):
        batch = Batch({name: torch.empty(fit.batch_per_subject, count, device=META) for name, count in voxels.items()}, every)
        losses = compute_losses(network, batch, targets, fit, None, every, heads, 0.005, META, torch.float32)
        network.zero_grad(set_to_none=True)
        torch.stack([loss_weight(fit, name) * loss for name, loss in losses.items()]).sum().backward()


@dataclass(frozen=True)
class Spread:
    """Bytes of one of ``count`` GPUs in a step of training, computed, numbers in float32.

    ``state``: weights, gradients and AdamW's moments that it holds. ``sent``: what it sends for weights and gradients.
    """

    count: int
    state: int
    sent: int


def spread(memory: Memory, count: int, sharded: bool) -> Spread:
    """Of the training in ``memory`` over ``count`` GPUs.

    Whole on each, gradients are summed by a ring: 2 (n-1)/n of their bytes. In shards each holds 1/n, gathers all weights
    going forth and again going back, (n-1)/n of their bytes each, and scatters the sums of the gradients, (n-1)/n of theirs.
    """
    state, share = memory.weights + memory.gradients + memory.optimizer, (count - 1) / count
    if sharded:
        return Spread(count, round(state / count), round(share * (2 * memory.weights + memory.gradients)))
    return Spread(count, state, round(2 * share * memory.gradients))


@torch.no_grad()
def inference_memory(network: BrainNetwork, subject: str) -> Memory:
    """Of decoding one trial: tokens, latents and features, then the prior's sampling and the text.

    The prior takes one step; further ones are the same again.
    """
    network.eval()
    with PeakMemory(network) as memory:
        voxels = torch.empty(1, network.ridges[subject].in_features, device=META)
        tokens = network(voxels, subject).backbone_tokens
        network.prior.sample(tokens, steps=1)
        network.projector(tokens)
    return Memory(1, _weights(network), 0, 0, memory.peak)


class PeakMemory(TorchDispatchMode):
    """Inside the block, follows how many bytes of tensors are alive on the network's device.

    ``peak`` is the most there were at once. The parameters and buffers of ``network`` were there before and do not count.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._device = next(network.parameters()).device
        self._alive = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.device == self._device:
                self._watch(tensor.untyped_storage())
        return result

    def _watch(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata not in self._alive:  # else a view of one that is known
            self._alive.add(storage._cdata)
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes()).atexit = False

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def _empty_targets(config: ModelConfig, n: int) -> Targets:
    """Targets of ``n`` stimuli that take no memory."""
    side = config.latent_side
    features = (config.feature_positions, config.feature_width)
    shapes = ((config.tokens, config.width), (config.text_width,), (config.latent_channels, side, side), features, features)
    return Targets(*(np.broadcast_to(np.float32(0), (n, *shape)) for shape in shapes))


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _weights(network: nn.Module) -> int:
    return sum(_bytes(t) for t in (*network.parameters(), *network.buffers()))


def _bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
