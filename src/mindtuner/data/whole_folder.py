"""A folder of many files that is whole or not there, wherever the writer was stopped."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mindtuner.errors import UserError
from mindtuner.formats.nsd_release.read import CARD


@contextlib.contextmanager
def filled(out: str | Path) -> Iterator[Path]:
    """Yield an empty folder within ``out``; what the block wrote there moves up into ``out`` if the block succeeds.

    The card moves first, so that nothing simulated ever lies there without it. Raises UserError where ``out`` cannot be
    written to.
    """
    out = Path(out)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out, prefix=".", suffix=".part", ignore_cleanup_errors=True) as part:
            yield Path(part)
            for path in sorted(Path(part).iterdir(), key=lambda path: (path.name != CARD, path.name)):
                path.rename(out / path.name)
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); expected free space and write permission"
        ) from error
