"""Options that several verbs have, and what they say while they work."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what is heavy is imported only where it is used
    from mindtuner.config import Config
    from mindtuner.data import Dataset
    from mindtuner.pipeline import Features, Stopwatch


def add_config(parser: argparse.ArgumentParser, default: str) -> None:
    """Settings and seed."""
    parser.add_argument("--config", metavar="NAME", help=f"demo, quick, paper or a YAML file (default {default})")
    parser.add_argument("--seed", type=int, metavar="N", help="seed of weights and order (default: the config's)")


def seed(text: str) -> int:
    """A seed, as NumPy has them."""
    from mindtuner.config import MOST_SEED

    if not text.isdecimal() or int(text) > MOST_SEED:
        raise argparse.ArgumentTypeError(f"is {text!r}; expected a whole number from 0 to {MOST_SEED}")
    return int(text)


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Where features lie."""
    parser.add_argument("--cache", type=Path, metavar="DIR", help="what the towers say about the images (default DATA/cache)")


def add_towers(parser: argparse.ArgumentParser) -> None:
    """Where features lie, and whose autoencoder is one of the towers."""
    add_cache(parser)
    parser.add_argument(
        "--generator",
        type=Path,
        metavar="FILE",
        help="weights of mindtuner train-generator (default: those that the package ships)",
    )


def add_base(parser: argparse.ArgumentParser) -> None:
    """The base of something tuned."""
    parser.add_argument(
        "--base",
        type=Path,
        metavar="BASE",
        help="run of mindtuner pretrain, its base.safetensors, or OWNER/NAME on the hub (default: where it was when tuning)",
    )


def add_own_subject(parser: argparse.ArgumentParser) -> None:
    """One of the subjects that a base was trained on."""
    parser.add_argument(
        "--subject", type=int, metavar="N", help="where a base stands in its place: this one of the base's own subjects"
    )


def add_hold_out(parser: argparse.ArgumentParser, also: str = "") -> None:
    """A category that no training sees."""
    parser.add_argument(
        "--hold-out-category",
        metavar="NAME",
        help=f"train on no image whose captions name it{also} (docs/hold-out.md)",
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Where to compute; ``cli.main`` sees to it."""
    parser.add_argument(
        "--device", metavar="WHERE", help="where to compute: cuda, cuda:N, mps or cpu (default: cuda where there is one)"
    )


def add_force(parser: argparse.ArgumentParser, what: str = "an earlier run in OUT") -> None:
    """Whether to replace."""
    parser.add_argument("--force", action="store_true", help=f"replace {what}")


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """How many test images are painted."""
    parser.add_argument(
        "--pictures",
        type=int,
        metavar="N",
        help="test images to paint, evenly spaced; 0 paints nothing, and scores retrieval and words (default: the config's)",
    )


def add_study(parser: argparse.ArgumentParser) -> None:
    """What studies of many tunings ask."""
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
    parser.add_argument(
        "--pictures",
        action="store_true",
        help="paint and score pictures too, which takes several times as long (docs/science.md)",
    )
    add_force(parser, "an earlier study in OUT")
    add_config(parser, "config.yaml beside the base, else demo; the model section is the base's")
    add_towers(parser)


def add_leave_out_known(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--leave-out-known",
        action="store_true",
        help="go on where the split is not that of training, without the test images that the base or the subject was "
        "trained on, which else are refused",
    )


def study_arguments(options: argparse.Namespace, verb: str) -> dict:
    """These options as parameters of the studies' functions, and the call as one would type it again."""
    from mindtuner.pipeline.run_folder import command_of
    from mindtuner.studies.bench import settled

    config, _ = settled(options.config, options.base, subject=options.subject, seed=options.seed)
    given = {name: getattr(options, name) for name in ("data", "base", "cache", "generator", "config")}
    command = command_of(
        verb,
        options.out,
        *(word for name, value in given.items() if value is not None for word in (f"--{name}", value)),
        "--subject",
        config.target_subject,
        "--seed",
        config.seed,
        *(["--pictures"] if options.pictures else []),
    )
    same = ("seeds", "jobs", "config", "base", "subject", "seed", "data", "cache", "pictures", "force")
    return {name: getattr(options, name) for name in same} | {"weights": options.generator, "command": command}


def add_mask_values(parser: argparse.ArgumentParser, what: str) -> None:
    """Which values of a mask count."""
    parser.add_argument("--mask-values", metavar="N,N,...", help=f"{what} (default: all above 0)")


def mask_values(text: str | None) -> list[float] | None:
    """These values. Raises UserError where they are no numbers."""
    from mindtuner.errors import UserError

    try:
        return None if text is None else [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UserError(f"--mask-values: is {text!r}; expected numbers such as 1,2") from error


def count_or_all(text: str) -> int | str:
    """A whole number, or ``all``."""
    if text != "all" and not text.lstrip("-").isdecimal():
        raise argparse.ArgumentTypeError(f"is {text!r}; expected a whole number, or all")
    return text if text == "all" else int(text)


def features_to_train(
    options: argparse.Namespace, dataset: Dataset, cache: Path, config: Config, command: str, watch: Stopwatch
) -> Features:
    """What the towers say of the stimuli, once it is clear that RUN is free, or holds the same run."""
    from mindtuner.pipeline import embed
    from mindtuner.pipeline.run_folder import refuse_other_run, settings_text

    refuse_other_run(options.run, settings_text(config, command), options.force)
    with watch.stage("embed"):
        return embed(dataset, cache, weights=options.generator)


def stopwatch() -> Stopwatch:
    """One that says the seconds of each stage as it ends."""
    from mindtuner.pipeline import Stopwatch

    class Aloud(Stopwatch):
        def began(self, name: str) -> None:
            print(f"{name} ...", end="" if sys.stderr.isatty() else "\n", flush=True)

        def ended(self, name: str, seconds: float) -> None:
            print(f"\r{name:<12} {seconds:6.1f} s", flush=True)

    return Aloud()
