"""The generator at full size: unCLIP paints from the tokens, SDXL paints again by the words, GIT writes captions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers.utils.logging import disable_progress_bar

from mindtuner.config import DecodeConfig
from mindtuner.decoding.decoder import Predictions
from mindtuner.decoding.words import TextBank, Words
from mindtuner.errors import UserError
from mindtuner.generators.git_captioner import GitCaptioner
from mindtuner.generators.painter import CORRECTED, LOWLEVEL, RECONSTRUCTED, usable_device
from mindtuner.generators.prompts import prompts_of
from mindtuner.generators.sdxl import SdxlRefiner, blend
from mindtuner.generators.unclip import CARD, TRAINED_SIDE, UnclipGenerator, read_card
from mindtuner.towers.sd_vae import StableAutoencoder

BLENDED = "blended"
GIB_PER_PICTURE = 6  # of a GPU's free memory for each picture of a batch, a guess on the safe side: nothing was measured


@dataclass(frozen=True)
class Sources:
    """Where the pretrained models lie: folders, or, but for ``unclip`` and ``converter``, ids on the hub.

    unclip what ``mindtuner convert unclip`` wrote · sdxl any SDXL base · vae the autoencoder of the low-level latents, if
    these are to be pictures · captions a GIT, with ``converter`` from the predicted tokens to its own
    """

    unclip: Path
    sdxl: str
    vae: str | None = None
    captions: str | None = None
    converter: Path | None = None


class FullSizeGenerator:
    """Paints pictures as the MindTuner paper does: unCLIP from image tokens, then SDXL with the words of the Pivot.

    Parameters
    ----------
    config, seed : steps, guidance, and the noise, which depends on the seed and an image's id alone
    sources : the models
    conventions : token_norm and image_range of the base whose tokens are painted
    latent_side : of the base's low-level latents
    categories : what names kinds of things in prompts, ``prompts.category_bank``
    dtype : of the large models' weights; autoencoders stay in float32 where they need it
    offload : layers come to the GPU one by one, for small cards
    batch : pictures that pass together
    side : of the pictures, a multiple of 8

    Raises UserError where a model is missing, damaged or another, where the base's conventions are not the generator's,
    where device and number format do not go together, or where several corrections are asked for.
    """

    def __init__(
        self,
        config: DecodeConfig,
        seed: int,
        sources: Sources,
        conventions: dict,
        latent_side: int,
        categories: TextBank,
        *,
        dtype: torch.dtype = torch.float32,
        offload: bool = False,
        batch: int = 1,
        side: int = TRAINED_SIDE,
    ):
        if (sources.captions is None) != (sources.converter is None):
            raise UserError("captions: is given without a converter, or a converter without captions; expected both or none")
        if config.corrections != 1:
            raise UserError(
                f"decode.corrections: is {config.corrections}; expected 1 with the generator at full size, which "
                "corrects once"
            )
        where = usable_device(None, dtype)
        if offload and where.type == "cpu":
            raise UserError("offload: is on, but the device is the CPU; expected device cuda, or no offload")
        check_conventions(sources.unclip, conventions)
        disable_progress_bar()  # transformers draws one for a load of a moment, even where stderr is no terminal
        self.categories = categories
        self.unclip = UnclipGenerator(config, seed, sources.unclip, conventions["image_range"], side, batch, dtype, offload)
        self.refiner = SdxlRefiner(sources.sdxl, config, seed, dtype=dtype, where=where, offload=offload, batch=batch)
        self.autoencoder = None
        if sources.vae is not None:
            reduction = 8  # of Stable Diffusion's autoencoders; what the network makes of it is compared below
            self.autoencoder = StableAutoencoder(sources.vae, latent_side * reduction)
            if self.autoencoder.shape[1] != latent_side:
                raise UserError(
                    f"{sources.vae}: makes latents of side {self.autoencoder.shape[1]} of pictures of "
                    f"{self.autoencoder.side}; expected {latent_side}, as the base has"
                )
        self.captioner = None
        if sources.captions is not None:
            self.captioner = GitCaptioner(sources.captions, sources.converter, dtype=dtype, where=where, batch=batch)
        self.identity = {
            "generator": "sdxl",
            "dtype": str(dtype).removeprefix("torch."),
            "side": side,
            "conventions": {field: conventions[field] for field in ("token_norm", "image_range")},
            "unclip": _files_in(sources.unclip),
            "sdxl": _files_in(Path(sources.sdxl)),
            "vae": None if self.autoencoder is None else self.autoencoder.identity,
            "captions": None if sources.captions is None else _files_in(Path(sources.captions)),
            "converter": None if sources.converter is None else sources.converter.stat().st_size,
        }
        self._where = None if offload else where  # offloaded layers find their way themselves
        self._move_to(torch.device("cpu"))

    def stages(
        self, tokens: np.ndarray, found: Predictions, words: Words, lowlevel: bool = True, title: str = ""
    ) -> dict[str, np.ndarray]:
        """As ``painter.Painter`` says, with ``blended`` too where there is a low level: .75 corrected and .25 of that.

        Prompts name kinds of things even where the bank has no caption. The correction starts from the picture and takes no
        tokens.
        """
        self._move_to(self._where)
        made = {}
        if lowlevel and found.latents is not None and self.autoencoder is not None:
            made[LOWLEVEL] = self.autoencoder.decode(found.latents)
        made[RECONSTRUCTED] = self.unclip.pictures(self.unclip.generate(tokens, found.images, f"paint {title}"))
        prompts = prompts_of(words, self.categories)
        made[CORRECTED] = self.refiner.correct(made[RECONSTRUCTED], prompts, found.images, f"correct {title}")
        if LOWLEVEL in made:
            made[BLENDED] = blend(made[CORRECTED], made[LOWLEVEL])
        return made

    def captions(self, tokens: np.ndarray) -> list[str] | None:
        """Image tokens (n, T, D) -> n captions; None where no captioner was given."""
        self._move_to(self._where)
        return None if self.captioner is None else self.captioner.captions(tokens)

    def _move_to(self, where: torch.device | None) -> None:
        """Until the first picture the weights wait on the CPU: the brain's network needs the GPU before."""
        if where is None or self._where is None:
            return
        networks = [self.unclip.unet, self.unclip.vae, *self.refiner.pipeline.components.values()]
        networks += [] if self.autoencoder is None else [self.autoencoder.network]
        networks += [] if self.captioner is None else [self.captioner.model, self.captioner.converter]
        for network in networks:
            if isinstance(network, torch.nn.Module):
                network.to(where)


def check_conventions(folder: Path, conventions: dict) -> None:
    """Raise UserError where the generator in ``folder`` was trained on tokens of another convention than a base's.

    The token norm must be the same. The image range may be either: ``UnclipGenerator.pictures`` accounts for it.
    """
    wanted = read_card(folder).get("conventions")
    if not isinstance(wanted, dict) or "token_norm" not in wanted:
        raise UserError(
            f"{folder / CARD}: conventions.token_norm is missing; expected a folder of 'mindtuner convert unclip'"
        )
    if conventions["token_norm"] != wanted["token_norm"]:
        raise UserError(
            f"{folder / CARD}: conventions.token_norm is {wanted['token_norm']!r}; expected "
            f"{conventions['token_norm']!r}, on which the base was trained"
        )


def batch_for(where: torch.device) -> int:
    """Pictures to paint together by the memory that is free on a GPU; 1 on a CPU, where more gain nothing."""
    if where.type != "cuda":
        return 1
    free, _ = torch.cuda.mem_get_info(where)
    return max(1, int(free / 2**30 / GIB_PER_PICTURE))


def _files_in(folder: Path) -> dict | str:
    """Names and sizes of the files in a folder, which tell most models apart without reading 10 GB; a hub id as it is."""
    if not folder.is_dir():
        return str(folder)
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}
