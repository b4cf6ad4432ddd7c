"""Measure what each part of the method is worth: the same subject tuned without it, over seeds.

Tunes one subject with the full method, with each part left out or of another size, and on bases of fewer people; scores the
retrieval of its test images, and prints each variant minus the full method, paired over images and seeds. Writes
results.csv, results.json and report.html into OUT. A study that was stopped goes on; --seeds and --jobs may change.
"""

from __future__ import annotations

import argparse

from mindtuner.cli import studies


def add_arguments(parser: argparse.ArgumentParser) -> None:
    studies.add_arguments(parser)
    parser.add_argument("--sessions", type=int, metavar="K",
                        help="train on sessions 1 to K (default: tuning_sessions of the config)")
    parser.add_argument("--variants", nargs="+", metavar="NAME",
                        help="only these, beside the full method (default: all; a wrong name lists them)")


def run(options: argparse.Namespace) -> None:
    from mindtuner.analysis import ablate, page, runs
    from mindtuner.config import load_config
    from mindtuner.errors import UserError
    from mindtuner.files import write_json

    known = [row.name for row in ablate.variants(load_config(options.config or "demo"), max(ablate.BASES) + 1)]
    for name in options.variants or ():
        if name not in known:
            raise UserError(f"--variants: {name!r} is unknown; expected some of {', '.join(known)}")
    bench, opens = studies.prepare(options, "ablate", options.sessions)
    others = len(bench.others)
    rows = [row for row in ablate.variants(bench.config, others)
            if options.variants is None or row.name in (ablate.FULL, *options.variants)]
    hits = runs.do(bench, ablate.runs_of(rows, bench.config, options.seeds, others), options.jobs, opens)
    found = ablate.compared(rows, hits, bench.config.seed)
    setting = page.setting_of(bench, options.seeds, runs.chance(hits[ablate.FULL]))
    write_json(options.out / "results.json", {"setting": setting, "rows": found})
    print(page.ablation_text(found))
    print(f"\nOpen {page.write_ablation(options.out, setting, found)}")
