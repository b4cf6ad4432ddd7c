"""The whole story on a laptop: simulate, pretrain, tune, decode, score, report.

Eight simulated subjects look at scenes. One model is pretrained on seven of them; the eighth is learned from one session,
with its fingerprint and with the methods it is compared to. Then the images that the eighth subject saw are read back from
its brain: as pictures, as words, and among candidates. Everything is written to OUT; open OUT/report.html. A run that
was stopped goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shlex
import shutil
import sys
from pathlib import Path

from mindtuner.cli import steps
from mindtuner.cli.simulate import add_stimuli
from mindtuner.cli.steps import Stopwatch


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path("mindtuner-demo"), metavar="OUT", help="folder to write (default mindtuner-demo)"
    )
    parser.add_argument("--quick", action="store_true", help="every part, much smaller: a minute and a half, poor scores")
    add_stimuli(parser, "needs 3900, with --quick 600")
    parser.add_argument(
        "--generator",
        type=Path,
        metavar="FILE",
        help="weights of mindtuner train-generator (default: those that the package ships)",
    )
    parser.add_argument(
        "--fingerprint", type=float, metavar="N", help="strength of the subjects' own non-linear recoding (default 0.5)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything (default 0)")
    steps.add_hold_out(parser)
    parser.add_argument("--keep-data", action="store_true", help="keep the simulated dataset in OUT/data")
    parser.add_argument("--force", action="store_true", help="replace an earlier run in OUT")


def run(options: argparse.Namespace) -> None:
    from mindtuner.config import load_config
    from mindtuner.simulation.simulate import check_inputs

    config = load_config("quick" if options.quick else "demo")
    knobs = dataclasses.replace(config.simulate, seed=options.seed)
    if options.fingerprint is not None:
        knobs = dataclasses.replace(knobs, fingerprint=options.fingerprint)
    check_inputs(knobs, options.cutouts, options.stimuli)
    category = _category(options)
    config = dataclasses.replace(config, simulate=knobs, seed=options.seed, hold_out_category=category)
    page = run_demo(options.out, config, options)
    print(f"\nOpen {page}")


def _category(options: argparse.Namespace) -> str:
    """The category to hold out, "" for none. Raises UserError where scenes of the package's drawings never show it, which
    would otherwise be known only when they are made."""
    from mindtuner.data.hold_out import shows
    from mindtuner.errors import UserError
    from mindtuner.simulation.drawing import KINDS
    from mindtuner.simulation.scenes import PLACES

    if options.hold_out_category is None:
        return ""
    category = steps.category_of(options.hold_out_category)
    if not (options.cutouts or options.stimuli or shows([*KINDS, *PLACES], category)):
        raise UserError(f"--hold-out-category: {category!r} is in no scene; expected one of {', '.join([*KINDS, *PLACES])}")
    return category


def _claim(out: Path, settings: str, force: bool) -> None:
    """Make ``out`` this run's: empty but for ``settings`` in config.yaml, or what the same run left when it was stopped.

    Of a stopped run the dataset is kept, where it is whole, and what pretraining had done.
    """
    from mindtuner.evaluation.results import load_log, log_to
    from mindtuner.files import write_text

    if not steps.claim(out, settings, force, finished="results.json"):
        return
    if not _dataset_is_whole(out / "data"):
        shutil.rmtree(out / "data", ignore_errors=True)
    log_to(out)  # drops a line that a killed process left unfinished
    # Until the base is there, pretraining logs again what it had done.
    kept = load_log(out) if (out / "base.safetensors").exists() else []
    write_text(
        out / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in kept if entry["stage"] in ("pivot", "pretrain"))
    )


def _dataset_is_whole(data: Path) -> bool:
    from mindtuner.formats.nsd_release.read import MASKS

    return (data / MASKS).exists()  # simulate writes it last


def run_demo(out: Path, config, options: argparse.Namespace) -> Path:
    """All stages, into ``out``; returns the report's path."""
    from mindtuner.cli import story
    from mindtuner.evaluation.results import load_run, log_to
    from mindtuner.files import atomic_path
    from mindtuner.formats import load
    from mindtuner.generators.compact import CompactGenerator, starting_prior
    from mindtuner.report.contact_sheet import contact_sheet
    from mindtuner.simulation.simulate import simulate
    from mindtuner.training import METHODS, save_fingerprint, tune

    generator = CompactGenerator(config.decode, config.seed, options.generator)
    prior = starting_prior(config.model, options.generator)
    command = "mindtuner " + shlex.join(sys.argv[1:])
    _claim(out, steps.settings_text(config, command.replace(" --force", "")), options.force)
    watch = Stopwatch()
    log = log_to(out)
    with watch.stage("simulate"):
        if not _dataset_is_whole(out / "data"):
            simulate(out / "data", config.simulate, options.cutouts, options.stimuli)
        dataset = steps.held_out(load(out / "data"), config.hold_out_category)
    with watch.stage("embed"):
        materials = steps.gather(dataset, None, generator)
        targets = materials.targets
    with watch.stage("pretrain"):
        others = dataset.without(subject=config.target_subject)
        base = steps.pretrained(
            out,
            others,
            targets,
            config,
            log,
            prior,
            {"seed": config.seed, "simulated": True, "hold_out_category": config.hold_out_category},
        )
    hour = dataset.subject(config.target_subject).sessions(config.tuning_sessions)
    with watch.stage("tune"):
        tuned = {method: tune(base, hour, targets, config, config.seed, method, log, prior=prior) for method in METHODS}
        save_fingerprint(
            out / "fingerprint.safetensors",
            tuned["mindtuner"],
            hour,
            config,
            {"simulated": True, "base_path": steps.BASE, "hold_out_category": config.hold_out_category},
        )
    note = "" if options.generator else story.generator_note(dataset.card)
    page = story.tell(out, config, materials, hour, base, tuned, watch, command, note)
    with atomic_path(out / "demo.png") as part:
        contact_sheet(out, min(8, len(load_run(out).pictures["seen"]))).save(part, "PNG")
    if not options.keep_data:
        shutil.rmtree(out / "data")
    return page
