"""The studies of many tunings, each as one function: what each part is worth, and what an hour is worth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mindtuner.claims import releasing
from mindtuner.config import Config
from mindtuner.errors import UserError
from mindtuner.files import write_json
from mindtuner.studies import ablate, curve, page
from mindtuner.studies.bench import Chance, do, prepare, settled


@dataclass(frozen=True)
class Study:
    """What a study found: ``text``, a Markdown table; ``results``, plain values as in results.json; ``page``, its report."""

    results: dict
    chance: Chance
    text: str
    page: Path

    def __repr__(self) -> str:
        return self.text


@releasing()
def run_ablation(
    out: str | Path,
    *,
    variants: Sequence[str] | None = None,
    seeds: int = 5,
    jobs: int = 1,
    sessions: int | None = None,
    config: str | Path | Config | None = None,
    base: str | Path | None = None,
    subject: int | None = None,
    seed: int | None = None,
    data: str | Path | None = None,
    cache: str | Path | None = None,
    weights: str | Path | None = None,
    pictures: bool = False,
    force: bool = False,
    command: str | None = None,
) -> Study:
    """Measure what each part of the method is worth: one subject tuned with and without it, over seeds.

    Writes ``results.csv``, ``results.json`` and ``report.html`` into ``out``. The same call goes on where an earlier one was
    stopped; ``seeds``, ``jobs`` and ``variants`` may change.

    Parameters
    ----------
    out : path
    variants : sequence of str, optional
        By default all, see ``ablate.variants``.
    seeds : int
        Tunings of each variant, at least 2.
    jobs : int
        Processes, of one thread each.
    sessions : int, optional
        Train on sessions 1 to this, by default the config's ``tuning_sessions``.
    config, base, subject, seed : optional
        Settings; a base of all other subjects, by default made here; the subject to tune, and the first seed.
    data, cache : path, optional
        A dataset, by default simulated into ``out/data``; and its features.
    weights : path, optional
        Of another compact generator.
    pictures : bool
        Paint and score pictures too.
    force : bool
        Replace another study in ``out``.
    command : str, optional
        How the study was called; it goes on only where that is the same.

    Raises
    ------
    UserError
        Where settings, data and base do not fit, or a variant is unknown.
    """
    _refuse_few(seeds, jobs)
    found, path = settled(config, base, subject=subject, sessions=sessions, seed=seed)
    ablate.chosen(ablate.variants(found, max(ablate.BASES) + 1), variants)  # before anything is made
    bench, opens = prepare(
        Path(out),
        found,
        path,
        data=data,
        cache=cache,
        weights=weights,
        pictures=pictures,
        force=force,
        command=command or "mindtuner.studies.run_ablation",
    )
    others = len(bench.others)
    rows = ablate.chosen(ablate.variants(found, others), variants)
    scores, chance = do(bench, ablate.runs_of(rows, found, seeds, others), jobs, opens)
    table, setting = ablate.compared(rows, scores, found.seed), page.setting_of(bench, seeds, chance)
    results = {"setting": setting, "rows": table}
    write_json(bench.out / "results.json", results)
    return Study(results, chance, ablate.text(table, chance), page.write_ablation(bench.out, setting, table))


@releasing()
def run_curve(
    out: str | Path,
    *,
    seeds: int = 5,
    jobs: int = 1,
    config: str | Path | Config | None = None,
    base: str | Path | None = None,
    subject: int | None = None,
    seed: int | None = None,
    data: str | Path | None = None,
    cache: str | Path | None = None,
    weights: str | Path | None = None,
    pictures: bool = False,
    force: bool = False,
    command: str | None = None,
) -> Study:
    """Measure how scores grow with hours of data, and how many hours from scratch one hour of tuning is worth.

    Parameters and files are those of ``run_ablation``.

    Raises
    ------
    UserError
        Where settings, data and base do not fit.
    """
    _refuse_few(seeds, jobs)
    found, path = settled(config, base, subject=subject, seed=seed)
    bench, opens = prepare(
        Path(out),
        found,
        path,
        data=data,
        cache=cache,
        weights=weights,
        pictures=pictures,
        force=force,
        command=command or "mindtuner.studies.run_curve",
    )
    hours = curve.amounts(int(bench.subject.train.session.max()))
    scores, chance = do(bench, curve.runs_of(found, hours, seeds, len(bench.others)), jobs, opens)
    summed, setting = curve.summary(scores, chance, hours, found.seed), page.setting_of(bench, seeds, chance)
    results = {"setting": setting, "hours": hours, **summed}
    write_json(bench.out / "results.json", results)
    written = page.write_curve(bench.out, setting, summed, hours)
    return Study(results, chance, curve.text(summed, hours, chance), written)


def _refuse_few(seeds: int, jobs: int) -> None:
    for name, value, least in (("seeds", seeds, 2), ("jobs", jobs, 1)):
        if value < least:
            raise UserError(f"{name}: is {value}; expected at least {least}")
