"""Run frozen image and text towers over all stimuli of a dataset once, into a cache for training.

Sizes are shown first. A run that was stopped goes on when the same command is given again, also with another number of
processes: accelerate launch --num_processes N -m mindtuner embed DATA CACHE computes N shares at a time.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mindtuner.cli import painters

if TYPE_CHECKING:
    from mindtuner.data import Stimuli
    from mindtuner.towers.convnext_maps import CellMaps
    from mindtuner.towers.tower import Tower

_NAMES = ("pixels", "tokens", "latents", "features", "features_augmented", "text")
COMPACT, PAPER, TIMM = "compact", "paper", "timm:"
_WANTS = {"tokens": "clip", "text": "clip", "latents": "vae", "features": "convnext", "features_augmented": "convnext"}
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
    paper = parser.add_argument_group("with --towers paper (see docs/full-size.md)")
    painters.add_text_tower(paper)
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
    import mindtuner
    from mindtuner.errors import UserError
    from mindtuner.processes import processes

    if options.cache.exists() and not options.cache.is_dir():
        raise UserError(f"{options.cache}: is a file; expected a folder for the caches")
    other = COMPACT if options.towers == PAPER else PAPER
    for name in _OPTIONS[other]:
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')}: is of other towers; expected it with --towers {other}")
    stimuli = mindtuner.load(options.data).stimuli
    group = processes()
    towers = (_paper_towers if options.towers == PAPER else _compact_towers)(options, stimuli)
    sizes = [tower.size(options.cache, stimuli) for tower in towers]
    if group.index == 0:
        _print_sizes(options.cache, towers, sizes, len(stimuli))
        _check_room(options.cache, sum(missing for _, missing in sizes))
    for tower in towers:
        tower.build(options.cache, stimuli)
        if group.index == 0:
            print(f"{options.cache / tower.name}.bin: whole", flush=True)


def _compact_towers(options: argparse.Namespace, stimuli: Stimuli) -> list[Tower]:
    from mindtuner.towers.compact import CompactImageEncoder, CompactTextEncoder
    from mindtuner.towers.embed import compact_towers

    chosen = set(options.only or _NAMES)
    if chosen != {"text"}:
        chosen.add("pixels")
    towers = compact_towers(
        stimuli,
        options.cache,
        CompactImageEncoder() if chosen & {"tokens", "features", "features_augmented"} else None,
        CompactTextEncoder() if "text" in chosen else None,
        _autoencoder(options.generator) if "latents" in chosen else None,
    )
    return [tower for tower in towers if tower.name in chosen]


def _paper_towers(options: argparse.Namespace, stimuli: Stimuli) -> list[Tower]:
    import torch

    from mindtuner.errors import UserError
    from mindtuner.towers.low_level import low_level_towers
    from mindtuner.towers.openclip import OpenClipImageEncoder, OpenClipTextEncoder, openclip_towers
    from mindtuner.towers.sd_vae import StableAutoencoder

    chosen = set(options.only or _WANTS)
    for name in sorted(chosen):
        if name not in _WANTS:
            raise UserError(f"--only: {name} is not of the paper's towers; expected some of {', '.join(_WANTS)}")
        if getattr(options, _WANTS[name]) is None:
            raise UserError(f"--{_WANTS[name]}: is missing; expected it, for {name}")
    images = texts = autoencoder = maps = None
    clip, dtype = options.clip and painters.clip_name(options.clip), getattr(torch, options.dtype or "float32")
    if "tokens" in chosen:
        images = OpenClipImageEncoder(
            clip,
            options.clip_weights,
            token_norm=options.token_norm or "after",
            image_range=options.image_range or "clip",
            dtype=dtype,
        )
    if "text" in chosen:
        texts = OpenClipTextEncoder(clip, options.clip_weights, dtype=dtype)
    if "latents" in chosen:
        autoencoder = StableAutoencoder(options.vae)
    if chosen & {"features", "features_augmented"}:
        maps = _convnext(options)
    towers = openclip_towers(stimuli, images, texts) + low_level_towers(stimuli, autoencoder, maps)
    return [tower for tower in towers if tower.name in chosen]


def _convnext(options: argparse.Namespace) -> CellMaps:
    from mindtuner.errors import UserError
    from mindtuner.towers.convnext_maps import ConvNextMaps, PlainConvNextMaps

    if options.convnext.startswith(TIMM):
        return PlainConvNextMaps(options.convnext.removeprefix(TIMM), options.convnext_weights)
    if options.convnext_weights is not None:
        raise UserError("--convnext-weights: is given; expected it with --convnext timm:NAME alone")
    return ConvNextMaps(options.convnext)


def _autoencoder(path: Path | None):
    from mindtuner.generators.compact import WEIGHTS  # takes seconds
    from mindtuner.towers.compact import Autoencoder, packaged

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
        print(
            "  ".join(
                cell.ljust(width) if k < 3 else cell.rjust(width)
                for k, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
        )
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
