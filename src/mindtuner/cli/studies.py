"""What the studies share: their options, and from a dataset to a bench to run them on."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mindtuner.cli import steps

if TYPE_CHECKING:  # what is heavy is imported only where it is used
    from mindtuner.config import Config
    from mindtuner.data import Dataset
    from mindtuner.model import BrainNetwork
    from mindtuner.studies.bench import Bench, Chance, Run, Scores


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DATA",
        help="folder of a dataset (default: one is simulated into OUT/data, as the config says)",
    )
    parser.add_argument(
        "--base",
        type=Path,
        metavar="BASE",
        help="run of mindtuner pretrain on all other subjects, or its base.safetensors (default: made here)",
    )
    parser.add_argument("--subject", type=int, metavar="N", help="the subject to tune to (default: the config's)")
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="tunings of each kind (default 5)")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes, of one thread each (default 1)")
    parser.add_argument("--force", action="store_true", help="replace an earlier study in OUT")
    steps.add_config(parser, "config.yaml beside the base, else demo; the model section is the base's")
    steps.add_towers(parser)


def add_pictures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pictures",
        action="store_true",
        help="paint and score pictures too, which takes several times as long (docs/science.md)",
    )


def settled(options: argparse.Namespace, sessions: int | None = None) -> tuple[Config, Path | None]:
    """The config, and the file of the base where one is given. Raises UserError for options that cannot be."""
    from mindtuner.cli import tuned
    from mindtuner.config import load_config
    from mindtuner.errors import UserError
    from mindtuner.simulation.simulate import check_inputs
    from mindtuner.training import load_network, read_card

    for name, least in (("seeds", 2), ("jobs", 1)):
        if getattr(options, name) < least:
            raise UserError(f"--{name}: is {getattr(options, name)}; expected at least {least}")
    path = None if options.base is None else tuned.base_file(options.base)
    config = load_config((options.config or "demo") if path is None else tuned.settings_for(path, options.config))
    changed = {"seed": options.seed, "target_subject": options.subject, "tuning_sessions": sessions}
    config = dataclasses.replace(config, **{name: value for name, value in changed.items() if value is not None})
    if path is not None:
        base = load_network(path)
        tuned.refuse_known(base, path, config.target_subject)
        category = read_card(path).get("hold_out_category", "")
        config = dataclasses.replace(config, model=base.config, hold_out_category=category)
    if options.data is None:
        check_inputs(config.simulate)
    return config, path


def bench_of(
    options: argparse.Namespace, verb: str, config: Config, base: Path | None, pictures: bool = False
) -> tuple[Bench, Callable[[], Bench]]:
    """The bench, and how a process opens it for itself. Claims OUT, and simulates the data where none are given."""
    from mindtuner.formats.nsd_release.read import MASKS
    from mindtuner.simulation.simulate import simulate

    own = options.out / "data"
    data = options.data or own
    steps.refuse_overlap(options.out, **{name: path for name, path in (("DATA", options.data), ("BASE", base)) if path})
    given = {name: getattr(options, name) for name in ("data", "base", "cache", "generator", "config")}
    command = steps.command_of(
        verb,
        options.out,
        *(word for name, value in given.items() if value is not None for word in (f"--{name}", value)),
        "--subject",
        config.target_subject,
        "--seed",
        config.seed,
        *(["--pictures"] if pictures else []),
    )
    steps.claim(options.out, steps.settings_text(config, command), options.force)
    if options.data is None and not (own / MASKS).exists():  # simulate writes it last
        simulate(own, config.simulate)
    opens = functools.partial(
        open_bench, data, options.cache or data / "cache", config, options.out, base, options.generator, pictures
    )
    return opens(), opens


def open_bench(
    data: Path, cache: Path, config: Config, out: Path, base: Path | None, generator: Path | None, pictures: bool
) -> Bench:
    """Raises UserError where data, towers, base and config do not fit."""
    from mindtuner.cli import towers
    from mindtuner.cli.pretrain import refuse_without_captions
    from mindtuner.errors import UserError
    from mindtuner.formats import load
    from mindtuner.generators.compact import starting_prior
    from mindtuner.studies.bench import Bench
    from mindtuner.training import read_card

    dataset = steps.held_out(load(data), config.hold_out_category)
    subject = dataset.subject(config.target_subject)
    if len(subject.test) == 0:
        raise UserError(f"{subject.where}: subject {subject.number} has no test trial; expected trials of test images")
    if base is None:
        if len(dataset.subjects) == 1:
            raise UserError(f"{data}: holds subject {subject.number} alone; expected others to pretrain on, or --base")
        refuse_without_captions(dataset.without(subject.number))
    steps.check_towers(config.model, base or cache, cache)
    compact = steps.compact_generator(cache, config, generator)
    if pictures and compact is None:
        raise UserError(
            f"{cache}: is of towers of full size, whose pictures are too dear to paint in a study; expected no --pictures"
        )
    targets, facts = steps.gather_targets(dataset, cache, compact)
    if base is not None:
        towers.check_same(read_card(base), base, cache)
    card = {"seed": config.seed, "simulated": dataset.card["simulated"], "hold_out_category": config.hold_out_category}
    prior = None if compact is None else starting_prior(config.model, generator)
    paint = Painting(dataset, cache, config, generator) if pictures else None
    return Bench(dataset, targets, config, out, base, prior, {**card, **facts}, paint)


class Painting:
    """A bench's ``paint``: the pictures of ``evaluate``, before the semantic correction where a run is without the Pivot."""

    def __init__(self, dataset: Dataset, cache: Path, config: Config, generator: Path | None):
        from mindtuner.cli import story

        self.weights = generator
        self.materials = steps.gather(dataset, cache, steps.compact_generator(cache, config, generator))
        self.bank = story.training_bank(dataset, self.materials.texts)
        self.test = story.TestSet.of(
            dataset.subject(config.target_subject), dataset.stimuli, self.materials.caches, config.decode.pictures
        )

    def __call__(self, network: BrainNetwork, base: BrainNetwork, run: Run) -> tuple[Scores, Chance]:
        from mindtuner.cli import story
        from mindtuner.generators.compact import CompactGenerator

        decoded = story.decode_all({run.method: network}, base, self.test, self.materials.caches, run.config)
        generator = CompactGenerator(run.config.decode, run.seed, self.weights)
        painted = story.paint_all({run.method: decoded[run.method]}, generator, self.bank, self.test)
        if not run.pivot:
            painted[run.method]["stages"].pop("corrected", None)
        found = story.score_all({run.method: decoded[run.method]}, painted, self.test, run.seed, story.Scoring())[run.method]
        return found.reconstruction, {"two_way": 0.5, **found.chance}
