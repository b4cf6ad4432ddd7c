"""Runs beside each other: what tells them apart, what differs in nothing but the seed, and scores against scanning time."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from mindtuner.errors import UserError
from mindtuner.evaluation.results import Run, load_run
from mindtuner.inputs import parse_yaml, read_text
from mindtuner.report import plots
from mindtuner.report.labels import (
    PARTS,
    chance_of,
    in_order,
    is_number,
    label_of,
    main_of,
    methods_of,
    pick,
    scores_in,
    show,
    spread,
    tick,
    unit,
)
from mindtuner.report.settings import flattened

# What follows from the other settings and the seed, and so never tells two kinds of runs apart.
FOLLOWS = (
    "seed",
    "command",
    "versions",
    "stimuli_note",
    "off_domain",
    "stimuli_hash",
    "voxels",
    "n_training_trials",
    "n_test_trials",
    "text_bank",
    "bank_captions_equal_to_a_test_caption",
)
MEASURES = ("subject", "sessions")  # what the table of runs always shows
FEW = 3  # differing settings that a run's name can hold


@dataclass(frozen=True)
class LoadedRun:
    """A run as it is read for the page: its folder, its files, its configuration as text and as choices, {name: text}."""

    folder: Path
    run: Run
    config: str
    choices: dict[str, str]

    @property
    def setting(self) -> dict:
        """The block ``setting`` of its results.json."""
        return self.run.results["setting"]


def load(folder: str | Path) -> LoadedRun:
    """Read a finished run. Raises UserError naming what is missing or broken."""
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(
            f"{folder}: {'not a folder' if folder.exists() else 'not found'}; expected the folder of a run that "
            "mindtuner demo or evaluate finished"
        )
    if not (folder / "results.json").exists():
        raise UserError(f"{folder}: holds no results.json; expected a run that mindtuner demo or evaluate finished")
    run = load_run(folder)
    setting = run.results["setting"]
    for field in ("simulated_brains", "simulated_scenes", *MEASURES):
        if field not in setting:
            raise UserError(f"{folder / 'results.json'}: setting.{field} is missing; expected a value")
    for number, entry in enumerate(run.log, 1):
        if not is_number(entry.get("epoch")):
            raise UserError(f"{folder / 'log.jsonl'}: entry {number} has no epoch; expected a number")
    if len(run.pictures["seen"]) and not methods_of(run.pictures):
        raise UserError(f"{folder / 'pictures.safetensors'}: no method has pictures; expected METHOD/STAGE")
    config = read_text(folder / "config.yaml", "the configuration of the run")
    return LoadedRun(folder, run, config, _choices(setting, config, folder / "config.yaml"))


def _choices(setting: dict, config: str, path: Path) -> dict[str, str]:
    """Everything about a run that somebody chose, but for its seeds."""
    tree = parse_yaml(config, str(path), "the configuration of the run")
    stated = dict(flattened({key: value for key, value in setting.items() if key not in FOLLOWS}, str))
    stated_twice = ("seed", *(f" {name}" for name in stated if name not in MEASURES), "target subject", "tuning sessions")
    return stated | {
        name: text
        for name, text in flattened(tree if isinstance(tree, dict) else {}, json.dumps)
        if not name.endswith(stated_twice)
    }


def differing(runs: list[LoadedRun]) -> list[str]:
    """Names of the choices, beside subject and sessions, in which the runs differ."""
    names = dict.fromkeys(name for loaded in runs for name in loaded.choices)
    return [name for name in names if name not in MEASURES and len({loaded.choices.get(name) for loaded in runs}) > 1]


def labels(runs: list[LoadedRun]) -> list[str]:
    """A short name for each run, made of what tells it from the others; its folder where nothing else does."""
    apart = differing(runs)
    subjects, sessions, seeds = ({loaded.setting.get(key) for loaded in runs} for key in ("subject", "sessions", "seed"))
    found = []
    for loaded in runs:
        words = [f"Subject {loaded.setting['subject']}"] if len(subjects) > 1 or len(runs) == 1 else []
        words += [_sessions(loaded.setting["sessions"])] if len(sessions) > 1 else []
        words += _said(loaded, apart)
        words += [f"seed {loaded.setting.get('seed', 'unknown')}"] if len(seeds) > 1 else []
        found.append(", ".join(words))
    return [
        label if label and found.count(label) == 1 else f"{label}{', ' if label else ''}{loaded.folder.name}"
        for label, loaded in zip(found, runs, strict=True)
    ]


def _said(loaded: LoadedRun, apart: list[str]) -> list[str]:
    """A run's choices of those names, the first few of them."""
    rest = len(apart) - FEW
    return [
        *(f"{name} {loaded.choices.get(name, 'unset')}" for name in apart[:FEW]),
        *([f"and {rest} other settings"] if rest > 0 else []),
    ]


def _sessions(count) -> str:
    return f"{count} session{'s' if count != 1 else ''}"


def groups(runs: list[LoadedRun]) -> list[list[LoadedRun]]:
    """Runs that differ only in their seed, together; ordered by subject and sessions.

    Two runs of the same seed and choices differ in something that they do not tell, and stay apart.
    """
    found: dict[tuple, list[LoadedRun]] = {}
    for loaded in runs:
        key, turn = json.dumps(loaded.choices, sort_keys=True), 0
        while any(loaded.setting.get("seed") == other.setting.get("seed") for other in found.get((key, turn), ())):
            turn += 1
        found.setdefault((key, turn), []).append(loaded)
    return sorted(found.values(), key=lambda group: _amount(group[0]))


def _amount(loaded: LoadedRun) -> tuple:
    values = [loaded.setting[key] for key in MEASURES]
    return tuple((0, value, "") if is_number(value) else (1, 0, str(value)) for value in values)


def table(runs: list[LoadedRun], method: str) -> dict:
    """Runs beside each other for one method: a row per group, then means over subjects where they differ in nothing else."""
    scores = {
        (part, key): score for part in PARTS for loaded in runs for key, score in scores_in(loaded.run.results, part).items()
    }
    apart = differing(runs)
    rows = [row for group in groups(runs) if any((row := _row(group, method, scores, apart))["values"].values())]
    rows += _over_subjects(rows, scores)
    columns = []
    for at, score in scores.items():
        chances = [chance for row in rows for chance in row["chances"][at]]
        held = [number for row in rows for number in [*row["values"][at], *(row["ends"][at] or ())]]
        limits = plots.axis(held + chances)
        for row in rows:
            row["cells"].append(_cell(score, row["values"][at], row["ends"][at], row["chances"][at], limits))
        columns.append(
            {
                "label": score.label,
                "meaning": PARTS[at[0]].lower(),
                "unit": unit(score).strip(),
                "lower": not score.higher_is_better,
                "chance": spread(score, chances),
                "limits": [tick(score, limit) for limit in limits],
            }
        )
    return {"label": label_of(method)[0], "columns": columns, "rows": rows}


def _row(group: list[LoadedRun], method: str, scores: dict, apart: list[str]) -> dict:
    setting, choices = group[0].setting, group[0].choices
    trials = [loaded.setting["n_training_trials"] for loaded in group if is_number(loaded.setting.get("n_training_trials"))]
    amount = _sessions(setting["sessions"]) + (f", {_range(trials)} trials" if trials else "")
    seeds = [str(loaded.setting.get("seed", "unknown")) for loaded in group]
    return {
        "subject": f"Subject {setting['subject']}",
        "amount": (amount, setting["sessions"], *map(choices.get, apart)),
        "said": [amount, *_said(group[0], apart), f"seed{'s' if len(seeds) > 1 else ''} {', '.join(seeds)}"],
        "values": {at: _values(group, method, at) for at in scores},
        "ends": {
            at: pick(group[0].run.results["methods"], method, "ci95", *at) if len(group) == 1 else None for at in scores
        },
        "chances": {
            at: [chance for loaded in group if (chance := chance_of(loaded.run.results, *at, method)) is not None]
            for at in scores
        },
        "is_mean": False,
        "cells": [],
    }


def _values(group: list[LoadedRun], method: str, at: tuple[str, str]) -> list[float]:
    values = [pick(loaded.run.results["methods"], method, *at) for loaded in group]
    return [value for value in values if value is not None]


def _over_subjects(rows: list[dict], scores: dict) -> list[dict]:
    """For each amount of data that several subjects have, the means of their rows."""
    shared: dict[tuple, list[dict]] = {}
    for row in rows:
        shared.setdefault(row["amount"][1:], []).append(row)
    return [
        {
            "subject": f"Mean of {len(members)} subjects",
            "said": members[0]["said"][:-1],
            "is_mean": True,
            "cells": [],
            "values": {at: [statistics.fmean(row["values"][at]) for row in members if row["values"][at]] for at in scores},
            "chances": {at: [chance for row in members for chance in row["chances"][at]] for at in scores},
            "ends": dict.fromkeys(scores),
        }
        for members in shared.values()
        if len({row["subject"] for row in members}) == len(members) > 1
    ]


def _cell(score, values: list[float], ends, chances: list[float], limits: tuple[float, float]) -> dict | None:
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) > 1:
        said = f"\N{PLUS-MINUS SIGN} {show(score, statistics.stdev(values))}"
    else:
        said = f"{show(score, ends[0])} to {show(score, ends[1])}" if ends else None
    return {
        "value": show(score, mean),
        "ci": said,
        "plot": plots.interval(
            mean, ends, statistics.fmean(chances) if chances else None, limits, values if len(values) > 1 else ()
        ),
    }


def _range(values: list) -> str:
    if not values:
        return ""
    return f"{min(values):,}" if min(values) == max(values) else f"{min(values):,} to {max(values):,}"


def efficiency(runs: list[LoadedRun]) -> list[dict]:
    """Scores against sessions of tuning: a figure for each set of runs that differ in nothing else but their seed.

    Empty where no runs differ so.
    """
    alike: dict[str, list[list[LoadedRun]]] = {}
    for group in groups(runs):
        rest = {name: text for name, text in group[0].choices.items() if name != "sessions"}
        alike.setdefault(json.dumps(rest, sort_keys=True), []).append(group)
    apart = differing(runs)
    figures = []
    for members in alike.values():
        ticks = sorted({group[0].setting["sessions"] for group in members if is_number(group[0].setting["sessions"])})
        if len(ticks) < 2 or len(ticks) != len(members):
            continue
        first = members[0][0]
        title = ", ".join([f"Subject {first.setting['subject']}", *_said(first, apart)])
        figures.append({"title": title, **_growth(members, ticks)})
    return figures


def _growth(members: list[list[LoadedRun]], ticks: list) -> dict:
    methods = in_order({name for group in members for loaded in group for name in loaded.run.results["methods"]})
    first = main_of(methods)
    drawn = []
    for part in PARTS:
        for key, score in scores_in(members[0][0].run.results, part).items():
            lines = {
                name: points
                for name in sorted(methods, key=lambda name: name != first)
                if (points := [point for group in members if (point := _point(group, name, part, key, score))])
            }
            chances = [
                chance
                for group in members
                for loaded in group
                if (chance := chance_of(loaded.run.results, part, key, first)) is not None
            ]
            chance = statistics.fmean(chances) if chances else None
            limits = plots.axis([number for points in lines.values() for point in points for number in point[1:]] + chances)
            own = lines.get(first) or next(iter(lines.values()))
            drawn.append(
                {
                    "label": score.label,
                    "meaning": PARTS[part].lower(),
                    "lower": not score.higher_is_better,
                    "alt": f"{score.label} of {label_of(first)[0]}: "
                    + ", ".join(f"{show(score, value)}{unit(score)} from {_sessions(amount)}" for amount, value, _, _ in own),
                    "plot": plots.growth(lines, chance, ticks, limits, tuple(tick(score, end) for end in limits)),
                }
            )
    return {"plots": drawn, "legend": [(label_of(name)[0], name, plots.marker(name, 12, 7)) for name in methods]}


def _point(group: list[LoadedRun], method: str, part: str, key: str, score) -> tuple[float, float, float, float] | None:
    """(sessions, mean over seeds, and that minus and plus a standard deviation), or with one seed the 95 % interval."""
    values = _values(group, method, (part, key))
    if not values:
        return None
    mean = statistics.fmean(values)
    if len(values) > 1:
        ends = (mean - statistics.stdev(values), mean + statistics.stdev(values))
        ends = (max(ends[0], 0.0), min(ends[1], 1.0)) if score.share else ends
    else:
        ends = pick(group[0].run.results["methods"], method, "ci95", part, key) or (mean, mean)
    return group[0].setting["sessions"], mean, *ends
