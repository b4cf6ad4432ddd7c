"""Pretrain a base on the subjects of a dataset.

Reads DATA (the files of the public release, or a lab's own scans, see docs/your-own-scans.md) and writes base.safetensors,
config.yaml and log.jsonl into RUN. Leave out the subject that is to be tuned later. The same command goes on where an
earlier one was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from mindtuner.cli import steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the dataset")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder to write")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--subjects", type=int, nargs="+", metavar="N", help="train on these only (default: all)")
    which.add_argument("--without", type=int, nargs="+", default=[], metavar="N", help="train on all but these")
    steps.add_config(parser, "demo")
    steps.add_towers(parser)
    steps.add_hold_out(parser, ", and score those that the test images hold of it apart")
    parser.add_argument("--force", action="store_true", help="replace an earlier run in RUN")


def run(options: argparse.Namespace) -> None:
    from mindtuner.config import load_config
    from mindtuner.errors import UserError
    from mindtuner.formats import load
    from mindtuner.generators.compact import starting_prior

    name = options.config or "demo"
    config = load_config(name)
    config = config if options.seed is None else dataclasses.replace(config, seed=options.seed)
    if options.hold_out_category is not None:
        config = dataclasses.replace(config, hold_out_category=steps.category_of(options.hold_out_category))
    cache = options.cache or options.data / "cache"
    steps.check_towers(config.model, f"config {name}", cache)
    generator = steps.compact_generator(cache, config, options.generator)
    prior = None if generator is None else starting_prior(config.model, options.generator)
    dataset = steps.held_out(load(options.data, options.subjects), config.hold_out_category)
    for subject in options.without:
        dataset = dataset.without(subject)
    if not dataset.subjects:
        raise UserError(f"{options.data}: no subject is left to pretrain on; expected at least one")
    refuse_without_captions(dataset)
    steps.refuse_overlap(options.run, DATA=options.data)
    words = [] if options.generator is None else ["--generator", options.generator]
    words += ["--hold-out-category", config.hold_out_category] if config.hold_out_category else []
    command = steps.command_of(
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
    steps.claim(options.run, steps.settings_text(config, command), options.force)
    watch = steps.Stopwatch()
    with watch.stage("embed"):
        targets, facts = steps.gather_targets(dataset, cache, generator)
    with watch.stage("pretrain"):
        card = {
            "seed": config.seed,
            "simulated": dataset.card["simulated"],
            "zscore": dataset.card["zscore"],
            "subjects": sorted(dataset.subjects),
            "hold_out_category": config.hold_out_category,
            **facts,
        }
        steps.pretrained(options.run, dataset, targets, config, steps.log_of(options.run), prior, card)
    print(f"\n{options.run / steps.BASE}: {len(dataset.subjects)} subject{'s' if len(dataset.subjects) > 1 else ''}")


def refuse_without_captions(dataset) -> None:
    """Raise UserError where no training image has a caption: the Pivot learns from images and captions alone."""
    import numpy as np

    from mindtuner.errors import UserError

    seen = np.unique(np.concatenate([subject.train.stimulus for subject in dataset.subjects.values()]))
    if not any(dataset.stimuli.captions[image] for image in seen):
        raise UserError(
            f"{dataset.root}: captions of the {len(seen)} training images are all missing; expected some, from "
            "which a base learns words (tuning on another base needs none)"
        )
