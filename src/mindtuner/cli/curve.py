"""Measure how scores grow with hours of data, and how many hours from scratch one hour of tuning is worth.

Trains on a quarter and a half of the subject's first session, on 1, 2, 4, 10 and on all sessions, as far as there are so
many: tuned, from scratch, fully fine-tuned, and by a ridge regression without a base. Scores the retrieval of the test
images. Writes results.csv, results.json and report.html into OUT. The same command goes on where an earlier one was
stopped; --seeds and --jobs may change.
"""

from __future__ import annotations

import argparse

from mindtuner.cli import studies


def add_arguments(parser: argparse.ArgumentParser) -> None:
    studies.add_arguments(parser)
    studies.add_pictures(parser)


def run(options: argparse.Namespace) -> None:
    from mindtuner.files import write_json
    from mindtuner.studies import bench as runs
    from mindtuner.studies import curve, page

    bench, opens = studies.bench_of(options, "curve", *studies.settled(options), options.pictures)
    hours = curve.amounts(int(bench.subject.train.session.max()))
    found, chance = runs.do(bench, curve.runs_of(bench.config, hours, options.seeds, len(bench.others)), options.jobs, opens)
    summed, setting = curve.summary(found, chance, hours, bench.config.seed), page.setting_of(bench, options.seeds, chance)
    write_json(options.out / "results.json", {"setting": setting, "hours": hours, **summed})
    print(curve.text(summed, hours, chance))
    print(f"\nOpen {page.write_curve(options.out, setting, summed, hours)}")
