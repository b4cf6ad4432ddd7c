"""Fit one subject's own models, without a base.

For a study of one person, or to see what a base has to beat. Writes into RUN: base.safetensors, which knows the training
images and their captions and no brain, ridge.safetensors (one cross-validated regression from voxels to image tokens, which
decodes), from_scratch.safetensors (the whole network, trained on this subject) and shuffled_brain.safetensors (the regression
on permuted brains, a control), config.yaml and log.jsonl. mindtuner evaluate and decode take RUN as they take a run of tune.
The same command goes on where an earlier one was stopped.

Where data are few, --folds 5 or --leave run fits once for each fold, into RUN/fold-1 and so on, and mindtuner evaluate RUN
tests every image once, by the fit that never saw it. Training and test of DATA do not count then.

Where DATA holds labels and no pictures, the regression is to the text of the labels, and words are decoded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mindtuner.cli import options as shared

METHODS = ("ridge", "from_scratch", "shuffled_brain")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the dataset")
    parser.add_argument("run", type=Path, metavar="RUN", help="folder to write")
    parser.add_argument("--subject", type=int, metavar="N", help="the subject to fit (default: the only one)")
    parser.add_argument(
        "--sessions",
        type=shared.count_or_all,
        default="all",
        metavar="K",
        help="train on the first K sessions (default: all)",
    )
    parser.add_argument("--method", nargs="+", metavar="METHOD", help=f"default: {' '.join(METHODS)}, as far as they can be")
    parts = parser.add_mutually_exclusive_group()
    parts.add_argument("--folds", type=int, metavar="K", help="fit K times, each without one of K parts of the images")
    parts.add_argument("--leave", metavar="WHAT", help="fit without each run, or each session, in turn: run or session")
    shared.add_config(parser, "demo")
    shared.add_towers(parser)
    shared.add_hold_out(parser)
    shared.add_device(parser)
    shared.add_force(parser, "an earlier run in RUN")


def run(options: argparse.Namespace) -> None:
    from mindtuner.errors import UserError
    from mindtuner.formats import load
    from mindtuner.pipeline import base, fit, fit_folds
    from mindtuner.pipeline.features import check_towers
    from mindtuner.pipeline.fitting import settled
    from mindtuner.pipeline.run_folder import command_of, refuse_overlap

    name = options.config or "demo"
    config = base.settled(name, seed=options.seed, hold_out_category=options.hold_out_category)
    cache = options.cache or options.data / "cache"
    check_towers(config.model, f"config {name}", cache)
    dataset = load(options.data, None if options.subject is None else [options.subject])
    dataset = base.held_out(dataset, config.hold_out_category)
    if options.subject is None and len(dataset.subjects) > 1:
        known = ", ".join(map(str, sorted(dataset.subjects)))
        raise UserError(f"subject: is missing, and {options.data} holds several; expected one of {known}")
    number, by = next(iter(dataset.subjects)), options.leave if options.folds is None else options.folds
    if by is not None and (options.sessions != "all" or config.hold_out_category):
        given = "hold_out_category" if config.hold_out_category else "sessions"
        raise UserError(f"{given}: is given, and so are folds, which use every trial; expected one of the two")
    refuse_overlap(options.run, DATA=options.data)
    if by is None:
        subject = dataset.subject(number).sessions(options.sessions)
        config = settled(subject, config, pictured=dataset.stimuli.pictured)
    command = command_of(
        "fit",
        options.data,
        options.run,
        "--subject",
        number,
        *(["--sessions", config.tuning_sessions] if by is None else ["--leave" if options.folds is None else "--folds", by]),
        "--config",
        name,
        "--seed",
        config.seed,
        *([] if options.generator is None else ["--generator", options.generator]),
        *(["--hold-out-category", config.hold_out_category] if config.hold_out_category else []),
    )
    watch = shared.stopwatch()
    features = shared.features_to_train(options, dataset, cache, config, command, watch)
    same = {
        "methods": options.method,
        "out": options.run,
        "force": options.force,
        "command": command,
        "watch": watch,
    }
    if by is not None:
        found = fit_folds(dataset, number, features, by, config, **same)
        print(f"\n{options.run}: {found}; next: mindtuner evaluate")
        return
    fit(subject, features, config, **same)
    print(f"\n{options.run}: subject {subject.number}, {len(subject.train)} training trials; next: mindtuner evaluate")
