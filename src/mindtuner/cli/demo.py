"""The whole story on a laptop: simulate, pretrain, tune, decode, score, report.

Eight simulated subjects look at scenes. One model is pretrained on seven of them; the eighth is learned from one session,
with its fingerprint and with the methods it is compared to. Then the images that the eighth subject saw are read back from
its brain: as pictures, as words, and among candidates. Everything is written to OUT; open OUT/report.html. A run that
was stopped goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from mindtuner.cli.simulate import add_stimuli

_FOREIGN_STIMULI = "The generator was trained on the package's own drawn scenes, not on these stimuli"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("mindtuner-demo"), metavar="OUT",
                        help="folder to write (default mindtuner-demo)")
    parser.add_argument("--quick", action="store_true", help="every part, much smaller: a minute and a half, poor scores")
    add_stimuli(parser, "needs 3900, with --quick 600")
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


def _stimuli_note(options: argparse.Namespace) -> str:
    if options.generator or not (options.cutouts or options.stimuli):
        return ""
    return _FOREIGN_STIMULI + ("; mindtuner train-generator --cutouts makes one for them." if options.cutouts else ".")


def _claim(out: Path, settings: str, force: bool) -> None:
    """Make ``out`` this run's: empty but for ``settings`` in config.yaml, or what the same run left when it was stopped.

    Of a stopped run the dataset is kept, where it is whole, and what pretraining had done.
    """
    from mindtuner.evaluation.results import load_log, log_to
    from mindtuner.files import claim_folder, write_text

    path = out / "config.yaml"
    stopped = path.is_file() and path.read_bytes() == settings.encode() and not (out / "results.json").exists()
    if not stopped or force:
        claim_folder(out, force)
        write_text(path, settings)
        return
    print(f"{out}: going on where this run was stopped", flush=True)
    if not _dataset_is_whole(out / "data"):
        shutil.rmtree(out / "data", ignore_errors=True)
    log_to(out)  # drops a line that a killed process left unfinished
    # Until the base is there, pretraining logs again what it had done.
    kept = load_log(out) if (out / "base.safetensors").exists() else []
    write_text(out / "log.jsonl", "".join(json.dumps(entry) + "\n" for entry in kept
                                          if entry["stage"] in ("pivot", "pretrain")))


def _dataset_is_whole(data: Path) -> bool:
    from mindtuner.data import layout_a

    return (data / layout_a.MASKS).exists()  # simulate writes it last


def run_demo(out: Path, config, options: argparse.Namespace) -> Path:
    """All stages, into ``out``; returns the report's path."""
    import yaml

    from mindtuner import runtime
    from mindtuner.cli import story
    from mindtuner.config import as_dict
    from mindtuner.data import load
    from mindtuner.data.simulation.simulate import simulate
    from mindtuner.decoding.compact import CompactGenerator, starting_prior
    from mindtuner.encoders.compact import CompactImageEncoder, CompactTextEncoder
    from mindtuner.encoders.embed import embed
    from mindtuner.evaluation.figure import contact_sheet
    from mindtuner.evaluation.report import write_report
    from mindtuner.evaluation.results import build_results, log_to, save_run
    from mindtuner.files import atomic_path
    from mindtuner.training import (
        METHODS,
        Targets,
        load_network,
        pretrain,
        remove_checkpoint,
        save_fingerprint,
        save_network,
        tune,
    )

    generator = CompactGenerator(config.decode, config.seed, options.generator)
    prior = starting_prior(config.model, options.generator)
    command = "mindtuner " + shlex.join(sys.argv[1:])
    settings = f"# {command.replace(' --force', '')}\n{yaml.safe_dump(as_dict(config), sort_keys=False)}"
    _claim(out, settings, options.force)
    watch = Stopwatch()
    log = log_to(out)
    with watch.stage("simulate"):
        if not _dataset_is_whole(out / "data"):
            simulate(out / "data", config.simulate, options.cutouts, options.stimuli)
        dataset = load(out / "data")
    with watch.stage("embed"):
        texts = CompactTextEncoder()
        caches = embed(dataset, out / "data" / "cache", CompactImageEncoder(), texts, generator.autoencoder)
        targets = Targets(**{name: caches[name] for name in (f.name for f in dataclasses.fields(Targets))})
    with watch.stage("pretrain"):
        if not (out / "base.safetensors").exists():
            base = pretrain(dataset.without(subject=config.target_subject), targets, config, config.seed, log, prior=prior,
                            checkpoint=out / "pretrain.checkpoint")
            save_network(out / "base.safetensors", base, {"seed": config.seed, "simulated": True})
        remove_checkpoint(out / "pretrain.checkpoint")
        base = load_network(out / "base.safetensors")
    subject = dataset.subject(config.target_subject)
    with watch.stage("tune"):
        hour = subject.sessions(config.tuning_sessions)
        tuned = {method: tune(base, hour, targets, config, config.seed, method, log, prior=prior)
                 for method in METHODS}
        save_fingerprint(out / "fingerprint.safetensors", tuned["mindtuner"], hour, config, {"simulated": True})
    with watch.stage("decode"):
        test = story.TestSet.of(subject, dataset.stimuli, caches, config.decode.pictures)
        predictions = story.decode_all(tuned, base, test, caches, config)
    with watch.stage("paint"):
        bank = story.training_bank(dataset, texts)
        painted = story.paint_all(predictions, generator, bank, test)
    with watch.stage("score"):
        scores = story.score_all(predictions, painted, test, config.seed)
    setting = story.describe_setting(config, dataset, hour, test, bank, command)
    setting["stimuli_note"] = _stimuli_note(options)
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
