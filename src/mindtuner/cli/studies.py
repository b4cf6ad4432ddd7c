"""What the studies share: their options, and from a dataset to a bench to run them on."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING

from mindtuner.cli import steps

if TYPE_CHECKING:  # what is heavy is imported only where it is used
    from mindtuner.analysis.runs import Bench
    from mindtuner.config import Config


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--data", type=Path, metavar="DATA",
                        help="folder of a dataset (default: one is simulated into OUT/data, as the config says)")
    parser.add_argument("--base", type=Path, metavar="BASE",
                        help="run of mindtuner pretrain on all other subjects, or its base.safetensors (default: pretrained here)")
    parser.add_argument("--subject", type=int, metavar="N", help="the subject to tune to (default: the config's)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="tunings of each kind (default 5); more go on")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes, of one thread each (default 1)")
    parser.add_argument("--force", action="store_true", help="replace an earlier study in OUT")
    steps.add_config(parser, "demo")
    steps.add_towers(parser)


def prepare(options: argparse.Namespace, verb: str, sessions: int | None = None):
    """The bench, and how a worker opens it for itself. Raises UserError for options that cannot be."""
    from mindtuner.cli import tuned
    from mindtuner.config import load_config
    from mindtuner.data.layouts import layout_a
    from mindtuner.data.simulation.simulate import check_inputs, simulate
    from mindtuner.errors import UserError
    from mindtuner.training import load_network, subject_name

    for name, least in (("seeds", 2), ("jobs", 1)):
        if getattr(options, name) < least:
            raise UserError(f"--{name}: is {getattr(options, name)}; expected at least {least}")
    config = load_config(options.config or "demo")
    seed = config.seed if options.seed is None else options.seed
    config = dataclasses.replace(config, seed=seed, target_subject=options.subject or config.target_subject,
                                 tuning_sessions=config.tuning_sessions if sessions is None else sessions)
    base = None if options.base is None else tuned.base_file(options.base)
    if base is not None:
        network = load_network(base)
        if subject_name(config.target_subject) in network.ridges:
            raise UserError(f"{base}: knows subject {config.target_subject} already; expected a base that has not seen it")
        config = dataclasses.replace(config, model=network.config)
    data = options.data or options.out / "data"
    steps.refuse_overlap(options.out, **({"DATA": options.data} if options.data else {}),
                         **({"BASE": base} if base else {}))
    words = [item for name in ("data", "base", "cache", "generator", "subject", "config", "seed")
             if (value := getattr(options, name)) is not None for item in (f"--{name}", value)]
    if sessions is not None:
        words += ["--sessions", sessions]
    if options.data is None:
        check_inputs(config.simulate)
    steps.claim(options.out, steps.settings_text(config, steps.command_of(verb, options.out, *words)), options.force)
    if options.data is None and not (data / layout_a.MASKS).exists():
        simulate(data, config.simulate)
    opens = functools.partial(open_bench, data, options.cache or data / "cache", config, options.out, base, options.generator)
    return opens(), opens


def open_bench(data: Path, cache: Path, config: Config, out: Path, base: Path | None, generator: Path | None) -> Bench:
    """Raises UserError where data and config do not fit."""
    from mindtuner.analysis.runs import Bench
    from mindtuner.data import load
    from mindtuner.errors import UserError

    dataset = load(data)
    subject = dataset.subject(config.target_subject)
    if len(subject.test) == 0:
        raise UserError(f"{subject.where}: subject {subject.number} has no test trial; expected trials of test images")
    steps.check_towers(config.model, cache, cache)
    targets, _ = steps.gather_targets(dataset, cache, steps.compact_generator(cache, config, generator))
    bench = Bench(dataset, targets, config, out, base, generator)
    if not bench.others and base is None:
        raise UserError(f"{data}: holds subject {subject.number} alone; expected others to pretrain on, or --base")
    return bench
