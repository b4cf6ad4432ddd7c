"""The numbers of the report in words and small plots: scores beside chance, differences, curves, facts."""

from __future__ import annotations

import math

from mindtuner.evaluation import report_plots
from mindtuner.evaluation.figure import STAGES

METHODS = {
    "mindtuner": ("MindTuner", "The base is frozen; a new ridge, LoRA and Skip-LoRA train on the new subject."),
    "ridge_only": ("Ridge only", "The base is frozen; only a new ridge trains on the new subject."),
    "full_finetune": ("Full fine-tuning", "Every weight of the base trains on the new subject."),
    "from_scratch": ("From scratch", "No base: every weight trains on the new subject alone."),
    "nearest_training_image": ("Nearest training image", "No painting: the training image closest to the "
                               "predicted tokens is shown."),
    "prior_only": ("Prior only", "A control: the generator sees the mean token, never the brain."),
    "shuffled_brain": ("Shuffled brain", "A control: tuned on brains permuted over the training trials. "
                       "Whatever it gets right is not read from the brain."),
}
GROUPS = {
    "retrieval": {"image": ("Image", "the image, from the brain"), "brain": ("Brain", "the brain, from the image"),
                  "text": ("Text", "the caption, from the brain")},
    "reconstruction": {"two_way": ("Two-way", "which of two images is it"), "pixcorr": ("PixCorr", "pixel correlation"),
                       "ssim": ("SSIM", "structural similarity")},
}
METRICS = {name: label for group in GROUPS.values() for name, (label, _) in group.items()}
SHARES = ("image", "brain", "text", "two_way")  # shown in percent


def label_of(name: str) -> tuple[str, str]:
    return METHODS.get(name, (name.replace("_", " ").capitalize(), ""))


def is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _pick(tree, *path):
    """The number or pair of numbers at ``path``, or None where the run has none."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    if isinstance(tree, list) and len(tree) == 2 and all(map(is_number, tree)):
        return tuple(tree)
    return tree if is_number(tree) else None


def _show(metric: str, value: float) -> str:
    """A score as text: percent for shares, three decimals for correlations."""
    if metric in SHARES:
        return f"{100 * value:.1f}" if abs(value) >= 0.01 or value == 0 else f"{100 * value:.2f}"
    return f"{value:.3f}".replace("-", "\N{MINUS SIGN}")


def _unit(metric: str) -> str:
    return "\N{NO-BREAK SPACE}%" if metric in SHARES else ""


def _chance(results: dict, group: str, metric: str, method: str) -> float | None:
    chance = results.get("chance")
    if group == "retrieval":
        return _pick(chance, "retrieval", metric)
    own = _pick(chance, "reconstruction", metric, method)
    return _pick(chance, "two_way") if metric == "two_way" and own is None else own


def headline(results: dict) -> list[dict]:
    """The three numbers at the top, each beside chance."""
    methods = results["methods"]
    name = "mindtuner" if "mindtuner" in methods else next(iter(methods), "")
    tests = results["setting"].get("n_test_images", "all")
    rows = []
    for group, metric, text in (("retrieval", "image", f"of images found among {tests}"),
                                ("retrieval", "text", f"of captions found among {tests}"),
                                ("reconstruction", "two_way", "two-way identification of the pictures")):
        value, chance = _pick(methods, name, group, metric), _chance(results, group, metric, name)
        if value is not None:
            rows.append({"value": _show(metric, value), "text": text, "method": label_of(name)[0],
                         "chance": None if chance is None else _show(metric, chance)})
    return rows


def table(results: dict, group: str) -> dict:
    """One table of scores: a row per method, a column per metric, a last row with chance."""
    methods = results["methods"]
    names = [name for name in METHODS if name in methods] + [name for name in methods if name not in METHODS]
    columns, rows = [], [{"label": label_of(name)[0], "about": label_of(name)[1], "cells": []} for name in names]
    for metric, (label, meaning) in GROUPS[group].items():
        values = [_pick(methods, name, group, metric) for name in names]
        intervals = [_pick(methods, name, "ci95", group, metric) for name in names]
        chances = [_chance(results, group, metric, name) for name in names]
        known = [value for value in [*values, *chances] if value is not None]
        limits = report_plots.axis(known + [end for ends in intervals if ends for end in ends])
        for row, value, ci, chance in zip(rows, values, intervals, chances, strict=True):
            row["cells"].append(None if value is None else {
                "value": _show(metric, value),
                "ci": f"{_show(metric, ci[0])} to {_show(metric, ci[1])}" if ci else None,
                "plot": report_plots.interval(value, ci, chance, limits)})
        spread = sorted(_show(metric, chance) for chance in set(chances) - {None})
        columns.append({"label": label, "meaning": meaning, "unit": _unit(metric).strip(),
                        "chance": None if not spread else spread[0] if spread[0] == spread[-1]
                        else f"{spread[0]} to {spread[-1]}",
                        "limits": [f"{_tick(metric, limit)}{_unit(metric)}" for limit in limits]})
    title = "Retrieval" if group == "retrieval" else "Pictures"
    rows = [row for row in rows if any(row["cells"])]
    return {"title": title, "columns": columns, "rows": rows}


def _tick(metric: str, value: float) -> str:
    return f"{100 * value if metric in SHARES else value:.3g}".replace("-", "\N{MINUS SIGN}")


def stage_scores(results: dict) -> list[dict]:
    """Picture scores of each stage of each method, as text."""
    rows = []
    for name, own in results["methods"].items():
        for stage, label in STAGES.items():
            values = {metric: _pick(own, "stages", stage, metric) for metric in GROUPS["reconstruction"]}
            if any(value is not None for value in values.values()):
                rows.append({"method": label_of(name)[0], "stage": label, "cells": [
                    "\N{EN DASH}" if value is None else _show(metric, value) + _unit(metric)
                    for metric, value in values.items()]})
    return rows


def paired(paired: dict) -> list[dict]:
    """Each paired difference in words: which method is ahead, or that no clear difference was seen."""
    groups = []
    for name, metrics in paired.items():
        first, _, second = name.partition("_minus_")
        first, second = label_of(first)[0], label_of(second)[0]
        lines = []
        for metric, entry in (metrics or {}).items():
            mean, ci, p = _pick(entry, "mean"), _pick(entry, "ci95"), _pick(entry, "p")
            if mean is None or ci is None:
                continue
            ahead = ci[0] > 0 or ci[1] < 0
            winner, loser = (first, second) if mean > 0 else (second, first)
            unit = " points" if metric in SHARES else ""
            numbers = f"{_signed(metric, mean)}{unit}, 95 % interval {_signed(metric, ci[0])} to {_signed(metric, ci[1])}"
            lines.append({"metric": METRICS.get(metric, metric), "ahead": ahead,
                          "words": f"{winner} is ahead of {loser}" if ahead else "no clear difference",
                          "numbers": numbers + ("" if p is None else f", p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}")})
        if lines:
            groups.append({"title": f"{first} minus {second}", "lines": lines})
    return groups


def _signed(metric: str, value: float) -> str:
    text = f"{100 * value:+.1f}" if metric in SHARES else f"{value:+.3f}"
    return text.replace("-", "\N{MINUS SIGN}")


def curves(entries: list[dict]) -> list[dict]:
    """One group of plots per stage of training, one plot per loss, in the order of the log."""
    stages: dict[str, dict[str, list]] = {}
    for entry in entries:
        for name, value in entry["losses"].items():
            if is_number(value):
                stages.setdefault(entry["stage"], {}).setdefault(name, []).append((entry["epoch"], float(value)))
    groups = []
    for stage, losses in stages.items():
        plots = []
        for name, points in losses.items():
            epochs, values = zip(*points, strict=True)
            plot, logarithmic = report_plots.curve(epochs, values)
            plots.append({"name": name, "plot": plot, "logarithmic": logarithmic, "first": f"{values[0]:.3g}",
                          "last": f"{values[-1]:.3g}", "epochs": f"{min(epochs):g} to {max(epochs):g}"})
        kind, _, method = stage.partition(":")
        title = {"pretrain": "Pretraining on the other subjects", "tune": "Tuning"}.get(kind, kind)
        groups.append({"title": f"{title}: {label_of(method)[0]}" if method else title, "plots": plots})
    return groups


def facts(results: dict) -> dict[str, list[tuple[str, str]]]:
    """Settings, times and versions as label and text; the command and the notes have places of their own."""
    setting = results["setting"]
    apart = ("command", "stimuli_note", "simulated_brains", "simulated_scenes", "versions")
    facts = {"Setting": [(key.replace("_", " "), text) for key, text in _flat(
        {key: value for key, value in setting.items() if key not in apart}, str)]}
    facts["Time"] = _flat(results.get("timing_s") or {}, _duration)
    if is_number(results.get("peak_memory_mb")):
        facts["Time"].append(("peak memory", f"{results['peak_memory_mb']:,.0f} MB"))
    facts["Versions"] = _flat(setting.get("versions") or {}, str)
    return {title: rows for title, rows in facts.items() if rows}


def _flat(tree: dict, show, prefix: str = "") -> list[tuple[str, str]]:
    rows = []
    for key, value in tree.items():
        if isinstance(value, dict):
            rows += _flat(value, show, f"{prefix}{key} ")
        elif value is not None:
            rows.append((f"{prefix}{key}".replace("_", " "), show(value)))
    return rows


def _duration(seconds) -> str:
    if not is_number(seconds):
        return str(seconds)
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
