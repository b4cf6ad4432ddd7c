"""Measure how scores grow with hours of data, and how many hours from scratch one hour of tuning is worth.

Tunes one subject on a quarter and a half of its first session, on 1, 2, 4, 10 and all sessions, as far as there are such, from
the base, from scratch, and with everything fine-tuned; beside them one ridge regression from voxels to tokens. Writes
results.csv, results.json and report.html into OUT. A study that was stopped goes on; --seeds and --jobs may change.
"""

from __future__ import annotations

import argparse

from mindtuner.cli import studies


def add_arguments(parser: argparse.ArgumentParser) -> None:
    studies.add_arguments(parser)


def run(options: argparse.Namespace) -> None:
    from mindtuner.analysis import curve, page, runs
    from mindtuner.files import write_json

    bench, opens = studies.prepare(options, "curve")
    hours = curve.amounts(int(bench.dataset.subject(bench.config.target_subject).train.session.max()))
    hits = runs.do(bench, curve.runs_of(bench.config, hours, options.seeds, len(bench.others)), options.jobs, opens)
    found = curve.summary(hits, hours, bench.config.seed)
    setting = page.setting_of(bench, options.seeds, runs.chance(next(iter(hits.values()))))
    write_json(options.out / "results.json", {"setting": setting, "hours": hours, **curve.plain(found)})
    print(page.curve_text(found, hours))
    print(f"\nOpen {page.write_curve(options.out, setting, found, hours)}")
