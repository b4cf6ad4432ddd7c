"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from mindtuner import inputs, temporary
from mindtuner.claims import record
from mindtuner.errors import UserError


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; move it there only if the block succeeds.

    Of what a killed process leaves there, the next write into the folder removes the part. The file is on the list of the run
    whose folder it lies in (``claims.py``) before it is there.

    What is written has the permissions that the umask gives, whoever wrote it: safetensors would leave files to their owner
    alone. Raises UserError where the disk is full or the folder cannot be written to.
    """
    path, part = Path(path), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        record(path)
        part = temporary.begin(path)
        part.touch()
        usual = stat.S_IMODE(part.stat().st_mode)
        part.unlink()
        yield part
        for file in part.rglob("*.safetensors") if part.is_dir() else [part]:
            if file.stat().st_nlink == 1:  # a link shares its permissions with another file, which is not ours
                file.chmod(usual)
        if part.is_dir():
            record(*(path / file.relative_to(part) for file in part.rglob("*") if not file.is_dir()))
        os.replace(part, path)
    except (OSError, SafetensorError) as error:  # the latter is how safetensors says that the disk is full
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        raise UserError(f"{path}: cannot be written ({reason}); expected free space and write permission") from error
    finally:
        if part is not None:
            temporary.end(part)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically, with the line ends that it has, on Windows too."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: str | Path, value: object) -> None:
    """Write JSON atomically; NaN and infinities are refused (they are not JSON)."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_arrays(path: str | Path, arrays: Mapping[str, np.ndarray], metadata: dict[str, str] | None = None) -> None:
    """Write arrays by name as a safetensors file, atomically."""
    with atomic_path(path) as part:
        save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, part, metadata)


def read_json(path: str | Path) -> dict:
    """Read a JSON object. Raises UserError where the file is missing or is not one."""
    value = inputs.read_json(path, "a JSON object")
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds a {type(value).__name__}; expected a JSON object")
    return value


def file_digest(path: str | Path) -> str:
    """16 hex digits over a file's bytes, which are not held in memory together."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while some := file.read(2**22):
            digest.update(some)
    return digest.hexdigest()[:16]


@contextlib.contextmanager
def filled(out: str | Path, first: str) -> Iterator[Path]:
    """Yield an empty folder within ``out``; what the block wrote there moves up into ``out`` if the block succeeds.

    ``first`` names the file that moves first: a dataset's card, so that nothing simulated ever lies there without it.
    Raises UserError where ``out`` cannot be written to.
    """
    out, part = Path(out), None
    try:
        out.mkdir(parents=True, exist_ok=True)
        part = temporary.begin(out / first)
        part.mkdir()
        yield part
        record(*(out / file.relative_to(part) for file in part.rglob("*") if not file.is_dir()))
        for path in sorted(part.iterdir(), key=lambda path: (path.name != first, path.name)):
            path.replace(out / path.name)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); expected free space and write permission"
        ) from error
    finally:
        if part is not None:
            temporary.end(part)
