"""Do losses stay the same in bf16, and from one revision to the next?

    python benchmarks/loss_curves.py [--seeds 4] [--steps 200] [--before SRC]

A small network (hidden 64, 8 x 32 tokens, prior of depth 2, 300 voxels, batch 16) learns brains that are linear in the
targets, in fp32 and under bf16 autocast, with ``--seeds`` seeds of weights, noise and order. Per stage and loss term: the
mean over the last quarter of the steps, its standard deviation over seeds, and the difference of bf16 to fp32 of the same
seed with its standard deviation. bf16 is within noise where the difference is within its spread over seeds.

With ``--before SRC`` (the ``src`` folder of another revision): the largest difference, over 20 steps in fp32, of any loss
and any trained weight to the other revision's, relative to the largest value. In tuning L_prior is left out of it: it is a
mean over other trials where a revision leaves some out that teach nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import sys
from pathlib import Path

import numpy as np
from sides import SOURCE

TRIALS, VOXELS, BATCH = 128, 300, 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--before", type=Path, metavar="SRC")
    options = parser.parse_args()
    for stage in ("pretraining", "tuning"):
        if options.before:
            compare_revisions(stage, options.before.resolve())
        else:
            compare_formats(stage, options.seeds, options.steps)


def compare_formats(stage: str, seeds: int, steps: int) -> None:
    formats = "float32", "bfloat16"
    runs = fresh(SOURCE, [(stage, dtype, seed, steps) for dtype in formats for seed in range(seeds)])
    found = {dtype: [losses for losses, _ in runs[k * seeds : (k + 1) * seeds]] for k, dtype in enumerate(formats)}
    print(f"\n| {stage}, {steps} steps, {seeds} seeds | fp32 (sd) | bf16 (sd) | bf16 - fp32 of a seed (sd) |")
    print("|---|---:|---:|---:|")
    for name in found["float32"][0]:
        plain, half = (np.array([np.mean(run[name][-steps // 4 :]) for run in found[dtype]]) for dtype in found)
        print(
            f"| {name} | {plain.mean():.4f} ({plain.std(ddof=1):.4f}) | {half.mean():.4f} ({half.std(ddof=1):.4f}) "
            f"| {(half - plain).mean():+.4f} ({(half - plain).std(ddof=1):.4f}) |"
        )


def compare_revisions(stage: str, before: Path) -> None:
    (losses, weights), (old_losses, old_weights) = (
        fresh(source, [(stage, "float32", 0, 20)])[0] for source in (SOURCE, before)
    )
    if stage == "tuning":
        del losses["prior"]

    def largest(ours: dict, theirs: dict) -> float:
        return max(
            np.abs(np.subtract(ours[name], theirs[name])).max() / max(np.abs(theirs[name]).max(), 1e-12) for name in ours
        )

    print(
        f"{stage}, 20 steps: losses differ by {largest(losses, old_losses):.1e}, "
        f"weights by {largest(weights, old_weights):.1e}"
    )


def fresh(source: Path, runs: list[tuple]) -> list[tuple[dict, dict]]:
    """``curves`` of all runs in one new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return [pool.apply(curves, (source, *run)) for run in runs]


def curves(source: Path, stage: str, dtype: str, seed: int, steps: int) -> tuple[dict, dict]:
    """Each loss at each step, and the trained weights, with the package in ``source``."""
    sys.path.insert(0, str(source))
    from train_step import fit_config, our_model, our_network, random_world

    from mindtuner import runtime
    from mindtuner.model import prior
    from mindtuner.training import loop

    prior.PART_BYTES = 2**16  # three samples at once, where a revision knows parts: a small prior would pass whole

    model = dataclasses.replace(
        our_model(),
        hidden=64,
        tokens=8,
        width=32,
        text_width=8,
        prior_depth=2,
        prior_heads=2,
        prior_head_dim=16,
        latent_side=8,
        lowlevel_channels=(16, 8),
        lowlevel_side=4,
        feature_positions=16,
        feature_width=16,
    )
    runtime.seed_everything(seed)
    network, ([feed], targets) = our_network(stage, model, VOXELS), random_world(model, VOXELS, TRIALS)
    rng = np.random.default_rng(1)
    flat = targets.tokens.reshape(TRIALS, -1)
    feed.betas = (flat @ rng.standard_normal((flat.shape[1], VOXELS)) / flat.shape[1] ** 0.5).astype(np.float32)
    config = fit_config(1, dtype, False, BATCH)
    config = dataclasses.replace(config, epochs=steps * BATCH / TRIALS, mixco_share=0.33, lr=1e-3)
    seen, compute = [], loop.compute_losses

    def noting(*given, **named):
        losses = compute(*given, **named)
        seen.append({name: loss.item() for name, loss in losses.items()})
        return losses

    loop.compute_losses = noting
    loop.fit(network, [feed], targets, config, seed, stage)
    loop.compute_losses = compute
    return (
        {name: [losses[name] for losses in seen] for name in seen[0]},
        {name: p.detach().numpy() for name, p in network.named_parameters() if p.requires_grad},
    )


if __name__ == "__main__":
    main()
