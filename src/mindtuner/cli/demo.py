"""The whole story on a laptop: simulate, pretrain, tune, decode, score, report.

Eight simulated subjects look at scenes. One model is pretrained on seven of them; the eighth is learned from one session,
with its fingerprint and with the methods it is compared to. Then the images that the eighth subject saw are read back from
its brain: as pictures, as words, and among candidates. Everything is written to OUT; open OUT/report.html.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mindtuner.cli.simulate import add_stimuli

_PICTURE_METHODS_NOTE = ("The generator was trained on the package's own drawn scenes, not on these stimuli; "
                         "mindtuner train-generator makes one for them.")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("mindtuner-demo"), metavar="OUT",
                        help="folder to write (default mindtuner-demo)")
    parser.add_argument("--quick", action="store_true", help="every part, much smaller: about a minute, poor scores")
    add_stimuli(parser)
    parser.add_argument("--generator", type=Path, metavar="FILE",
                        help="weights of mindtuner train-generator (default: those that the package ships)")
    parser.add_argument("--fingerprint", type=float, metavar="N",
                        help="strength of the subjects' own non-linear recoding (default 0.5)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of everything (default 0)")
    parser.add_argument("--keep-data", action="store_true", help="keep the simulated dataset in OUT/data")
    parser.add_argument("--force", action="store_true", help="replace an earlier run in OUT")


def run(options: argparse.Namespace) -> None:
    from mindtuner.config import load_config
    from mindtuner.data.simulation.simulate import check_inputs

    config = load_config("quick" if options.quick else "demo")
    knobs = dataclasses.replace(config.simulate, seed=options.seed)
    if options.fingerprint is not None:
        knobs = dataclasses.replace(knobs, fingerprint=options.fingerprint)
    check_inputs(knobs, options.cutouts, options.stimuli)
    config = dataclasses.replace(config, simulate=knobs, seed=options.seed)
    page = run_demo(options.out, config, options)
    print(f"\nOpen {page}")


class Stopwatch:
    """Seconds of each stage, said aloud as they end."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._start = time.perf_counter()

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        print(f"{name} ...", end="" if sys.stderr.isatty() else "\n", flush=True)
        yield
        self.seconds[name] = time.perf_counter() - start
        print(f"\r{name:<12} {self.seconds[name]:6.1f} s", flush=True)

    def total(self) -> dict[str, float]:
        return self.seconds | {"total": time.perf_counter() - self._start}


def run_demo(out: Path, config, options: argparse.Namespace) -> Path:
    """All stages, into ``out``; returns the report's path."""
    import yaml

    from mindtuner import runtime
    from mindtuner.cli import story
    from mindtuner.config import as_dict
    from mindtuner.data import load
    from mindtuner.data.simulation.simulate import simulate
    from mindtuner.decoding.compact import CompactGenerator
    from mindtuner.encoders.compact import CompactImageEncoder, CompactTextEncoder
    from mindtuner.encoders.embed import embed
    from mindtuner.evaluation.figure import contact_sheet
    from mindtuner.evaluation.report import write_report
    from mindtuner.evaluation.results import build_results, log_to, save_run
    from mindtuner.files import atomic_path, claim_folder, write_text
    from mindtuner.training import METHODS, Targets, pretrain, save_fingerprint, save_network, tune

    generator = CompactGenerator(config.decode, config.seed, options.generator)
    claim_folder(out, options.force)
    command = "mindtuner " + shlex.join(sys.argv[1:])
    write_text(out / "config.yaml", f"# {command}\n{yaml.safe_dump(as_dict(config), sort_keys=False)}")
    watch = Stopwatch()
    log = log_to(out)
    with watch.stage("simulate"):
        simulate(out / "data", config.simulate, options.cutouts, options.stimuli)
        dataset = load(out / "data")
    with watch.stage("embed"):
        texts = CompactTextEncoder()
        caches = embed(dataset, out / "data" / "cache", CompactImageEncoder(), texts, generator.autoencoder)
        targets = Targets(**{name: caches[name] for name in (f.name for f in dataclasses.fields(Targets))})
    with watch.stage("pretrain"):
        base = pretrain(dataset.without(subject=config.target_subject), targets, config, config.seed, log)
        save_network(out / "base.safetensors", base, {"seed": config.seed, "simulated": True})
    subject = dataset.subject(config.target_subject)
    with watch.stage("tune"):
        hour = subject.sessions(config.tuning_sessions)
        tuned = {method: tune(base, hour, targets, config, config.seed, method, log) for method in METHODS}
        save_fingerprint(out / "fingerprint.safetensors", tuned["mindtuner"],
                         {"subject": subject.number, "sessions": config.tuning_sessions, "simulated": True})
    with watch.stage("decode"):
        test = story.TestSet.of(subject, dataset.stimuli, caches, config.decode.pictures)
        predictions = story.decode_all(tuned, base, test, caches, config)
    with watch.stage("paint"):
        bank = story.training_bank(dataset, texts)
        painted = story.paint_all(predictions, generator, bank, test)
    with watch.stage("score"):
        scores = story.score_all(predictions, painted, test, config.seed)
    setting = story.describe_setting(config, dataset, hour, test, bank, command)
    setting["stimuli_note"] = ("" if options.generator or not (options.cutouts or options.stimuli)
                               else _PICTURE_METHODS_NOTE)
    with watch.stage("report"):
        results = build_results(setting, scores, watch.total(), runtime.peak_memory_mb(), config.seed)
        save_run(out, results, story.pictures_of(painted, test), story.words_of(predictions, painted, scores, test))
        page = write_report(out)
        with atomic_path(out / "demo.png") as part:
            contact_sheet(out, min(8, len(test.shown))).save(part, "PNG")
    if not options.keep_data:
        shutil.rmtree(out / "data")
    story.print_table(results)
    return page
