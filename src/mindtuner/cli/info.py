"""Sizes of a config: modules, shapes, parameters, what trains, and the memory that it takes.

CONFIG is one that the package carries (demo, quick, paper) or a YAML file. Nothing is trained and nothing is allocated:
the network is built on torch's meta device, so the paper's two billion parameters take seconds on a laptop.
"""

from __future__ import annotations

import argparse
import dataclasses


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", metavar="CONFIG", help="demo, quick, paper, or a YAML file")
    parser.add_argument("--voxels", type=int, metavar="N",
                        help="voxels of the subject to tune (default: NSD's, times the config's voxel_scale)")
    parser.add_argument("--subjects", type=int, metavar="N",
                        help="subjects to pretrain on, with NSD's voxels (default: all of the config but one)")


def run(options: argparse.Namespace) -> None:
    from mindtuner.config import load_config
    from mindtuner.data import nsd
    from mindtuner.data.simulation.simulate import check_knobs
    from mindtuner.errors import UserError
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
    if options.voxels is not None and options.voxels < 1:
        raise UserError(f"--voxels is {options.voxels}; expected at least 1")
    n_voxels = options.voxels or nsd.voxel_count(target, scale)
    voxels = {subject_name(number): nsd.voxel_count(number, scale) for number in others[:subjects]}
    name = subject_name(target)

    base = sizes.build_base(config, voxels)
    tuned = sizes.build_tuned(config, voxels, name, n_voxels)
    print(f"{options.config}: {config.model.backbone} backbone, pretrained on {subjects} subjects, then tuned to {name} "
          f"with {n_voxels:,} voxels\n")
    _print_parts(sizes.count_parts(base, tuned))
    print(f"\nPretraining trains all of the base (the projector by itself, before the rest). full_finetune would train "
          f"{sizes.count_full_finetune(tuned):,}.\n")

    base.projector.requires_grad_(False)  # as in pretraining: the Pivot has trained it already
    _print_memory({"pretraining": sizes.training_memory(base, voxels, config.pretrain),
                   "tuning": sizes.training_memory(tuned, {name: n_voxels}, config.tune),
                   "inference": sizes.inference_memory(tuned, name)})
    print("""
GiB on the device, every number in float32. Activations are the most that one step holds beside the rest, measured by running
it without numbers; they grow with the batch. Attention is counted as if written out; fused kernels need less. 16-bit autocast
needs less for activations and adds a 16-bit copy of the weights. Left out: one further set of gradients when the log measures
each loss's gradient, what kernels and allocator take for themselves, the frozen towers and the generator.""")


def _print_parts(parts) -> None:
    total = dataclasses.replace(parts[0], name="total", shape="", base=sum(p.base for p in parts),
                                tuned=sum(p.tuned for p in parts))
    rows = [("part", "shape of one trial", "base", "trained in tuning")]
    rows += [(p.name, p.shape, f"{p.base:,}", f"{p.tuned:,}") for p in (*parts, total)]
    _print_table(rows, left=2)


def _print_memory(phases) -> None:
    rows = [("memory", *phases)]
    rows.append(("trials in a step", *(str(m.batch) for m in phases.values())))
    for field, label in (("weights", "weights"), ("gradients", "gradients"), ("optimizer", "AdamW's two moments"),
                         ("activations", "activations"), ("total", "total")):
        rows.append((label, *(f"{getattr(m, field) / 2**30:.2f}" for m in phases.values())))
    _print_table(rows, left=1)


def _print_table(rows: list[tuple[str, ...]], left: int) -> None:
    """Columns as wide as their widest cell; the first ``left`` are words, the others numbers. The last row is a sum."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) if column < left else cell.rjust(width)
                       for column, (cell, width) in enumerate(zip(row, widths, strict=True))).rstrip() for row in rows]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    print("\n".join((lines[0], rule, *lines[1:-1], rule, lines[-1])))
