"""Tune a base to one subject.

BASE is a run of mindtuner pretrain, or its base.safetensors. Writes into RUN: fingerprint.safetensors (method mindtuner) and,
for the report's comparisons, METHOD.safetensors for each other method, config.yaml and log.jsonl. The same command goes on
where an earlier one was stopped; with other methods it adds them.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from mindtuner.cli import steps

REPORTED = ("mindtuner", "ridge_only", "shuffled_brain")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", type=Path, metavar="BASE", help="run of mindtuner pretrain, or its base.safetensors")
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the dataset")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder to write")
    parser.add_argument("--subject", type=int, required=True, metavar="N", help="the subject to tune to")
    parser.add_argument(
        "--sessions", type=int, metavar="K", help="train on sessions 1 to K (default: tuning_sessions of the config)"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--method",
        nargs="+",
        default=list(REPORTED),
        metavar="METHOD",
        help=f"default: {' '.join(REPORTED)}, which a report needs; also full_finetune, from_scratch",
    )
    which.add_argument("--all", action="store_true", help="all five methods")
    steps.add_config(parser, "config.yaml beside the base, else demo; the model section is the base's")
    steps.add_towers(parser)
    steps.add_hold_out(parser, "; a base that held it out goes on doing so without being told")
    parser.add_argument("--force", action="store_true", help="replace an earlier run in RUN")


def run(options: argparse.Namespace) -> None:
    from mindtuner.cli import towers, tuned
    from mindtuner.config import load_config
    from mindtuner.errors import UserError
    from mindtuner.formats import load
    from mindtuner.generators.compact import starting_prior
    from mindtuner.processes import processes
    from mindtuner.training import METHODS, load_network, read_card, remove_checkpoint, tune

    methods = METHODS if options.all else options.method
    for method in methods:
        if method not in METHODS:
            raise UserError(f"--method: {method!r} is unknown; expected some of {', '.join(METHODS)}")
    path = tuned.base_file(options.base)
    name = tuned.settings_for(path, options.config)
    config = load_config(name)
    base = load_network(path)
    cache = options.cache or options.data / "cache"
    steps.check_towers(base.config, path, cache)
    tuned.refuse_known(base, path, options.subject)
    category = read_card(path).get("hold_out_category", "")
    wanted = category if options.hold_out_category is None else steps.category_of(options.hold_out_category)
    if wanted != category:
        raise UserError(f"{path}: hold_out_category is {category!r}; expected {wanted!r}, a base that never saw it either")
    dataset = steps.held_out(load(options.data, [options.subject]), category)
    sessions = config.tuning_sessions if options.sessions is None else options.sessions
    hour = dataset.subject(options.subject).sessions(sessions)
    config = dataclasses.replace(
        config,
        model=base.config,
        target_subject=options.subject,
        tuning_sessions=sessions,
        seed=config.seed if options.seed is None else options.seed,
        hold_out_category=category,
    )
    generator = steps.compact_generator(cache, config, options.generator)
    scratch = generator is not None and base.prior is not None and "from_scratch" in methods
    prior = starting_prior(config.model, options.generator) if scratch else None
    steps.refuse_overlap(options.run, DATA=options.data, BASE=path)
    command = steps.command_of(
        "tune",
        options.base,
        options.data,
        options.run,
        "--subject",
        options.subject,
        "--sessions",
        sessions,
        "--config",
        name,
        "--seed",
        config.seed,
        *(["--hold-out-category", category] if category else []),
    )
    steps.claim(options.run, steps.settings_text(config, command), options.force)
    log, watch = steps.log_of(options.run), steps.Stopwatch()
    with watch.stage("embed"):
        targets, facts = steps.gather_targets(dataset, cache, generator)
        towers.check_same(read_card(path), path, cache)
    for method in methods:
        checkpoint = options.run / f"{method}.checkpoint"
        with watch.stage(method):
            if not (options.run / tuned.FILES[method]).exists():
                network = tune(base, hour, targets, config, config.seed, method, log, prior=prior, checkpoint=checkpoint)
                if processes().index == 0:
                    tuned.save_tuned(options.run, method, network, hour, config, path, dataset.card["simulated"], facts)
            processes().wait()
            if processes().index == 0:
                remove_checkpoint(checkpoint)
    print(f"\n{options.run}: subject {hour.number}, {len(hour.train)} training trials; next: mindtuner evaluate")
