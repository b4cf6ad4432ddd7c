"""Other people's pretrained models, out of folders in diffusers' and transformers' own format."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError

from mindtuner import runtime
from mindtuner.errors import UserError

HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
DAMAGED = (  # what the libraries raise on a folder that lacks files, or whose files are cut or belong to another model
    OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, NotImplementedError, SafetensorError)


def package(name: str) -> ModuleType:
    """An installed package, imported when needed. Raises UserError saying how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(f"package {name}: cannot be imported ({one_line(error)}); expected it, pip install {name}") from error


def model_folder(source: str | Path, patterns: list[str]) -> Path:
    """The folder ``source``, or a copy of the hub's model of that id in the hub's own cache.

    patterns : the files to get from the hub; half-precision duplicates are left there.

    Raises UserError where there is no such folder and the hub gives none.
    """
    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists() or not HUB_ID.fullmatch(str(source)):
        what = "is a file" if folder.exists() else "not found"
        raise UserError(f"{source}: {what}; expected a model's folder, or an id on the hub such as owner/name")
    try:
        return Path(snapshot_download(str(source), allow_patterns=patterns, ignore_patterns=["*.fp16.safetensors"]))
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: no such folder, and not to be had from the hub ({one_line(error)}); expected a "
                        "model's folder, or an id on the hub") from error


def usable_device(where: torch.device | str | None, dtype: torch.dtype) -> torch.device:
    """The device ``where``, or the one this machine is fastest with.

    Raises UserError where this machine has no such device, or the device does not compute in ``dtype``.
    """
    try:
        where = runtime.device() if where is None else torch.device(where)
    except RuntimeError as error:
        raise UserError(f"device: is {where!r}; expected cpu or cuda") from error
    if where.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"device: is {where}, but torch finds no CUDA here; expected cpu, or a torch built for your GPU")
    if where.type == "cpu" and dtype == torch.float16:
        raise UserError("dtype: is float16 on a CPU; expected float32, or device cuda")
    return where


def load_part(kind: type, folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """The model of class ``kind`` in a folder, frozen. Reads safetensors only, so no code is ever unpickled.

    Raises UserError where files are missing or damaged, or where they lack any of the model's tensors: the libraries
    would fill those with random numbers and go on.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder / 'config.json'}: not found; expected the folder of a {kind.__name__}")
    named = "dtype" if kind.__module__.startswith("transformers") else "torch_dtype"
    options = {named: dtype, "use_safetensors": True, "local_files_only": True, "output_loading_info": True}
    files = [file.name for file in folder.glob("*.safetensors")]
    if files and all(".fp16." in name for name in files):
        options["variant"] = "fp16"
    try:
        model, found = kind.from_pretrained(folder, **options)
    except DAMAGED as error:
        raise UserError(f"{folder}: not a whole {kind.__name__} ({one_line(error)}); expected its config.json and "
                        ".safetensors") from error
    lacking = sorted(found["missing_keys"])
    if lacking:
        raise UserError(f"{folder}: lacks {len(lacking)} tensors such as {lacking[0]}; expected a whole {kind.__name__}")
    return model.eval().requires_grad_(False)


def load_tokenizer(kind: type, folder: Path, owner: torch.nn.Module):
    """The tokenizer in a folder. Raises UserError where there is none, or it knows more words than ``owner`` does."""
    if not (folder / "tokenizer_config.json").is_file():  # without one the libraries make an empty tokenizer
        raise UserError(f"{folder / 'tokenizer_config.json'}: not found; expected a tokenizer's folder")
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
    except DAMAGED as error:
        raise UserError(f"{folder}: not a whole tokenizer ({one_line(error)}); expected its vocabulary beside "
                        "tokenizer_config.json") from error
    if len(tokenizer) > owner.config.vocab_size:
        raise UserError(f"{folder}: the tokenizer has {len(tokenizer)} words; expected at most the "
                        f"{owner.config.vocab_size} of its model")
    return tokenizer


def one_line(error: Exception) -> str:
    """An error's message, short enough to stand in one of ours."""
    return " ".join(str(error).split())[:160] or type(error).__name__
