"""What the published generators share beside ``foreign``: their tokenizers, and where and in which format they run."""

from __future__ import annotations

from pathlib import Path

import torch

from mindtuner import runtime
from mindtuner.errors import UserError
from mindtuner.thirdparty import one_line


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


def load_tokenizer(kind: type, folder: Path, owner: torch.nn.Module):
    """The tokenizer in a folder. Raises UserError where there is none, or it knows not as many words as ``owner`` does."""
    if not (folder / "tokenizer_config.json").is_file():
        raise UserError(f"{folder / 'tokenizer_config.json'}: not found; expected a tokenizer's folder")
    try:
        tokenizer = kind.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # on a vocabulary that is cut short, the tokenizers' library raises nothing more special
        raise UserError(
            f"{folder}: not a whole tokenizer ({one_line(error)}); expected its vocabulary beside tokenizer_config.json"
        ) from error
    if len(tokenizer) != owner.config.vocab_size:  # without a vocabulary the libraries make an empty one
        raise UserError(
            f"{folder}: the tokenizer has {len(tokenizer)} words; expected the {owner.config.vocab_size} of its model"
        )
    return tokenizer
