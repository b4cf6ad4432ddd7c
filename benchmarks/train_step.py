"""How long does a training step take, and how much memory, beside the public MindEye2 classes?

    python benchmarks/train_step.py --peer CLONE [--before SRC] [--rounds 10] [--threads 2] [--write FILE]

CLONE is a checkout of MedARC-AI/MindEyeV2; its models.py needs what parity/mindeye2.py says, on PYTHONPATH. SRC is the
``src`` folder of another revision of this project, which is then measured beside this one. Sizes: one ridge 15,724 ->
1,024, 4 blocks, 64 x 512 tokens, prior of depth 6, low-level decoder to 4 x 28 x 28, batch 24, all of which go through
prior and low-level module on both sides (SoftCLIP; ``--mixco`` measures the first third of training, where ours leaves
mixed trials out of them). Losses on both sides: prior, CLIP, low-level L1 and contrastive (tuning adds L_skip); AdamW.
Targets are random numbers.

The public step trains everything, in pretraining and in tuning, in fp32. Ours is that of ``training.fit`` itself, with
clipping of gradients and the reading of batches. One step of each side, then the next, ``--rounds`` times; each side in a
process of its own. FLOPs are those of matrix products, convolutions and attention; "of peak" is FLOPs a second over what
products of square matrices reach in the same run.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import multiprocessing
import sys
from pathlib import Path

import numpy as np
from pages import machine, write_between
from sides import SIZES, Measured, Side, Turns, in_turn, matmul_peak, ratios

TRIALS = 96
ENDLESS = 100_000
KINDS = {  # of operations in a profile, by what stands in their names; the first that fits
    "products of matrices": ("::mm", "::addmm", "::bmm", "::baddbmm"),
    "convolutions": ("conv",),
    "fused attention": ("scaled_dot_product", "flash"),
    "AdamW": ("adamw",),
    "norms": ("_norm",),
    "GELU, SiLU, softmax": ("gelu", "silu", "softmax"),
    "copies and joins": ("copy_", "::cat", "fill_", "zero_"),
    "element by element": ("::mul", "::add", "::div", "::sub", "::neg", "::sum", "::where", "bernoulli"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, metavar="CLONE")
    parser.add_argument("--before", type=Path, metavar="SRC")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--mixco", action="store_true")
    parser.add_argument("--bfloat16", action="store_true", help="our step in bf16 too; with --profile, instead")
    parser.add_argument("--stages", nargs="+", default=["pretraining", "tuning"], choices=["pretraining", "tuning"])
    parser.add_argument("--demo", action="store_true", help="ours alone at the sizes of the demo: 7 subjects, then 1")
    parser.add_argument("--profile", action="store_true", help="where our two steps spend their time, and nothing else")
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.profile:
        print(profile_table(options))
        return
    text = "\n\n".join(
        [
            f"{datetime.date.today()}, {machine()}, {'sizes of the demo' if options.demo else f'batch {options.batch}'}, "
            f"{options.threads} threads, {options.rounds} rounds, "
            f"{'BiMixCo' if options.mixco else 'SoftCLIP'}; seconds are medians, ratios median (lowest to highest round)",
            *(stage_table(stage, options) for stage in options.stages),
        ]
    )
    print(text)
    if options.write:
        write_between(options.write, "train_step", text)


def stage_table(stage: str, options: argparse.Namespace) -> str:
    asked = options.mixco, options.batch
    sides = [Side("public, fp32", public_step, (options.peer, *asked))] if options.peer and not options.demo else []
    for name, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))[: 1 + options.bfloat16]:
        if options.before:
            sides.append(Side(f"before, {name}", our_step, (stage, dtype, *asked, options.demo), options.before.resolve()))
        sides.append(Side(f"ours, {name}", our_step, (stage, dtype, *asked, options.demo)))
    sides += [Side(f"products, {dtype}", matmul_peak, (dtype,)) for dtype in ("float32", "bfloat16")]
    found = in_turn(sides, options.rounds, options.threads)
    speed = {name: rate(measured) for name, measured in found.items()}
    first = next(iter(found))
    lines = [
        f"| {stage} | s per step | times as fast | the same in CPU s | peak MB | beyond imports | GFLOP | of peak |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, of in found.items():
        if name.startswith("products"):
            lines.append(f"| {name}, 1024 x 1024 | | | | | | | {speed[name]:.3g} GFLOP/s |")
            continue
        peak = speed["products, bfloat16" if "bf16" in name else "products, float32"]
        lines.append(
            f"| {name} | {np.median(of.seconds):.2f} | {ratios(found[first].seconds, of.seconds)} "
            f"| {ratios(found[first].cpu, of.cpu)} | {of.peak:.0f} | {of.peak - of.imported:.0f} | {of.flops / 1e9:.0f} "
            f"| {100 * speed[name] / peak:.0f} % |"
        )
    return "\n".join(lines)


def profile_table(options: argparse.Namespace) -> str:
    """Shares of the time of two steps of each stage, by kind of operation (torch.profiler, self time)."""
    found, dtype = {}, "bfloat16" if options.bfloat16 else "float32"
    for stage in options.stages:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[stage] = pool.apply(profile_steps, (stage, dtype, options.batch, options.threads))
    lines = [
        f"| share of a step, batch {options.batch}, {dtype}, {options.threads} threads | {' | '.join(found)} |",
        "|---|" + "---:|" * len(found),
    ]
    for kind in (*KINDS, "all else"):
        shares = (f"{100 * of[kind] / sum(of.values()):.1f} %" for of in found.values())
        lines.append(f"| {kind} | {' | '.join(shares)} |")
    return "\n".join(lines)


def profile_steps(stage: str, dtype: str, batch: int, threads: int) -> dict[str, float]:
    """Microseconds by kind of operation in the third and fourth step."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    from mindtuner import runtime
    from mindtuner.training import loop

    torch.set_num_threads(threads)
    runtime.seed_everything(0)
    model, take, steps = our_model(), loop.take_step, 0
    network, (feeds, targets) = our_network(stage, model, SIZES["voxels"]), random_world(model, SIZES["voxels"])
    watch = profile(activities=[ProfilerActivity.CPU])

    def taken(*arguments):
        nonlocal steps
        result, steps = take(*arguments), steps + 1
        if steps == 2:
            watch.start()
        if steps == 4:
            watch.stop()
        return result

    loop.take_step = taken
    loop.fit(network, feeds, targets, fit_config(4, dtype, False, batch), 0, stage)
    found = dict.fromkeys((*KINDS, "all else"), 0.0)
    for event in watch.key_averages():
        kind = next((kind for kind, words in KINDS.items() if any(word in event.key for word in words)), "all else")
        found[kind] += event.self_cpu_time_total
    return found


def rate(measured: Measured) -> float:
    """GFLOP a second at the median."""
    return measured.flops / 1e9 / np.median(measured.seconds)


# ours


def our_model():
    """The config of the model at ``SIZES``."""
    from mindtuner.config import ModelConfig

    return ModelConfig(
        hidden=SIZES["hidden"],
        blocks=SIZES["blocks"],
        tokens=SIZES["tokens"],
        width=SIZES["width"],
        text_width=512,
        backbone_dropout=0.15,
        prior_depth=SIZES["depth"],
        prior_heads=SIZES["heads"],
        prior_head_dim=SIZES["head_dim"],
        latent_channels=4,
        latent_side=28,
        lowlevel_channels=(128, 64, 32),
        lowlevel_side=7,
        feature_positions=49,
        feature_width=512,
    )


def our_network(stage: str, model, voxels: int):
    """A fresh base for ``stage``; in tuning with the fingerprint of a new subject, as ``tune`` begins."""
    from mindtuner.config import FingerprintConfig
    from mindtuner.model import BrainNetwork

    if stage == "tuning":
        network = BrainNetwork(model, {})
        network.add_fingerprint("subj01", voxels, FingerprintConfig())
    else:
        network = BrainNetwork(model, {"subj01": voxels})
        network.projector.requires_grad_(False)
    return network


def random_world(model, voxels: int, trials: int = TRIALS):
    """One subject's feed and the targets, all random numbers; no image stands twice in a batch of the first pass."""
    from mindtuner.data import Subject, Trials
    from mindtuner.training import Targets
    from mindtuner.training.batches import Feed

    rng, order, none = np.random.default_rng(0), np.arange(trials), np.zeros(trials)
    low = (model.feature_positions, model.feature_width)
    targets = Targets(
        *(
            rng.standard_normal((trials, *shape), np.float32)
            for shape in (
                (model.tokens, model.width),
                (model.text_width,),
                (model.latent_channels, model.latent_side, model.latent_side),
                low,
                low,
            )
        )
    )
    betas = rng.standard_normal((trials, voxels), np.float32)
    subject = Subject(1, Trials(order, order, none + 1, none, none), {}, betas, np.zeros(trials, bool), "random")
    return [Feed(subject, subject.trials, 0, True)], targets


def fit_config(steps: int, dtype: str, mixco: bool, batch: int):
    """The paper's losses and learning rate for this many steps."""
    from mindtuner.config import FitConfig

    return FitConfig(
        epochs=steps * batch / TRIALS,
        batch_per_subject=batch,
        lr=3e-4,
        weight_decay=1e-2,
        ridge_weight_decay=1e-2,
        warmup=0.01,
        mixco_share=float(mixco),
        head_trials=batch,
        regression_weight=0.0,
        dtype=dtype,
    )


def our_step(turns: Turns, stage: str, dtype: str, mixco: bool, batch: int, demo: bool) -> None:
    """``fit`` itself, which takes its turn before each step."""
    import torch

    from mindtuner import runtime
    from mindtuner.training import loop

    turns.imported()
    runtime.seed_everything(0)
    network, feeds, targets, config = (demo_world if demo else one_subject)(stage, dtype, mixco, batch)
    compute, take, step = loop.compute_losses, loop.take_step, 0

    def counted(*arguments, **named):
        nonlocal step
        step += 1
        if step != 2:
            return compute(*arguments, **named)
        losses = turns.count(lambda: compute(*arguments, **named))
        forth = turns.flops
        turns.count(lambda: torch.autograd.grad(sum(losses.values()), network.trainable_parameters(), retain_graph=True))
        turns.flops += forth
        return losses

    def taken(*arguments):
        result = take(*arguments)
        turns()
        return result

    loop.compute_losses, loop.take_step = counted, taken
    turns()
    loop.fit(network, feeds, targets, config, 0, stage)


def one_subject(stage: str, dtype: str, mixco: bool, batch: int) -> tuple:
    """Network, feeds, targets and config at ``SIZES``."""
    model = our_model()
    return (
        our_network(stage, model, SIZES["voxels"]),
        *random_world(model, SIZES["voxels"]),
        fit_config(ENDLESS, dtype, mixco, batch),
    )


def demo_world(stage: str, dtype: str, mixco: bool, _) -> tuple:
    """The same at the sizes of the demo, its own batches and losses."""
    from mindtuner.config import load_config
    from mindtuner.data.nsd import VOXELS
    from mindtuner.model import BrainNetwork
    from mindtuner.training.batches import Feed

    config = load_config("demo")
    voxels = {number: round(config.simulate.voxel_scale * count) for number, count in enumerate(VOXELS, 1)}
    feeds, targets = [], None
    for number in [1] if stage == "tuning" else range(2, 9):
        [feed], targets = random_world(config.model, voxels[number])
        feeds.append(Feed(dataclasses.replace(feed.subject, number=number), feed.trials, 0, True))
    if stage == "tuning":
        network, fit = BrainNetwork(config.model, {}), config.tune
        network.add_fingerprint("subj01", voxels[1], config.fingerprint)
    else:
        network, fit = BrainNetwork(config.model, {feed.name: feed.subject.n_voxels for feed in feeds}), config.pretrain
        network.projector.requires_grad_(False)
    epochs = ENDLESS * fit.batch_per_subject / TRIALS
    return network, feeds, targets, dataclasses.replace(fit, epochs=epochs, dtype=dtype, mixco_share=float(mixco))


# theirs


def public_losses(clone: Path) -> dict:
    """The losses of utils.py, alone: the module itself imports what is not needed here."""
    import ast

    import torch

    tree = ast.parse((clone / "src" / "utils.py").read_text(encoding="utf-8"))
    wanted = ("soft_clip_loss", "mixco", "mixco_nce", "soft_cont_loss")
    tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in wanted]
    found = {"torch": torch, "F": torch.nn.functional}
    exec(compile(tree, "utils.py", "exec"), found)  # from the clone that the user names
    return found


def public_model(clone: Path):
    """-> a function that builds the public model at ``SIZES``; the modules are imported here."""
    sys.path.insert(0, str(Path(__file__).parent / "parity"))
    import mindeye2

    peer = mindeye2.import_peer(clone)
    sizes = (
        SIZES["hidden"],
        (SIZES["voxels"],),
        SIZES["tokens"],
        SIZES["width"],
        SIZES["blocks"],
        (SIZES["depth"], SIZES["heads"], SIZES["head_dim"]),
        True,
        0,
    )
    return lambda: mindeye2.build(peer, sizes)


def public_step(turns: Turns, clone: Path, mixco: bool, batch: int) -> None:
    """The step of Train.ipynb: its optimiser, schedule and losses, without its towers and scores."""
    import torch
    from torch.nn.functional import l1_loss, normalize

    build, losses = public_model(clone), public_losses(clone)
    turns.imported()
    torch.manual_seed(0)
    model = build().train()
    spared = ("bias", "LayerNorm.bias", "LayerNorm.weight")
    groups = [{"params": list(model.ridge.parameters()), "weight_decay": 1e-2}]
    for part in (model.backbone, model.diffusion_prior):
        named = list(part.named_parameters())
        for decay in (True, False):
            groups.append(
                {
                    "params": [p for name, p in named if decay != any(word in name for word in spared)],
                    "weight_decay": 1e-2 * decay,
                }
            )
    optimizer = torch.optim.AdamW(groups, lr=3e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=3e-4, total_steps=ENDLESS, final_div_factor=1000, pct_start=0.01
    )
    rng = torch.Generator(torch.get_default_device()).manual_seed(0)
    voxels = torch.randn(TRIALS, 1, SIZES["voxels"], generator=rng)
    tokens = torch.randn(TRIALS, SIZES["tokens"], SIZES["width"], generator=rng)
    latents = torch.randn(TRIALS, 4, 28, 28, generator=rng)
    views = torch.randn(2, TRIALS, 49, 512, generator=rng)

    def step() -> None:
        rows = torch.randperm(TRIALS)[:batch]
        optimizer.zero_grad()
        betas, target = voxels[rows], tokens[rows]
        if mixco:
            betas, partner, shares, chosen = losses["mixco"](betas)
        backbone, retrieval, (picture, features) = model.backbone(model.ridge(betas, 0))
        predicted, wanted = normalize(retrieval.flatten(1), dim=-1), normalize(target.flatten(1), dim=-1)
        loss = 30 * model.diffusion_prior(text_embed=backbone, image_embed=target)[0]
        if mixco:
            loss = loss + losses["mixco_nce"](predicted, wanted, temp=0.006, perm=partner, betas=shares, select=chosen)
        else:
            loss = loss + losses["soft_clip_loss"](predicted, wanted, temp=0.004)
        plain, augmented = (normalize(view[rows].reshape(-1, 512), dim=-1) for view in views)
        contrast = losses["soft_cont_loss"](normalize(features.reshape(-1, 512), dim=-1), plain, augmented, temp=0.2)
        loss = loss + 0.5 * (l1_loss(picture, latents[rows]) + 0.1 * contrast)
        loss.backward()
        optimizer.step()
        schedule.step()
        loss.item()

    turns()
    turns.count(step)
    while True:
        turns()
        step()


if __name__ == "__main__":
    main()
