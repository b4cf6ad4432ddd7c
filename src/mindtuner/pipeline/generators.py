"""The generator and the text tower that belong to a network: the compact ones, or those of full size from local files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from mindtuner.data import Stimuli
from mindtuner.data.hold_out import shows
from mindtuner.errors import UserError
from mindtuner.generators.compact import CompactGenerator
from mindtuner.generators.full_size import FullSizeGenerator, Sources, batch_for, check_conventions
from mindtuner.generators.painter import Painter
from mindtuner.generators.prompts import COCO_CATEGORIES, category_bank
from mindtuner.generators.unclip import CARD, TRAINED_SIDE, read_card
from mindtuner.model import BrainNetwork
from mindtuner.pipeline.features import TextEncoder, check_identity, conventions_of
from mindtuner.pipeline.subject import TunedSubject
from mindtuner.runtime import device
from mindtuner.towers.compact import CompactTextEncoder
from mindtuner.towers.openclip import OpenClipTextEncoder

# Share of the variance of tokens that a painter has to keep, to be judged by its pictures (``CompactGenerator.fidelity``). A
# decoder of an hour explains a quarter: a painter that keeps less than a third hides what was decoded.
AT_HOME = 1 / 3
LOOKED_AT = 64  # training images that this is measured on


def painter_fidelity(generator: Painter, stimuli: Stimuli, tokens: np.ndarray) -> float | None:
    """How well a compact generator paints such stimuli, by their true tokens (N, T, D); None for another generator.

    Measured on training images, spread evenly over their ids.
    """
    images = stimuli.training_images
    if not isinstance(generator, CompactGenerator) or len(images) < 2:
        return None
    some = images[np.unique(np.linspace(0, len(images) - 1, LOOKED_AT).round().astype(int))]
    return generator.fidelity(tokens[some])


@dataclass(frozen=True)
class TrainedWith:
    """What the cards say that a network was trained with: the tuned file's, and its base's where the first is silent."""

    tuned: dict
    base: dict
    where: object  # the base, for messages

    @classmethod
    def of(cls, subject: TunedSubject) -> TrainedWith:
        """What the cards of the subject and its base say."""
        return cls(subject.card, subject.base.card, subject.base.where)

    def tower(self, name: str) -> dict | None:
        """Identity of the tower behind the cache ``name``, None where no card says."""
        said = self.tuned.get("towers") or self.base.get("towers") or {}
        return said.get(name)

    @property
    def conventions(self) -> dict[str, str]:
        """``token_norm`` and ``image_range`` of the tokens. Raises UserError where no card says."""
        return conventions_of(self.tuned if "conventions" in self.tuned else self.base, self.where)


def open_text_encoder(subject: TunedSubject, clip: str | None = None, clip_weights: str | None = None) -> TextEncoder:
    """The text tower that a subject's words belong to.

    Parameters
    ----------
    subject : TunedSubject
    clip : str, optional
        An open_clip model, by name or as a folder; by default the text tower that this package carries.
    clip_weights : str, optional
        Its weights, or their tag.

    Raises
    ------
    UserError
        Where it is another tower than the subject was tuned with.
    """
    config, trained = subject.base.network.config, TrainedWith.of(subject)
    wanted = trained.tower("text")
    encoder: TextEncoder
    if clip is None:
        encoder = CompactTextEncoder()
    else:
        half = wanted is not None and wanted.get("dtype") == "bfloat16"
        encoder = OpenClipTextEncoder(clip_name(clip), clip_weights, dtype=torch.bfloat16 if half else torch.float32)
    name = clip or "the text tower of this package"
    if encoder.width != config.text_width:
        raise UserError(
            f"{name}: text_width is {encoder.width}; expected {config.text_width}, as {trained.where} has"
            f"{'' if clip else ' (`clip` names its tower)'}"
        )
    if wanted is not None:
        check_identity(encoder.identity, wanted, name, trained.where)
    return encoder


def full_size_generator(
    subject: TunedSubject,
    sources: Sources,
    text_encoder: TextEncoder,
    *,
    dtype: torch.dtype | None = None,
    offload: bool = False,
    batch: int | None = None,
    side: int | None = None,
) -> FullSizeGenerator:
    """unCLIP and SDXL from local folders, for a subject that was tuned on features of full size.

    Parameters
    ----------
    subject : TunedSubject
        Whose tokens are painted.
    sources : Sources
        Where the pretrained models lie.
    text_encoder : TextEncoder
        The subject's, from ``open_text_encoder``.
    dtype : torch.dtype, optional
        Of the large models, by default float16 on CUDA and float32 elsewhere.
    offload : bool
        Layers come to the GPU one by one, for small cards.
    batch : int, optional
        Pictures painted together, by default by the free memory of a GPU, 1 on a CPU.
    side : int, optional
        Of the pictures, a multiple of 8; by default 768, as trained.

    Raises
    ------
    UserError
        Where a model is missing, or does not paint what the network says.
    """
    network, trained = subject.base.network, TrainedWith.of(subject)
    refuse_other_tokens(sources.unclip, network, trained)
    side = TRAINED_SIDE if side is None else side
    if side < 8 or side % 8:
        raise UserError(f"side is {side}; expected a multiple of 8")
    bank = category_bank(text_encoder, categories(subject.config.hold_out_category))
    generator = FullSizeGenerator(
        subject.config.decode,
        subject.config.seed,
        sources,
        trained.conventions,
        network.config.latent_side,
        bank,
        dtype=dtype or (torch.float16 if device().type == "cuda" else torch.float32),
        offload=offload,
        batch=batch or batch_for(device()),
        side=side,
    )
    wanted = trained.tower("latents")
    if generator.autoencoder is not None and wanted is not None:
        check_identity(generator.autoencoder.identity, wanted, sources.vae, trained.where)
    return generator


def categories(held_out: str) -> tuple[str, ...]:
    """The kinds of things that prompts may name: not one held out, as a prompt of it would correct pictures towards it."""
    return tuple(name for name in COCO_CATEGORIES if not (held_out and shows([name], held_out)))


def refuse_other_tokens(folder: Path, network: BrainNetwork, trained: TrainedWith) -> None:
    """Raise UserError, before anything large is read, where the generator in ``folder`` reads other tokens."""
    width = read_card(folder).get("token_width")
    if width != network.config.width:
        raise UserError(f"{folder / CARD}: token_width is {width}; expected {network.config.width}, as {trained.where} has")
    check_conventions(folder, trained.conventions)


def clip_name(given: str) -> str:
    """As open_clip calls it: a folder has a prefix there."""
    return f"local-dir:{given}" if Path(given).is_dir() else given
