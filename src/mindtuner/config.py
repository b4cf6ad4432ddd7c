"""Every setting of a run, as frozen dataclasses that pydantic checks, read from YAML or Python.

An unknown, missing or ill-typed field is the user's error and is named with its file, and so is a value that cannot be.
A file, or a mapping, need only say what differs from a config that the package carries (``base``, by default demo).
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import typing
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from mindtuner.errors import UserError
from mindtuner.files import read_json
from mindtuner.inputs import parse_yaml, read_text

DEFAULT_BASE = "demo"
RIVALS = ("ridge_only", "full_finetune")  # methods that may have a section of their own
TIMESTEPS = 100  # of the diffusion prior
MOST = 10**9  # of anything that is counted or weighed
MOST_SEED = 2**32 - 1  # as NumPy has it

# Strict: true is not 1, and "3" is not 3. A whole number serves as a float.
_STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)
Flag = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(strict=True)]
Whole = Annotated[int, Field(strict=True, ge=-MOST, le=MOST)]
Count = Annotated[int, Field(strict=True, ge=1, le=MOST)]
Natural = Annotated[int, Field(strict=True, ge=0, le=MOST)]
Seed = Annotated[int, Field(strict=True, ge=0, le=MOST_SEED)]
Knob = Annotated[float, Field(strict=True, allow_inf_nan=True)]  # held to KNOB_LIMITS by ``simulate``
Amount = Annotated[float, Field(strict=True, ge=0, le=MOST)]
Share = Annotated[float, Field(strict=True, ge=0, le=1)]
Widths = Annotated[tuple[Whole, ...], BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)]

Section = TypeVar("Section")

_FOUND = {  # what pydantic calls a fault -> what was expected
    "int_type": "int",
    "float_type": "float",
    "bool_type": "bool",
    "string_type": "str",
    "tuple_type": "a list",
}


def _one_line(kind):
    """Of a dataclass of pydantic's: what it refuses is a ValueError of one line, which begins with the field."""
    made = kind.__init__

    @functools.wraps(made)
    def init(self, *args, **kwargs):
        try:
            made(self, *args, **kwargs)
        except ValidationError as error:
            raise ValueError(_said(kind, error)) from None

    kind.__init__ = init
    return kind


@_one_line
@dataclass(frozen=True, config=_STRICT)
class SimulateConfig:
    """A simulated NSD. Voxel counts are NSD's own, times ``voxel_scale``. Real data need none of it."""

    subjects: Whole = 8
    sessions: Whole = 3
    trials_per_session: Whole = 750
    shared_images: Whole = 300
    repeats: Whole = 3
    voxel_scale: Knob = 0.2
    fingerprint: Knob = 0.5  # phi: sd of the subject's own non-linear part over sd of the linear part
    fingerprint_groups: Whole = 0  # subjects n and n + groups recode alike; 0: each for itself
    noise: Knob = 1.0  # multiplies the noise sd; 1 gives the calibrated noise ceilings
    seed: Whole = 0


KNOB_LIMITS = {  # smallest and largest value of each field, which ``simulate`` holds them to
    "subjects": (1, 8),
    "sessions": (1, 40),
    "trials_per_session": (24, 750),
    "shared_images": (2, 1000),
    "repeats": (1, 3),
    "voxel_scale": (0.01, 1.0),
    "fingerprint": (0.0, 10.0),
    "fingerprint_groups": (0, 8),
    "noise": (0.0, 100.0),
    "seed": (0, 10_000_000),
}


@_one_line
@dataclass(frozen=True, config=_STRICT)
class ModelConfig:
    """Sizes of the decoder. ``tokens`` x ``width`` and ``text_width`` are the frozen towers' shapes.

    ``backbone`` says what stands between a subject's ridge and the heads: "residual", ``blocks`` non-linear blocks, or
    "affine", nothing at all, which is what MindEye2's public checkpoints compute (docs/model.md).
    Raises ValueError naming the field where a size cannot be or does not fit another.
    """

    hidden: Count
    blocks: Whole  # 0 with an affine backbone
    tokens: Count
    width: Annotated[int, Field(strict=True, ge=4)]  # the prior's sinusoid of time needs two frequencies
    text_width: Count
    backbone_dropout: Annotated[float, Field(strict=True, ge=0, le=0.99)]
    prior_depth: Count
    prior_heads: Count
    prior_head_dim: Count
    latent_channels: Count
    latent_side: Count
    lowlevel_channels: Widths  # of the CNN decoder's blocks, from coarse to fine
    lowlevel_side: Count  # side of the map that the linear layer makes
    feature_positions: Count
    feature_width: Count
    backbone: Literal["residual", "affine"] = "residual"

    def __post_init__(self) -> None:
        if self.backbone == "affine":
            _require(self.blocks == 0, "blocks", self.blocks, "0 with the affine backbone, which has none")
        else:
            _require(self.blocks >= 1, "blocks", self.blocks, "at least 1")
        widths, side = self.lowlevel_channels, self.lowlevel_side
        _require(
            bool(widths) and min(widths) >= 1 and widths[0] % 2 == 0,
            "lowlevel_channels",
            widths,
            "positive widths, the first of them even",
        )
        reachable = side * 2 ** (len(widths) - 1), side * 2 ** len(widths)
        _require(
            self.latent_side in reachable,
            "latent_side",
            self.latent_side,
            f"{reachable[0]} or {reachable[1]}, which {len(widths)} lowlevel_channels reach from lowlevel_side "
            f"{side} by doubling",
        )
        _require(
            self.feature_positions == side**2, "feature_positions", self.feature_positions, f"lowlevel_side ** 2 = {side**2}"
        )


@_one_line
@dataclass(frozen=True, config=_STRICT)
class FingerprintConfig:
    """What trains for a new subject on the frozen base, beside its ridge. Raises ValueError as ModelConfig does."""

    lora: Flag = True
    skip: Flag = True
    skip_head: Flag = False  # Skip-LoRA at the token head too
    skip_blocks: Annotated[int, Field(strict=True, ge=-1)] = (
        -1  # first blocks of the base after which Skip-LoRA enters, beside at x0; -1: after all of them
    )
    rank: Count = 8
    alpha: Amount = 8.0
    new_blocks: Natural = 0  # residual blocks of the subject's own between the base's backbone and the heads
    tune_projector: Flag = False  # the Adaptive Projector goes on training, on the subject's own images and captions
    lora_blocks: Flag = True  # LoRA around the residual blocks too, not around token head and retrieval projector alone
    skip_rank: Natural = 0  # of Skip-LoRA; 0: rank
    skip_alpha: Amount = 0.0  # likewise; 0: alpha

    def __post_init__(self) -> None:
        _require(self.skip or not self.skip_head, "skip_head", self.skip_head, "false where skip is false")
        _require(self.skip_blocks == -1 or not self.skip_head, "skip_head", self.skip_head, "false with skip_blocks")


@_one_line
@dataclass(frozen=True, config=_STRICT)
class FitConfig:
    """One phase of training. Loss weights are those of the paper unless a config says why not.

    Raises ValueError as ModelConfig does.
    """

    epochs: Amount
    batch_per_subject: Count
    lr: Amount
    weight_decay: Amount
    ridge_weight_decay: Amount
    warmup: Share  # of all steps
    mixco_share: Share  # first share of training with BiMixCo, then SoftCLIP
    head_trials: Count  # trials of a step, of all subjects together, that train the prior and the low-level module
    prior_weight: Amount = 30.0
    clip_weight: Amount = 1.0
    lowlevel_weight: Amount = 0.5
    softcont_weight: Amount = 0.1
    skip_weight: Amount = 1.5
    regression_weight: Amount = 10.0  # ours, see training.loop.fit
    text_weight: Amount = 0.0  # ours, likewise
    grad_clip: Amount = 1.0
    # of the products: float32, bfloat16, float16 (on a GPU), or what this machine is fastest with
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    accumulate: Count = 1  # batches whose mean gradient makes one step
    # share that the running average of the weights, which is what comes out, keeps at a step; 0: none
    ema: Annotated[float, Field(strict=True, ge=0, le=0.999999)] = 0.0
    least_steps: Natural = 0  # made in any case: where trials are few, there are more epochs
    patience: Natural = 0  # epochs without better ranks of held-out training images after which to stop; 0: never
    checkpoint_steps: Count = 200  # steps between checkpoints, where there are any; the end of an epoch has one anyway
    # closed_form: of all but what follows the token head in pretraining (training/first_weights.py), of a new subject's ridge
    # in tuning (training/closed_form.py)
    start: Literal["random", "closed_form"] = "random"
    similar_voxels: Natural = 0  # whose weights each voxel's is drawn to by the closed form; 0: none
    train_ridge: Flag = True  # false: the new ridge stays where the closed form put it
    # share of trials that come as the closed form without their image answers them (training/closed_form.py)
    cross_fitted: Share = 0.0


@_one_line
@dataclass(frozen=True, config=_STRICT)
class PivotConfig:
    """The Adaptive Projector, image tokens to text space. Raises ValueError as ModelConfig does."""

    epochs: Amount
    batch: Count
    lr: Amount
    weight_decay: Amount
    temperature: Annotated[float, Field(strict=True, ge=1e-6)] = 0.006


@_one_line
@dataclass(frozen=True, config=_STRICT)
class DecodeConfig:
    """Sampling. ``pictures`` test images are painted, 0 for none; retrieval uses all of them.

    Raises ValueError as ModelConfig does.
    """

    pictures: Natural
    prior_steps: Count
    generator_steps: Count
    refine_steps: Count
    refine_start: Share  # of the noise schedule at which the correction starts, 1 = pure noise
    guidance: Amount
    neighbours: Natural = 0  # training images that decoded tokens are drawn to (decoding/training_images.py), 0 for none
    # C, as published, or "centred": what an image changes in B and C (model/backbone.py)
    retrieval_tokens: Literal["projected", "centred"] = "projected"
    # tries of each correction, of which one is kept (generators/compact.py); the compact generator's alone
    corrections: Count = 1

    def __post_init__(self) -> None:
        _require(
            TIMESTEPS % self.prior_steps == 0,
            "prior_steps",
            self.prior_steps,
            f"a divisor of the prior's {TIMESTEPS} timesteps",
        )


@_one_line
@dataclass(frozen=True, config=_STRICT)
class Config:
    """All of a run, as ``demo`` writes it to ``config.yaml``. Raises ValueError as ModelConfig does."""

    simulate: SimulateConfig = dataclasses.field(default_factory=SimulateConfig, kw_only=True)
    model: ModelConfig
    fingerprint: FingerprintConfig
    pretrain: FitConfig
    tune: FitConfig
    pivot: PivotConfig
    decode: DecodeConfig
    ridge_only: FitConfig | None = None  # how the rivals tune; as in tune where nothing is given
    full_finetune: FitConfig | None = None
    target_subject: Count = 1  # a lab's own may have any numbers
    tuning_sessions: Count = 1
    seed: Seed = 0
    hold_out_category: Text = ""  # no training sees an image that shows it; "" for none

    def __post_init__(self) -> None:
        _require(
            self.fingerprint.skip_blocks <= self.model.blocks,
            "fingerprint.skip_blocks",
            self.fingerprint.skip_blocks,
            f"at most {self.model.blocks}, the model's blocks",
        )
        for field, none in (("similar_voxels", 0), ("train_ridge", True), ("cross_fitted", 0)):
            value = getattr(self.pretrain, field)
            _require(value == none, f"pretrain.{field}", value, f"{none}: tuning alone has it".lower())
        for name in ("pretrain", "tune", *RIVALS):
            fit = getattr(self, name)
            for field, none in (("train_ridge", True), ("cross_fitted", 0)):
                value = none if fit is None or fit.start == "closed_form" else getattr(fit, field)
                _require(value == none, f"{name}.{field}", value, f"{none} with start: random".lower())

    def fitting(self, method: str) -> FitConfig:
        """How a subject is tuned by this method.

        The method itself and its control with shuffled brains as in ``tune``, rivals as in the section of their own name,
        where there is one. From scratch, the subject's trials have to teach all that pretraining would have.
        """
        if method == "from_scratch":
            return self.pretrain
        return (getattr(self, method) if method in RIVALS else None) or self.tune


def load_config(config: str | Path | Mapping | Config = DEFAULT_BASE, **changes) -> Config:
    """A config, whole and checked.

    Parameters
    ----------
    config : str, Path, Mapping or Config
        The name of one that the package carries ("demo", "quick", "paper"); the path of a YAML file, or of a config.json that
        Base.save wrote; what differs from another, as a mapping; or a Config. A file or a mapping may name in ``base`` the
        config that it differs from, by
        name or, relative to itself, by path; else that is demo. A file that gives every field that has no default, as a
        run's config.yaml does, stands by itself.
    **changes
        Fields that differ from ``config``; those of a section as a mapping.

    Returns
    -------
    Config

    Raises
    ------
    UserError
        Naming the file and the field that is unknown, of the wrong type, or that cannot be.

    Examples
    --------
    >>> from mindtuner.config import load_config
    >>> load_config({"base": "quick", "tune": {"epochs": 3}}).tune.epochs
    3.0
    >>> load_config("demo", seed=7).seed
    7
    """
    if isinstance(config, Config):
        found, where = as_dict(config), "config"
    elif isinstance(config, Mapping):
        found, where = _whole(_plain(config), "config", Path(), ()), "config"
    else:
        found, where = _read(config)
    if changes:
        found, where = _merged(found, _plain(changes), "config"), "config"
    try:
        return Config(**found)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


def changed(settings: Section, **changes) -> Section:
    """A config, or a section of one, with other values. Raises UserError where one cannot be."""
    try:
        return dataclasses.replace(settings, **changes)  # type: ignore[type-var]
    except ValueError as error:
        raise UserError(str(error)) from None


def as_dict(config: Config) -> dict:
    """The config as plain YAML-ready values."""
    return _plain(config)


def _plain(value):
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _read(name: str | Path, seen: tuple[Path, ...] = ()) -> tuple[dict, str]:
    """All fields of a config of ours or of a file, not checked yet; and what to call it. ``seen``: files that build on it."""
    path = Path(name)
    if path.suffix == ".json":
        raw = read_json(path).get("config")
        if not isinstance(raw, dict):
            raise UserError(f"{path}: config holds a {type(raw).__name__}; expected a mapping, as Base.save writes")
        return _whole(raw, str(path), path.parent, (*seen, path.resolve())), str(path)
    if path.suffix not in (".yaml", ".yml"):
        path = Path(str(resources.files("mindtuner") / "configs" / f"{name}.yaml"))
        if not path.is_file():
            configs = Path(str(resources.files("mindtuner") / "configs"))
            carried = ", ".join(sorted(p.stem for p in configs.glob("*.yaml")))
            said = f"{seen[-1]}: base is" if seen else "config"
            raise UserError(f"{said} {str(name)!r}: not found; expected one of {carried} or a .yaml file")
    text = read_text(path, "a YAML config")
    if path.resolve() in seen:
        raise UserError(f"{seen[-1]}: base is {str(name)!r}, which builds on it in turn; expected another config")
    raw = parse_yaml(text, str(path), "a YAML config")
    if not isinstance(raw, dict):
        raise UserError(f"{path}: the file holds a {type(raw).__name__}; expected a mapping")
    return _whole(raw, str(path), path.parent, (*seen, path.resolve())), str(path)


def _whole(raw: dict, where: str, folder: Path, seen: tuple[Path, ...]) -> dict:
    """What ``raw`` says, with all that it does not say from its base, a path to which begins in ``folder``."""
    raw = dict(raw)
    base = raw.pop("base", None)
    if base is None and _stands_alone(Config, raw):
        return _merged({}, raw, where)
    base = DEFAULT_BASE if base is None else base
    if not isinstance(base, (str, Path)):
        raise UserError(f"{where}: base is {base!r}; expected the name of a config or a .yaml file")
    is_file = Path(base).suffix in (".yaml", ".yml")
    return _merged(_read(folder / base if is_file else base, seen)[0], raw, where)


def _stands_alone(kind, raw) -> bool:
    """Whether ``raw`` gives every field that has no default."""
    return isinstance(raw, Mapping) and all(
        field.name in raw and (section is None or _stands_alone(section, raw[field.name]))
        for field, section in _fields(kind).values()
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    )


def _merged(base: dict, raw: Mapping, where: str, kind=Config, parent: str = "") -> dict:
    """``base`` with the values of ``raw``, section by section. Raises UserError for a field that there is not.

    A rival's section that is not there yet, and does not say all, differs from ``tune`` in what it says.
    """
    known, found = _fields(kind), dict(base)
    for key, value in sorted(raw.items(), key=lambda item: item[0] in RIVALS):  # behind tune
        field = _join(parent, key)
        if key not in known:
            raise UserError(f"{where}: unknown field {field}; {_nearest(key, kind, parent)}")
        section = known[key][1]
        if section is None or value is None:
            found[key] = value
        elif isinstance(value, Mapping):
            differs = key in RIVALS and not found.get(key) and not _stands_alone(section, value)
            found[key] = _merged(found.get("tune" if differs else key) or {}, value, where, section, field)
        else:
            raise UserError(f"{where}: {field} holds a {type(value).__name__}; expected a mapping")
    return found


def _nearest(key, kind, parent: str) -> str:
    """What a field that there is not was meant to be; of two as near the one of its own section."""
    sections = [("", Config), *((name, section) for name, (_, section) in _fields(Config).items() if section is not None)]
    fields = [(at, name) for at, some in [(parent, kind), *sections] for name in _fields(some)]
    near = [difflib.SequenceMatcher(None, str(key), name).ratio() for _, name in fields]
    best = near.index(max(near))
    if near[best] < 0.6:
        return f"expected one of {', '.join(_fields(kind))}"
    return f"did you mean {_join(*fields[best])}?"


def _fields(kind) -> dict[str, tuple[dataclasses.Field, type | None]]:
    """The fields of a config or of a section of one by name, each with its section, or None where it is a value."""
    hints = typing.get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        kinds = (hints[field.name], *typing.get_args(hints[field.name]))
        own: list[type] = [one for one in kinds if isinstance(one, type) and dataclasses.is_dataclass(one)]
        found[field.name] = field, own[0] if own else None
    return found


def _require(holds: bool, field: str, value, expected: str) -> None:
    if not holds:
        raise ValueError(f"{field} is {value!r}; expected {expected}")


def _said(kind, error: ValidationError) -> str:
    """The first fault that pydantic found, in one line, but an unknown field before all others."""
    faults = error.errors(include_url=False)
    first = next((fault for fault in faults if fault["type"] == "unexpected_keyword_argument"), faults[0])
    place, limits = [], []
    for part in first["loc"]:  # a position where an argument or an item is meant
        if dataclasses.is_dataclass(kind):
            names = list(_fields(kind))
            place.append(names[part] if isinstance(part, int) else str(part))
            if place[-1] in names:
                limits = kind.__pydantic_fields__[place[-1]].metadata  # type: ignore[union-attr]
                kind = _fields(kind)[place[-1]][1]
    field, fault = ".".join(place), first["type"]
    if fault == "unexpected_keyword_argument":
        return f"unknown field {field}"
    if fault == "missing":
        return f"missing field {field}"
    if fault == "value_error":
        return _join(field, first["ctx"]["error"])
    if fault == "dataclass_type":
        return f"{field} holds a {type(first['input']).__name__}; expected a mapping"
    if fault == "literal_error":
        expected = first["ctx"]["expected"].replace("'", "")
    elif fault in _FOUND:
        expected = _FOUND[fault]
    else:  # out of range, or not finite
        expected = _range(limits, first["input"])
    return f"{field} is {first['input']!r}; expected {expected}"


def _range(limits: list, found: object) -> str:
    low, high = ([getattr(limit, end) for limit in limits if hasattr(limit, end)] for end in ("ge", "le"))
    if high and high[0] >= MOST and isinstance(found, (int, float)):  # a limit that hardly anybody meets
        return f"at most {high[0]:,}" if found > high[0] else f"at least {low[0]:,}"
    return f"{low[0]:g} to {high[0]:g}" if high else f"at least {low[0]:g}" if low else "a finite number"


def _join(parent: str, name) -> str:
    return f"{parent}.{name}" if parent else str(name)
