"""Weights out of what MindEye2's training wrote: a .pth, or a DeepSpeed ZeRO folder."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch

from mindtuner.errors import UserError
from mindtuner.thirdparty import field_of, read_content, read_state_dict, tensors_of

MODEL, PARTITION = "_model_states.pt", "_optim_states.pt"  # DeepSpeed's 16-bit model and fp32 partitions
_CHECKPOINT = "a checkpoint (.pth with model_state_dict) or the folder of one"
_ZERO = "a file of a DeepSpeed ZeRO folder"


def read_weights(path: str | Path) -> tuple[dict[str, torch.Tensor], str]:
    """The model's state dict, mapped from disk where the format allows it, and a phrase on where it came from.

    ``path``: a file with ``model_state_dict``; one of the files of a DeepSpeed ZeRO folder (stage 1 or 2),
    that folder, or the folder above it. Where the folder has fp32 partitions they win over its 16-bit copy of
    the model.

    Raises UserError where nothing of the kind is there, a file is cut short or holds code, or a rank's file
    is missing.
    """
    path = Path(path)
    if path.is_dir():
        folder = _zero_folder(path)
        return _read_zero(folder)
    if path.name.endswith((MODEL, PARTITION)):
        return _read_zero(path.parent)
    return read_state_dict(path, _CHECKPOINT, "model_state_dict"), path.name


def _zero_folder(path: Path) -> Path:
    """The folder that holds the files: ``path`` itself, or the one below it.

    ``last`` if there are several.
    """
    if any(path.glob(f"*{MODEL}")) or any(path.glob(f"*{PARTITION}")):
        return path
    below = sorted({file.parent for file in path.glob(f"*/*{MODEL}")})
    if path / "last" in below:
        return path / "last"
    if len(below) != 1:
        raise UserError(
            f"{path}: holds {len(below)} folders with a *{MODEL}; expected one, or give the folder or .pth itself"
        )
    return below[0]


def _read_zero(folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    models = sorted(folder.glob(f"*{MODEL}"))
    if len(models) != 1:
        raise UserError(
            f"{folder}: holds {len(models)} files *{MODEL}; expected 1 (ZeRO stage 1 or 2, not split over devices)"
        )
    content = read_content(models[0], _ZERO)
    weights = tensors_of(field_of(content, "module", models[0], _ZERO), models[0], _ZERO)
    partitions = sorted(folder.glob(f"*{PARTITION}"), key=_rank)
    if not partitions:
        return weights, f"{models[0].name} (16-bit copy; no fp32 partitions beside it)"
    groups = field_of(content, "param_shapes", models[0], _ZERO)
    if not isinstance(groups, list) or not all(isinstance(shapes, dict) for shapes in groups):
        raise UserError(f"{models[0]}: param_shapes is not a list of dicts; expected one dict of shapes a parameter group")
    pieces = [_partition(file, len(partitions), len(groups)) for file in partitions]
    for index, shapes in enumerate(groups):
        flat = torch.cat([piece[index].flatten() for piece in pieces])
        needed, slack = sum(map(math.prod, shapes.values())), 2 * len(partitions)
        if not needed <= len(flat) <= needed + slack:  # the group may be padded to a multiple of 2 x ranks
            raise UserError(
                f"{folder}: the fp32 partitions of group {index} hold {len(flat)} numbers; expected {needed} "
                f"to {needed + slack} by {models[0].name}"
            )
        start = 0
        for name, shape in shapes.items():
            weights[name] = flat[start : start + math.prod(shape)].view(shape)
            start += math.prod(shape)
    return weights, f"fp32 partitions of {len(partitions)} ranks in {folder.name}"


def _rank(file: Path) -> int:
    found = re.search(r"zero_pp_rank_(\d+)_", file.name)
    if found is None:
        raise UserError(f"{file}: name has no rank; expected zero_pp_rank_N_mp_rank_00{PARTITION}")
    return int(found[1])


def _partition(file: Path, files: int, groups: int) -> list[torch.Tensor]:
    """This rank's flat piece of each parameter group."""
    state = field_of(read_content(file, _ZERO), "optimizer_state_dict", file, _ZERO)
    if not isinstance(state, dict):
        raise UserError(f"{file}: optimizer_state_dict is not a dict; expected a ZeRO optimiser state")
    stage = field_of(state, "zero_stage", file, _ZERO)
    if stage not in (1, 2):
        raise UserError(f"{file}: zero_stage is {stage}; expected 1 or 2, whose model file is whole")
    ranks = field_of(state, "partition_count", file, _ZERO)
    ranks = max(ranks) if isinstance(ranks, (list, tuple)) else ranks
    if ranks != files:
        raise UserError(f"{file}: partition_count is {ranks}, but {files} files *{PARTITION} are there; expected one a rank")
    pieces = field_of(state, "single_partition_of_fp32_groups", file, _ZERO)
    if not isinstance(pieces, list) or not all(isinstance(piece, torch.Tensor) for piece in pieces):
        raise UserError(f"{file}: single_partition_of_fp32_groups is not a list of tensors; expected one a group")
    if len(pieces) != groups:
        raise UserError(f"{file}: single_partition_of_fp32_groups holds {len(pieces)} groups; expected {groups}")
    return pieces
