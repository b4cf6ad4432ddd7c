"""Networks and fingerprints on disk: safetensors whose header carries everything needed to build the network
again."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import hashlib
import json
from collections.abc import Container, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

import mindtuner
from mindtuner.config import FingerprintConfig, ModelConfig
from mindtuner.errors import UserError
from mindtuner.files import atomic_path
from mindtuner.model import BrainNetwork


def save_network(path: str | Path, network: BrainNetwork, card: dict) -> None:
    """Write the whole network atomically. ``card``: JSON-ready facts for people, such as seed and subjects.

    Raises UserError where the file cannot be written.
    """
    subject = network.fingerprint_subject
    header = {
        "kind": "network",
        "version": mindtuner.__version__,
        "model": dataclasses.asdict(network.config),
        "voxels": {name: ridge.in_features for name, ridge in network.ridges.items()},
        "fingerprint": None if subject is None else _fingerprint_header(network),
        "card": card,
    }
    _write(path, network.state_dict(), header)


def load_network(path: str | Path) -> BrainNetwork:
    """The network of ``save_network``, on the CPU, in evaluation mode.

    Raises UserError where the file is missing, truncated, or not a network of this program.
    """
    header, tensors = _read(path, "network")
    with _building(path):
        raw = header["model"]
        config = ModelConfig(**{**raw, "lowlevel_channels": tuple(raw["lowlevel_channels"])})
        tuned = header["fingerprint"]
        voxels = {name: count for name, count in header["voxels"].items()
                  if tuned is None or name != tuned["subject"]}
        network = BrainNetwork(config, voxels)
        if tuned is not None:
            network.add_fingerprint(tuned["subject"], tuned["voxels"], FingerprintConfig(**tuned["config"]))
        network.load_state_dict(tensors)
    return network.eval()


def save_fingerprint(path: str | Path, network: BrainNetwork, card: dict) -> None:
    """Write only what tuning added to the frozen base: ridge, LoRA, Skip-LoRA, new blocks, a tuned projector.
    A few MB instead of the whole network.

    Raises UserError where the network holds no fingerprint or the file cannot be written.
    """
    if network.fingerprint_subject is None:
        raise UserError(f"{path}: the network holds no fingerprint; expected one tuned on a frozen base")
    header = {"kind": "fingerprint", "version": mindtuner.__version__, "base": _base_hash(network, network.fingerprint_state()),
              "fingerprint": _fingerprint_header(network), "card": card}
    _write(path, network.fingerprint_state(), header)


def load_fingerprint(path: str | Path, base: BrainNetwork) -> BrainNetwork:
    """A copy of ``base`` with the saved fingerprint, in evaluation mode.

    Raises UserError where the file is missing, truncated or no fingerprint, or was tuned on another base
    (also where tuning changed the base itself, as full fine-tuning does: save the whole network then).
    """
    header, tensors = _read(path, "fingerprint")
    with _building(path):
        tuned = header["fingerprint"]
        if header["base"] != _base_hash(base, tensors):
            raise UserError(f"{path}: belongs to another base; expected the one that {tuned['subject']} was "
                            "tuned on")
        network = copy.deepcopy(base)
        network.add_fingerprint(tuned["subject"], tuned["voxels"], FingerprintConfig(**tuned["config"]))
        network.load_fingerprint(tensors)
    return network.eval()


def read_card(path: str | Path) -> dict:
    """The card that was saved with a network or a fingerprint. Raises UserError as loading does."""
    return _read_header(path)["card"]


def _fingerprint_header(network: BrainNetwork) -> dict:
    """Subject, voxel count and FingerprintConfig."""
    subject = network.fingerprint_subject
    return {"subject": subject, "voxels": network.ridges[subject].in_features,
            "config": dataclasses.asdict(network.fingerprint_config)}


def _base_hash(network: BrainNetwork, fingerprint: Container[str]) -> str:
    """The same for a base and for the base inside a network tuned on it: the tensors that the fingerprint holds do not
    count (among them the projector's, where it is tuned), and nor do names, which LoRA changes."""
    digests = sorted(hashlib.sha256(tensor.cpu().contiguous().numpy()).hexdigest()
                     for name, tensor in network.state_dict().items() if name not in fingerprint)
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _write(path: str | Path, tensors: dict[str, torch.Tensor], header: dict) -> None:
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as part:
        try:
            save_file(tensors, part, metadata={"mindtuner": json.dumps(header, allow_nan=False)})
        except SafetensorError as error:  # its way of saying that the disk is full
            raise OSError(str(error)) from error


def _read_header(path: str | Path) -> dict:
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})["mindtuner"])
    except (FileNotFoundError, IsADirectoryError) as error:
        raise UserError(f"{path}: not found; expected a .safetensors file of mindtuner") from error
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({' '.join(str(error).split())}); "
                        "expected one that mindtuner wrote to its end") from error
    except (KeyError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: header lacks field 'mindtuner'; "
                        "expected a file that mindtuner wrote") from error


def _read(path: str | Path, kind: str) -> tuple[dict, dict[str, torch.Tensor]]:
    header = _read_header(path)
    if header.get("kind") != kind:
        raise UserError(f"{path}: kind is {header.get('kind')!r}; expected {kind!r}")
    with safe_open(path, framework="pt") as file:
        return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@contextlib.contextmanager
def _building(path: str | Path) -> Iterator[None]:
    """Building a network draws weights that the file then replaces: leave the caller's random stream alone,
    and turn whatever does not fit into one line for the user."""
    random = torch.random.get_rng_state()
    try:
        yield
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: does not describe a network of this version ({reason}); expected a file "
                        "that this version of mindtuner wrote") from error
    finally:
        torch.random.set_rng_state(random)
