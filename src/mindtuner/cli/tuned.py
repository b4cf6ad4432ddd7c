"""What tune writes and decode and evaluate read: one file for each method, and the base that it goes on."""

from __future__ import annotations

import os
from pathlib import Path

from mindtuner.cli.steps import BASE, SETTINGS
from mindtuner.config import Config, as_dict
from mindtuner.data import Subject
from mindtuner.errors import UserError
from mindtuner.model import BrainNetwork
from mindtuner.training import (
    METHODS,
    load_fingerprint,
    load_network,
    read_card,
    save_fingerprint,
    save_network,
    subject_name,
)

WHOLE = ("full_finetune", "from_scratch")  # methods that leave nothing of the base as it was: all weights are kept
FILES = {method: "fingerprint.safetensors" if method == "mindtuner" else f"{method}.safetensors" for method in METHODS}


def base_file(given: Path) -> Path:
    """The base of a run of pretrain, or the file itself. Raises UserError where there is none."""
    path = given / BASE if given.is_dir() else given
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a run of mindtuner pretrain, or its {BASE}")
    return path


def settings_for(base: Path, given: str | None) -> str | Path:
    """The config to tune with on this file: ``given``, else the one beside it, else the demo's."""
    beside = base.parent / SETTINGS
    return given or (beside if beside.is_file() else "demo")


def refuse_known(base: BrainNetwork, path: Path, subject: int) -> None:
    """Raise UserError where the base has seen the subject to tune."""
    if subject_name(subject) in base.ridges:
        raise UserError(f"{path}: knows subject {subject} already; expected a base that has not seen it")


def save_tuned(
    run: Path,
    method: str,
    network: BrainNetwork,
    hour: Subject,
    config: Config,
    base: Path,
    simulated: bool,
    facts: dict | None = None,
) -> None:
    """Write what ``tune`` returned for a method into ``run``, with the way from there to the base in its card.

    ``facts``: what else the card says, of the towers whose targets it was tuned to."""
    path = run / FILES[method]
    card = {
        **(facts or {}),
        "method": method,
        "simulated": simulated,
        "hold_out_category": config.hold_out_category,
        "base_path": os.path.relpath(base.resolve(), run.resolve()),
    }
    if method not in WHOLE:
        save_fingerprint(path, network, hour, config, card)
        return
    save_network(
        path,
        network,
        {**card, "subject": hour.number, "voxels": hour.n_voxels, "trials": len(hour.train), "config": as_dict(config)},
    )


def base_of(path: Path, given: Path | None = None) -> Path:
    """The base that a tuned file goes on: ``given`` (a run of pretrain or a file), or the one that its card names.

    Raises UserError where there is none.
    """
    if given is not None:
        return base_file(given)
    recorded = read_card(path).get("base_path")
    if not isinstance(recorded, str):
        raise UserError(f"{path}: card names no base; expected --base")
    base = Path(os.path.normpath(path.parent / recorded))
    if not base.is_file():
        raise UserError(f"{path}: base_path is {recorded}, where no file is; expected the base there, or --base")
    return base


def load_tuned(path: Path, base: BrainNetwork, subject: Subject) -> BrainNetwork:
    """The network of a file of ``save_tuned``, or of a fingerprint that was saved from Python.

    Raises UserError where it is damaged, of another subject, of other voxels, or on another base.
    """
    if read_card(path).get("method") not in WHOLE:
        return load_fingerprint(path, base, subject)
    network, name = load_network(path), subject_name(subject.number)
    if name not in network.ridges:
        raise UserError(f"{path}: subject is {', '.join(network.ridges)}; expected {name}")
    if network.ridges[name].in_features != subject.n_voxels:
        raise UserError(
            f"{path}: voxels is {network.ridges[name].in_features}; expected {subject.n_voxels}, as {subject.where} has"
        )
    return network
