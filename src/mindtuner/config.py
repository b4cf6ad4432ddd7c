"""Every setting of a run as plain dataclasses, read strictly from YAML.

An unknown, missing or ill-typed field is the user's error and is named with its file.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import yaml

from mindtuner.errors import UserError


@dataclass(frozen=True)
class SimulateConfig:
    """A simulated NSD. Voxel counts are NSD's own, times ``voxel_scale``."""

    subjects: int = 8
    sessions: int = 3
    trials_per_session: int = 750
    shared_images: int = 300
    repeats: int = 3
    voxel_scale: float = 0.2
    fingerprint: float = 0.5  # phi: sd of the subject's own non-linear part over sd of the linear part
    noise: float = 1.0  # multiplies the noise sd; 1 gives the calibrated noise ceilings
    seed: int = 0


KNOB_LIMITS = {  # smallest and largest value of each field
    "subjects": (1, 8), "sessions": (1, 40), "trials_per_session": (24, 750), "shared_images": (2, 1000),
    "repeats": (1, 3), "voxel_scale": (0.01, 1.0), "fingerprint": (0.0, 10.0), "noise": (0.0, 100.0),
    "seed": (0, 10_000_000)}


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the decoder. ``tokens`` x ``width`` and ``text_width`` are the frozen towers' shapes."""

    hidden: int
    blocks: int
    tokens: int
    width: int
    text_width: int
    backbone_dropout: float
    prior_depth: int
    prior_heads: int
    prior_head_dim: int
    latent_channels: int
    latent_side: int
    lowlevel_channels: tuple[int, ...]  # widths of the CNN decoder's blocks, from coarse to fine
    lowlevel_side: int  # side of the map that the linear layer makes
    feature_positions: int
    feature_width: int


@dataclass(frozen=True)
class FingerprintConfig:
    """What trains for a new subject on the frozen base."""

    lora: bool = True
    skip: bool = True
    skip_head: bool = False
    rank: int = 8
    alpha: float = 8.0


@dataclass(frozen=True)
class FitConfig:
    """One phase of training. Loss weights are those of the paper unless a config says why not."""

    epochs: float
    batch_per_subject: int
    lr: float
    weight_decay: float
    ridge_weight_decay: float
    warmup: float  # share of all steps
    mixco_share: float  # first share of training with BiMixCo, then SoftCLIP
    head_trials: int  # trials of a step, of all subjects together, that train the prior and the low-level module
    prior_weight: float = 30.0
    clip_weight: float = 1.0
    lowlevel_weight: float = 0.5
    softcont_weight: float = 0.1
    skip_weight: float = 1.5
    regression_weight: float = 10.0  # ours, see training.loop.fit
    grad_clip: float = 1.0
    dtype: str = "auto"  # of the products: float32, bfloat16, float16 (on a GPU), or what this machine is fastest with
    accumulate: int = 1  # batches whose mean gradient makes one step
    ema: float = 0.0  # share that the running average of the weights, which is what comes out, keeps at a step; 0: none
    patience: int = 0  # epochs without a better retrieval of held-out training images after which to stop; 0: never
    checkpoint_steps: int = 200  # steps between checkpoints, where there are any; the end of an epoch has one anyway


@dataclass(frozen=True)
class PivotConfig:
    """The Adaptive Projector, image tokens to text space."""

    epochs: float
    batch: int
    lr: float
    weight_decay: float
    temperature: float = 0.006


@dataclass(frozen=True)
class DecodeConfig:
    """Sampling. ``pictures`` test images are painted; retrieval uses all of them."""

    pictures: int
    prior_steps: int
    generator_steps: int
    refine_steps: int
    refine_start: float  # share of the noise schedule at which the correction starts, 1 = pure noise
    guidance: float
    prior_start: float = 1.0  # 1: the prior samples from pure noise; below, it refines noised backbone tokens


@dataclass(frozen=True)
class Config:
    """All of a run, as ``demo`` writes it to ``config.yaml``."""

    simulate: SimulateConfig
    model: ModelConfig
    fingerprint: FingerprintConfig
    pretrain: FitConfig
    tune: FitConfig
    pivot: PivotConfig
    decode: DecodeConfig
    target_subject: int = 1
    tuning_sessions: int = 1
    seed: int = 0


def load_config(name: str | Path) -> Config:
    """Read a config by the name of one that the package carries (``demo``) or by path.

    Raises UserError naming the file and the field that is unknown, missing or of the wrong type.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = Path(str(resources.files("mindtuner") / "configs" / f"{name}.yaml"))
        if not path.is_file():
            carried = sorted(p.stem for p in path.parent.glob("*.yaml"))
            raise UserError(f"config {name!r}: not found; expected one of {', '.join(carried)} or a .yaml file")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); expected a YAML config") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not valid YAML ({' '.join(str(error).split())})") from error
    return _build(Config, raw, str(path), "")


def as_dict(config: Config) -> dict:
    """The config as plain YAML-ready values."""
    return _plain(dataclasses.asdict(config))


def _plain(value):
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _build(kind, raw, where: str, field: str):
    if not isinstance(raw, dict):
        raise UserError(f"{where}: {field or 'the file'} holds a {type(raw).__name__}; expected a mapping")
    hints = typing.get_type_hints(kind)
    known = {f.name: f for f in dataclasses.fields(kind)}
    for key in raw:
        if key not in known:
            raise UserError(f"{where}: unknown field {_join(field, key)}; expected one of {', '.join(known)}")
    values = {}
    for name, spec in known.items():
        if name in raw:
            values[name] = _convert(hints[name], raw[name], where, _join(field, name))
        elif spec.default is dataclasses.MISSING:
            raise UserError(f"{where}: missing field {_join(field, name)}")
    return kind(**values)


def _join(parent: str, name) -> str:
    return f"{parent}.{name}" if parent else str(name)


def _convert(hint, value, where: str, field: str):
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, where, field)
    if typing.get_origin(hint) is tuple:
        inner = typing.get_args(hint)[0]
        if not isinstance(value, list):
            raise UserError(f"{where}: {field} is {value!r}; expected a list")
        return tuple(_convert(inner, item, where, field) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{where}: {field} is {value!r}; expected {hint.__name__}")
    return value
