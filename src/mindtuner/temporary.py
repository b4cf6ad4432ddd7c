"""Files while they are written: named by their writer, so that what a killed process left can be told and removed."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
from pathlib import Path

import psutil

_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:6]
_NAME = re.compile(r"\..+\.(?P<host>[0-9a-f]{6})-(?P<pid>\d+)\.part", re.DOTALL)
_ours: set[str] = set()  # names of what this process is writing
_swept: set[Path] = set()  # folders in which this process has looked already


def begin(path: Path) -> Path:
    """The temporary path beside ``path``, for this process to write; nothing is there.

    Before the first write into a folder, what killed processes left there is removed.
    """
    if path.parent not in _swept:
        _swept.add(path.parent)
        sweep(path.parent)
    temporary = beside(path, os.getpid())
    end(temporary)
    _ours.add(temporary.name)
    return temporary


def beside(path: Path, process: int) -> Path:
    """Where a process of this machine writes what becomes ``path``."""
    return path.with_name(f".{path.name}.{_HOST}-{process}.part")


def end(temporary: Path) -> None:
    """Remove what was not moved to its place."""
    _ours.discard(temporary.name)
    if temporary.is_dir() and not temporary.is_symlink():
        shutil.rmtree(temporary, ignore_errors=True)
    else:
        temporary.unlink(missing_ok=True)


def is_one(name: str) -> bool:
    """Whether a file of that name is temporary."""
    return _NAME.fullmatch(name) is not None


def is_torn(path: Path, alone: bool = False) -> bool:
    """Whether ``path`` is what a process was writing that has ended since.

    ``alone``: no other process writes in this folder, so what a process of another machine was writing is torn too.
    """
    name = _NAME.fullmatch(path.name)
    if name is None or path.name in _ours:
        return False
    if name["host"] != _HOST:
        return alone
    if int(name["pid"]) == os.getpid():
        return True
    try:  # a process that began after the last change has got the number of another
        return psutil.Process(int(name["pid"])).create_time() > path.lstat().st_mtime + 1
    except (psutil.NoSuchProcess, FileNotFoundError):
        return True
    except psutil.Error:
        return False


def sweep(folder: Path, alone: bool = False) -> None:
    """Remove from ``folder`` itself what killed processes were writing."""
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        if is_torn(path, alone):
            end(path)
