"""open_clip models by name and weights: every tensor of the file fits the model, or a line says which does not."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import json
from pathlib import Path
from types import ModuleType

import torch

from mindtuner.errors import UserError
from mindtuner.thirdparty import check_fit, one_line, package, quiet, read_content, released, tensors_of

HUB, FOLDER = "hf-hub:", "local-dir:"  # open_clip's prefixes of model names
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")
PAPERS = "ViT-bigG-14"  # whose weights mindtuner fetch weights gets
PREPROCESS = ("mean", "std", "interpolation", "resize_mode")


def load_model(name: str, pretrained: str | Path | None, preprocess: dict | None = None) -> torch.nn.Module:
    """The whole open_clip model in evaluation mode, float32, on the CPU, its weights loaded.

    Parameters
    ----------
    name : an open_clip model (``ViT-bigG-14``), ``local-dir:FOLDER`` or ``hf-hub:OWNER/NAME`` with an
        ``open_clip_config.json``
    pretrained : a file (safetensors, or what torch.save wrote, of which only tensors are read), or the tag of published
        weights, which open_clip finds in the hub's cache or downloads; not needed where ``name`` has a prefix
    preprocess : of mean, std, interpolation and resize_mode those in which the model differs from open_clip's
        defaults. Needed only for a file of a model whose published weights do not agree on them.

    Position embeddings are not resized to fit, as open_clip would do: weights of another image size are refused.
    Raises UserError where the package, the model, the tag or the file is missing, or the weights do not fit.
    """
    open_clip = require_open_clip()
    config = model_config(name)
    unknown = set(preprocess or {}) - set(PREPROCESS)
    if unknown:
        raise UserError(f"{name}: preprocess has the field {min(unknown)}; expected only {', '.join(PREPROCESS)}")
    with released("openclip") if name == PAPERS else contextlib.nullcontext():
        path = _weights_path(name, pretrained, config)
        overlay = _published_preprocess(name, pretrained, path) if preprocess is None else preprocess
        state = read_state(path, f"the weights of {name}")  # before the model is built: at full size that takes a while
    try:
        with quiet():
            model = open_clip.create_model(name, load_weights=False, pretrained_text=False, force_preprocess_cfg=overlay)
    except (OSError, RuntimeError, ValueError, TypeError, AssertionError, KeyError) as error:
        raise UserError(
            f"{name}: open_clip cannot build it ({one_line(error)}); expected one of its own models or a sound "
            "open_clip_config.json"
        ) from error
    _fill(model, state, path, name)
    return model.eval().requires_grad_(False)


def require_open_clip() -> ModuleType:
    """The module ``open_clip``. Raises UserError where it is not installed."""
    return package("open_clip", "open_clip_torch")


def model_config(name: str) -> dict:
    """open_clip's description of the model's form. Raises UserError where there is none."""
    open_clip = require_open_clip()
    try:
        config = open_clip.get_model_config(name)
    except (OSError, ValueError) as error:  # of json too
        raise UserError(
            f"{name}: no open_clip_config.json can be read ({one_line(error)}); expected one that open_clip wrote"
        ) from error
    if config is None:
        near = difflib.get_close_matches(name, open_clip.list_models(), 3) or ["ViT-bigG-14"]
        raise UserError(f"{name}: open_clip knows no such model; expected a name like {', '.join(near)}")
    if not isinstance(config, dict) or not {"embed_dim", "vision_cfg", "text_cfg"} <= set(config):
        raise UserError(f"{name}: open_clip_config.json describes no model; expected embed_dim, vision_cfg and text_cfg")
    return config


def read_state(path: Path, expected: str) -> dict[str, torch.Tensor]:
    """The state dict in a file; training checkpoints hold it as ``state_dict``, with or without ``module.`` before each name.

    Raises UserError as ``read_content`` does, and where there is anything but tensors.
    """
    content = read_content(path, expected)
    state = tensors_of(content.get("state_dict", content), path, expected)
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def config_digest(name: str, tower: str) -> str:
    """16 hex digits of the form of the tower ``vision_cfg`` or ``text_cfg``: heads and activations are in no weights."""
    config = model_config(name)
    form = {key: config.get(key) for key in ("embed_dim", "quick_gelu", tower)}
    return hashlib.sha256(json.dumps(form, sort_keys=True).encode()).hexdigest()[:16]


def plain_name(name: str) -> str:
    """The model's name without the place where its folder happens to lie."""
    return Path(name.removeprefix(FOLDER)).name if name.startswith(FOLDER) else name


def _weights_path(name: str, pretrained: str | Path | None, config: dict) -> Path:
    open_clip = require_open_clip()
    if pretrained is not None and _is_path(pretrained):
        return Path(pretrained)
    if name.startswith((FOLDER, HUB)):
        if pretrained is not None:
            raise UserError(f"{name}: {pretrained} is no file; expected a file of weights, or none to take the model's own")
        if name.startswith(FOLDER):
            return _only_weights(Path(name.removeprefix(FOLDER)))
        return _downloaded(name, lambda: open_clip.download_pretrained_from_hf(name.removeprefix(HUB)))
    tags = open_clip.list_pretrained_tags_by_model(name)
    published = open_clip.get_pretrained_cfg(name, str(pretrained))
    if not published:
        given = "no weights are given" if pretrained is None else f"there is neither a file nor a tag {pretrained}"
        raise UserError(f"{name}: {given}; expected a file, or one of open_clip's tags: {', '.join(tags) or 'none'}")
    if bool(published.get("quick_gelu")) != bool(config.get("quick_gelu")):  # open_clip would only warn
        other = f"{name}-quickgelu" if published.get("quick_gelu") else name.removesuffix("-quickgelu")
        raise UserError(f"{name}: {pretrained} was trained with another activation; expected the model {other}")
    return _downloaded(f"{name}, {pretrained}", lambda: _download(open_clip, published))


def _is_path(pretrained: str | Path) -> bool:
    return isinstance(pretrained, Path) or pretrained.endswith(SUFFIXES) or "/" in pretrained or Path(pretrained).exists()


def _download(open_clip, published: dict) -> str:
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE and not (published.get("hf_hub") or published.get("file")):
        raise OSError("it is not on the hub, and HF_HUB_OFFLINE is set")
    return open_clip.download_pretrained(published)


def _downloaded(what: str, download) -> Path:
    try:
        return Path(download())
    except (OSError, RuntimeError, ValueError) as error:  # what the hub and urllib raise is of these kinds
        raise UserError(
            f"{what}: the weights cannot be had ({one_line(error)}); expected them in the hub's cache or a way "
            "to download them, or give a file"
        ) from error


def _only_weights(folder: Path) -> Path:
    for suffix in SUFFIXES:
        found = sorted(folder.glob(f"*{suffix}"))
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"{folder}: holds {len(found)} files *{suffix}; expected one, or name the one to take")
    raise UserError(f"{folder}: holds no weights; expected one file *{', *'.join(SUFFIXES)}")


def _published_preprocess(name: str, pretrained: str | Path | None, path: Path) -> dict:
    """How images are prepared for these weights. No file says so: that stands with the published weights of the name."""
    open_clip = require_open_clip()
    if name.startswith((FOLDER, HUB)):
        return {}  # stands in its open_clip_config.json
    tags = open_clip.list_pretrained_tags_by_model(name) if _is_path(pretrained) else [str(pretrained)]
    published = [{key: cfg[key] for key in PREPROCESS} for cfg in (open_clip.get_pretrained_cfg(name, tag) for tag in tags)]
    if any(other != published[0] for other in published[1:]):
        raise UserError(
            f"{path}: {name} was published with different ways to prepare images ({', '.join(tags)}); expected "
            "preprocess to say which mean, std, interpolation and resize_mode these weights want"
        )
    return published[0] if published else {}


def _fill(model: torch.nn.Module, state: dict[str, torch.Tensor], path: Path, name: str) -> None:
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = convert_state_dict(model, state)  # MobileCLIP's own names
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    # Of the contrastive loss alone, in several forms; and a counter that older transformers stored.
    extra = {"logit_scale", "logit_bias", "text.transformer.embeddings.position_ids"}
    state = {key: value for key, value in state.items() if key not in extra}
    wanted = {key: value for key, value in model.state_dict().items() if key not in extra}
    check_fit(state, wanted, path, f"the weights of {name}")
    model.load_state_dict(state, strict=False)
