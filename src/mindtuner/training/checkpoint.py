"""Checkpoints of training: a file from which a run goes on as if it had never stopped, to the bit.

A checkpoint holds everything that the steps to come depend on: weights that train, optimiser, running average, step, losses
of the epoch so far, where every subject's stream of trials stands, and every random stream. It is written whole or not
at all, so a process may be killed at any moment.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

import mindtuner
from mindtuner.config import FitConfig
from mindtuner.data import Trials
from mindtuner.data.identity import betas_hash
from mindtuner.errors import UserError
from mindtuner.files import atomic_path
from mindtuner.inputs import reading
from mindtuner.processes import processes
from mindtuner.training.batches import Feed
from mindtuner.training.distributed import broadcast_from_first, gather_shards, shard_like
from mindtuner.training.targets import Targets

KIND = "mindtuner training checkpoint 2"


class Stateful(Protocol):
    """What a checkpoint holds: an optimiser, a Feed, and the classes below."""

    def state_dict(self) -> dict:
        """The state, tensors and plain values by name."""

    def load_state_dict(self, state: dict) -> object:
        """Take up a state that ``state_dict`` gave."""


class Checkpoint:
    """The checkpoint of one run at ``path``; without a path nothing is ever written or found.

    Parameters
    ----------
    settings : called once where there is a path: plain values that tell this run from any other
    parts : name -> what holds a part of the run's state
    """

    def __init__(self, path: str | Path | None, settings: Callable[[], dict], parts: Mapping[str, Stateful]):
        self.path = None if path is None else Path(path)
        self.parts = parts
        self.settings = {} if self.path is None else settings()
        self.last_good = "none"

    def restore(self, now: Progress) -> bool:
        """Bring all parts, of which ``now`` is one, to where the checkpoint left them; False where there is none yet.

        Raises UserError where the file is damaged, no checkpoint, or of a run with other settings.
        """
        if self.path is None:
            return False
        if not broadcast_from_first(self.path.exists()):
            return False
        saved = _read(self.path)
        _refuse_other_settings(self.path, saved["settings"], self.settings)
        for name, part in self.parts.items():
            if isinstance(part, torch.optim.Optimizer):
                _in_shards(part, saved["parts"][name])
            part.load_state_dict(saved["parts"][name])
        self.last_good = f"{self.path} at step {now.step}"
        return True

    def save(self, now: Progress) -> None:
        """Replace the file by one of this moment, atomically. Raises UserError where it cannot be written."""
        if self.path is None:
            return
        parts = {name: gather_shards(part.state_dict()) for name, part in self.parts.items()}
        self.last_good = f"{self.path} at step {now.step}"
        if processes().index != 0:
            return
        write_state(self.path, {"kind": KIND, "settings": self.settings, "parts": parts})


def write_state(path: Path, state: dict) -> None:
    """Write plain values and tensors as torch does, atomically. Raises UserError where it cannot be written."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:  # its way of saying that the disk is full
            raise OSError(" ".join(str(error).split())) from error
        file.flush()
        os.fsync(file.fileno())  # a power cut after the replacement must not leave an empty file


def _in_shards(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Shard the moments in a saved ``state`` as the weights that they belong to are."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, moments in state["state"].items():
        for name, moment in moments.items():
            if moment.ndim:  # not the count of steps
                moments[name] = shard_like(moment, weights[index])


def remove_checkpoint(path: str | Path) -> None:
    """Remove what ``pretrain`` or ``tune`` left at ``path``; call it when the network that they returned is saved."""
    for file in (Path(path), pivot_checkpoint(path)):
        file.unlink(missing_ok=True)


def pivot_checkpoint(path: str | Path) -> Path:
    """Where pretraining with a checkpoint at ``path`` keeps that of the Pivot, which it trains first."""
    return Path(path).with_name(f"{Path(path).name}.pivot")


def _read(path: Path) -> dict:
    with reading(path, "a whole checkpoint that mindtuner wrote, or no file"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, beside our line
        saved = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(saved, dict) or saved.get("kind") != KIND:
        raise UserError(f"{path}: not a training checkpoint of this version; expected one that mindtuner wrote, or no file")
    return saved


def _refuse_other_settings(path: Path, saved: dict, wanted: dict) -> None:
    for name in wanted | saved:  # in the order in which they were put down: what they follow from comes first
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"{path}: belongs to another run ({name} is {saved.get(name)} there and {wanted.get(name)} "
                "here); expected the checkpoint of this run, or another path"
            )


class Weights(dict[str, Tensor]):
    """Tensors by name, which going on fills again in place."""

    def state_dict(self) -> dict:
        """The tensors by name, detached, not copied."""
        return {name: tensor.detach() for name, tensor in self.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Fill the tensors in place; of a tensor in shards, this process's part."""
        with torch.no_grad():
            for name, tensor in self.items():
                tensor.copy_(shard_like(state[name], tensor))

    def clone(self) -> Weights:
        """The same values in tensors of their own."""
        return Weights({name: tensor.detach().clone() for name, tensor in self.items()})


class RandomStreams:
    """Named NumPy generators, and torch's global ones on the CPU and on ``device``."""

    def __init__(self, device: torch.device, **generators: np.random.Generator):
        self.device, self.generators = device, generators

    def state_dict(self) -> dict:
        """The state of each NumPy generator as JSON, and torch's on the CPU and on the device."""
        state = {name: json.dumps(rng.bit_generator.state) for name, rng in self.generators.items()}
        state["torch"] = torch.random.get_rng_state()
        if self.device.type == "cuda":
            state["cuda"] = torch.cuda.get_rng_state(self.device)
        if self.device.type == "mps":
            state["mps"] = torch.mps.get_rng_state()
        return state

    def load_state_dict(self, state: dict) -> None:
        """Set all streams to a state that ``state_dict`` gave."""
        for name, rng in self.generators.items():
            rng.bit_generator.state = json.loads(state[name])
        torch.random.set_rng_state(state["torch"])
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda"], self.device)
        if self.device.type == "mps":
            torch.mps.set_rng_state(state["mps"])


@dataclass
class Progress:
    """How far a run has come, in plain values and small tensors."""

    dtype: str = "float32"  # of the products; what was measured at the first start holds to the end
    step: int = 0  # steps done
    seconds: float = 0.0
    losses: list[dict[str, Tensor]] = field(default_factory=list)  # of each batch of the epoch so far
    gradients: list[Tensor] = field(default_factory=list)  # norm at each step of the epoch so far
    norms: dict[str, float] = field(default_factory=dict)  # of each loss's gradient, where the epoch began with them
    records: list[dict] = field(default_factory=list)  # all that was logged
    best: float = math.inf  # mean log rank in validation
    waited: int = 0  # epochs since then

    def state_dict(self) -> dict:
        """All fields by name."""
        return dict(vars(self))

    def load_state_dict(self, state: dict) -> None:
        """Set the fields that ``state`` names."""
        vars(self).update(state)


def run_settings(
    network: nn.Module,
    feeds: list[Feed],
    targets: Targets,
    config: FitConfig,
    seed: int,
    title: str,
    held_out: dict[str, Trials] | None,
) -> dict:
    """What tells a run of ``fit`` from any other; of weights, trials, betas and targets short hashes.

    Betas count whole, see ``data.identity``. Of targets, which may be larger than memory, a few rows are looked at: their
    caches know what they are of.
    """
    settings = {key: value for key, value in dataclasses.asdict(config).items() if key != "checkpoint_steps"}
    settings |= {"program": mindtuner.__version__, "stage": title, "seed": seed}
    for feed in feeds:
        settings[f"trials of {feed.name}"] = digest([feed.trials.row, feed.trials.stimulus])
        settings[f"betas of {feed.name}"] = betas_hash(feed.subject, feed.trials)
    for name, trials in (held_out or {}).items():
        settings[f"trials held out of {name}"] = digest([trials.row, trials.stimulus])
    used = np.unique(np.concatenate([feed.trials.stimulus for feed in feeds]))
    settings["targets"] = digest(targets.rows(field.name, _few(used)) for field in dataclasses.fields(targets))
    settings["starting weights"] = digest(network.state_dict().values())
    return settings


def _few(rows: np.ndarray) -> np.ndarray:
    return rows[np.linspace(0, len(rows) - 1, min(8, len(rows))).round().astype(int)]


def digest(arrays: Iterable[np.ndarray | Tensor]) -> str:
    """Short hash of shapes and bytes, in order; tells two runs' data or weights apart."""
    found = hashlib.sha256()
    for array in arrays:
        tensor = torch.as_tensor(array).detach().cpu().contiguous()
        found.update(f"{tuple(tensor.shape)} {tensor.dtype}".encode())
        if tensor.numel():  # nothing cannot be viewed as bytes
            found.update(tensor.flatten().view(torch.uint8).numpy())
    return found.hexdigest()[:16]
