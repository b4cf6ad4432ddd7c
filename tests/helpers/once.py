"""Made once, whatever the number of workers that pytest-xdist runs."""

import os
import shutil

from filelock import FileLock


def made_once(tmp_path_factory, name, make):
    """The folder ``name`` of this run of the tests, filled by ``make(folder)`` of the first worker to come; read only."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # a worker's own folder lies in that of the run
    folder, whole = base / name, base / f"{name}.whole"
    with FileLock(base / f"{name}.lock"):
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)  # what a worker left that failed here
            folder.mkdir()
            make(folder)
            whole.touch()
    return folder
