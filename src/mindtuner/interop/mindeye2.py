"""A released MindEye2 checkpoint -> a base of ours with the same outputs.

At its sequence length of 1 the published backbone is affine in evaluation: the four channel MLPs reach no
output, and the four sequence MLPs add one constant c to every unit, ``x4 = x0 + c`` (docs/mindeye2.md derives
it). So the base has no blocks; c goes into the biases of what reads x4, ``b <- b + c (W 1)``, and the channel
MLPs are dropped.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from mindtuner.errors import UserError
from mindtuner.interop.mindeye2_keys import (
    CHANNEL_MLP,
    PART_TITLES,
    SCHEDULE,
    SEQUENCE_MLP,
    Match,
    Weights,
    is_rotary,
    is_schedule,
    match_keys,
)
from mindtuner.interop.torch_files import read_weights
from mindtuner.model import BrainNetwork
from mindtuner.model.prior import TIMESTEPS, new_schedule
from mindtuner.training import save_network

READS_X4 = ("head.linear", "lowlevel.linear")


def convert_mindeye2(
    checkpoint: str | Path,
    out: str | Path,
    subjects: list[int] | None = None,
    text_width: int = 1280,
    seed: int = 0,
) -> dict:
    """Write ``out``, a base for ``training.load_network``, and return its card.

    Parameters
    ----------
    checkpoint : .pth with ``model_state_dict``, or a DeepSpeed ZeRO folder
    subjects : NSD number of each ridge, in order; by default told from the ridges' voxel counts (nsdgeneral)
    text_width : of the Adaptive Projector, which no checkpoint has: it starts untrained
    seed : of the projector's starting values

    Outputs equal theirs: backbone and retrieval tokens, the prior's prediction, low-level latents and
    features. A float32 file stays mapped on disk; a 16-bit one is copied to float32 once. Raises UserError
    where the checkpoint is not whole, has an unknown, missing or misshapen key or a number that is not
    finite, or ``out`` cannot be written.
    """
    checkpoint = Path(checkpoint)
    weights, origin = read_weights(checkpoint)
    match = match_keys(weights, checkpoint, subjects, text_width)
    check_fixed_parts(weights, match.config.prior_head_dim, checkpoint)
    state = {ours: to_float32(weights[theirs], theirs, checkpoint) for ours, theirs in match.names.items()}
    c = backbone_constant(weights, match.blocks, checkpoint)
    for layer in READS_X4:
        if f"{layer}.weight" in state:
            state[f"{layer}.bias"] = fold(state[f"{layer}.weight"], state[f"{layer}.bias"], c)
    bound = match.config.width**-0.5
    state["projector.matrix.weight"] = torch.empty(text_width, match.config.width).uniform_(
        -bound, bound, generator=torch.Generator().manual_seed(seed)
    )
    with torch.device("meta"):  # no random start for weights that are replaced at once
        network = BrainNetwork(match.config, match.voxels, match.without)
    network.load_state_dict(state, assign=True)
    card = describe(match, checkpoint, origin, c, seed)
    save_network(out, network, card)
    return card


def check_fixed_parts(weights: Weights, head_dim: int, where: Path) -> None:
    """Check that what our prior computes instead of storing is what theirs stores.

    That is rotary frequencies and the noise schedule. Raises UserError where it differs.
    """
    pairs = min(32, head_dim) // 2
    right = 10000.0 ** (-torch.arange(pairs) / pairs)
    for key, tensor in weights.items():
        loose = 4e-3  # they may be stored in 16 bits
        if is_rotary(key) and not (tensor.shape == right.shape and torch.allclose(tensor.float(), right, rtol=loose)):
            raise UserError(f"{where}: {key} differs; expected {pairs} rotary frequencies 10000^(-i/{pairs})")
        if is_schedule(key) and tuple(tensor.shape) != (TIMESTEPS,):
            raise UserError(f"{where}: {key} has shape {tuple(tensor.shape)}; expected ({TIMESTEPS},)")
    alphas = weights.get(SCHEDULE + "alphas_cumprod")
    if alphas is not None and not torch.allclose(alphas.float(), new_schedule().alphas_cumprod, atol=1e-3):
        raise UserError(
            f"{where}: {SCHEDULE}alphas_cumprod differs from the cosine schedule; expected {TIMESTEPS} "
            "steps, s = 0.008, betas at most 0.999"
        )


def backbone_constant(weights: Weights, blocks: int, where: Path) -> float:
    """The constant c of ``x4 = x0 + c``.

    It is the sum of the sequence MLPs' outputs, each at its LayerNorm's bias, for at sequence length 1 the norm sees a single
    number and returns its bias whatever that number is.
    """
    c = torch.zeros((), dtype=torch.float64)
    for i in range(blocks):
        layer = {
            name: to_float32(weights[key], key, where).double().squeeze()
            for name in ("0.bias", "1.0.weight", "1.0.bias", "1.3.weight", "1.3.bias")
            for key in [f"{SEQUENCE_MLP}{i}.{name}"]
        }
        hidden = F.gelu(layer["1.0.weight"] * layer["0.bias"] + layer["1.0.bias"])
        c += layer["1.3.weight"] * hidden + layer["1.3.bias"]
    return c.item()


def fold(weight: torch.Tensor, bias: torch.Tensor, c: float) -> torch.Tensor:
    """The bias b' with ``W (x + c 1) + b = W x + b'``.

    Summed in float64 by groups of rows (the head is large).
    """
    row_sums = torch.cat([rows.double().sum(1) for rows in weight.split(4096)])
    return (bias.double() + c * row_sums).float()


def describe(match: Match, checkpoint: Path, origin: str, c: float, seed: int) -> dict:
    """The card: what the base is, what was left out, and the conventions its weights were trained with."""
    config = match.config
    sampling = {"timesteps": TIMESTEPS, "steps": 20, "eta": 1.0, "guidance": 1.0}
    if "prior" in match.without:
        sampling = None
    return {
        "kind": "imported MindEye2 checkpoint",
        "checkpoint": checkpoint.name,
        "read_from": origin,
        "subjects": match.voxels,
        "backbone": {
            "form": "affine, x4 = x0 + c",
            "constant": c,
            "folded_weights": 6 * match.blocks,
            "folded_into": [layer for layer in READS_X4 if layer.split(".")[0] not in match.without],
            "dropped": f"{CHANNEL_MLP}*",
            "dropped_weights": match.dead,
            "why": "the channel MLPs reach no output: the sequence MLPs' residual stream starts at the ridge",
        },
        "without": [PART_TITLES[part] for part in match.without],
        "untrained": {"projector": f"Adaptive Projector {config.width} -> {config.text_width}, seed {seed}"},
        "conventions": {
            "token_norm": "after",
            "image_range": "mindeye2",
            "notes": "tokens after the tower's last layer norm; it saw (u + 1) / 2 of images u in 0..1",
        },
        "public_sampling": sampling,
    }


def to_float32(tensor: torch.Tensor, key: str, where: Path) -> torch.Tensor:
    """The tensor in float32, still mapped where it is so already. Raises UserError where it is not finite."""
    if not tensor.is_floating_point():
        raise UserError(f"{where}: {key} is of type {tensor.dtype}; expected floating point")
    tensor = tensor.float()
    if not torch.isfinite(tensor.sum()):
        raise UserError(f"{where}: {key} holds NaN or infinity; expected finite weights")
    return tensor
