"""What an unCLIP checkpoint is, told from its keys and shapes, and the diffusers name of each of its tensors.

The checkpoint is a DiffusionEngine of Stability's ``sgm``: ``model.diffusion_model`` (an SDXL-like UNet),
``first_stage_model`` (the autoencoder), ``denoiser.sigmas`` (the noise schedule) and ``conditioner`` (the image
tower, which this package has already).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from mindtuner.errors import UserError
from mindtuner.generators.unclip import TRAINED_SIDE
from mindtuner.thirdparty import one_line

Weights = dict[str, torch.Tensor]
UNET, VAE, CONDITIONER, SIGMAS = "model.diffusion_model.", "first_stage_model.", "conditioner.", "denoiser.sigmas"
HEAD_WIDTH = 64  # of the UNet's attention; no shape tells it
FOURIER = 256  # features of each of the four numbers of size and crop
SCALING_FACTOR = 0.13025  # latents x this have about unit variance

RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}  # theirs -> diffusers
ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}


@dataclass(frozen=True)
class Match:
    """What a checkpoint is, by its keys and shapes alone."""

    unet: UNet2DConditionModel  # on the meta device: sizes, no numbers
    vae: AutoencoderKL
    unet_names: dict[str, str]  # diffusers' parameter -> their key
    vae_names: dict[str, str]
    dropped: list[str]  # keys of the image tower


def match_keys(weights: Weights, where: Path) -> Match:
    """Read all sizes from the shapes and account for every key (values are not looked at).

    Raises UserError naming the first key that is missing, unknown or misshapen.
    """
    for begin in (UNET, VAE):
        if not any(key.startswith(begin) for key in weights):
            raise UserError(
                f"{where}: no key begins with {begin}; expected the state_dict of an unCLIP checkpoint, "
                f"with {UNET}* and {VAE}*"
            )
    unet_config, vae_config = read_unet(weights, where), read_vae(weights, where)
    try:
        with torch.device("meta"):
            unet, vae = UNet2DConditionModel(**unet_config), AutoencoderKL(**vae_config)
    except (ValueError, ZeroDivisionError) as error:  # channels that no group norm divides
        raise UserError(
            f"{where}: sizes that cannot be ({one_line(error)}); expected the shapes of an SDXL-like UNet and autoencoder"
        ) from error
    unet_state, vae_state = unet.state_dict(), vae.state_dict()
    unet_names = {name: their_unet_name(name, unet_config) for name in unet_state}
    vae_names = {name: their_vae_name(name, len(vae_config["block_out_channels"])) for name in vae_state}
    expected = {theirs: unet_state[name].shape for name, theirs in unet_names.items()}
    for name, theirs in vae_names.items():
        shape = vae_state[name].shape
        expected[theirs] = (*shape, 1, 1) if is_projection(name) and len(shape) == 2 else shape
    for key, right in expected.items():
        if key not in weights:
            raise UserError(f"{where}: {key} is missing; expected every key of the UNet and the autoencoder")
        if tuple(weights[key].shape) != tuple(right):
            raise UserError(f"{where}: {key} has shape {tuple(weights[key].shape)}; expected {tuple(right)}")
    dropped = [key for key in weights if key.startswith(CONDITIONER)]
    for key in weights:
        if key not in expected and key != SIGMAS and not key.startswith(CONDITIONER):
            raise UserError(
                f"{where}: unknown key {key}; expected {UNET}*, {VAE}*, {CONDITIONER}* and {SIGMAS} of an unCLIP checkpoint"
            )
    return Match(unet, vae, unet_names, vae_names, dropped)


def read_unet(weights: Weights, where: Path) -> dict:
    """The arguments of ``UNet2DConditionModel``.

    The published UNet takes a vector y of 1024 numbers beside the timestep. As ``class_embed_type="projection"`` y
    goes in as it is and passes the same two Linears (``text_time``, SDXL's own form, would ask for a text
    embedding beside it, which this model never had).
    """
    first = shape(weights, UNET + "input_blocks.0.0.weight", 4, where)
    y = shape(weights, UNET + "label_emb.0.0.weight", 2, where)[1]
    if y != 4 * FOURIER:
        raise UserError(
            f"{where}: {UNET}label_emb.0.0.weight has {y} columns; expected {4 * FOURIER}, size and crop as "
            f"4 x {FOURIER} Fourier features (is this an unCLIP checkpoint?)"
        )
    blocks = 1 + max(numbers(weights, UNET + r"input_blocks\.(\d+)\."))
    ends = [i for i in range(1, blocks) if f"{UNET}input_blocks.{i}.0.op.weight" in weights] + [blocks]
    layers, channels, depths = ends[0] - 1, [], []
    for start in [1, *(end + 1 for end in ends[:-1])]:
        begin = f"{UNET}input_blocks.{start}."
        channels.append(shape(weights, begin + "0.out_layers.3.weight", 4, where)[0])
        depths.append(1 + max(numbers(weights, re.escape(begin) + r"1\.transformer_blocks\.(\d+)\."), default=-1))
        if depths[-1] and channels[-1] % HEAD_WIDTH:
            raise UserError(
                f"{where}: {begin}0.out_layers.3.weight has {channels[-1]} rows; expected a multiple of the "
                f"head width {HEAD_WIDTH}"
            )
    context = shape(weights, UNET + "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 2, where)[1]
    return {
        "sample_size": TRAINED_SIDE // 8,
        "in_channels": first[1],
        "out_channels": shape(weights, UNET + "out.2.weight", 4, where)[0],
        "block_out_channels": tuple(channels),
        "layers_per_block": layers,
        "down_block_types": tuple("CrossAttnDownBlock2D" if depth else "DownBlock2D" for depth in depths),
        "up_block_types": tuple("CrossAttnUpBlock2D" if depth else "UpBlock2D" for depth in reversed(depths)),
        "transformer_layers_per_block": tuple(max(1, depth) for depth in depths),
        "attention_head_dim": tuple(max(1, c // HEAD_WIDTH) for c in channels),  # diffusers' name for their number
        "use_linear_projection": True,
        "cross_attention_dim": context,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": y,
    }


def read_vae(weights: Weights, where: Path) -> dict:
    """The arguments of ``AutoencoderKL``."""
    encoder = VAE + "encoder."
    levels = 1 + max(numbers(weights, re.escape(encoder) + r"down\.(\d+)\."), default=0)
    channels = tuple(shape(weights, f"{encoder}down.{i}.block.0.conv1.weight", 4, where)[0] for i in range(levels))
    return {
        "in_channels": shape(weights, encoder + "conv_in.weight", 4, where)[1],
        "out_channels": shape(weights, VAE + "decoder.conv_out.weight", 4, where)[0],
        "latent_channels": shape(weights, VAE + "post_quant_conv.weight", 4, where)[1],
        "block_out_channels": channels,
        "layers_per_block": 1 + max(numbers(weights, re.escape(encoder) + r"down\.0\.block\.(\d+)\."), default=0),
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "sample_size": TRAINED_SIDE,
        "scaling_factor": SCALING_FACTOR,
        "force_upcast": True,  # overflows in float16
    }


def their_unet_name(ours: str, config: dict) -> str:
    """Their key for a parameter of the UNet. They number blocks through, diffusers within a level."""
    layers, levels = config["layers_per_block"], len(config["block_out_channels"])
    for begin, theirs in (
        ("conv_in.", "input_blocks.0.0."),
        ("time_embedding.linear_1.", "time_embed.0."),
        ("time_embedding.linear_2.", "time_embed.2."),
        ("class_embedding.linear_1.", "label_emb.0.0."),
        ("class_embedding.linear_2.", "label_emb.0.2."),
        ("conv_norm_out.", "out.0."),
        ("conv_out.", "out.2."),
    ):
        if ours.startswith(begin):
            return UNET + theirs + ours.removeprefix(begin)
    place, kind, index, rest = re.fullmatch(
        r"(\w+?_block(?:s\.\d+)?)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", ours
    ).groups()
    index = int(index)
    if kind == "resnets":
        rest = rename(rest, RESNET)
    if place == "mid_block":
        return f"{UNET}middle_block.{2 * index if kind == 'resnets' else 1}.{rest}"
    side, level = place.split(".")
    level = int(level)
    start = level * (layers + 1)
    if side == "down_blocks":
        if kind == "downsamplers":
            return f"{UNET}input_blocks.{start + layers + 1}.0.{rest.replace('conv.', 'op.')}"
        return f"{UNET}input_blocks.{1 + start + index}.{int(kind == 'attentions')}.{rest}"
    if kind == "upsamplers":
        has_attention = config["down_block_types"][levels - 1 - level] == "CrossAttnDownBlock2D"
        return f"{UNET}output_blocks.{start + layers}.{1 + has_attention}.{rest}"
    return f"{UNET}output_blocks.{start + index}.{int(kind == 'attentions')}.{rest}"


def their_vae_name(ours: str, levels: int) -> str:
    """Their key for a parameter of the autoencoder.

    Their decoder counts levels from the picture, diffusers' from the latents.
    """
    name = ours.replace("conv_norm_out.", "norm_out.").replace("conv_shortcut.", "nin_shortcut.")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(r"mid_block\.attentions\.0\.(.+)", lambda m: "mid.attn_1." + rename(m[1], ATTENTION), name)
    name = re.sub(r"up_blocks\.(\d+)", lambda m: f"up.{levels - 1 - int(m[1])}", name)
    name = re.sub(r"down_blocks\.(\d+)", r"down.\1", name)
    name = name.replace(".resnets.", ".block.").replace("samplers.0.conv.", "sample.conv.")
    return VAE + name


def is_projection(ours: str) -> bool:
    """Whether this is a Linear of the autoencoder's attention, which they store as a 1 x 1 convolution."""
    return ".attentions." in ours and ours.endswith("weight")


def rename(rest: str, names: dict[str, str]) -> str:
    """``rest`` with its layer's diffusers name replaced by theirs; unchanged where the names agree."""
    layer, kind = rest.rsplit(".", 1)
    return f"{ {ours: theirs for theirs, ours in names.items()}.get(layer, layer) }.{kind}"


def numbers(weights: Weights, pattern: str) -> set[int]:
    """The different numbers that the group of ``pattern`` matches at the beginning of keys."""
    return {int(found[1]) for key in weights if (found := re.match(pattern, key))}


def shape(weights: Weights, key: str, dims: int, where: Path) -> tuple[int, ...]:
    """The shape of an entry. Raises UserError where it is missing, empty, or has not ``dims`` dimensions."""
    if key not in weights:
        raise UserError(f"{where}: {key} is missing; expected every key of the UNet and the autoencoder")
    if weights[key].dim() != dims or not weights[key].numel():
        raise UserError(f"{where}: {key} has shape {tuple(weights[key].shape)}; expected {dims} dimensions")
    return tuple(weights[key].shape)
