"""The production towers: image tokens and text embeddings of any open_clip model with a vision transformer.

The papers' model is ViT-bigG-14 with the weights laion2b_s39b_b160k: 256 tokens of width 1664, texts of width 1280.

Two conventions decide whether tokens mean the same to two programs. They are settings, and part of the encoder's
``identity``:

``token_norm``   "after": tokens as they leave the tower's final layer norm, as open_clip returns them since 2.23 (the
                 MindEye2 release); "before": as they enter it, as open_clip returned them until then.
``image_range``  "clip": images as the tower wants them; "mindeye2": images u in 0..1 are shown to the tower as
                 (u + 1) / 2, washed out, as the MindEye2 release did, whose embedder takes images to be in -1..1.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mindtuner.data import Stimuli
from mindtuner.errors import UserError
from mindtuner.runtime import device, to_device
from mindtuner.thirdparty import one_line
from mindtuner.towers.compact import CompactTextEncoder
from mindtuner.towers.openclip_load import config_digest, load_model, plain_name, require_open_clip
from mindtuner.towers.tower import Tower, weights_hash

TOKEN_NORMS, IMAGE_RANGES = ("after", "before"), ("clip", "mindeye2")
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class OpenClipImageEncoder:
    """Images -> the tokens of an open_clip image tower, as its own forward gives them (``output_tokens``): no class token.

    Of a plain tower or one of timm's vision transformers these are the patches, (image side / patch side)² of them. A
    tower with an attentional pool (CoCa) pools by queries, and its tokens are the queries that are left for captioning.

    Parameters
    ----------
    name, pretrained, preprocess : as in ``load_model``
    token_norm, image_range : the two conventions, see the module
    dtype : torch.float32 or torch.bfloat16, in which the tower computes
    batch : images that go through the tower at a time

    Attributes
    ----------
    shape : (T, D)
    identity : JSON values that tell these tokens from any other's

    Raises UserError where ``load_model`` does, and where the tower has no tokens or no such ``token_norm``.
    """

    def __init__(
        self,
        name: str,
        pretrained: str | Path | None = None,
        *,
        token_norm: str = "after",
        image_range: str = "clip",
        dtype: torch.dtype = torch.float32,
        batch: int = 32,
        preprocess: dict | None = None,
    ):
        _check(name, "token_norm", token_norm, TOKEN_NORMS)
        _check(name, "image_range", image_range, IMAGE_RANGES)
        _check(name, "dtype", DTYPES.get(dtype, dtype), tuple(DTYPES.values()))
        model = load_model(name, pretrained, preprocess)
        open_clip = require_open_clip()
        tower, found = model.visual, open_clip.get_model_preprocess_cfg(model)
        weights = weights_hash(tower)
        self._forward = token_forward(tower, token_norm, name)
        self.image_range, self.dtype, self.batch = image_range, dtype, batch
        size = found["size"]
        self.preprocess = {
            "size": [size, size] if isinstance(size, int) else list(size),
            "mean": list(found["mean"]),
            "std": list(found["std"]),
            "interpolation": "bilinear" if found["interpolation"] == "bilinear" else "bicubic",  # "random" is bicubic
            "resize_mode": found["resize_mode"],
            "fill_color": found["fill_color"],
        }
        tower.to(device(), dtype)
        self.shape = tuple(self._probe(name))
        self.identity = {
            "encoder": "open_clip image",
            "model": plain_name(name),
            "form": config_digest(name, "vision_cfg"),
            "weights": weights,
            "token_norm": token_norm,
            "image_range": image_range,
            "preprocess": self.preprocess,
            "tokens": list(self.shape),
            "dtype": DTYPES[dtype],
        }

    @torch.no_grad()
    def tokens(self, images) -> np.ndarray:
        """Images (n, 3, H, W), uint8 or float 0..1 -> tokens float32 (n, T, D). Raises ValueError for anything else."""
        images = images if isinstance(images, torch.Tensor) else torch.from_numpy(np.array(images))
        tokens = np.empty((len(images), *self.shape), np.float32)
        for start in range(0, len(images), self.batch):
            prepared = self.prepare(images[start : start + self.batch])
            tokens[start : start + self.batch] = self._forward(prepared.to(self.dtype)).float().cpu().numpy()
        return tokens

    def prepare(self, images: torch.Tensor) -> torch.Tensor:
        """Images (n, 3, H, W), uint8 or float 0..1 -> what the tower sees, float32 (n, 3, height, width) on the device.

        Resizing and cropping are open_clip's own, with the antialiasing that PIL does; an image that has the tower's size
        is not resampled.
        """
        if images.ndim != 4 or images.shape[1] != 3 or not (images.dtype == torch.uint8 or images.is_floating_point()):
            raise ValueError(f"images are {images.dtype} {tuple(images.shape)}; expected uint8 or float (n, 3, H, W)")
        images = to_device(images)
        if images.dtype == torch.uint8:
            images = resized(images, self.preprocess, self.preprocess["fill_color"]).float() / 255
        else:
            images = images.float()  # half has too few digits to resample
            if len(images) and not (-1e-3 <= images.min() and images.max() <= 1 + 1e-3):
                raise ValueError(f"float images span {images.min():g}..{images.max():g}; expected 0..1")
            images = resized(images, self.preprocess, self.preprocess["fill_color"] / 255)
        if self.image_range == "mindeye2":
            images = (images + 1) / 2
        mean, std = (images.new_tensor(self.preprocess[key]).view(3, 1, 1) for key in ("mean", "std"))
        return (images - mean) / std

    @torch.no_grad()
    def _probe(self, name: str) -> torch.Size:
        """The shape of an image's tokens, by one grey image."""
        image = torch.zeros(1, 3, *self.preprocess["size"], device=device(), dtype=self.dtype)
        tokens = self._forward(image)
        if not tokens.isfinite().all():
            raise UserError(f"{name}: tokens of a grey image are not finite in {DTYPES[self.dtype]}; expected sound weights")
        return tokens.shape[1:]


def token_forward(tower: torch.nn.Module, token_norm: str, name: str) -> Callable[[torch.Tensor], torch.Tensor]:
    """What maps prepared images (n, 3, H, W) to the tower's tokens (n, T, D); with "before", ``tower`` loses its norm.

    Raises UserError where the tower has no tokens, or where its final norm is not the last thing that they pass.
    """
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    if isinstance(tower, VisionTransformer):
        owner, norm = tower, "ln_post"
        after_pool = tower.attn_pool is None and tower.final_ln_after_pool
        norm_first = tower.attn_pool is not None and tower.attn_pool_contrastive is not None
        keeps_class = tower.attn_pool is None and tower.pool_type == "none"
        tower.output_tokens = True

        def forward(images):
            return tower(images)[1][:, int(keeps_class) :]
    elif isinstance(tower, TimmModel) and hasattr(tower.trunk, "num_prefix_tokens") and hasattr(tower.trunk, "norm"):
        owner, norm = tower.trunk, "norm"
        after_pool, norm_first = isinstance(tower.trunk.norm, torch.nn.Identity), False

        def forward(images):
            return tower.trunk.forward_features(images)[:, tower.trunk.num_prefix_tokens :]
    else:
        kind = type(getattr(tower, "trunk", tower)).__name__
        raise UserError(f"{name}: its image tower, a {kind}, has no tokens; expected a model with a vision transformer")
    if after_pool and token_norm == "after":
        raise UserError(
            f"{name}: token_norm is after, but its final norm comes after pooling and its tokens never pass it; "
            "expected token_norm before"
        )
    if norm_first and token_norm == "before":
        raise UserError(
            f"{name}: token_norm is before, but its final norm comes before what makes the tokens; expected token_norm after"
        )
    if token_norm == "before":
        setattr(owner, norm, torch.nn.Identity())
    return forward


def resized(images: torch.Tensor, preprocess: dict, fill: float) -> torch.Tensor:
    """Images (n, 3, H, W), uint8 or float 0..1, at the tower's size, by the rules of open_clip's evaluation transform.

    ``resize_mode``: "squash" forgets the aspect ratio; "shortest" fits the shorter edge and crops the middle; "longest"
    fits the longer edge and pads with ``fill``.
    """
    from open_clip.transform import center_crop_or_pad
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    height, width = preprocess["size"]
    have = images.shape[-2:]
    if have == (height, width):
        return images
    if preprocess["resize_mode"] == "squash":
        high, wide = height, width
    elif preprocess["resize_mode"] == "shortest" and height == width:  # rounded down here, as torchvision does it
        high, wide = (int(height * side / min(have)) for side in have)
    else:
        choose = max if preprocess["resize_mode"] == "longest" else min
        ratio = choose(have[0] / height, have[1] / width)
        high, wide = (round(side / ratio) for side in have)
    # Across, then down, with what overshoots cut off after each, as PIL does it: white next to black stays white.
    white = 255 if images.dtype == torch.uint8 else 1
    for target in ([have[0], wide], [high, wide]):
        images = resize(images, target, InterpolationMode(preprocess["interpolation"]), antialias=True).clamp(0, white)
    return center_crop_or_pad(images, [height, width], fill=fill)


class OpenClipTextEncoder:
    """Sentences -> unit vectors of an open_clip text tower (``encode_text``, normalised), the Pivot's text space.

    Sentences that are longer than the tower's context are cut as its own tokenizer does.

    Parameters
    ----------
    name, pretrained
        As in ``load_model``.
    dtype : torch.dtype
        float32 or bfloat16, in which the tower computes.
    batch : int
        Sentences embedded at a time.

    Attributes
    ----------
    width : int
        d, of the vectors.
    identity : dict

    Raises
    ------
    UserError
        Where ``load_model`` does, and where the model's tokenizer cannot be had.
    """

    def __init__(
        self, name: str, pretrained: str | Path | None = None, *, dtype: torch.dtype = torch.float32, batch: int = 128
    ):
        _check(name, "dtype", DTYPES.get(dtype, dtype), tuple(DTYPES.values()))
        model = load_model(name, pretrained, preprocess={})  # images are none of its business
        del model.visual
        if hasattr(model, "text_decoder"):
            del model.text_decoder  # CoCa's, which writes captions
        try:
            self.tokenizer = require_open_clip().get_tokenizer(name)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(
                f"{name}: its tokenizer cannot be had ({one_line(error)}); expected it in the "
                "hub's cache or a way to download it"
            ) from error
        weights = weights_hash(model, without=("logit_",))  # of the contrastive loss alone
        self.network, self.batch = model.to(device(), dtype), batch
        probe = self._vectors(["a"])
        if not np.isfinite(probe).all():
            raise UserError(f"{name}: the embedding of a sentence is not finite in {DTYPES[dtype]}; expected sound weights")
        self.width = probe.shape[1]
        self.identity = {
            "encoder": "open_clip text",
            "model": plain_name(name),
            "form": config_digest(name, "text_cfg"),
            "weights": weights,
            "width": self.width,
            "dtype": DTYPES[dtype],
        }

    def embed(self, sentences: list[str]) -> np.ndarray:
        """Sentences (n) -> float32 (n, d), each of unit length; an equal sentence is embedded once.

        A tower that was moved to the CPU to make room comes back for it.
        """
        self.network.to(device())
        distinct = sorted(set(sentences))
        vectors = np.empty((len(distinct), self.width), np.float32)
        for start in range(0, len(distinct), self.batch):
            vectors[start : start + self.batch] = self._vectors(distinct[start : start + self.batch])
        row = {sentence: k for k, sentence in enumerate(distinct)}
        return vectors[[row[sentence] for sentence in sentences]]

    embed_groups = CompactTextEncoder.embed_groups  # the same mean over ``embed``; nothing in it is of that tower

    @torch.no_grad()
    def _vectors(self, sentences: list[str]) -> np.ndarray:
        vectors = self.network.encode_text(self.tokenizer(sentences).to(device())).float()
        return torch.nn.functional.normalize(vectors, dim=-1).cpu().numpy()


def openclip_towers(
    stimuli: Stimuli, images: OpenClipImageEncoder | None, texts: OpenClipTextEncoder | None, dtype: type | str = "bfloat16"
) -> list[Tower]:
    """The towers "tokens" (T, D) and "text" (d,) of these encoders; without an encoder, without its tower.

    ``dtype`` is that of the tokens' cache: with bfloat16, all of NSD's tokens of ViT-bigG-14 take 62 GB. The tower is
    shown the stimuli as they are stored, at 224 x 224.
    """
    towers = []
    if images is not None:
        towers.append(
            Tower(
                "tokens", images.identity, images.shape, dtype, lambda ids: images.tokens(stimuli.images(ids)), images.batch
            )
        )
    if texts is not None:  # large batches: equal captions are embedded once
        towers.append(
            Tower(
                "text",
                texts.identity,
                (texts.width,),
                np.float32,
                lambda ids: texts.embed_groups([stimuli.captions[i] for i in ids]),
                batch=4096,
            )
        )
    return towers


def _check(name: str, field: str, value, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name}: {field} is {value}; expected {' or '.join(allowed)}")
