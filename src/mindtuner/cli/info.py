"""Sizes of a config: modules, shapes, parameters, what trains, and the memory and the work that it takes.

CONFIG is one that the package carries (demo, quick, paper) or a YAML file. Nothing is trained and nothing is allocated:
the network is built on torch's meta device, so the paper's two billion parameters take seconds on a laptop.
"""

from __future__ import annotations

import argparse
import dataclasses

MOST_VOXELS = 10**8
PEAK, SHARE = 989e12, 0.4  # FLOP/s of an H100 in bfloat16 (NVIDIA's data sheet, without sparsity), and what is reached of it


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="demo, quick, paper, or a YAML file")
    parser.add_argument(
        "--voxels",
        type=int,
        metavar="N",
        help="voxels of the subject to tune (default: NSD's, times the config's voxel_scale)",
    )
    parser.add_argument(
        "--subjects",
        type=int,
        metavar="N",
        help="subjects to pretrain on, with NSD's voxels (default: all of the config but one)",
    )


def run(options: argparse.Namespace) -> None:
    from mindtuner.config import load_config
    from mindtuner.data import nsd
    from mindtuner.errors import UserError
    from mindtuner.simulation.simulate import check_knobs
    from mindtuner.training import sizes, subject_name

    config = load_config(options.config)
    check_knobs(config.simulate)
    scale, target = config.simulate.voxel_scale, config.target_subject
    if target > len(nsd.VOXELS):
        raise UserError(f"{options.config}: target_subject is {target}; expected one of NSD's, 1 to {len(nsd.VOXELS)}")
    others = [number for number in range(1, len(nsd.VOXELS) + 1) if number != target]
    subjects = config.simulate.subjects - 1 if options.subjects is None else options.subjects
    if not 1 <= subjects <= len(others):
        raise UserError(f"--subjects is {subjects}; expected 1 to {len(others)}, NSD's subjects but the one to tune")
    if options.voxels is not None and not 1 <= options.voxels <= MOST_VOXELS:
        raise UserError(f"--voxels is {options.voxels}; expected 1 to {MOST_VOXELS:,}")
    n_voxels = options.voxels or nsd.voxel_count(target, scale)
    voxels = {subject_name(number): nsd.voxel_count(number, scale) for number in others[:subjects]}
    name = subject_name(target)

    base = sizes.build_base(config, voxels)
    tuned = sizes.build_tuned(config, voxels, name, n_voxels)
    print(
        f"{options.config}: {config.model.backbone} backbone, pretrained on {subjects} subjects, then tuned to {name} "
        f"with {n_voxels:,} voxels\n"
    )
    _print_parts(sizes.count_parts(base, tuned))
    print(
        f"\nPretraining trains all of the base (the projector by itself, before the rest). full_finetune would train "
        f"{sizes.count_trained(sizes.build_tuned(config, voxels, name, n_voxels, 'full_finetune')):,}.\n"
    )

    base.projector.requires_grad_(False)  # as in pretraining: the Pivot has trained it already
    pretraining = sizes.training_memory(base, voxels, config.pretrain)
    tuning = sizes.training_memory(tuned, {name: n_voxels}, config.tune)
    _print_memory({"pretraining": pretraining, "tuning": tuning, "inference": sizes.inference_memory(tuned, name)})
    print("""
GiB on the device, every number in float32. Activations are the most that one step holds beside the rest, measured by running
it without numbers; they grow with the batch. Attention is counted as if written out; fused kernels need less. 16-bit
autocast needs less for activations and adds a 16-bit copy of weights that train; frozen ones are held in 16 bit. Left out:
one further set of gradients when the log measures each loss's gradient, what kernels and allocator take for themselves, the
frozen towers and the generator.
""")
    _print_spread({"pretraining": pretraining, "tuning": tuning})

    simulated = config.simulate  # whose sizes are NSD's, or the demo's share of them
    trials = simulated.sessions * simulated.trials_per_session - simulated.shared_images * simulated.repeats
    tuned_on = round(trials * config.tuning_sessions / simulated.sessions)
    _print_work(
        {
            "pretraining": (sizes.step_flops(base, voxels, config.pretrain), sizes.count_steps(config.pretrain, trials)),
            "tuning": (sizes.step_flops(tuned, {name: n_voxels}, config.tune), sizes.count_steps(config.tune, tuned_on)),
        }
    )
    print(f"""
Computed, not measured: of matrix products, convolutions and attention, for {trials:,} training trials of a subject, and
{tuned_on:,} of the one to tune. An H100 has 989 TFLOP/s in bfloat16, of which well-kept training code reaches {SHARE:.0%}.
Of a pretraining that starts in closed form take a third: docs/performance.md says what that keeps, and what it costs.""")


def _print_spread(phases) -> None:
    from mindtuner.training.sizes import spread

    counts = (1, 8, 64)
    rows = [("GiB of one GPU (computed)", *(f"{count} GPU{'s' if count > 1 else ''}" for count in counts))]
    for phase, memory in phases.items():
        for sharded, form in ((False, "DDP"), (True, "FSDP")):
            found = [spread(memory, count, sharded) for count in counts]
            rows.append((f"{phase}, {form}: holds", *(f"{one.state / 2**30:.2f}" for one in found)))
            rows.append((f"{phase}, {form}: sends in a step", *(f"{one.sent / 2**30:.2f}" for one in found)))
    for line in _columns(rows, left=1):
        print(line)
    print("""
Computed, not measured: what a GPU holds of weights, gradients and moments, and what it sends for them in a step.
DDP, whole on each: a ring sums gradients, 2 (n-1)/n of their bytes. FSDP, in shards: (n-1)/n of the weights twice and of the
gradients once; one part at a time is whole beside the shards. Left out: activations, which fall with a GPU's share of the
batch, and the outputs of the retrieval projector, which are gathered for the contrastive losses. See docs/cluster.md.""")


def _print_work(phases) -> None:
    rows = [("work", *phases)]
    rows.append(("GFLOP of a step", *(f"{flops / 1e9:,.1f}" for flops, _ in phases.values())))
    rows.append(("steps", *(f"{steps:,}" for _, steps in phases.values())))
    hours = (flops * steps / (SHARE * PEAK) / 3600 for flops, steps in phases.values())
    rows.append((f"GPU-hours at {SHARE:.0%} of an H100", *("< 0.001" if one < 0.001 else f"{one:,.3f}" for one in hours)))
    print()
    for line in _columns(rows, left=1):
        print(line)


def _print_parts(parts) -> None:
    total = dataclasses.replace(
        parts[0], name="total", shape="", base=sum(p.base for p in parts), tuned=sum(p.tuned for p in parts)
    )
    rows = [("part", "shape of one trial", "base", "learned in tuning")]
    rows += [(p.name, p.shape, f"{p.base:,}", f"{p.tuned:,}") for p in (*parts, total)]
    _print_table(rows, left=2)


def _print_memory(phases) -> None:
    rows = [("memory", *phases)]
    rows.append(("trials in a step", *(str(m.batch) for m in phases.values())))
    for field, label in (
        ("weights", "weights"),
        ("gradients", "gradients"),
        ("optimizer", "AdamW's two moments"),
        ("activations", "activations"),
        ("total", "total"),
    ):
        rows.append((label, *(f"{getattr(m, field) / 2**30:.2f}" for m in phases.values())))
    _print_table(rows, left=1)


def _columns(rows: list[tuple[str, ...]], left: int) -> list[str]:
    """Columns as wide as their widest cell; the first ``left`` are words, the others numbers."""
    from tabulate import tabulate

    sides = ("left",) * left + ("right",) * (len(rows[0]) - left)
    return [line.rstrip() for line in tabulate(rows, tablefmt="plain", colalign=sides, disable_numparse=True).splitlines()]


def _print_table(rows: list[tuple[str, ...]], left: int) -> None:
    """With rules: the last row is a sum."""
    lines = _columns(rows, left)
    rule = "-" * max(map(len, lines))
    print("\n".join((lines[0], rule, *lines[1:-1], rule, lines[-1])))
