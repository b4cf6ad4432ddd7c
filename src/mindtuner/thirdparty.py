"""Other people's files and packages: weights by torch or safetensors, models' folders, packages that may not be there.

No code out of a file is ever run: of pickles only tensors and plain containers are read (``weights_only``). Training
checkpoints hold a few objects of DeepSpeed and of torch's schedulers beside the weights; those names, and no others, are
read as inert stand-ins that do nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from mindtuner.errors import UserError
from mindtuner.inputs import one_line, refuse_special

DAMAGED = (  # what torch, diffusers and transformers raise on files that are cut, lacking or of another kind
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
    pickle.UnpicklingError,
    SafetensorError,
)
_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


def package(name: str, install: str | None = None) -> ModuleType:
    """An installed package, imported when needed. ``install``: what pip calls it, where that is another name.

    Raises UserError saying how to get it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"package {name}: cannot be imported ({one_line(error)}); expected it, pip install {install or name}"
        ) from error


@contextlib.contextmanager
def released(name: str) -> Iterator[None]:
    """Errors about a file that others released say how to get it.

    ``name`` is its name in ``published_weights.manifest``, which this module must not know.
    """
    try:
        yield
    except UserError as error:
        raise UserError(f"{error} (mindtuner fetch weights gets the released one, {name})") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what other libraries log about a model's tensors: that becomes an error of one line, or is as it should be."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


# files of tensors


def _stand_in(path: str, kind: type = object) -> type:
    """A class that is unpickled in the place of ``path`` and keeps what it is given without looking at it."""
    module, name = path.rsplit(".", 1)
    takes_anything = {} if kind is int else {"__init__": lambda self, *ignored: None}
    return type(name, (kind,), {"__module__": module, **takes_anything})


_STAND_INS: list[Any] = [
    _stand_in("deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    _stand_in("deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    _stand_in("deepspeed.utils.tensor_fragment.fragment_address"),
    _stand_in("deepspeed.runtime.zero.config.ZeroStageEnum", int),
    # Older schedulers pickle a function of theirs as getattr(OneCycleLR, its name): here, an inert object.
    _stand_in("torch.optim.lr_scheduler.OneCycleLR"),
    _stand_in("builtins.getattr"),
]


def read_content(path: str | Path, expected: str) -> dict:
    """What a file holds, mapped from disk where its format allows it: safetensors by its ending, else torch's.

    ``expected`` says, for the errors, what the file should be. Raises UserError where it is missing, cut short or damaged,
    holds code, or no dict.
    """
    path = Path(path)
    refuse_special(path, expected)
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        zipped = zipfile.is_zipfile(path)  # the index stands at the end, so a file cut short has none
        with path.open("rb") as file:
            cut = not zipped and file.read(2) == b"PK"
        if cut:
            raise UserError(f"{path}: is cut short; expected {expected}, download or copy it again")
        with torch.serialization.safe_globals(_STAND_INS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of pickles: what is wrong with one is said below
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or one_line(error)}); expected {expected}") from error
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL (\S+)", str(error))
        if code is None:
            raise UserError(f"{path}: torch.save wrote no such file; expected {expected}") from error
        raise UserError(
            f"{path}: holds Python code ({code[1]}), which is never run; expected {expected}, of tensors and "
            "plain containers (docs/full-size.md says how to get them out of a file that you trust)"
        ) from error
    except Exception as error:
        raise UserError(f"{path}: not a whole file ({one_line(error)}); expected {expected}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: holds a {type(content).__name__}; expected {expected}")
    return content


def field_of(content: Mapping, name: str, path: Path, expected: str):
    """``content[name]``. Raises UserError where it is missing, saying what is there."""
    if name not in content:
        there = ", ".join(map(str, list(content)[:4]))
        raise UserError(
            f"{path}: field {name} is missing (it holds {one_line(there) if there else 'nothing'}); expected {expected}"
        )
    return content[name]


def tensors_of(value: object, path: Path, expected: str) -> dict[str, torch.Tensor]:
    """``value`` as a state dict. Raises UserError where it is none, or holds anything but tensors."""
    if not isinstance(value, dict) or not value or not all(isinstance(key, str) for key in value):
        raise UserError(f"{path}: holds no tensors by name; expected {expected}")
    for key, tensor in value.items():
        if not isinstance(tensor, torch.Tensor):
            raise UserError(f"{path}: {one_line(key)} is a {type(tensor).__name__}, no tensor; expected {expected}")
    return dict(value)


def read_state_dict(path: str | Path, expected: str, field: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors by name in ``field`` of a file, or in the file itself. Raises UserError as the functions above do."""
    content = read_content(path, expected)
    return tensors_of(content if field is None else field_of(content, field, Path(path), expected), Path(path), expected)


def check_fit(tensors: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], path: Path, expected: str) -> None:
    """Check that ``tensors`` are those of a network with ``wanted`` ones, by keys, shapes and kind of number.

    Raises UserError with how many are not, and the first that is missing, unknown, misshapen or of another kind.
    """
    both = [key for key in wanted if key in tensors]
    missing = [f"key {key} is missing, of shape {tuple(wanted[key].shape)}" for key in wanted if key not in tensors]
    unknown = [f"key {one_line(key)} is unknown" for key in tensors if key not in wanted]
    misshapen = [
        f"{key} has shape {tuple(tensors[key].shape)}, not {tuple(wanted[key].shape)}"
        for key in both
        if tensors[key].shape != wanted[key].shape
    ]
    other = [
        f"{key} is of {tensors[key].dtype}"
        for key in both
        if tensors[key].is_floating_point() != wanted[key].is_floating_point()
    ]
    kinds = [found for found in (missing, unknown, misshapen, other) if found]
    if kinds:
        raise UserError(
            f"{path}: {sum(map(len, kinds))} tensors do not fit ({'; '.join(found[0] for found in kinds)}); "
            f"expected {expected}"
        )


# models in folders


def model_folder(source: str | Path, patterns: list[str], expected: str = "a model's folder") -> Path:
    """The folder ``source``, or a copy of the hub's model of that id in the hub's own cache.

    patterns : the files to get from the hub; half-precision duplicates are left there.

    Raises UserError where there is no such folder and the hub gives none.
    """
    from huggingface_hub import snapshot_download

    folder = Path(source)
    if folder.is_dir():
        return folder
    if folder.exists() or not _HUB_ID.fullmatch(str(source)):
        what = "is a file" if folder.exists() else "not found"
        raise UserError(f"{source}: {what}; expected {expected}, or an id on the hub such as owner/name")
    try:
        return Path(
            snapshot_download(str(source), allow_patterns=patterns, ignore_patterns=["*.fp16.safetensors", "*.fp16.bin"])
        )
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source}: no such folder, and not to be had from the hub ({one_line(error)}); expected {expected}, "
            "or an id on the hub"
        ) from error


def load_part(kind: Any, folder: Path, dtype: torch.dtype, *, exact: bool = False, **options) -> torch.nn.Module:
    """The model of class ``kind``, of diffusers or transformers, in a folder; frozen, in evaluation mode, on the CPU.

    exact : refuse tensors that the model does not have, too; published text models hold such ones
    options : of ``from_pretrained``. Safetensors alone are read unless they say otherwise, and no code is ever unpickled.

    Raises UserError where files are missing or damaged, or where they lack any of the model's tensors: the libraries
    would fill those with random numbers and go on.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder / 'config.json'}: not found; expected the folder of a {kind.__name__}")
    named = "dtype" if kind.__module__.startswith("transformers") else "torch_dtype"
    options = {named: dtype, "use_safetensors": True, "local_files_only": True, "output_loading_info": True, **options}
    files = [file.name for file in folder.glob("*.safetensors")]
    if files and all(".fp16." in name for name in files):
        options["variant"] = "fp16"
    try:
        with quiet():
            model, found = kind.from_pretrained(folder, **options)
    except DAMAGED as error:
        raise UserError(
            f"{folder}: not a whole {kind.__name__} ({one_line(error)}); expected its config.json and the weights that fit it"
        ) from error
    expected = f"expected a whole {kind.__name__}, by its config.json"
    if missing := sorted(found["missing_keys"]):
        raise UserError(f"{folder}: lacks {len(missing)} tensors such as {missing[0]}; {expected}")
    for key, has, wanted in found["mismatched_keys"]:
        raise UserError(f"{folder}: {key} has shape {tuple(has)}, not {tuple(wanted)}; {expected}")
    if exact and (unknown := sorted(found["unexpected_keys"])):
        raise UserError(f"{folder}: holds {len(unknown)} unknown tensors such as {unknown[0]}; {expected}")
    return model.eval().requires_grad_(False)


def load_tokenizer(kind: Any, folder: Path, owner: Any):
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
