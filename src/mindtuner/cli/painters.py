"""Which generator paints: the compact one that the package carries, or unCLIP and SDXL from local folders."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mindtuner.cli import towers
from mindtuner.errors import UserError

if TYPE_CHECKING:
    from mindtuner.config import DecodeConfig
    from mindtuner.generators.compact import CompactGenerator
    from mindtuner.generators.full_size import FullSizeGenerator
    from mindtuner.model import BrainNetwork
    from mindtuner.towers.compact import CompactTextEncoder
    from mindtuner.towers.openclip import OpenClipTextEncoder

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
    parser.add_argument(
        "--device", metavar="WHERE", help="where to compute: cuda, cuda:N, mps or cpu (default: cuda where there is one)"
    )
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


def clip_name(given: str) -> str:
    """As open_clip calls it: a folder has a prefix there."""
    return f"local-dir:{given}" if Path(given).is_dir() else given


def check_options(options: argparse.Namespace) -> None:
    """Raise UserError where options do not go together; compute from here on where --device says."""
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
    from mindtuner.runtime import use

    try:
        use(options.device)
    except UserError as error:
        raise UserError(f"--{error}") from error


def batch_of(options: argparse.Namespace) -> int:
    """Pictures to paint together, by the free memory of a GPU where nobody says."""
    from mindtuner.generators.full_size import batch_for
    from mindtuner.runtime import device

    return options.batch or batch_for(device())


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


@dataclass(frozen=True)
class Speech:
    """Cards that say what a network was trained with: of the tuned file, and of its base, where the first is silent."""

    tuned: dict
    base: dict
    path: Path

    def tower(self, name: str) -> dict | None:
        """Identity of the tower behind the cache ``name``, None where no card says."""
        said = self.tuned.get("towers") or self.base.get("towers") or {}
        return said.get(name)

    @property
    def conventions(self) -> dict[str, str]:
        return towers.conventions_of(self.tuned if "conventions" in self.tuned else self.base, self.path)


def text_encoder(
    options: argparse.Namespace, network: BrainNetwork, speech: Speech
) -> CompactTextEncoder | OpenClipTextEncoder:
    """The text tower that the network's words belong to. Raises UserError where it is another."""
    import torch

    from mindtuner.towers.compact import CompactTextEncoder
    from mindtuner.towers.openclip import OpenClipTextEncoder

    wanted = speech.tower("text")
    if options.clip is None:
        encoder = CompactTextEncoder()
    else:
        half = wanted is not None and wanted.get("dtype") == "bfloat16"
        encoder = OpenClipTextEncoder(
            clip_name(options.clip), options.clip_weights, dtype=torch.bfloat16 if half else torch.float32
        )
    name = options.clip or "the text tower of this package"
    if encoder.width != network.config.text_width:
        raise UserError(
            f"{name}: text_width is {encoder.width}; expected {network.config.text_width}, as {speech.path} has"
            f"{'' if options.clip else ' (--clip names its tower)'}"
        )
    if wanted is not None:
        towers.check_identity(encoder.identity, wanted, name, speech.path)
    return encoder


def painter(
    options: argparse.Namespace,
    config: DecodeConfig,
    seed: int,
    network: BrainNetwork,
    speech: Speech,
    encoder: CompactTextEncoder | OpenClipTextEncoder,
    batch: int,
) -> CompactGenerator | FullSizeGenerator:
    """The generator that the options name. Raises UserError where it does not paint what the network says."""
    if options.generator != SDXL:
        from mindtuner.generators.compact import CompactGenerator

        return CompactGenerator(config, seed, None if options.generator == COMPACT else Path(options.generator))

    import torch

    from mindtuner.generators.full_size import FullSizeGenerator, Sources
    from mindtuner.generators.prompts import category_bank
    from mindtuner.generators.unclip import TRAINED_SIDE
    from mindtuner.runtime import device

    refuse_other_tokens(options.unclip, network, speech)
    side = options.side or TRAINED_SIDE
    if side < 8 or side % 8:
        raise UserError(f"--side is {side}; expected a multiple of 8")
    bank = category_bank(encoder, categories(speech.tuned.get("hold_out_category", "")))
    generator = FullSizeGenerator(
        config,
        seed,
        Sources(options.unclip, options.sdxl, options.vae, options.captions, options.converter),
        speech.conventions,
        network.config.latent_side,
        bank,
        dtype=getattr(torch, _dtype(options, device().type)),
        offload=options.offload,
        batch=batch,
        side=side,
    )
    wanted = speech.tower("latents")
    if generator.autoencoder is not None and wanted is not None:
        towers.check_identity(generator.autoencoder.identity, wanted, options.vae, speech.path)
    return generator


def categories(held_out: str) -> tuple[str, ...]:
    """The kinds of things that prompts may name: not one held out, as a prompt of it would correct pictures towards it."""
    from mindtuner.data.hold_out import shows
    from mindtuner.generators.prompts import COCO_CATEGORIES

    return tuple(name for name in COCO_CATEGORIES if not (held_out and shows([name], held_out)))


def refuse_other_tokens(folder: Path, network: BrainNetwork, speech: Speech) -> None:
    """Raise UserError, before anything large is read, where the generator in ``folder`` reads other tokens."""
    from mindtuner.generators.full_size import check_conventions
    from mindtuner.generators.unclip import CARD, read_card

    width = read_card(folder).get("token_width")
    if width != network.config.width:
        raise UserError(f"{folder / CARD}: token_width is {width}; expected {network.config.width}, as {speech.path} has")
    check_conventions(folder, speech.conventions)


def _dtype(options: argparse.Namespace, where: str) -> str:
    return options.dtype or ("float16" if where == "cuda" else "float32")
