"""Measure what each part of the method is worth: one subject tuned with and without it, over seeds.

Tunes with the full method, with parts left out or of another size, and on bases of fewer people; scores the retrieval of the
test images, and says of each variant what it has more or less, paired over images and seeds. Writes results.csv,
results.json and report.html into OUT. The same command goes on where an earlier one was stopped; --seeds, --jobs and
--variants may change.
"""

from __future__ import annotations

import argparse

from mindtuner.cli import studies


def add_arguments(parser: argparse.ArgumentParser) -> None:
    studies.add_arguments(parser)
    parser.add_argument(
        "--sessions", type=int, metavar="K", help="train on sessions 1 to K (default: tuning_sessions of the config)"
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        metavar="NAME",
        help="these alone, beside the full method (default: all; a wrong name lists them)",
    )
    studies.add_pictures(parser)


def run(options: argparse.Namespace) -> None:
    from mindtuner.files import write_json
    from mindtuner.studies import ablate, page
    from mindtuner.studies import bench as runs

    config, base = studies.settled(options, options.sessions)
    ablate.chosen(ablate.variants(config, max(ablate.BASES) + 1), options.variants)  # before anything is made
    bench, opens = studies.bench_of(options, "ablate", config, base, options.pictures)
    others = len(bench.others)
    rows = ablate.chosen(ablate.variants(config, others), options.variants)
    found, chance = runs.do(bench, ablate.runs_of(rows, config, options.seeds, others), options.jobs, opens)
    table, setting = ablate.compared(rows, found, config.seed), page.setting_of(bench, options.seeds, chance)
    write_json(options.out / "results.json", {"setting": setting, "rows": table})
    print(ablate.text(table, chance))
    print(f"\nOpen {page.write_ablation(options.out, setting, table)}")
