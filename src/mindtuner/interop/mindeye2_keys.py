"""What a MindEye2 checkpoint is, told from its keys and shapes, and our name for each of its tensors."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from mindtuner.config import ModelConfig
from mindtuner.data.nsd import VOXELS
from mindtuner.errors import UserError
from mindtuner.model import BrainNetwork
from mindtuner.training.batches import subject_name

Weights = dict[str, torch.Tensor]
CHANNEL_MLP, SEQUENCE_MLP = "backbone.mixer_blocks1.", "backbone.mixer_blocks2."
PRIOR, TRANSFORMER = "diffusion_prior.net.", "diffusion_prior.net.causal_transformer."
SCHEDULE = "diffusion_prior.noise_scheduler."
SCHEDULE_BUFFERS = {
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "p2_loss_weight",
}
PARTS = {  # what a release may lack, and how its keys begin
    "lowlevel": ("backbone.blin1.", "backbone.bnorm.", "backbone.bupsampler.", "backbone.b_maps_projector."),
    "prior": ("diffusion_prior.",),
}
PART_TITLES = {"lowlevel": "low-level submodule", "prior": "diffusion prior"}

# ours -> theirs, by the first beginning that matches
THEIR_NAMES: list[tuple[str, str | Callable[[re.Match], str]]] = [
    (r"ridges\.(\d+)\.", r"ridge.linears.\1."),
    (r"head\.linear\.", "backbone.backbone_linear."),
    (r"retrieval\.(\d)\.(\d)\.", lambda m: f"backbone.clip_proj.{3 * int(m[1]) + int(m[2])}."),
    (r"lowlevel\.linear\.", "backbone.blin1."),
    (r"lowlevel\.norm\.", "backbone.bnorm."),
    (r"lowlevel\.decoder\.", "backbone.bupsampler."),
    (r"lowlevel\.features\.", "backbone.b_maps_projector."),
    (r"prior\.positions$", PRIOR + "learned_query"),
    (r"prior\.null_brain$", PRIOR + "null_brain_embeds"),
    (r"prior\.null_image$", PRIOR + "null_image_embed"),
    (r"prior\.time\.0\.", PRIOR + "to_time_embeds.0.1.net.0.0."),
    (r"prior\.time\.2\.", PRIOR + "to_time_embeds.0.1.net.1.0."),
    (r"prior\.time\.4\.", PRIOR + "to_time_embeds.0.1.net.2."),
    (r"prior\.transformer\.bias\.table\.", TRANSFORMER + "rel_pos_bias.relative_attention_bias."),
    (r"prior\.transformer\.layers\.(\d+)\.0\.norm\.gain$", TRANSFORMER + r"layers.\1.0.norm.g"),
    (r"prior\.transformer\.layers\.(\d+)\.0\.to_out\.", TRANSFORMER + r"layers.\1.0.to_out.0."),
    (r"prior\.transformer\.layers\.(\d+)\.0\.out_norm\.gain$", TRANSFORMER + r"layers.\1.0.to_out.1.g"),
    (r"prior\.transformer\.layers\.(\d+)\.1\.norm\.gain$", TRANSFORMER + r"layers.\1.1.0.g"),
    (r"prior\.transformer\.layers\.(\d+)\.1\.up\.", TRANSFORMER + r"layers.\1.1.1."),
    (r"prior\.transformer\.layers\.(\d+)\.1\.down\.", TRANSFORMER + r"layers.\1.1.5."),
    (r"prior\.transformer\.norm\.gain$", TRANSFORMER + "norm.g"),
    (r"prior\.transformer\.project\.", TRANSFORMER + "project_out."),
    (r"prior\.transformer\.", TRANSFORMER),  # layers.N.0.{null_kv, to_q, to_kv} have the same name
]


@dataclass(frozen=True)
class Match:
    """What a checkpoint is, by its keys and shapes alone."""

    config: ModelConfig
    voxels: dict[str, int]  # by subject's name, in the order of their ridges
    without: tuple[str, ...]  # parts that it was released without
    names: dict[str, str]  # our parameter -> their key
    blocks: int
    dead: int  # weights of the channel MLPs


def match_keys(weights: Weights, where: Path, subjects: list[int] | None = None, text_width: int = 1280) -> Match:
    """Read all sizes from the shapes and account for every key (values are not looked at).

    Raises UserError naming the first key that is missing, unknown or misshapen.
    """
    without = tuple(part for part, begins in PARTS.items() if not any(key.startswith(begins) for key in weights))
    config = read_config(weights, where, "prior" not in without, text_width)
    ridges = count(weights, r"ridge\.linears\.(\d+)\.")
    sizes = [shape(weights, f"ridge.linears.{i}.weight", 2, where)[1] for i in range(ridges)]
    names = subject_names(sizes, subjects, where)
    with torch.device("meta"):
        ours = BrainNetwork(config, {str(i): size for i, size in enumerate(sizes)}, without).state_dict()
    expected, mapping = {}, {}
    for name, tensor in ours.items():
        if not name.startswith("projector."):
            theirs = their_name(name)
            expected[theirs] = tensor.shape
            mapping[re.sub(r"^ridges\.(\d+)", lambda m: f"ridges.{names[int(m[1])]}", name)] = theirs
    blocks = max(count(weights, re.escape(begin) + r"(\d+)\.") for begin in (CHANNEL_MLP, SEQUENCE_MLP))
    mixers = mixer_shapes(max(1, blocks), config.hidden)
    check_keys(weights, {**expected, **mixers}, where)
    dead = sum(weights[key].numel() for key in mixers if key.startswith(CHANNEL_MLP))
    return Match(config, dict(zip(names, sizes, strict=True)), without, mapping, blocks, dead)


def read_config(weights: Weights, where: Path, has_prior: bool, text_width: int) -> ModelConfig:
    """Sizes of the network, by the shapes of its weights.

    The low-level submodule has the same form in every release; where a release has no prior, the prior's sizes are those that
    its authors would have built.
    """
    if not count(weights, r"ridge\.linears\.(\d+)\."):
        raise UserError(f"{where}: ridge.linears.0.weight is missing; expected the model_state_dict of MindEye2")
    hidden = shape(weights, "ridge.linears.0.weight", 2, where)[0]
    width = shape(weights, "backbone.clip_proj.0.weight", 1, where)[0]
    rows = shape(weights, "backbone.backbone_linear.weight", 2, where)[0]
    if rows % width:
        raise UserError(
            f"{where}: backbone.backbone_linear.weight has {rows} rows; expected a multiple of the token "
            f"width {width} (backbone.clip_proj.0.weight)"
        )
    depth, heads, head_dim = 6, max(1, width // 52), 52
    if has_prior:
        first = TRANSFORMER + "layers.0.0."
        depth = count(weights, re.escape(TRANSFORMER) + r"layers\.(\d+)\.")
        head_dim = shape(weights, first + "null_kv", 2, where)[1]
        queries = shape(weights, first + "to_q.weight", 2, where)[0]
        if queries % head_dim:
            raise UserError(
                f"{where}: {first}to_q.weight has {queries} rows; expected a multiple of the head width "
                f"{head_dim} ({first}null_kv)"
            )
        heads = queries // head_dim
    return ModelConfig(  # the one place that says what form an imported backbone has
        backbone="affine",
        hidden=hidden,
        blocks=0,
        tokens=rows // width,
        width=width,
        text_width=text_width,
        backbone_dropout=0.15,
        prior_depth=depth,
        prior_heads=heads,
        prior_head_dim=head_dim,
        latent_channels=4,
        latent_side=28,
        lowlevel_channels=(128, 64, 32),
        lowlevel_side=7,
        feature_positions=49,
        feature_width=512,
    )


def mixer_shapes(blocks: int, hidden: int) -> dict[str, tuple[int, ...]]:
    """Keys and shapes of the channel MLPs (width h) and the sequence MLPs (width 1, the sequence length)."""
    return {
        f"{begin}{i}.{layer}.{kind}": (width, width) if layer != "0" and kind == "weight" else (width,)
        for begin, width in ((CHANNEL_MLP, hidden), (SEQUENCE_MLP, 1))
        for i in range(blocks)
        for layer in ("0", "1.0", "1.3")
        for kind in ("weight", "bias")
    }


def check_keys(weights: Weights, expected: dict[str, tuple[int, ...]], where: Path) -> None:
    """Every expected key is there with its shape, and no other but the fixed parts of the prior."""
    for key, right in expected.items():
        if key not in weights:
            raise UserError(f"{where}: {key} is missing; expected {what_is_whole(key)}")
        if tuple(weights[key].shape) != tuple(right):
            raise UserError(f"{where}: {key} has shape {tuple(weights[key].shape)}; expected {tuple(right)}")
    for key in weights:
        if key not in expected and not is_schedule(key) and not is_rotary(key):
            raise UserError(
                f"{where}: unknown key {key}; expected the keys of MindEye2's ridge, backbone and diffusion_prior"
            )


def what_is_whole(key: str) -> str:
    """What has to be there where ``key`` is, in words for a message."""
    part = next((part for part, begins in PARTS.items() if key.startswith(begins)), None)
    return f"the whole {PART_TITLES[part]} or nothing of it" if part else "every key of ridge and backbone"


def is_schedule(key: str) -> bool:
    """Whether this is a buffer of the prior's noise schedule."""
    return key.startswith(SCHEDULE) and key.removeprefix(SCHEDULE) in SCHEDULE_BUFFERS


def is_rotary(key: str) -> bool:
    """Whether this holds rotary frequencies of a layer of the prior's transformer."""
    return re.fullmatch(re.escape(TRANSFORMER) + r"layers\.\d+\.0\.rotary_emb\.freqs", key) is not None


def their_name(ours: str) -> str:
    """MindEye2's key for our parameter. Raises ValueError where there is none."""
    for pattern, theirs in THEIR_NAMES:
        if re.match(pattern, ours):
            return re.sub("^" + pattern, theirs, ours)
    raise ValueError(f"parameter {ours}: no name in MindEye2's checkpoints")


def subject_names(voxels: list[int], subjects: list[int] | None, where: Path) -> list[str]:
    """Names of the ridges' subjects, given, or told from the voxel counts, which all differ in NSD."""
    if subjects is None:
        unknown = [size for size in voxels if size not in VOXELS]
        if unknown:
            raise UserError(
                f"{where}: a ridge has {unknown[0]} voxels, which is no NSD subject's nsdgeneral; expected "
                "subjects with one number a ridge"
            )
        subjects = [VOXELS.index(size) + 1 for size in voxels]
    if len(subjects) != len(voxels) or len(set(subjects)) != len(subjects) or min(subjects) < 1:
        raise UserError(
            f"{where}: subjects is {','.join(map(str, subjects))}; expected {len(voxels)} different "
            "numbers from 1, one a ridge"
        )
    return [subject_name(number) for number in subjects]


def count(weights: Weights, pattern: str) -> int:
    """How many different indices ``pattern`` finds at the beginning of the keys."""
    return len({m[1] for m in (re.match(pattern, key) for key in weights) if m})


def shape(weights: Weights, key: str, dims: int, where: Path) -> tuple[int, ...]:
    """The shape of an entry. Raises UserError where it is missing, empty, or has not ``dims`` dimensions."""
    if key not in weights:
        raise UserError(f"{where}: {key} is missing; expected {what_is_whole(key)}")
    found = tuple(weights[key].shape)
    if len(found) != dims or 0 in found:
        raise UserError(f"{where}: {key} has shape {found}; expected {dims} dimensions, none of them empty")
    return found
