"""Score what was tuned, and write the report.

TUNED is a run of mindtuner tune or fit, or a fingerprint that was shared: its folder, or its id on the Hugging Face hub.
Of a run of fit with --folds or --leave every image is tested once, by the fit that never saw it, and scores are pooled.
With --subject N it is a base, and N one of the subjects that it was pretrained on. The test images of the subject are
decoded with every method found there, painted, and scored beside chance and beside two controls that need no tuning. Writes
results.json, report.html and what belongs to them into OUT, and prints a table. The same command goes on where an earlier
one was stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mindtuner.cli import generator_options
from mindtuner.cli import options as shared
from mindtuner.errors import UserError

if TYPE_CHECKING:
    from mindtuner.pipeline import Scoring


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("tuned", type=Path, metavar="TUNED", help="run of mindtuner tune, or OWNER/NAME on the hub")
    parser.add_argument("data", type=Path, metavar="DATA", help="folder of the dataset")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    shared.add_base(parser)
    shared.add_own_subject(parser)
    shared.add_cache(parser)
    generator_options.add_arguments(parser)
    shared.add_pictures(parser)
    shared.add_leave_out_known(parser)
    add_scoring(parser)
    shared.add_force(parser)


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
    generator_options.check_options(options)

    from mindtuner.cli.printing import print_results
    from mindtuner.formats import load
    from mindtuner.pipeline import Scoring, TunedSubject, embed, evaluate, hub
    from mindtuner.pipeline.base import held_out
    from mindtuner.pipeline.evaluation import painting
    from mindtuner.pipeline.features import check_same, check_towers
    from mindtuner.pipeline.folds import is_folds
    from mindtuner.pipeline.run_folder import command_of, refuse_other_run, refuse_overlap, settings_text
    from mindtuner.pipeline.subject import read_own, read_tuned

    scoring = Scoring(options.networks, options.as_published, options.pool)
    if options.subject is None and is_folds(options.tuned):
        return _of_folds(options, scoring)
    path = options.tuned if options.subject is not None else hub.here(options.tuned, hub.FINGERPRINT)
    tuned = read_tuned(path, options.base) if options.subject is None else read_own(path, options.subject)
    refuse_overlap(options.out, DATA=options.data, TUNED=path, BASE=tuned.base.path)
    full_size, cache = options.generator == generator_options.SDXL, options.cache or options.data / "cache"
    dataset = load(options.data, [tuned.number])
    if dataset.stimuli.pictured:
        check_towers(tuned.base.network.config, tuned.base.where, cache if full_size else None)
    if full_size:
        check_same(tuned.base.card, tuned.base.where, cache)
    dataset = held_out(dataset, tuned.config.hold_out_category)
    if options.subject is None:
        subject = TunedSubject.load(path, dataset, base=tuned.base)
    else:
        own = embed(dataset, cache, weights=generator_options.weights_of(options))
        subject = TunedSubject.of(tuned.base, dataset.subject(tuned.number), own)
    generator, texts = generator_options.opened(options, subject)
    texts.network.cpu()  # the brain's networks have the GPU first
    command = command_of(
        "evaluate",
        options.tuned,
        options.data,
        options.out,
        *([] if options.subject is None else ["--subject", options.subject]),
        *generator_options.words_of(options),
        *([] if options.pictures is None else ["--pictures", options.pictures]),
        *scoring_words(options),
        *(["--leave-out-known"] if options.leave_out_known else []),
    )
    settings = settings_text(painting(subject.config, options.pictures, dataset.stimuli), command)
    refuse_other_run(options.out, settings, options.force)
    watch = shared.stopwatch()
    with watch.stage("embed"):
        features = subject.features or embed(dataset, cache, weights=generator_options.weights_of(options))
    results = evaluate(
        subject,
        dataset,
        features,
        pictures=options.pictures,
        scoring=scoring,
        generator=generator,
        text_encoder=texts,
        leave_out_known=options.leave_out_known,
        out=options.out,
        force=options.force,
        command=command,
        watch=watch,
    )
    print_results(results)
    print(f"\nOpen {options.out / 'report.html'}")


def _of_folds(options: argparse.Namespace, scoring: Scoring) -> None:
    from mindtuner.cli.printing import print_results
    from mindtuner.formats import load
    from mindtuner.pipeline import FittedFolds, embed, evaluate_folds
    from mindtuner.pipeline.folds import subject_of
    from mindtuner.pipeline.run_folder import command_of, refuse_overlap

    if options.generator == generator_options.SDXL:
        raise UserError("generator: is sdxl, with which folds are not painted; expected compact")
    refuse_overlap(options.out, DATA=options.data, TUNED=options.tuned)
    dataset = load(options.data, [subject_of(options.tuned)])
    folds = FittedFolds.load(options.tuned, dataset)
    command = command_of(
        "evaluate",
        options.tuned,
        options.data,
        options.out,
        *generator_options.words_of(options),
        *([] if options.pictures is None else ["--pictures", options.pictures]),
        *scoring_words(options),
    )
    watch = shared.stopwatch()
    with watch.stage("embed"):
        weights = generator_options.weights_of(options)
        features = embed(dataset, options.cache or options.data / "cache", weights=weights)
    results = evaluate_folds(
        folds,
        dataset,
        features,
        pictures=options.pictures,
        scoring=scoring,
        out=options.out,
        force=options.force,
        command=command,
        watch=watch,
    )
    print_results(results)
    print(f"\nOpen {options.out / 'report.html'}")
