"""The released unCLIP checkpoint of MindEye2 -> a folder that diffusers reads: UNet, autoencoder, scheduler.

The checkpoint (a Lightning .ckpt of Stability's ``sgm``, about 18 GB) stays mapped on disk; each tensor goes from
there straight into its place in the new files, so that memory never holds two copies of it.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import EulerDiscreteScheduler, ModelMixin

from mindtuner.errors import UserError
from mindtuner.files import atomic_path, write_json
from mindtuner.generators.unclip import CARD, KIND, OFFSET_NOISE, TRAINED_SIDE
from mindtuner.interop.unclip_keys import SIGMAS, Match, Weights, match_keys
from mindtuner.thirdparty import read_state_dict, released

WEIGHTS = "diffusion_pytorch_model.safetensors"
FORMATS = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
CHUNK = 2**22  # numbers that are looked at at once


def convert_unclip(checkpoint: str | Path, out: str | Path) -> dict:
    """Write the folder ``out`` and return its card, which stands in ``mindtuner.json``.

    Parameters
    ----------
    checkpoint : .ckpt with ``state_dict``; numbers keep their format (float32, float16 or bfloat16)
    out : new or empty folder; ``unet/``, ``vae/`` and ``scheduler/`` are what diffusers' ``from_pretrained`` reads

    The UNet's ``class_labels`` are the vector that ``sgm`` calls y (n, 1024). The image tower is dropped.
    Raises UserError where the checkpoint is not whole, holds code, has an unknown, missing or misshapen key, a
    number that is not finite or another noise schedule, or where ``out`` holds anything or cannot be written.
    """
    checkpoint, out = Path(checkpoint), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: is there already; expected a new or empty folder")
    scheduler = new_scheduler()
    with released("unclip"):
        weights = read_state_dict(checkpoint, "an unCLIP checkpoint, a .ckpt with state_dict", "state_dict")
        match = match_keys(weights, checkpoint)
        check_values(weights, match, checkpoint)
        check_schedule(weights, scheduler, checkpoint)
    card = describe(weights, match, checkpoint)
    with atomic_path(out) as part:
        write_part(part / "unet", match.unet, match.unet_names, weights)
        write_part(part / "vae", match.vae, match.vae_names, weights)
        scheduler.save_pretrained(part / "scheduler")
        write_json(part / CARD, card)
        if out.is_dir():
            out.rmdir()
    return card


def new_scheduler() -> EulerDiscreteScheduler:
    """Euler over the sigmas of DDPM: 1,000 times, betas from 0.00085 to 0.012, linear in their square roots."""
    return EulerDiscreteScheduler(num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")


def check_values(weights: Weights, match: Match, where: Path) -> None:
    """Raise UserError where a weight is not float32, float16 or bfloat16, or holds NaN or infinity."""
    for key in (*match.unet_names.values(), *match.vae_names.values()):
        if weights[key].dtype not in FORMATS:
            raise UserError(f"{where}: {key} is of type {weights[key].dtype}; expected float32, float16 or bfloat16")
        if not all(torch.isfinite(piece.sum(dtype=torch.float64)) for piece in weights[key].flatten().split(CHUNK)):
            raise UserError(f"{where}: {key} holds NaN or infinity; expected finite weights")


def check_schedule(weights: Weights, scheduler: EulerDiscreteScheduler, where: Path) -> None:
    """The checkpoint's sigmas, where it has them, are those of the scheduler that is written."""
    if SIGMAS not in weights:
        return
    right, stored = scheduler.sigmas[:-1].flip(0).float(), weights[SIGMAS].float()  # rising, without the last zero
    if stored.shape != right.shape or not torch.allclose(stored, right, rtol=4e-3):
        raise UserError(
            f"{where}: {SIGMAS} differs; expected {len(right)} sigmas from {right[0]:.4f} to {right[-1]:.4f}, "
            "betas linear in their square roots"
        )


def write_part(folder: Path, module: ModelMixin, names: dict[str, str], weights: Weights) -> None:
    """``config.json`` and the weights of one network, as diffusers' ``save_pretrained`` lays them out."""
    folder.mkdir(parents=True)
    module.save_config(folder)
    shapes = module.state_dict()
    write_safetensors(folder / WEIGHTS, {ours: weights[key].reshape(shapes[ours].shape) for ours, key in names.items()})


def write_safetensors(path: Path, tensors: Weights) -> None:
    """A safetensors file, tensor after tensor (the library's own writer may copy all of them first).

    The file: length of the header (8 bytes, little-endian), a header of JSON, then the numbers.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # so all numbers stay aligned
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name in order:
        start, end = end, end + tensors[name].nbytes
        header[name] = {
            "dtype": FORMATS[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in order:
            for piece in tensors[name].flatten().split(CHUNK):
                file.write(piece.contiguous().view(torch.uint8).numpy().data)


def describe(weights: Weights, match: Match, checkpoint: Path) -> dict:
    """The card: what the folder is, what was left out, and how the published pipeline samples from it."""
    count = lambda keys: sum(weights[key].numel() for key in keys)
    return {
        "kind": KIND,
        "checkpoint": checkpoint.name,
        "weights": {"unet": count(match.unet_names.values()), "vae": count(match.vae_names.values())},
        "dropped": {"conditioner": count(match.dropped), "why": "the image tower; tokens come from the brain"},
        "token_width": match.unet.config.cross_attention_dim,
        "conventions": {
            "token_norm": "after",
            "image_range": "clip",
            "notes": "trained on tokens of images as the tower's own preprocessing shows them",
        },
        "public_sampling": {
            "side": TRAINED_SIDE,
            "steps": 38,
            "guidance": 5.0,
            "offset_noise": OFFSET_NOISE,
            "unconditional": "random",
        },
    }
