"""Run frozen image and text towers over all stimuli of a dataset once, into a cache for training.

Sizes are shown first. A run that was stopped goes on when the same command is given again, also with another number of
processes: accelerate launch --num_processes N -m mindtuner embed DATA CACHE computes N shares at a time.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from mindtuner.cli import generator_options
from mindtuner.cli import options as shared

_NAMES = ("pixels", "tokens", "latents", "features", "features_augmented", "text")
COMPACT, PAPER = "compact", "paper"
_OPTIONS = {
    COMPACT: ("generator",),
    PAPER: ("clip", "clip_weights", "vae", "convnext", "convnext_weights", "token_norm", "image_range", "dtype"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the dataset")
    parser.add_argument("cache", type=Path, metavar="CACHE", help="folder for the caches: new, or one that embed began")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=_NAMES,
        metavar="NAME",
        help=f"some of {', '.join(_NAMES)} (default: all); all compact ones but text need pixels, which come "
        "along, and those of the paper have none",
    )
    parser.add_argument(
        "--towers",
        choices=(COMPACT, PAPER),
        default=COMPACT,
        help="those of this package (default), or those of the papers, from files of yours",
    )
    parser.add_argument(
        "--generator",
        type=Path,
        metavar="FILE",
        help="weights of mindtuner train-generator, for latents (default: those that the package ships)",
    )
    shared.add_device(parser)
    paper = parser.add_argument_group("with --towers paper (see docs/full-size.md)")
    generator_options.add_text_tower(paper)
    paper.add_argument("--token-norm", metavar="WHICH", help="after (default) or before the tower's final norm")
    paper.add_argument(
        "--image-range", metavar="WHICH", help="clip (default), or mindeye2, for a base of mindtuner convert mindeye2"
    )
    paper.add_argument("--vae", metavar="DIR_OR_ID", help="Stable Diffusion's autoencoder, for latents")
    paper.add_argument(
        "--convnext",
        metavar="FILE",
        help="VICRegL's full checkpoint, for features; or timm:NAME for a plain "
        "ConvNeXt of timm's, whose features have another width",
    )
    paper.add_argument("--convnext-weights", type=Path, metavar="FILE", help="with timm:NAME (default: from the hub)")
    paper.add_argument("--dtype", choices=("float32", "bfloat16"), help="in which --clip computes (default float32)")


def run(options: argparse.Namespace) -> None:
    import torch

    from mindtuner.errors import UserError
    from mindtuner.formats import load
    from mindtuner.pipeline import towers
    from mindtuner.processes import processes

    if options.cache.exists() and not options.cache.is_dir():
        raise UserError(f"{options.cache}: is a file; expected a folder for the caches")
    other = COMPACT if options.towers == PAPER else PAPER
    for name in _OPTIONS[other]:
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: is of other towers; expected it with --towers {other}")
    stimuli = load(options.data).stimuli
    group = processes()
    if options.towers == PAPER:
        given = {name: getattr(options, name) for name in _OPTIONS[PAPER] if getattr(options, name) is not None}
        if options.convnext_weights is not None:
            given["convnext_weights"] = options.convnext_weights
        if options.dtype is not None:
            given["dtype"] = getattr(torch, options.dtype)
        chosen = towers.of_the_papers(stimuli, options.only, **given)
    else:
        chosen = towers.of_the_package(stimuli, options.cache, options.only, options.generator)
    sizes = [tower.size(options.cache, stimuli) for tower in chosen]
    if group.index == 0:
        _print_sizes(options.cache, chosen, sizes, len(stimuli))
        _check_room(options.cache, sum(missing for _, missing in sizes))
    for tower in chosen:
        tower.build(options.cache, stimuli)
        if group.index == 0:
            print(f"{options.cache / tower.name}.bin: whole", flush=True)


def _print_sizes(folder: Path, towers, sizes: list[tuple[int, int]], count: int) -> None:
    import numpy as np
    from tabulate import tabulate

    rows = [("file", "shape", "dtype", "size", "room needed")]
    for tower, (size, missing) in zip(towers, sizes, strict=True):
        dtype = tower.dtype if tower.dtype == "bfloat16" else np.dtype(tower.dtype).name
        rows.append((f"{tower.name}.bin", " x ".join(map(str, (count, *tower.shape))), dtype, _bytes(size), _bytes(missing)))
    rows.append(("total", "", "", *(_bytes(sum(column)) for column in zip(*sizes, strict=True))))
    print(folder)
    print(tabulate(rows, tablefmt="plain", colalign=("left",) * 3 + ("right",) * 2, disable_numparse=True))
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
