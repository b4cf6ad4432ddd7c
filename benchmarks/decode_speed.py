"""How fast are trials decoded, beside the public MindEye2 classes?

    python benchmarks/decode_speed.py --peer CLONE [--rounds 6] [--threads 2] [--write benchmarks/results/decode_speed.md]

From voxels through ridge, backbone and prior to image tokens, at the sizes and with the clone of ``train_step.py``, fp32.
Ours is ``Decoder.predict`` and ``Decoder.image_tokens`` with 20 DDIM steps and a tuned subject; the public side is
``model.ridge``, ``model.backbone`` and ``diffusion_prior.p_sample_loop`` with timesteps=20, as in the public notebook,
which evaluates the prior 19 times. A batch gives trials a second, a batch of one the latency of real-time scanning. One
batch of each side, then the next; each side in a process of its own.
"""

from __future__ import annotations

import argparse
import datetime
from pathlib import Path

import numpy as np
from pages import machine, write_between
from sides import SIZES, SOURCE, Side, Turns, in_turn, ratios
from train_step import our_model, our_network, public_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, metavar="CLONE", required=True)
    parser.add_argument("--before", type=Path, metavar="SRC")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    lines = [
        f"{datetime.date.today()}, {machine()}, {options.threads} threads, {options.rounds} rounds; seconds are "
        "medians, ratios median (lowest to highest round)\n",
        "| decoding | trials | s | trials per s | times as fast | the same in CPU seconds | GFLOP |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for count in (options.batch, 1):
        sides = [Side("public, fp32", public_decoding, (options.peer, count))]
        if options.before:
            sides.append(Side("before, fp32", our_decoding, (count,), options.before.resolve()))
        found = in_turn([*sides, Side("ours, fp32", our_decoding, (count,), SOURCE)], options.rounds, options.threads, 1)
        first = found["public, fp32"]
        for name, of in found.items():
            seconds = np.median(of.seconds)
            lines.append(
                f"| {name} | {count} | {seconds:.2f} | {count / seconds:.2f} | {ratios(first.seconds, of.seconds)} "
                f"| {ratios(first.cpu, of.cpu)} | {of.flops / 1e9:.0f} |"
            )
    text = "\n".join(lines)
    print(text)
    if options.write:
        write_between(options.write, "decode_speed", text)


def our_decoding(turns: Turns, count: int) -> None:
    """``Decoder`` on random betas of a new subject."""
    from mindtuner import runtime
    from mindtuner.config import DecodeConfig
    from mindtuner.decoding.decoder import Decoder

    turns.imported()
    runtime.seed_everything(0)
    config = DecodeConfig(pictures=1, prior_steps=20, generator_steps=1, refine_steps=1, refine_start=0.5, guidance=1.0)
    decoder = Decoder(our_network("tuning", our_model(), SIZES["voxels"]), "subj01", config, 0)
    betas, images = np.random.default_rng(0).standard_normal((count, SIZES["voxels"]), np.float32), np.arange(count)

    def decode() -> None:
        decoder.image_tokens(decoder.predict(betas, images).backbone_tokens, images)

    turns()
    turns.count(decode)
    while True:
        turns()
        decode()


def public_decoding(turns: Turns, clone: Path, count: int) -> None:
    """The public notebook's path from voxels to image tokens."""
    import torch

    build = public_model(clone)
    turns.imported()
    torch.manual_seed(0)
    model = build().eval()
    betas = torch.randn(count, 1, SIZES["voxels"])

    @torch.no_grad()
    def decode() -> None:
        backbone, _, _ = model.backbone(model.ridge(betas, 0))
        model.diffusion_prior.p_sample_loop(backbone.shape, text_cond={"text_embed": backbone}, cond_scale=1.0, timesteps=20)

    turns()
    turns.count(decode)
    while True:
        turns()
        decode()


if __name__ == "__main__":
    main()
