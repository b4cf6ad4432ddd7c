"""Every setting of a run as plain dataclasses, read strictly from YAML.

An unknown, missing or ill-typed field is the user's error and is named with its file, and so is a value that cannot be:
each section checks its own when it is made, with a ValueError that begins with the field, to which reading adds the file.
"""

from __future__ import annotations

import dataclasses
import math
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
    fingerprint_groups: int = 0  # subjects n and n + groups recode alike; 0: each for itself
    noise: float = 1.0  # multiplies the noise sd; 1 gives the calibrated noise ceilings
    seed: int = 0


KNOB_LIMITS = {  # smallest and largest value of each field
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


BACKBONES = ("residual", "affine")
TIMESTEPS = 100  # of the diffusion prior
STARTS = ("random", "closed_form")
RETRIEVAL_TOKENS = ("projected", "both")
DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of the decoder. ``tokens`` x ``width`` and ``text_width`` are the frozen towers' shapes.

    ``backbone`` says what stands between a subject's ridge and the heads: "residual", ``blocks`` non-linear blocks, or
    "affine", nothing at all, which is what MindEye2's public checkpoints compute (docs/model.md).
    Raises ValueError naming the field where a size cannot be or does not fit another.
    """

    hidden: int
    blocks: int  # 0 with an affine backbone
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
    backbone: str = "residual"

    def __post_init__(self) -> None:
        _limit(
            self,
            1,
            math.inf,
            "hidden",
            "tokens",
            "text_width",
            "prior_depth",
            "prior_heads",
            "prior_head_dim",
            "latent_channels",
            "latent_side",
            "lowlevel_side",
            "feature_positions",
            "feature_width",
        )
        _limit(self, 4, math.inf, "width")  # the prior's sinusoid of time needs two frequencies
        _limit(self, 0, 0.99, "backbone_dropout")
        _require(self.backbone in BACKBONES, "backbone", self.backbone, " or ".join(BACKBONES))
        if self.backbone == "affine":
            _require(self.blocks == 0, "blocks", self.blocks, "0 with the affine backbone, which has none")
        else:
            _limit(self, 1, math.inf, "blocks")
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


@dataclass(frozen=True)
class FingerprintConfig:
    """What trains for a new subject on the frozen base, beside its ridge. Raises ValueError as ModelConfig does."""

    lora: bool = True
    skip: bool = True
    skip_head: bool = False  # Skip-LoRA at the token head too
    skip_blocks: int = -1  # first blocks of the base after which Skip-LoRA enters, beside at x0; -1: after all of them
    rank: int = 8
    alpha: float = 8.0
    new_blocks: int = 0  # residual blocks of the subject's own between the base's backbone and the heads
    tune_projector: bool = False  # the Adaptive Projector goes on training, on the subject's own images and captions

    def __post_init__(self) -> None:
        _limit(self, 1, math.inf, "rank")
        _limit(self, 0, math.inf, "alpha", "new_blocks")
        _limit(self, -1, math.inf, "skip_blocks")
        _require(self.skip or not self.skip_head, "skip_head", self.skip_head, "false where skip is false")
        _require(self.skip_blocks == -1 or not self.skip_head, "skip_head", self.skip_head, "false with skip_blocks")


@dataclass(frozen=True)
class FitConfig:
    """One phase of training. Loss weights are those of the paper unless a config says why not.

    Raises ValueError as ModelConfig does.
    """

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
    start: str = "random"  # of a new subject's ridge in tuning: "random", or "closed_form" (training/closed_form.py)
    similar_voxels: int = 0  # whose weights each voxel's is drawn to by the closed form (training/closed_form.py); 0: none

    def __post_init__(self) -> None:
        _limit(self, 1, math.inf, "batch_per_subject", "head_trials", "accumulate", "checkpoint_steps")
        _limit(self, 0, 1, "warmup", "mixco_share")
        _limit(
            self,
            0,
            math.inf,
            "epochs",
            "lr",
            "weight_decay",
            "ridge_weight_decay",
            "prior_weight",
            "clip_weight",
            "lowlevel_weight",
            "softcont_weight",
            "skip_weight",
            "regression_weight",
            "grad_clip",
            "patience",
            "similar_voxels",
        )
        _limit(self, 0, 0.999999, "ema")
        _require(self.start in STARTS, "start", repr(self.start), " or ".join(STARTS))
        _require(self.dtype in DTYPES, "dtype", repr(self.dtype), f"one of {', '.join(DTYPES)}")


@dataclass(frozen=True)
class PivotConfig:
    """The Adaptive Projector, image tokens to text space. Raises ValueError as ModelConfig does."""

    epochs: float
    batch: int
    lr: float
    weight_decay: float
    temperature: float = 0.006

    def __post_init__(self) -> None:
        _limit(self, 1, math.inf, "batch")
        _limit(self, 0, math.inf, "epochs", "lr", "weight_decay")
        _limit(self, 1e-6, math.inf, "temperature")


@dataclass(frozen=True)
class DecodeConfig:
    """Sampling. ``pictures`` test images are painted; retrieval uses all of them.

    Raises ValueError as ModelConfig does.
    """

    pictures: int
    prior_steps: int
    generator_steps: int
    refine_steps: int
    refine_start: float  # share of the noise schedule at which the correction starts, 1 = pure noise
    guidance: float
    neighbours: int = 0  # training images that decoded tokens are drawn to (decoding/training_images.py), 0 for none
    retrieval_tokens: str = "projected"  # C, as published, or "both": the sum of the unit vectors of B and C
    corrections: int = (
        1  # tries of each correction, of which one is kept (generators/compact.py); the compact generator's alone
    )

    def __post_init__(self) -> None:
        _limit(self, 1, math.inf, "pictures", "prior_steps", "generator_steps", "refine_steps", "corrections")
        _require(
            TIMESTEPS % self.prior_steps == 0,
            "prior_steps",
            self.prior_steps,
            f"a divisor of the prior's {TIMESTEPS} timesteps",
        )
        _limit(self, 0, 1, "refine_start")
        _limit(self, 0, math.inf, "guidance", "neighbours")
        _require(
            self.retrieval_tokens in RETRIEVAL_TOKENS,
            "retrieval_tokens",
            repr(self.retrieval_tokens),
            " or ".join(RETRIEVAL_TOKENS),
        )


@dataclass(frozen=True)
class Config:
    """All of a run, as ``demo`` writes it to ``config.yaml``. Raises ValueError as ModelConfig does."""

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
    hold_out_category: str = ""  # no training sees an image that shows it; "" for none

    def __post_init__(self) -> None:
        _limit(self, 1, math.inf, "target_subject", "tuning_sessions")  # a lab's own may have any numbers
        _require(
            self.fingerprint.skip_blocks <= self.model.blocks,
            "fingerprint.skip_blocks",
            self.fingerprint.skip_blocks,
            f"at most {self.model.blocks}, the model's blocks",
        )
        _require(
            self.pretrain.start == "random",
            "pretrain.start",
            repr(self.pretrain.start),
            "random: there is no base yet to solve a ridge against",
        )
        _require(
            self.pretrain.similar_voxels == 0,
            "pretrain.similar_voxels",
            self.pretrain.similar_voxels,
            "0: there is no base yet to solve a ridge against",
        )


def load_config(name: str | Path) -> Config:
    """Read a config by the name of one that the package carries (``demo``) or by path.

    Raises UserError naming the file and the field that is unknown, missing, of the wrong type, or that cannot be.
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
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(f"{where}: {_join(field, error)}") from error


def _require(holds: bool, field: str, value, expected: str) -> None:
    if not holds:
        raise ValueError(f"{field} is {value}; expected {expected}")


def _limit(config, low: float, high: float, *fields: str) -> None:
    """Each field is a finite number from ``low`` to ``high``."""
    expected = f"at least {low:g}" if high == math.inf else f"{low:g} to {high:g}"
    for field in fields:
        value = getattr(config, field)
        _require(math.isfinite(value) and low <= value <= high, field, value, expected)


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
