"""Run frozen image and text towers over all stimuli of a dataset once, into a cache for training.

Sizes are shown first. A run that was stopped goes on when the same command is given again, also with another number of
processes: accelerate launch --num_processes N -m mindtuner embed DATA CACHE computes N shares at a time.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

_NAMES = ("pixels", "tokens", "latents", "features", "features_augmented", "text")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the dataset")
    parser.add_argument("cache", type=Path, metavar="CACHE", help="folder for the caches: new, or one that embed began")
    parser.add_argument("--only", nargs="+", choices=_NAMES, default=_NAMES, metavar="NAME",
                        help=f"some of {', '.join(_NAMES)} (default: all); all but text need pixels, which come along")
    parser.add_argument("--generator", type=Path, metavar="FILE",
                        help="weights of mindtuner train-generator, for latents (default: those that the package ships)")


def run(options: argparse.Namespace) -> None:
    import mindtuner
    from mindtuner.data.cache.processes import processes
    from mindtuner.encoders.compact import CompactImageEncoder, CompactTextEncoder
    from mindtuner.encoders.embed import compact_towers
    from mindtuner.errors import UserError

    if options.cache.exists() and not options.cache.is_dir():
        raise UserError(f"{options.cache}: is a file; expected a folder for the caches")
    stimuli = mindtuner.load(options.data).stimuli
    group = processes()
    chosen = set(options.only)
    if chosen != {"text"}:
        chosen.add("pixels")
    towers = compact_towers(
        stimuli, options.cache, CompactImageEncoder() if chosen & {"tokens", "features", "features_augmented"} else None,
        CompactTextEncoder() if "text" in chosen else None,
        _autoencoder(options.generator) if "latents" in chosen else None)
    towers = [tower for tower in towers if tower.name in chosen]
    sizes = [tower.size(options.cache, stimuli) for tower in towers]
    if group.index == 0:
        _print_sizes(options.cache, towers, sizes, len(stimuli))
        _check_room(options.cache, sum(missing for _, missing in sizes))
    for tower in towers:
        tower.build(options.cache, stimuli)
        if group.index == 0:
            print(f"{options.cache / tower.name}.bin: whole", flush=True)


def _autoencoder(path: Path | None):
    from mindtuner.decoding.compact import WEIGHTS  # takes seconds
    from mindtuner.encoders.compact import Autoencoder, packaged

    return Autoencoder(path or packaged(WEIGHTS))


def _print_sizes(folder: Path, towers, sizes: list[tuple[int, int]], count: int) -> None:
    import numpy as np

    rows = [("file", "shape", "dtype", "size", "room needed")]
    for tower, (size, missing) in zip(towers, sizes, strict=True):
        dtype = tower.dtype if tower.dtype == "bfloat16" else np.dtype(tower.dtype).name
        rows.append((f"{tower.name}.bin", " x ".join(map(str, (count, *tower.shape))), dtype, _bytes(size), _bytes(missing)))
    rows.append(("total", "", "", *(_bytes(sum(column)) for column in zip(*sizes, strict=True))))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(folder)
    for row in rows:
        print("  ".join(cell.ljust(width) if k < 3 else cell.rjust(width)
                        for k, (cell, width) in enumerate(zip(row, widths, strict=True))))
    print(flush=True)


def _check_room(folder: Path, missing: int) -> None:
    from mindtuner.errors import UserError

    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if missing > free:
        raise UserError(f"{folder}: the disk has {_bytes(free)} free; expected at least {_bytes(missing)}")


def _bytes(number: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if number >= unit:
            return f"{number / unit:.1f} {name}"
    return f"{number} B"
