"""How much memory does 'mindtuner convert unclip' need? Measured on a random checkpoint of the published form.

    python benchmarks/convert_memory.py [--width 64]

The checkpoint has the published one's keys (UNet, autoencoder, noise levels, and an image tower of a third of the file), at a
width of one's choice; the published UNet is 320 wide. What counts is the process's own memory (RssAnon in
/proc/self/status, so Linux alone), looked at every millisecond: pages of the mapped checkpoint are the system's to take
back. For comparison, the same file read as a whole.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import tempfile
import threading
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel

from mindtuner.interop.unclip import convert_unclip, new_scheduler
from mindtuner.interop.unclip_keys import SIGMAS, is_projection, their_unet_name, their_vae_name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=64, metavar="N", help="of the UNet, a multiple of 32 (default 64)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, value in measure(Path(folder), options.width).items():
            print(f"{name:16}{value:9.0f}")


def measure(folder: Path, width: int) -> dict[str, float]:
    """MB: of the checkpoint, and of the process's own memory at most while it is converted, and while it is loaded."""
    path = folder / "unclip.ckpt"
    torch.save({"state_dict": random_checkpoint(width)}, path)
    convert = peak_mb(lambda: convert_unclip(path, folder / "out"))
    load = peak_mb(lambda: torch.load(path, weights_only=True))
    return {"checkpoint_mb": path.stat().st_size / 2**20, "convert_mb": convert, "load_all_mb": load}


def random_checkpoint(width: int) -> dict[str, torch.Tensor]:
    """The published form, model_channels 320 with ``width`` in its place."""
    config = {
        "block_out_channels": (width, 2 * width, 4 * width),
        "layers_per_block": 2,
        "cross_attention_dim": 64,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (1, width // 32, width // 16),
        "use_linear_projection": True,
        "class_embed_type": "projection",
        "projection_class_embeddings_input_dim": 1024,
    }
    with torch.device("meta"):
        unet = UNet2DConditionModel(**config)
        vae = AutoencoderKL(
            block_out_channels=(32, 64, 128, 128),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        )
    shapes = {their_unet_name(name, config): tensor.shape for name, tensor in unet.state_dict().items()}
    shapes |= {
        their_vae_name(name, 4): (*tensor.shape, 1, 1) if is_projection(name) and tensor.dim() == 2 else tensor.shape
        for name, tensor in vae.state_dict().items()
    }
    weights = {key: torch.rand(shape) for key, shape in shapes.items()}
    weights[SIGMAS] = new_scheduler().sigmas[:-1].flip(0)
    weights["conditioner.embedders.0.model.visual.proj"] = torch.rand(sum(t.numel() for t in weights.values()) // 2)
    return weights


def peak_mb(work) -> float:
    """By how much the process's own memory grows at most while ``work`` runs, looked at every millisecond."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # else what was freed before would be used again, unseen
    done, seen = threading.Event(), [own_mb()]

    def look():
        while not done.is_set():
            seen.append(own_mb())
            time.sleep(0.001)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        result = work()  # kept until the end of the measurement
        seen.append(own_mb())
    finally:
        done.set()
        thread.join()
    del result
    return max(seen) - seen[0]


def own_mb() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("/proc/self/status has no RssAnon; expected Linux")


if __name__ == "__main__":
    main()
