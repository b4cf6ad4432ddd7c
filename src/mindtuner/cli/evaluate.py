"""Score what was tuned, and write the report.

TUNED is a run of mindtuner tune. The test images of its subject are decoded with every method found there, painted, and
scored beside chance and beside two controls that need no tuning. Writes results.json, report.html and what belongs to them
into OUT, and prints a table.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from mindtuner.cli import steps


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tuned", type=Path, metavar="TUNED", help="run of mindtuner tune")
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the dataset")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument("--base", type=Path, metavar="BASE",
                        help="run of mindtuner pretrain, or its base.safetensors (default: where it was when tuning)")
    steps.add_towers(parser)
    parser.add_argument("--force", action="store_true", help="replace an earlier run in OUT")


def run(options: argparse.Namespace) -> None:
    from mindtuner.cli import story, towers, tuned
    from mindtuner.config import load_config
    from mindtuner.data import load
    from mindtuner.decoding.compact import CompactGenerator
    from mindtuner.errors import UserError
    from mindtuner.files import claim_folder, write_text
    from mindtuner.training import load_network, read_card

    files = {method: options.tuned / name for method, name in tuned.FILES.items() if (options.tuned / name).is_file()}
    settings = options.tuned / steps.SETTINGS
    if not files or not settings.is_file():
        raise UserError(f"{options.tuned}: holds no {steps.SETTINGS} with {tuned.FILES['mindtuner']}; expected a run of "
                        "mindtuner tune")
    config = load_config(settings)
    path = tuned.base_of(next(iter(files.values())), options.base)
    steps.refuse_overlap(options.out, DATA=options.data, TUNED=options.tuned, BASE=path)
    base = load_network(path)
    steps.check_towers(base.config, path)
    dataset = load(options.data, [config.target_subject])
    hour = dataset.subject(config.target_subject).sessions(config.tuning_sessions)
    networks = {method: tuned.load_tuned(file, base, hour) for method, file in files.items()}
    generator = CompactGenerator(config.decode, config.seed, options.generator)
    claim_folder(options.out, options.force)
    command = steps.command_of("evaluate", options.tuned, options.data, options.out)
    commands = [steps.command_in(path.parent / steps.SETTINGS), steps.command_in(settings), command]
    write_text(options.out / steps.SETTINGS, steps.settings_text(config, command))
    write_text(options.out / "log.jsonl", _joined_log(path.parent, options.tuned))
    watch = steps.Stopwatch()
    with watch.stage("embed"):
        materials = steps.gather(dataset, options.cache, generator)
        towers.check_same(read_card(path), path, options.cache or dataset.root / "cache")
    note = "" if options.generator else story.generator_note(dataset.card)
    page = story.tell(options.out, config, materials, hour, base, networks, watch, " && ".join(filter(None, commands)), note)
    print(f"\nOpen {page}")


def _joined_log(base: Path, tuned: Path) -> str:
    """The log of pretraining, where it lies beside the base, and that of tuning, as one."""
    from mindtuner.evaluation.results import load_log

    entries = [entry for run in (base, tuned) if (run / "log.jsonl").is_file() for entry in load_log(run)]
    return "".join(json.dumps(entry) + "\n" for entry in entries)
