"""Networks on disk: safetensors whose header carries everything needed to build the network again."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

import mindtuner
from mindtuner.config import FingerprintConfig, ModelConfig
from mindtuner.errors import UserError
from mindtuner.files import atomic_path
from mindtuner.inputs import open_tensors, parse_json
from mindtuner.model import BrainNetwork
from mindtuner.model.backbone import Centre, Confidence, ExpectedHidden, Sureness

CHECKSUM = "checksum"
EXPECTED = "a .safetensors file of mindtuner, written to its end"
TARGET = "centre.target"  # which files of earlier versions have not: nothing was taken off


def save_network(path: str | Path, network: BrainNetwork, card: dict) -> None:
    """Write the whole network atomically.

    Parameters
    ----------
    path : path
    network : BrainNetwork
    card : dict
        JSON-ready facts for people, such as seed and subjects.

    Raises
    ------
    UserError
        Where the file cannot be written.
    """
    subject = network.fingerprint_subject
    header = {
        "kind": "network",
        "version": mindtuner.__version__,
        "model": dataclasses.asdict(network.config),
        "voxels": {name: ridge.in_features for name, ridge in network.ridges.items()},
        "without": list(network.without),
        "expectation": network.expectation is not None,
        "centre": network.centre is not None,
        "sureness": None if network.sureness is None else network.sureness.coefficients.numel() - 1,
        "confidence": network.confidence is not None,
        "fingerprint": None if subject is None else fingerprint_header(network),
        "card": card,
    }
    write_tensors(path, network.state_dict(), header)


def load_network(path: str | Path) -> BrainNetwork:
    """The network of ``save_network``, on the CPU, in evaluation mode.

    Parameters
    ----------
    path : path

    Returns
    -------
    BrainNetwork

    Raises
    ------
    UserError
        Where the file is missing, truncated, or not a network of this program.
    """
    header, tensors = read_tensors(path, "network")
    with building(path):
        raw = header["model"]
        config = ModelConfig(**{**raw, "lowlevel_channels": tuple(raw["lowlevel_channels"])})
        tuned = header["fingerprint"]
        voxels = {name: count for name, count in header["voxels"].items() if tuned is None or name != tuned["subject"]}
        network = BrainNetwork(config, voxels, tuple(header.get("without", ())))
        if tuned is not None:
            network.add_fingerprint(tuned["subject"], tuned["voxels"], FingerprintConfig(**tuned["config"]))
        if header.get("expectation"):
            network.expectation = ExpectedHidden(config.hidden)
        if header.get("centre"):
            network.centre = Centre(config.tokens, config.width)
            tensors.setdefault(TARGET, network.centre.target)
        if header.get("sureness"):
            network.sureness = Sureness(header["sureness"])
        if header.get("confidence"):
            network.confidence = Confidence()
        network.load_state_dict(tensors)
    return network.eval()


def read_card(path: str | Path) -> dict:
    """The card that was saved with a network or a fingerprint.

    Parameters
    ----------
    path : path

    Returns
    -------
    dict

    Raises
    ------
    UserError
        As loading does.
    """
    return _read_header(path)["card"]


def kind_of(path: str | Path) -> str:
    """``network`` or ``fingerprint``, what a file of mindtuner holds. Raises UserError as loading does."""
    return _read_header(path)["kind"]


def fingerprint_header(network: BrainNetwork) -> dict:
    """Subject, voxel count and FingerprintConfig of a network's fingerprint, as plain values."""
    subject = network.fingerprint_subject
    return {
        "subject": subject,
        "voxels": network.ridges[subject].in_features,
        "config": dataclasses.asdict(network.fingerprint_config),
    }


def write_tensors(path: str | Path, tensors: dict[str, torch.Tensor], header: dict) -> None:
    """One safetensors file with a JSON header, atomically. Raises UserError where it cannot be written."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {**header, CHECKSUM: checksum_of(header, tensors)}
    with atomic_path(path) as part:
        save_file(tensors, part, metadata={"mindtuner": json.dumps(header, allow_nan=False)})


def checksum_of(header: dict, tensors: Mapping[str, torch.Tensor]) -> str:
    """CRC-32, as 8 hex digits, of a header and of all tensors with their names and shapes: a flipped bit changes it.

    It is against damage, not against somebody who wants to deceive, and takes a second for 2 GB.
    """
    found = zlib.crc32(json.dumps({name: value for name, value in header.items() if name != CHECKSUM}).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode(), found)
        found = zlib.crc32(tensor.contiguous().flatten().view(torch.uint8).numpy().data, found)
    return f"{found:08x}"


def _read_header(path: str | Path) -> dict:
    with open_tensors(path, EXPECTED) as file:
        text = (file.metadata() or {}).get("mindtuner")
    if text is None:
        raise UserError(f"{path}: header lacks field 'mindtuner'; expected a file that mindtuner wrote")
    header = parse_json(text, str(path), EXPECTED)
    for field, form in (("kind", str), ("card", dict)):
        if not isinstance(header, dict) or not isinstance(header.get(field), form):
            raise UserError(f"{path}: header lacks field {field!r}; expected a file that mindtuner wrote")
    return header


def read_tensors(path: str | Path, kind: str) -> tuple[dict, dict[str, torch.Tensor]]:
    """Header and tensors of a file of this kind.

    Raises UserError where it is missing, damaged or of another kind, or holds a number that is not finite. Files of earlier
    versions have no checksum, and are compared with none.
    """
    header = _read_header(path)
    if header["kind"] != kind:
        raise UserError(f"{path}: kind is {header['kind']!r}; expected {kind!r}")
    with open_tensors(path, EXPECTED) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if CHECKSUM in header and (found := checksum_of(header, tensors)) != header[CHECKSUM]:
        raise UserError(f"{path}: has checksum {found}; expected {header[CHECKSUM]}, as it was written: it is damaged")
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise UserError(f"{path}: {name} holds a number that is not finite; expected weights")
    return header, tensors


@contextlib.contextmanager
def building(where: str | Path) -> Iterator[None]:
    """Inside the block, a network is built whose weights the file then replaces.

    Leaves the caller's random stream alone, which building draws from, and turns whatever does not fit into one line for the
    user.
    """
    random = torch.random.get_rng_state()
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # what a header says may be anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{where}: does not describe a network of this version ({reason}); expected a file "
            "that this version of mindtuner wrote"
        ) from error
    finally:
        torch.random.set_rng_state(random)
