"""Score what was tuned, and write the report.

TUNED is a run of mindtuner tune. The test images of its subject are decoded with every method found there, painted, and
scored beside chance and beside two controls that need no tuning. Writes results.json, report.html and what belongs to them
into OUT, and prints a table. The same command goes on where an earlier one was stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mindtuner.cli import painters, steps
from mindtuner.files import file_digest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tuned", type=Path, metavar="TUNED", help="run of mindtuner tune")
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the dataset")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument(
        "--base",
        type=Path,
        metavar="BASE",
        help="run of mindtuner pretrain, or its base.safetensors (default: where it was when tuning)",
    )
    parser.add_argument("--cache", type=Path, metavar="DIR", help="what the towers say about the images (default DATA/cache)")
    painters.add_arguments(parser)
    add_scoring(parser)
    parser.add_argument("--force", action="store_true", help="replace an earlier run in OUT")


def add_networks(parser) -> None:
    """What ``score`` asks too."""
    parser.add_argument(
        "--networks",
        type=Path,
        metavar="DIR",
        help="folder with AlexNet, Inception, CLIP, EfficientNet-B1 and SwAV, as 'mindtuner fetch networks "
        "DIR' fills it; a score whose network is not there is left out by name",
    )
    parser.add_argument(
        "--as-published",
        action="store_true",
        help="the choices of the published evaluation: pictures resized without antialiasing, by way of 256, "
        "PixCorr and SSIM at 425, ties lost",
    )


def add_scoring(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("scores (see docs/scores.md)")
    add_networks(group)
    group.add_argument(
        "--pool",
        type=int,
        default=300,
        metavar="N",
        help="candidates of a second retrieval, where there are more test images (default 300, as published)",
    )


def scoring_words(options: argparse.Namespace) -> list[object]:
    """The options of the scores, as one would type them again."""
    networks = [] if options.networks is None else ["--networks", options.networks]
    pool = [] if options.pool == 300 else ["--pool", options.pool]
    return [*networks, *(["--as-published"] if options.as_published else []), *pool]


def run(options: argparse.Namespace) -> None:
    painters.check_options(options)

    from mindtuner.cli import story, towers, tuned
    from mindtuner.config import load_config
    from mindtuner.errors import UserError
    from mindtuner.files import write_text
    from mindtuner.formats import load
    from mindtuner.training import load_network, read_card

    scoring = story.Scoring(options.networks, options.as_published, options.pool)
    files = {method: options.tuned / name for method, name in tuned.FILES.items() if (options.tuned / name).is_file()}
    settings = options.tuned / steps.SETTINGS
    if not files or not settings.is_file():
        raise UserError(
            f"{options.tuned}: holds no {steps.SETTINGS} with {tuned.FILES['mindtuner']}; expected a run of mindtuner tune"
        )
    config = load_config(settings)
    path = tuned.base_of(next(iter(files.values())), options.base)
    steps.refuse_overlap(options.out, DATA=options.data, TUNED=options.tuned, BASE=path)
    base = load_network(path)
    full_size, cache = options.generator == painters.SDXL, options.cache or options.data / "cache"
    steps.check_towers(base.config, path, cache if full_size else None)
    if full_size:
        towers.check_same(read_card(path), path, cache)
    dataset = steps.held_out(load(options.data, [config.target_subject]), config.hold_out_category)
    hour = dataset.subject(config.target_subject).sessions(config.tuning_sessions)
    networks = {method: tuned.load_tuned(file, base, hour) for method, file in files.items()}
    speech = painters.Speech(read_card(next(iter(files.values()))), read_card(path), path)
    texts = painters.text_encoder(options, base, speech)
    generator = painters.painter(options, config.decode, config.seed, base, speech, texts, painters.batch_of(options))
    texts.network.cpu()  # the brain's networks have the GPU first
    command = steps.command_of(
        "evaluate", options.tuned, options.data, options.out, *painters.words_of(options), *scoring_words(options)
    )
    commands = [steps.command_in(path.parent / steps.SETTINGS), steps.command_in(settings), command]
    said = f"{steps.settings_text(config, command)}# {json.dumps(_facts(files, path, generator))}\n"
    steps.claim(options.out, said, options.force, "results.json")
    write_text(options.out / "log.jsonl", _joined_log(path.parent, options.tuned))
    watch = steps.Stopwatch()
    with watch.stage("embed"):
        if full_size:
            materials = steps.gather_full_size(dataset, cache, texts, generator)
        else:
            materials = steps.gather(dataset, cache, generator)
            towers.check_same(read_card(path), path, cache)
    own = options.generator == painters.COMPACT
    note = story.generator_note(dataset.card) if own else ""
    page = story.tell(
        options.out,
        config,
        materials,
        hour,
        base,
        networks,
        watch,
        " && ".join(filter(None, commands)),
        note,
        keep=True,
        scoring=scoring,
    )
    print(f"\nOpen {page}")


def _facts(files: dict[str, Path], base: Path, generator) -> dict:
    """What has to be the same, beside the command and the config, for a run to go on."""
    weights = {name: file_digest(path) for name, path in {**files, "base": base}.items()}
    return {"weights": weights, "generator": generator.identity}


def _joined_log(base: Path, tuned: Path) -> str:
    """The log of pretraining, where it lies beside the base, and that of tuning, as one."""
    from mindtuner.evaluation.results import load_log

    entries = [entry for run in (base, tuned) if (run / "log.jsonl").is_file() for entry in load_log(run)]
    return "".join(json.dumps(entry) + "\n" for entry in entries)
