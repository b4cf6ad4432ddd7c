"""Files of a tuned subject: one for each method, with the way from there to the base."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mindtuner.claims import listed
from mindtuner.config import Config
from mindtuner.data import Subject
from mindtuner.data.identity import FIELD, Inputs, inputs_on
from mindtuner.data.splits import split_of
from mindtuner.errors import UserError
from mindtuner.model import BrainNetwork
from mindtuner.pipeline import hub
from mindtuner.pipeline.base import Base, base_file
from mindtuner.pipeline.features import Features
from mindtuner.training import (
    METHODS,
    Fingerprint,
    facts_of,
    kind_of,
    load_fingerprint,
    load_network,
    read_card,
    save_fingerprint,
    save_network,
    subject_name,
    write_fingerprint,
)

MAIN = "mindtuner"
REPORTED = (MAIN, "ridge_only", "ridge", "shuffled_brain")  # what a report needs
WHOLE = ("ridge", "full_finetune", "from_scratch")  # methods that leave nothing of the base as it was: all weights are kept
FOLDS = "folds.json"  # in a run of fit for each fold: how they were made
FILES = {method: "fingerprint.safetensors" if method == MAIN else f"{method}.safetensors" for method in METHODS}


def card_of(
    method: str,
    base: Base,
    config: Config,
    features: Features,
    subject: Subject,
    run: Path | None,
    inputs: Inputs,
    images: np.ndarray,
) -> dict:
    """What a tuned file says for people, and for who reads it, with the way from there to the base where there is one.

    ``inputs``: what it is made of, the base among them; ``images``: ids of those that it is trained on.
    """
    return {
        **features.described,
        "method": method,
        "simulated": features.card["simulated"],
        **split_of(features.card),
        "hold_out_category": config.hold_out_category,
        **facts_of(subject, config),
        **(way_to(base, run) if run is not None else {}),
        FIELD: dict(inputs.hashes),
        **features.trained_on(images),
    }


def way_to(base: Base | str | Path, folder: Path) -> dict:
    """How a card in ``folder`` says where the base is: by its id on a hub, or by the way to its file."""
    if isinstance(base, Base):
        known, path = base.hub_id, base.path
    else:
        known, path = (str(base), None) if hub.is_elsewhere(base) else (None, base_file(base))
    if known is not None:
        return {"base_id": known}
    if path is None:
        return {}
    path = path.parent.resolve() / path.name  # a file of the hub's cache is a link, whose folder counts
    with contextlib.suppress(ValueError):  # which Windows raises where they lie on different drives
        path = Path(os.path.relpath(path, folder.resolve()))
    return {"base_path": path.as_posix()}


def is_whole(method: str, network: BrainNetwork) -> bool:
    """Whether all weights are kept: the method changes them all, or there is no base that they would add to."""
    return method in WHOLE or network.fingerprint_subject is None


def write_saved(path: Path, method: str, network: BrainNetwork, card: dict) -> None:
    """Write what a method tuned: a whole network, or what it adds to its base."""
    if is_whole(method, network):
        save_network(path, network, card)
    else:
        write_fingerprint(path, Fingerprint.of(network), card)


def write(path: Path, method: str, network: BrainNetwork, subject: Subject, config: Config, card: dict) -> None:
    """Write what was tuned by a method: the fingerprint alone, or all weights where the method changes them all."""
    if is_whole(method, network):
        save_network(path, network, card)
    else:
        save_fingerprint(path, network, subject, config, card)


def decoding_file(path: str | Path) -> Path:
    """The file of the method that decodes, in a run of tune or a saved folder; or the file itself."""
    path = hub.here(path, hub.FINGERPRINT)
    if path.is_dir():
        return path / hub.MODEL if hub.is_saved(path) else next(iter(files_of(path).values()))
    return path


def files_of(path: str | Path) -> dict[str, Path]:
    """By method, the files of a run of tune or of a saved folder, or the one file that is given.

    Raises UserError where there is none, or that of the main method is gone.
    """
    path = Path(path)
    if path.is_dir() and hub.is_saved(path):
        files = [path / name for name in hub.read_config(path, hub.FINGERPRINT)["files"]]
        files.sort(key=lambda file: file.name != hub.MODEL)
        return {read_card(file).get("method", MAIN): file for file in files}
    if path.is_dir():
        found = {method: path / name for method, name in FILES.items() if os.path.lexists(path / name)}
        if (path / FOLDS).is_file():
            raise UserError(f"{path}: holds a fit for each fold; expected one of its folders, or mindtuner evaluate for all")
        if not found:
            raise UserError(
                f"{path}: holds no {FILES[MAIN]}; expected a run of mindtuner tune or fit, or a folder of TunedSubject.save"
            )
        if MAIN not in found and FILES[MAIN] in listed(path):  # another method must not decode in its place
            raise UserError(
                f"{path / FILES[MAIN]}: not found, though the run there wrote it; expected it, or the file to read"
            )
        return found
    return {read_card(path).get("method", MAIN): path}


def base_of(path: Path, given: str | Path | None = None) -> Base:
    """The base that a tuned file goes on: ``given`` (a folder, a file, or an id on a hub), or the one that its card names.

    Raises UserError where there is none.
    """
    if given is not None:
        return Base.from_pretrained(given)
    card = read_card(path)
    if isinstance(card.get("base_id"), str):
        return Base.from_hub(card["base_id"])
    recorded = card.get("base_path")
    if not isinstance(recorded, str):
        raise UserError(f"{path}: card names no base; expected `base`, its file")
    base = Path(os.path.normpath(path.parent / recorded))
    if not base.is_file():
        raise UserError(f"{path}: base_path is {recorded}, where no file is; expected the base there, or `base`, its file")
    return Base.load(base)


def refuse_mixed(cards: Mapping[Path, Mapping], base: Base) -> None:
    """Raise UserError where the cards of the methods in a folder, by file, say that they are made of different inputs.

    Also where all weights of a method are kept and were tuned on another base; of a fingerprint, loading it tells.
    """
    made = {path: inputs_on(card, path) for path, card in cards.items()}
    first, before = next(((path, own) for path, own in made.items() if own), (None, {}))
    for path, card in cards.items():
        own = made[path]
        if (field := Inputs(own, {}).changed(before)) is not None:
            raise UserError(
                f"{path}: {field} was {own[field]} when it was tuned, and {before[field]} when {first} was; expected methods "
                "that were tuned on the same (tune all of them again, into another folder)"
            )
        if card.get("method") in WHOLE and base_field(base) != own.get("base", base_field(base)):
            raise UserError(f"{path}: belongs to another base; expected the one that subject {card['subject']} was tuned on")


def base_field(base: Base) -> str:
    """What stands for a base among the inputs of what is made with it."""
    return base.hash[:16]


def read_network(path: Path, base: BrainNetwork, number: int, subject: Subject | None = None) -> BrainNetwork:
    """The network of a tuned file, or of a fingerprint that was saved from Python.

    Raises UserError where it is damaged, of another subject, of other voxels, or on another base.
    """
    if kind_of(path) == "fingerprint":
        return load_fingerprint(path, base, subject)
    network, name = load_network(path), subject_name(number)
    if name not in network.ridges:
        raise UserError(f"{path}: subject is {', '.join(network.ridges)}; expected {name}")
    if subject is not None and network.ridges[name].in_features != subject.n_voxels:
        raise UserError(
            f"{path}: voxels is {network.ridges[name].in_features}; expected {subject.n_voxels}, as {subject.where} has"
        )
    return network
