"""What a killed process leaves behind."""

import subprocess
import sys
from pathlib import Path

from mindtuner.claims import LIST
from mindtuner.temporary import beside


def torn(path: Path) -> Path:
    """A temporary file of a process that was killed before ``path`` was whole."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    left = beside(path, process.pid)
    left.parent.mkdir(parents=True, exist_ok=True)
    left.write_bytes(b"half")
    return left


def names(run: Path) -> set[str]:
    """What lies in a run folder, but for the list of it that every run has."""
    found = {path.name for path in run.iterdir()}
    assert LIST in found
    return found - {LIST}
