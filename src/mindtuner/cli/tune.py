"""Tune a base to one subject.

BASE is a run of mindtuner pretrain, its base.safetensors, or a base that was shared: its folder, or its id on the Hugging
Face hub. Writes into RUN: fingerprint.safetensors (method mindtuner) and, for the report's comparisons, METHOD.safetensors
for each other method, config.yaml and log.jsonl. The same command goes on where an earlier one was stopped; with other
methods it adds them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mindtuner.cli import options as shared

REPORTED = ("mindtuner", "ridge_only", "ridge", "shuffled_brain")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", type=Path, metavar="BASE", help="run of mindtuner pretrain, or OWNER/NAME on the hub")
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the dataset")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder to write")
    parser.add_argument("--subject", type=int, required=True, metavar="N", help="the subject to tune to")
    parser.add_argument(
        "--sessions",
        type=shared.count_or_all,
        metavar="K",
        help="train on the first K sessions, or all (default: tuning_sessions of the config, 1 as shipped; all where "
        "they hold no more than 750 training trials, one session of NSD)",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--method",
        nargs="+",
        default=list(REPORTED),
        metavar="METHOD",
        help=f"default: {' '.join(REPORTED)}, which a report needs; also full_finetune, from_scratch",
    )
    which.add_argument("--all", action="store_true", help="all six methods")
    shared.add_config(parser, "config.yaml beside the base, else demo; the model section is the base's")
    shared.add_towers(parser)
    shared.add_hold_out(parser, "; a base that held it out goes on doing so without being told")
    shared.add_device(parser)
    shared.add_force(parser, "an earlier run in RUN")


def run(options: argparse.Namespace) -> None:
    from mindtuner.errors import UserError
    from mindtuner.formats import load
    from mindtuner.pipeline import Base, tune
    from mindtuner.pipeline.base import category_of, held_out, settings_for
    from mindtuner.pipeline.features import check_towers
    from mindtuner.pipeline.run_folder import command_of, refuse_overlap
    from mindtuner.pipeline.tuning import refuse_unknown_methods, session_count, sessions_to_tune, settled
    from mindtuner.training import METHODS

    methods = METHODS if options.all else options.method
    refuse_unknown_methods(methods)
    base = Base.from_pretrained(options.base, options.config)
    cache = options.cache or options.data / "cache"
    check_towers(base.config.model, base.where, cache)
    base.refuse_known(options.subject)
    category = base.category
    wanted = category if options.hold_out_category is None else category_of(options.hold_out_category)
    if wanted != category:
        raise UserError(
            f"{base.where}: hold_out_category is {category!r}; expected {wanted!r}, a base that never saw it either"
        )
    dataset = held_out(load(options.data, [options.subject]), category)
    whole = dataset.subject(options.subject)
    hour = whole.sessions(sessions_to_tune(whole, base.config) if options.sessions is None else options.sessions)
    sessions = session_count(hour)
    refuse_overlap(options.run, DATA=options.data, BASE=base.path)
    config = settled(base, hour, seed=options.seed)
    settings = settings_for(base.path, options.config) if base.hub_id is None else options.config  # else in its repository
    command = command_of(
        "tune",
        options.base,
        options.data,
        options.run,
        "--subject",
        options.subject,
        "--sessions",
        sessions,
        *(["--config", settings] if settings else []),
        "--seed",
        config.seed,
        *(["--hold-out-category", category] if category else []),
    )
    watch = shared.stopwatch()
    features = shared.features_to_train(options, dataset, cache, config, command, watch)
    tune(
        base,
        hour,
        features,
        methods=methods,
        seed=options.seed,
        out=options.run,
        force=options.force,
        command=command,
        watch=watch,
    )
    print(f"\n{options.run}: subject {hour.number}, {len(hour.train)} training trials; next: mindtuner evaluate")
