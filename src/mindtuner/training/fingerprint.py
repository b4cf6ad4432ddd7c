"""What tuning adds to a frozen base for one subject: a small object, and a small file."""

from __future__ import annotations

import copy
import dataclasses
import datetime
import hashlib
import json
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import mindtuner
from mindtuner.config import Config, FingerprintConfig, as_dict
from mindtuner.data import Subject
from mindtuner.errors import UserError
from mindtuner.model import BrainNetwork
from mindtuner.training.batches import subject_name
from mindtuner.training.network_files import TARGET, building, read_tensors, write_tensors


@dataclass(frozen=True)
class Fingerprint:
    """One subject's ridge, LoRA, Skip-LoRA, new blocks and tuned projector, as far as it has them, without the base.

    Attributes
    ----------
    subject : str
        Its name in networks, such as "subj01".
    voxels : int
    config : FingerprintConfig
    base : str
        Hash of the base that it was tuned on.
    tensors : dict of str to tensor
        What trained.
    where : str
        Its file, for messages.
    """

    subject: str
    voxels: int
    config: FingerprintConfig
    base: str
    tensors: dict[str, torch.Tensor]
    where: str

    @classmethod
    def of(cls, network: BrainNetwork) -> Fingerprint:
        """That of a tuned network, whose tensors it shares. Raises UserError where the network holds none."""
        if network.fingerprint_subject is None:
            raise UserError("the network holds no fingerprint; expected one tuned on a frozen base")
        subject, tensors = network.fingerprint_subject, network.fingerprint_state()
        return cls(
            subject,
            network.ridges[subject].in_features,
            network.fingerprint_config,
            base_hash(network, tensors),
            tensors,
            f"fingerprint of {subject}",
        )

    def on(self, base: BrainNetwork) -> BrainNetwork:
        """``base`` with this fingerprint, in evaluation mode. It shares the base's weights, which are not copied.

        Raises UserError where the fingerprint does not fit; whether it was tuned on this very base,
        ``refuse_other_base`` tells.
        """
        network = share_weights(base, but=self.tensors.keys())  # a tuned projector has the name of the base's
        with building(self.where):
            network.add_fingerprint(self.subject, self.voxels, self.config)
            network.load_fingerprint(self.tensors)
        return network.eval()


def save_fingerprint(
    path: str | Path,
    network: BrainNetwork,
    subject: Subject,
    config: Config,
    card: dict | None = None,
    date: str | None = None,
) -> None:
    """Write only what tuning added to the frozen base: a few MB instead of the whole network.

    Its card, which ``read_card`` shows, says subject, sessions, training trials, voxels, hash of the voxels' masks, hash of
    the base, config and date, and what else ``card`` tells.

    Parameters
    ----------
    path : path
    network : BrainNetwork
    subject : Subject
        That ``tune`` was given.
    config : Config
        That ``tune`` was given.
    card : dict, optional
        JSON-ready, such as "scores".
    date : str, optional
        That of today (UTC) when not given.

    Raises
    ------
    UserError
        Where the network holds no fingerprint of this subject or the file cannot be written.
    """
    if network.fingerprint_subject is None:
        raise UserError(f"{path}: the network holds no fingerprint; expected one tuned on a frozen base")
    fingerprint = Fingerprint.of(network)
    _refuse_other_subject(path, fingerprint, subject)
    facts = facts_of(subject, config, date)
    write_fingerprint(path, fingerprint, {**facts, "scores": {}, **(card or {}), **facts})  # facts come first, and hold


def facts_of(subject: Subject, config: Config, date: str | None = None) -> dict:
    """What the card of a fingerprint says of the subject that it was tuned to and how, JSON-ready.

    ``date``: by default that of today (UTC).
    """
    return {
        "subject": subject.number,
        "sessions": len(set(subject.train.session.tolist())),
        "trials": len(subject.train),
        "voxels": subject.n_voxels,
        "mask": mask_hash(subject),
        "config": as_dict(config),
        "date": date or datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }


def write_fingerprint(path: str | Path, fingerprint: Fingerprint, card: dict) -> None:
    """Write a fingerprint under a card that has the facts of ``facts_of``; to them come its base and its own config.

    Raises UserError where the file cannot be written.
    """
    own = dataclasses.asdict(fingerprint.config)
    header = {
        "kind": "fingerprint",
        "version": mindtuner.__version__,
        "fingerprint": {"subject": fingerprint.subject, "voxels": fingerprint.voxels, "config": own},
        "card": {**card, "base": fingerprint.base, "config": {**card["config"], "fingerprint": own}},
    }
    write_tensors(path, fingerprint.tensors, header)


def read_fingerprint(path: str | Path, subject: Subject | None = None) -> Fingerprint:
    """The fingerprint of ``save_fingerprint``, for a ``Decoder`` of several subjects.

    Parameters
    ----------
    path : path
    subject : Subject, optional
        Whose it has to be.

    Returns
    -------
    Fingerprint

    Raises
    ------
    UserError
        Where the file is missing, truncated or no fingerprint, and, with a ``subject``, where it is that of another one, has
        another number of voxels, or the voxels' masks are others.
    """
    header, tensors = read_tensors(path, "fingerprint")
    if TARGET not in tensors and "centre.backbone" in tensors:
        tensors[TARGET] = torch.zeros_like(tensors["centre.backbone"])
    with building(path):
        found, card = header["fingerprint"], header["card"]
        fingerprint = Fingerprint(
            found["subject"], found["voxels"], FingerprintConfig(**found["config"]), card["base"], tensors, str(path)
        )
        if subject is not None:
            _refuse_other_subject(path, fingerprint, subject)
            if card["mask"] != mask_hash(subject):
                raise UserError(
                    f"{path}: mask differs from that of {subject.where}; expected the voxels, and their regions, "
                    "that the fingerprint was tuned on"
                )
    return fingerprint


def load_fingerprint(path: str | Path, base: BrainNetwork, subject: Subject | None = None) -> BrainNetwork:
    """A copy of a base with the saved fingerprint, in evaluation mode.

    Parameters
    ----------
    path : path
    base : BrainNetwork
    subject : Subject, optional
        Whose it has to be.

    Returns
    -------
    BrainNetwork

    Raises
    ------
    UserError
        As ``read_fingerprint`` does, and where the fingerprint was tuned on another base (also where tuning changed the base
        itself, as full fine-tuning does: save the whole network then).
    """
    fingerprint = read_fingerprint(path, subject)
    refuse_other_base(base, [fingerprint])
    return fingerprint.on(copy.deepcopy(base))


def share_weights(base: BrainNetwork, but: Container[str] = ()) -> BrainNetwork:
    """A network of its own around the very weights of ``base``, frozen; those named in ``but`` are copied."""
    shared = {
        id(weight): nn.Parameter(weight.detach(), requires_grad=False)
        for name, weight in base.named_parameters()
        if name not in but
    }
    return copy.deepcopy(base, shared)


def refuse_other_base(base: BrainNetwork, fingerprints: Iterable[Fingerprint]) -> None:
    """Raise UserError where one of them was tuned on another base.

    Hashes the base once, and once more where some have a tuned projector and others the base's.
    """
    hashes: dict[frozenset[str], str] = {}
    shared = {name for name, _ in base.named_parameters()}
    for fingerprint in fingerprints:
        replaced = frozenset(fingerprint.tensors.keys() & shared)
        if replaced not in hashes:
            hashes[replaced] = base_hash(base, replaced)
        if fingerprint.base != hashes[replaced]:
            raise UserError(
                f"{fingerprint.where}: belongs to another base; expected the one that {fingerprint.subject} was tuned on"
            )


def base_hash(network: BrainNetwork, fingerprint: Container[str]) -> str:
    """The same for a base and for the base inside a network tuned on it.

    The tensors that the fingerprint holds do not count (among them the projector's, where it is tuned), and nor do names,
    which LoRA changes.
    """
    digests = sorted(
        hashlib.sha256(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy()).hexdigest()
        for name, tensor in network.state_dict().items()
        if name not in fingerprint
    )
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def mask_hash(subject: Subject) -> str:
    """sha256 (hex) of the number of voxels and of each region's mask over them."""
    found = hashlib.sha256(json.dumps([subject.n_voxels, sorted(subject.rois)]).encode())
    for name in sorted(subject.rois):
        found.update(subject.rois[name].astype(bool).tobytes())
    return found.hexdigest()


def _refuse_other_subject(path: str | Path, fingerprint: Fingerprint, subject: Subject) -> None:
    if subject_name(subject.number) != fingerprint.subject:
        raise UserError(f"{path}: subject is {fingerprint.subject}; expected {subject_name(subject.number)}")
    if subject.n_voxels != fingerprint.voxels:
        raise UserError(f"{path}: voxels is {fingerprint.voxels}; expected {subject.n_voxels}, as {subject.where} has")
