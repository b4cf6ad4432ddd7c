"""Which towers look at the stimuli: the compact ones, or those of the papers from local files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from mindtuner.data import Stimuli
from mindtuner.errors import UserError
from mindtuner.generators.compact import WEIGHTS
from mindtuner.pipeline.features import refuse_pictures_trained_on
from mindtuner.pipeline.generators import clip_name
from mindtuner.towers.compact import Autoencoder, CompactImageEncoder, CompactTextEncoder, packaged
from mindtuner.towers.convnext_maps import CellMaps, ConvNextMaps, PlainConvNextMaps
from mindtuner.towers.embed import compact_towers
from mindtuner.towers.low_level import low_level_towers
from mindtuner.towers.openclip import OpenClipImageEncoder, OpenClipTextEncoder, openclip_towers
from mindtuner.towers.sd_vae import StableAutoencoder
from mindtuner.towers.tower import Tower

NAMES = ("pixels", "tokens", "latents", "features", "features_augmented", "text")
TIMM = "timm:"
_NEEDS = {"tokens": "clip", "text": "clip", "latents": "vae", "features": "convnext", "features_augmented": "convnext"}


def of_the_package(
    stimuli: Stimuli, folder: str | Path, only: Iterable[str] | None = None, weights: str | Path | None = None
) -> list[Tower]:
    """The compact towers.

    Parameters
    ----------
    stimuli : Stimuli
    folder : path
        Of the caches: all but text look at the pixels that are cached there.
    only : iterable of str, optional
        Some of ``NAMES``, by default all; pixels come along where they are needed.
    weights : path, optional
        Of another compact generator, whose autoencoder makes the latents.

    Raises
    ------
    UserError
        Where the weights were trained on a test image.
    """
    if weights is not None:
        refuse_pictures_trained_on(Path(weights), stimuli)
    chosen = set(only or NAMES)
    if chosen != {"text"}:
        chosen.add("pixels")
    towers = compact_towers(
        stimuli,
        folder,
        CompactImageEncoder() if chosen & {"tokens", "features", "features_augmented"} else None,
        CompactTextEncoder() if "text" in chosen else None,
        Autoencoder(Path(weights or packaged(WEIGHTS))) if "latents" in chosen else None,
    )
    return [tower for tower in towers if tower.name in chosen]


def of_the_papers(
    stimuli: Stimuli,
    only: Iterable[str] | None = None,
    *,
    clip: str | None = None,
    clip_weights: str | None = None,
    vae: str | None = None,
    convnext: str | None = None,
    convnext_weights: str | Path | None = None,
    token_norm: str = "after",
    image_range: str = "clip",
    dtype: torch.dtype = torch.float32,
) -> list[Tower]:
    """The towers of the papers: OpenCLIP bigG, Stable Diffusion's autoencoder, and a ConvNeXt.

    Parameters
    ----------
    stimuli : Stimuli
    only : iterable of str, optional
        Some of ``NAMES`` but pixels, by default all.
    clip, clip_weights : str, optional
        An open_clip model by name or as a folder, and its weights or their tag: for tokens and text.
    vae : str, optional
        Folder or hub id of the autoencoder: for latents.
    convnext, convnext_weights : optional
        VICRegL's full checkpoint, or ``timm:NAME`` for a plain ConvNeXt with its weights: for features.
    token_norm, image_range : str
        Conventions of the tokens, see ``docs/full-size.md``.
    dtype : torch.dtype
        In which OpenCLIP computes.

    Raises
    ------
    UserError
        Where a tower that is asked for is not given, or its files are damaged.
    """
    given = {"clip": clip, "vae": vae, "convnext": convnext}
    chosen = set(only or _NEEDS)
    for name in sorted(chosen):
        if name not in _NEEDS:
            raise UserError(f"only: {name} is not of the paper's towers; expected some of {', '.join(_NEEDS)}")
        if given[_NEEDS[name]] is None:
            raise UserError(f"{_NEEDS[name]}: is missing; expected it, for {name}")
    images = texts = autoencoder = maps = None
    if clip is not None:
        clip = clip_name(clip)
    if clip is not None and "tokens" in chosen:
        images = OpenClipImageEncoder(clip, clip_weights, token_norm=token_norm, image_range=image_range, dtype=dtype)
    if clip is not None and "text" in chosen:
        texts = OpenClipTextEncoder(clip, clip_weights, dtype=dtype)
    if vae is not None and "latents" in chosen:
        autoencoder = StableAutoencoder(vae)
    if convnext is not None and chosen & {"features", "features_augmented"}:
        maps = _convnext(convnext, convnext_weights)
    towers = openclip_towers(stimuli, images, texts) + low_level_towers(stimuli, autoencoder, maps)
    return [tower for tower in towers if tower.name in chosen]


def _convnext(convnext: str, weights: str | Path | None) -> CellMaps:
    if convnext.startswith(TIMM):
        return PlainConvNextMaps(convnext.removeprefix(TIMM), weights)
    if weights is not None:
        raise UserError("convnext_weights: is given; expected it with `convnext` timm:NAME alone")
    return ConvNextMaps(convnext)
