"""Weights out of the files that other programs write with torch: a .pth, or a DeepSpeed ZeRO folder.

Only tensors and plain containers are read (``weights_only``). Optimiser states in such files also hold a few
objects of DeepSpeed and of torch's scheduler; those names, and no others, are read as inert stand-ins that do
nothing.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
import zipfile
from pathlib import Path

import torch

from mindtuner.errors import UserError

MODEL, PARTITION = "_model_states.pt", "_optim_states.pt"  # DeepSpeed's 16-bit model and fp32 partitions
_DAMAGED = (  # what torch.load raises on bytes that are no checkpoint
    RuntimeError, EOFError, ValueError, LookupError, AttributeError, TypeError, AssertionError, struct.error)


def _stand_in(path: str, kind: type = object) -> type:
    """A class that is unpickled in the place of ``path`` and keeps what it is given without looking at it."""
    module, name = path.rsplit(".", 1)
    takes_anything = {} if kind is int else {"__init__": lambda self, *ignored: None}
    return type(name, (kind,), {"__module__": module, **takes_anything})


_STAND_INS = [
    _stand_in("deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    _stand_in("deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    _stand_in("deepspeed.utils.tensor_fragment.fragment_address"),
    _stand_in("deepspeed.runtime.zero.config.ZeroStageEnum", int),
    # Older schedulers pickle a function of theirs as getattr(OneCycleLR, its name): here, an inert object.
    _stand_in("torch.optim.lr_scheduler.OneCycleLR"),
    _stand_in("builtins.getattr"),
]


def read_weights(path: str | Path) -> tuple[dict[str, torch.Tensor], str]:
    """The model's state dict, mapped from disk where the format allows it, and a phrase on where it came
    from.

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
    return read_state_dict(path, "model_state_dict"), path.name


def read_state_dict(path: str | Path, field: str) -> dict[str, torch.Tensor]:
    """The tensors by name in ``field`` of a torch file, mapped from disk where its format allows it.

    Raises UserError where the file is cut short or holds code, or the field is missing or no state dict.
    """
    path = Path(path)
    return _tensors(_field(_load(path), field, path), field, path)


def _load(path: Path) -> dict:
    if not path.is_file():
        raise UserError(f"{path}: not found; expected a checkpoint (.pth) or the folder of one")
    try:
        zipped = zipfile.is_zipfile(path)  # the index stands at the end, so a file cut short has none
        with path.open("rb") as file:
            cut = not zipped and file.read(2) == b"PK"
        if cut:
            raise UserError(f"{path}: is cut short; expected a whole checkpoint, download or copy it again")
        with torch.serialization.safe_globals(_STAND_INS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); expected a checkpoint"
        ) from error
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            raise UserError(f"{path}: not a checkpoint; expected a file that torch.save wrote") from error
        raise UserError(
            f"{path}: holds Python code ({code[1]}), which is never run; expected tensors and plain "
            "containers (docs/full-size.md says how to get them out of a file that you trust)"
        ) from error
    except _DAMAGED as error:
        raise UserError(
            f"{path}: not a whole checkpoint ({' '.join(str(error).split())[:120]}); expected a file that "
            "torch.save wrote to its end"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}; expected a dict")
    return content


def _field(content: dict, name: str, path: Path):
    if name not in content:
        raise UserError(
            f"{path}: field {name} is missing; expected it beside {', '.join(map(str, content)) or 'others'}"
        )
    return content[name]


def _tensors(value: object, name: str, path: Path) -> dict[str, torch.Tensor]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise UserError(f"{path}: field {name} is not a state dict; expected tensors by name")
    for key, tensor in value.items():
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f"{path}: {key} is a {type(tensor).__name__}; expected a tensor")
    return dict(value)


def _zero_folder(path: Path) -> Path:
    """The folder that holds the files: ``path`` itself, or the one below it (``last`` if there are
    several)."""
    if any(path.glob(f"*{MODEL}")) or any(path.glob(f"*{PARTITION}")):
        return path
    below = sorted({file.parent for file in path.glob(f"*/*{MODEL}")})
    if path / "last" in below:
        return path / "last"
    if len(below) != 1:
        raise UserError(
            f"{path}: holds {len(below)} folders with a *{MODEL}; expected one, or give the folder or .pth "
            "itself"
        )
    return below[0]


def _read_zero(folder: Path) -> tuple[dict[str, torch.Tensor], str]:
    models = sorted(folder.glob(f"*{MODEL}"))
    if len(models) != 1:
        raise UserError(
            f"{folder}: holds {len(models)} files *{MODEL}; expected 1 (ZeRO stage 1 or 2, not split over "
            "devices)"
        )
    content = _load(models[0])
    weights = _tensors(_field(content, "module", models[0]), "module", models[0])
    partitions = sorted(folder.glob(f"*{PARTITION}"), key=_rank)
    if not partitions:
        return weights, f"{models[0].name} (16-bit copy; no fp32 partitions beside it)"
    groups = _field(content, "param_shapes", models[0])
    if not isinstance(groups, list) or not all(isinstance(shapes, dict) for shapes in groups):
        raise UserError(
            f"{models[0]}: param_shapes is not a list of dicts; expected one dict of shapes a parameter group"
        )
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
    state = _field(_load(file), "optimizer_state_dict", file)
    if not isinstance(state, dict):
        raise UserError(f"{file}: optimizer_state_dict is not a dict; expected a ZeRO optimiser state")
    stage = _field(state, "zero_stage", file)
    if stage not in (1, 2):
        raise UserError(f"{file}: zero_stage is {stage}; expected 1 or 2, whose model file is whole")
    ranks = _field(state, "partition_count", file)
    ranks = max(ranks) if isinstance(ranks, (list, tuple)) else ranks
    if ranks != files:
        raise UserError(
            f"{file}: partition_count is {ranks}, but {files} files *{PARTITION} are there; expected one a "
            "rank"
        )
    pieces = _field(state, "single_partition_of_fp32_groups", file)
    if not isinstance(pieces, list) or not all(isinstance(piece, torch.Tensor) for piece in pieces):
        raise UserError(
            f"{file}: single_partition_of_fp32_groups is not a list of tensors; expected one a group"
        )
    if len(pieces) != groups:
        raise UserError(
            f"{file}: single_partition_of_fp32_groups holds {len(pieces)} groups; expected {groups}"
        )
    return pieces
