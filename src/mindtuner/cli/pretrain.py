"""Pretrain a base on the subjects of a dataset.

Reads DATA (the files of the public release, or a lab's own scans, see docs/your-own-scans.md) and writes base.safetensors,
config.yaml and log.jsonl into RUN. Leave out the subject that is to be tuned later. The same command goes on where an
earlier one was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mindtuner.cli import options as shared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the dataset")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder to write")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--subjects", type=int, nargs="+", metavar="N", help="train on these only (default: all)")
    which.add_argument("--without", type=int, nargs="+", default=[], metavar="N", help="train on all but these")
    shared.add_config(parser, "demo")
    shared.add_towers(parser)
    shared.add_hold_out(parser, ", and score those that the test images hold of it apart")
    shared.add_device(parser)
    shared.add_force(parser, "an earlier run in RUN")


def run(options: argparse.Namespace) -> None:
    from mindtuner.formats import load
    from mindtuner.pipeline import pretrain
    from mindtuner.pipeline.base import FILE, held_out, refuse_untrainable, settled
    from mindtuner.pipeline.features import check_towers
    from mindtuner.pipeline.run_folder import command_of, refuse_overlap

    name = options.config or "demo"
    config = settled(name, seed=options.seed, hold_out_category=options.hold_out_category)
    cache = options.cache or options.data / "cache"
    check_towers(config.model, f"config {name}", cache)
    dataset = held_out(load(options.data, options.subjects), config.hold_out_category)
    for subject in options.without:
        dataset = dataset.without(subject)
    refuse_untrainable(dataset)
    refuse_overlap(options.run, DATA=options.data)
    words = [] if options.generator is None else ["--generator", options.generator]
    words += ["--hold-out-category", config.hold_out_category] if config.hold_out_category else []
    command = command_of(
        "pretrain",
        options.data,
        options.run,
        "--subjects",
        *sorted(dataset.subjects),
        "--config",
        name,
        "--seed",
        config.seed,
        *words,
    )
    watch = shared.stopwatch()
    features = shared.features_to_train(options, dataset, cache, config, command, watch)
    with watch.stage("pretrain"):
        pretrain(dataset, features, config, out=options.run, force=options.force, command=command)
    print(f"\n{options.run / FILE}: {len(dataset.subjects)} subject{'s' if len(dataset.subjects) > 1 else ''}")
