"""Training by several processes: who computes which trials, what they tell one another, and networks in shards.

Every process draws the whole step: trials, mixing, noise, dropout. It computes its own trials of each subject, so all random
streams stand alike everywhere and a run is the same for any number of processes, up to the order of sums. The loss terms of
all processes add up to those of the whole batch, and so do their gradients.

With ``ACCELERATE_USE_FSDP`` (which ``accelerate launch`` sets for ``distributed_type: FSDP``) weights, gradients and
optimiser are sharded over the processes (torch's fully_shard), else each process holds them whole.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import os
from collections.abc import Iterator

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from mindtuner.errors import UserError
from mindtuner.model import BrainNetwork
from mindtuner.model.backbone import Dropout
from mindtuner.processes import processes

BUCKET_BYTES = 2**28  # of gradients that travel together


def sharded() -> bool:
    """Whether this launch asks for sharded networks."""
    return processes().count > 1 and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() in ("true", "1", "yes")


@functools.cache
def _mesh(device: str):
    """All processes, talking by what suits ``device``: NCCL between GPUs, gloo between CPUs."""
    return dist.DeviceMesh.from_group(_group(device), device)


@functools.cache
def _group(device: str) -> dist.ProcessGroup:
    return dist.new_group(backend="nccl") if device == "cuda" else dist.group.WORLD


def broadcast_from_first(value: object) -> object:
    """Process 0's ``value``, plain, on all: what was measured must be the same everywhere."""
    if processes().count == 1:
        return value
    dist.broadcast_object_list(box := [value], src=0)
    return box[0]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """``tensor`` summed over all processes, in place."""
    if processes().count > 1:
        dist.all_reduce(tensor, group=_group(tensor.device.type))
    return tensor


def prepare(network: BrainNetwork, device: torch.device) -> BrainNetwork:
    """What to train in place of ``network``: itself on ``device``, with process 0's weights, or a sharded copy of it."""
    if processes().count > 1:
        with torch.no_grad():
            for tensor in (*network.parameters(), *network.buffers()):
                sent = tensor.to(device)
                dist.broadcast(sent, 0, group=_group(device.type))
                tensor.copy_(sent)
    return _in_shards(network, device) if sharded() else network.to(device)


def _in_shards(network: BrainNetwork, device: torch.device) -> BrainNetwork:
    """A copy whose parts are sharded one by one, so that one part at a time is whole on a device."""
    shards = copy.deepcopy(network)
    mesh = _mesh(device.type)
    layers = [] if shards.prior is None else [part for layer in shards.prior.transformer.layers for part in layer]
    for part in (
        *shards.ridges.values(),
        *shards.blocks,
        *shards.new_blocks,
        *shards.skips,
        shards.head,
        shards.retrieval,
        shards.lowlevel,
        *layers,
        shards.prior,
        shards.projector,
    ):
        if part is not None:
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
            part.set_gradient_divide_factor(1.0)  # the terms add up, they are no means
            part.set_force_sum_reduction_for_comms(True)  # gloo can do nothing else
    if shards.prior is not None:
        register_fsdp_forward_method(shards.prior, "loss")
    return shards.to(device)


def gather_shards(value: object) -> object:
    """``value`` with every sharded tensor in it gathered; all processes must ask."""
    if isinstance(value, DTensor):
        return value.detach().full_tensor()
    if isinstance(value, dict):
        return {key: gather_shards(part) for key, part in value.items()}
    if isinstance(value, list):
        return [gather_shards(part) for part in value]
    return value


def shard_like(value: Tensor, wanted: Tensor) -> Tensor:
    """The whole tensor ``value`` sharded as ``wanted`` is, or as it is."""
    if not isinstance(wanted, DTensor) or isinstance(value, DTensor):
        return value
    mesh = wanted.device_mesh
    return distribute_tensor(value.to(mesh.device_type), mesh, wanted.placements, src_data_rank=None)


def all_reduce_gradients(parameters: list[nn.Parameter]) -> None:
    """Sum whole gradients over all processes; those of shards are summed already."""
    if processes().count == 1 or sharded():
        return
    bucket: list[Tensor] = []
    for index, parameter in enumerate(parameters):
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        if index + 1 == len(parameters) or sum(4 * grad.numel() for grad in bucket) > BUCKET_BYTES:
            flat = all_reduce_sum(torch.cat([grad.flatten() for grad in bucket]))
            for grad, summed in zip(bucket, flat.split([grad.numel() for grad in bucket]), strict=True):
                grad.copy_(summed.view_as(grad))
            bucket = []


class BatchShare:
    """This process's trials of a batch of ``sizes`` trials, subject by subject."""

    def __init__(self, sizes: list[int]):
        group = processes()
        self.count, self.total = group.count, sum(sizes)
        self.of_subject = [group.share(size) for size in sizes]
        starts = np.cumsum([0, *sizes[:-1]])
        self.own = np.concatenate([start + np.array(part) for start, part in zip(starts, self.of_subject, strict=True)])
        self._place = np.full(self.total, -1)
        self._place[self.own] = np.arange(len(self.own))

    def voxels(self, voxels: dict[str, Tensor]) -> dict[str, Tensor]:
        """Of each subject (m, V), the own rows."""
        if self.count == 1:
            return voxels
        return {
            name: betas[part.start : part.stop] for (name, betas), part in zip(voxels.items(), self.of_subject, strict=True)
        }

    def among(self, positions: np.ndarray) -> OwnTrials:
        """The own ones of these trials of the batch (k,)."""
        mine = np.flatnonzero(self._place[positions] >= 0)
        # Sharded parts gather when they run, so all processes run all of them: a trial that counts nothing stands in.
        return OwnTrials(
            len(positions),
            len(mine),
            mine if len(mine) else np.zeros(1, int),
            self._place[positions[mine]] if len(mine) else np.zeros(1, int),
        )


class OwnTrials:
    """Own ones of ``total`` trials: ``mine`` their places among these, ``rows`` those among the process's outputs."""

    def __init__(self, total: int, found: int, mine: np.ndarray, rows: np.ndarray):
        self.total, self.found, self.mine, self.rows = total, found, mine, rows

    def part(self, mean: Tensor) -> Tensor:
        """The share that the mean over the own trials has in the mean over all."""
        return mean * (self.found / self.total)

    def gather(self, rows: Tensor) -> Tensor:
        """Own rows (n, ...) -> those of all processes (total, ...), in the batch's order, with a gradient."""
        if processes().count == 1:
            return rows
        return _Gather.apply(rows, torch.from_numpy(self.mine[: self.found]).to(rows.device), self.total)


class _Gather(torch.autograd.Function):
    """Every process computes the same of the gathered rows, so the gradient of the own rows is here already."""

    @staticmethod
    def forward(ctx, rows: Tensor, mine: Tensor, total: int) -> Tensor:
        ctx.save_for_backward(mine)
        ctx.n = len(rows)
        gathered = rows.new_zeros(total, *rows.shape[1:])
        gathered[mine] = rows[: len(mine)]
        return all_reduce_sum(gathered)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        [mine] = ctx.saved_tensors
        own = gradient.new_zeros(ctx.n, *gradient.shape[1:])
        own[: len(mine)] = gradient[mine]
        return own, None, None


def share_of_loss(loss: Tensor) -> Tensor:
    """Of a loss that every process computes whole, a value that adds up to it, with the whole gradient."""
    count = processes().count
    return loss if count == 1 else loss - loss.detach() * (1 - 1 / count)


@contextlib.contextmanager
def shared_dropout(network: BrainNetwork, all_trials: OwnTrials, heads: OwnTrials) -> Iterator[None]:
    """Inside the block dropout is drawn for the whole batch, of which this process uses its own rows."""
    if processes().count == 1:
        yield
        return
    low = set() if network.lowlevel is None else set(network.lowlevel.modules())
    layers = [module for module in network.modules() if isinstance(module, Dropout)]
    for layer in layers:
        some = heads if layer in low else all_trials
        layer.drawn = some.total, some.mine
    try:
        yield
    finally:
        for layer in layers:
            layer.drawn = None


def check_batch_size(batch_per_subject: int) -> None:
    """Raise UserError where a process would have no trial of a subject."""
    if batch_per_subject < processes().count:
        raise UserError(
            f"batch_per_subject: is {batch_per_subject}; expected at least one trial for each of the "
            f"{processes().count} processes"
        )
