"""Run folders: whose a folder is, with which settings, and what the run has said so far."""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path

import yaml

from mindtuner.claims import SETTINGS, claim_folder, goes_on
from mindtuner.config import Config, as_dict
from mindtuner.data.identity import Inputs
from mindtuner.errors import UserError
from mindtuner.evaluation.results import load_log, log_to
from mindtuner.files import read_json, write_json, write_text
from mindtuner.processes import processes
from mindtuner.training.monitor import Log

INPUTS = "inputs.json"  # what the run is made of: short hashes, field by field
_logger = logging.getLogger(__name__)


def command_of(*words: object) -> str:
    """A call of mindtuner as one would type it."""
    return "mindtuner " + shlex.join(str(word) for word in words)


def settings_text(config: Config, command: str) -> str:
    """The contents of a run's config.yaml: the command in the first line, then the whole config."""
    return f"# {command}\n{yaml.safe_dump(as_dict(config), sort_keys=False)}"


def command_in(settings: Path) -> str | None:
    """The command in the first line of a run's config.yaml, None where the file has none."""
    first = settings.read_text(encoding="utf-8", errors="replace").partition("\n")[0] if settings.is_file() else ""
    return first.removeprefix("# ") if first.startswith("# mindtuner") else None


def refuse_other_run(run: Path, settings: str, force: bool = False) -> bool:
    """Whether ``run`` holds what a run of the same settings left.

    Raises UserError where it holds something else, or a run that is over, and ``force`` is not given.
    """
    return goes_on(run, settings, force=force)


def claim(run: Path, settings: str, force: bool = False, inputs: Inputs | None = None) -> bool:
    """Make ``run`` this run's: True where it holds what a run of the same settings left, else it is empty but for them.

    It is let go where ``mindtuner.claims.releasing`` ends. ``inputs``: what the run is made of, where it is known already,
    else ``hold_inputs`` follows. Raises UserError where the folder holds something else, a run that is over
    (``mindtuner.claims.finish``), or one of other inputs, and ``force`` is not given; and where another process writes there.
    """
    if processes().index > 0:  # the first claims for all
        processes().wait()
        return True
    if inputs is not None and not force and _holds(run, settings):
        refuse_other_inputs(run, inputs)
    left = claim_folder(run, settings, force=force)
    if left:
        _logger.info("%s: going on with this run", run)
    if not (run / SETTINGS).exists():
        write_text(run / SETTINGS, settings)
    if inputs is not None:
        hold_inputs(run, inputs, left)
    processes().wait()
    return left


def refuse_other_inputs(run: Path, inputs: Inputs) -> None:
    """Raise UserError naming the first field in which what ``run`` is made of is not ``inputs``."""
    path = run / INPUTS
    before = read_json(path) if path.is_file() else {}
    if (field := inputs.changed(before)) is not None:
        then, now = before[field], inputs.hashes[field]
        raise UserError(
            f"{inputs.files[field]}: {field} changed since {run} was begun ({then} then, {now} now); expected the same, or "
            "another folder for the output (or `force` to replace the run)"
        )


def hold_inputs(run: Path, inputs: Inputs, left: bool) -> None:
    """Note what a claimed run is made of, or refuse as ``refuse_other_inputs`` where that is noted.

    Says so where a run ``goes_on`` that an earlier version of the program began, which noted nothing.
    """
    path = run / INPUTS
    if left and not path.is_file():
        _logger.warning("%s: does not say what it is made of; whether its data are the same cannot be checked", run)
    refuse_other_inputs(run, inputs)
    before = read_json(path) if path.is_file() else {}
    if not set(inputs.hashes) <= set(before):
        write_json(path, {**inputs.hashes, **before})


def _holds(run: Path, settings: str) -> bool:
    """Whether a run of these settings lies there."""
    path = run / SETTINGS
    return path.is_file() and path.read_bytes() == settings.encode()


def log_of(run: Path) -> Log:
    """The log of a run, which the first process alone writes."""
    return log_to(run) if processes().index == 0 else lambda entry: None


def log_entries(*runs: Path) -> list[dict]:
    """The logs of those of ``runs`` that have one, as one."""
    return [entry for run in dict.fromkeys(runs) if os.path.lexists(run / "log.jsonl") for entry in load_log(run)]


def refuse_overlap(out: Path, **inputs: Path) -> None:
    """Raise UserError where writing into ``out`` could replace one of the inputs."""
    for name, path in inputs.items():
        place, held = Path(os.path.realpath(out)), Path(os.path.realpath(path))  # resolve() raises where links go in circles
        if place == held or place in held.parents:
            raise UserError(f"{out}: holds {name} ({path}); expected another folder for the output")
