"""The whole story on a laptop: simulate, pretrain, tune, decode, score, report.

Eight simulated subjects look at scenes. One model is pretrained on seven of them; the eighth is learned from one session,
with its fingerprint and with the methods it is compared to. Then the images that the eighth subject saw are read back from
its brain: as pictures, as words, and among candidates. Everything is written to OUT; open OUT/report.html. A run that
was stopped goes on when the same command is given again.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

from mindtuner.cli import options as shared
from mindtuner.cli.simulate import add_stimuli


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("mindtuner-demo"),
        metavar="OUT",
        help="folder to write (default mindtuner-demo)",
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
    shared.add_hold_out(parser)
    shared.add_pictures(parser)
    parser.add_argument("--keep-data", action="store_true", help="keep the simulated dataset in OUT/data")
    shared.add_device(parser)
    shared.add_force(parser)


def run(options: argparse.Namespace) -> None:
    from mindtuner.cli.printing import print_results
    from mindtuner.config import changed, load_config
    from mindtuner.pipeline import run_demo
    from mindtuner.pipeline.base import category_of
    from mindtuner.pipeline.demo import refuse_unseen_category
    from mindtuner.pipeline.evaluation import painting
    from mindtuner.simulation.simulate import check_inputs

    config = painting(load_config("quick" if options.quick else "demo"), options.pictures)
    knobs = changed(config.simulate, seed=options.seed)
    if options.fingerprint is not None:
        knobs = changed(knobs, fingerprint=options.fingerprint)
    check_inputs(knobs, options.cutouts, options.stimuli)
    category = ""
    if options.hold_out_category is not None:
        category = category_of(options.hold_out_category)
        if not (options.cutouts or options.stimuli):
            refuse_unseen_category(category)
    config = changed(config, simulate=knobs, seed=options.seed, hold_out_category=category)
    command = "mindtuner " + shlex.join(sys.argv[1:])
    results = run_demo(
        options.out,
        config,
        cutouts=options.cutouts,
        stimuli=options.stimuli,
        weights=options.generator,
        keep_data=options.keep_data,
        force=options.force,
        command=command.replace(" --force", ""),
        watch=shared.stopwatch(),
    )
    print_results(results)
    print(f"\nOpen {options.out / 'report.html'}")
