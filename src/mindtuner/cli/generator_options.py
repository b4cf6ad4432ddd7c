"""Which generator paints: the compact one that the package carries, or unCLIP and SDXL from local folders."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mindtuner.cli import options as shared
from mindtuner.errors import UserError

if TYPE_CHECKING:  # what is heavy is imported only where it is used
    from mindtuner.generators.painter import Painter
    from mindtuner.pipeline import TunedSubject
    from mindtuner.pipeline.features import TextEncoder

COMPACT, SDXL = "compact", "sdxl"
DTYPES = ("float16", "bfloat16", "float32")
_FULL_SIZE = ("unclip", "sdxl", "vae", "captions", "converter", "dtype", "offload", "side")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--generator",
        default=COMPACT,
        metavar="WHICH",
        help="compact (default), sdxl, or a FILE of mindtuner train-generator for the compact one",
    )
    shared.add_device(parser)
    parser.add_argument(
        "--batch", type=int, metavar="N", help="pictures painted together (default: by the free memory on cuda, 1 on a CPU)"
    )
    add_text_tower(parser)
    full = parser.add_argument_group("with --generator sdxl (see docs/full-size.md)")
    full.add_argument("--unclip", type=Path, metavar="DIR", help="folder of mindtuner convert unclip")
    full.add_argument("--sdxl", metavar="DIR_OR_ID", help="an SDXL base in diffusers' format")
    full.add_argument("--vae", metavar="DIR_OR_ID", help="autoencoder of the low-level latents, to show and blend those")
    full.add_argument("--captions", metavar="DIR_OR_ID", help="a GIT, to write captions; with --converter")
    full.add_argument("--converter", type=Path, metavar="FILE", help="from the base's tokens to GIT's, bigG_to_L_epoch8.pth")
    full.add_argument("--dtype", choices=DTYPES, help="of the large models (default: float16 on cuda, float32 on a CPU)")
    full.add_argument("--offload", action="store_true", help="layers come to the GPU one by one: slow, for 12 GB")
    full.add_argument("--side", type=int, metavar="N", help="of the pictures, a multiple of 8 (default 768, as trained)")


def add_text_tower(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--clip",
        metavar="NAME_OR_DIR",
        help="open_clip model, by name or as a folder with open_clip_config.json (the papers': ViT-bigG-14)",
    )
    parser.add_argument("--clip-weights", metavar="FILE", help="its weights, or their tag; a folder has its own")


def check_options(options: argparse.Namespace) -> None:
    """Raise UserError where options do not go together."""
    if options.batch is not None and options.batch < 1:
        raise UserError(f"--batch is {options.batch}; expected 1 or more")
    if options.generator == SDXL:
        for name in ("unclip", "sdxl", "clip"):
            if getattr(options, name) is None:
                raise UserError(f"--{name}: is missing; expected it with --generator sdxl")
        if (options.captions is None) != (options.converter is None):
            raise UserError("--captions, --converter: only one is given; expected both or none")
    else:
        for name in _FULL_SIZE:
            if getattr(options, name) not in (None, False):
                raise UserError(f"--{name}: is given; expected it with --generator sdxl alone")


def words_of(options: argparse.Namespace) -> list[object]:
    """The options of a generator, as one would type them again."""
    words: list[object] = [] if options.generator == COMPACT else ["--generator", options.generator]
    for name in ("device", "batch", "clip", "clip_weights", *_FULL_SIZE):
        value = getattr(options, name)
        if value is True:
            words.append(f"--{name}")
        elif value not in (None, False):
            words += [f"--{name.replace('_', '-')}", value]
    return words


def opened(options: argparse.Namespace, subject: TunedSubject) -> tuple[Painter, TextEncoder]:
    """The generator that the options name, and the text tower that the subject's words belong to.

    Raises UserError where they do not fit what the subject was tuned with.
    """
    import torch

    from mindtuner.generators.compact import CompactGenerator
    from mindtuner.generators.full_size import Sources
    from mindtuner.pipeline.generators import full_size_generator, open_text_encoder

    texts = open_text_encoder(subject, options.clip, options.clip_weights)
    if options.generator != SDXL:
        return CompactGenerator(subject.config.decode, subject.config.seed, weights_of(options)), texts
    generator = full_size_generator(
        subject,
        Sources(options.unclip, options.sdxl, options.vae, options.captions, options.converter),
        texts,
        dtype=None if options.dtype is None else getattr(torch, options.dtype),
        offload=options.offload,
        batch=options.batch,
        side=options.side,
    )
    return generator, texts


def weights_of(options: argparse.Namespace) -> Path | None:
    """Of the compact generator, where a file is given."""
    return None if options.generator in (COMPACT, SDXL) else Path(options.generator)
