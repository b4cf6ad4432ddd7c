"""The numbers of the report in words and small plots: scores beside chance, differences, curves, facts."""

from __future__ import annotations

import math

from mindtuner.evaluation.report import plots
from mindtuner.evaluation.report.figure import STAGES

METHODS = {
    "mindtuner": ("MindTuner", "The base is frozen; a new ridge, LoRA and Skip-LoRA train on the subject."),
    "ridge_only": ("Ridge only", "The base is frozen; only a new ridge trains on the subject."),
    "full_finetune": ("Full fine-tuning", "Every weight of the base trains on the subject."),
    "from_scratch": ("From scratch", "No base: every weight trains on the subject alone."),
    "nearest_training_image": (
        "Nearest training image", "No painting: the training image closest to the decoded tokens is shown."),
    "prior_only": ("Prior only", "A control: the generator sees the mean token, never the brain."),
    "shuffled_brain": (
        "Shuffled brain", "A control: tuned on permuted brains; what it gets right is not read from them."),
}
GROUPS = {
    "retrieval": {
        "image": ("Image", "the image, from the brain"),
        "brain": ("Brain", "the brain, from the image"),
        "text": ("Text", "the caption, from the brain"),
    },
    "reconstruction": {
        "two_way": ("Two-way", "which of two images is it"),
        "pixcorr": ("PixCorr", "pixel correlation"),
        "ssim": ("SSIM", "structural similarity"),
    },
}
METRICS = {name: label for group in GROUPS.values() for name, (label, _) in group.items()}
SHARES = ("image", "brain", "text", "two_way")  # shown in percent


def label_of(name: str) -> tuple[str, str]:
    """A method's name for people, and a sentence on it (empty for one this module does not know)."""
    return METHODS.get(name, (name.replace("_", " ").capitalize(), ""))


def is_number(value) -> bool:
    """Whether ``value`` is a finite number (a bool is not)."""
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
    """The three numbers of ``mindtuner`` at the top, each beside chance; none where it was not run."""
    tests = results["setting"].get("n_test_images", "all")
    rows = []
    for group, metric, text in (("retrieval", "image", f"of images found among {tests}"),
                                ("retrieval", "text", f"of captions found among {tests}"),
                                ("reconstruction", "two_way", "two-way identification of the pictures")):
        value = _pick(results["methods"], "mindtuner", group, metric)
        chance = _chance(results, group, metric, "mindtuner")
        if value is not None:
            rows.append({"value": _show(metric, value), "text": text,
                         "chance": None if chance is None else _show(metric, chance)})
    return rows


def table(results: dict, group: str) -> dict:
    """One table of scores: a row per method, a column per metric, a last row with chance."""
    names = [name for name in METHODS if name in results["methods"]]
    columns = []
    rows = [{"label": label_of(name)[0], "about": label_of(name)[1], "cells": []} for name in names]
    for metric, (label, meaning) in GROUPS[group].items():
        values = [_pick(results["methods"], name, group, metric) for name in names]
        intervals = [_pick(results["methods"], name, "ci95", group, metric) for name in names]
        chances = [_chance(results, group, metric, name) for name in names]
        known = [number for number in [*values, *chances] if number is not None]
        limits = plots.axis(known + [end for ends in intervals if ends for end in ends])
        for row, value, ci, chance in zip(rows, values, intervals, chances, strict=True):
            row["cells"].append(None if value is None else {
                "value": _show(metric, value),
                "ci": f"{_show(metric, ci[0])} to {_show(metric, ci[1])}" if ci else None,
                "plot": plots.interval(value, ci, chance, limits)})
        columns.append({"label": label, "meaning": meaning, "unit": _unit(metric).strip(),
                        "chance": _spread(metric, chances),
                        "limits": [f"{_tick(metric, limit)}{_unit(metric)}" for limit in limits]})
    return {"title": "Retrieval" if group == "retrieval" else "Pictures", "columns": columns,
            "rows": [row for row in rows if any(row["cells"])]}


def _spread(metric: str, chances: list[float | None]) -> str | None:
    """Chance as text: one number, or lowest to highest where each method has its own."""
    known = [chance for chance in chances if chance is not None]
    if not known:
        return None
    low, high = _show(metric, min(known)), _show(metric, max(known))
    return low if low == high else f"{low} to {high}"


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


def single_trials(results: dict) -> list[dict]:
    """Retrieval from single trials beside that from the average over repeats, as text."""
    rows = []
    for name in METHODS:
        single = results["methods"].get(name, {}).get("single_trial_retrieval")
        if single:
            rows.append({"method": label_of(name)[0], "cells": [
                f"{_show(metric, single[metric])}{_unit(metric)}" for metric in GROUPS["retrieval"]]})
    return rows


def paired(differences: dict) -> list[dict]:
    """Each paired difference in words: which method is ahead, or that no clear difference was seen."""
    groups = []
    for name, parts in differences.items():
        first, second = (label_of(method)[0] for method in name.split("_minus_"))
        lines = [_difference(first, second, metric, parts[group][metric])
                 for group, metrics in GROUPS.items() for metric in metrics]
        groups.append({"title": f"{first} minus {second}", "lines": lines})
    return groups


def _difference(first: str, second: str, metric: str, entry: dict) -> dict:
    mean, (low, high), p = entry["mean"], entry["ci"], entry["p"]
    clear = low > 0 or high < 0
    ahead, behind = (first, second) if mean > 0 else (second, first)
    unit = " points" if metric in SHARES else ""
    interval = f"95 % interval {_signed(metric, low)} to {_signed(metric, high)}"
    p_value = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return {"metric": METRICS[metric], "is_clear": clear,
            "words": f"{ahead} is ahead of {behind}" if clear else "no clear difference",
            "numbers": f"{_signed(metric, mean)}{unit}, {interval}, {p_value}"}


def _signed(metric: str, value: float) -> str:
    text = f"{100 * value:+.1f}" if metric in SHARES else f"{value:+.3f}"
    return text.replace("-", "\N{MINUS SIGN}")


def curves(entries: list[dict]) -> list[dict]:
    """One group of plots per stage of training, one plot per loss, in the order of the log."""
    stages: dict[str, dict[str, list]] = {}
    for entry in entries:
        for name, value in entry["losses"].items():
            if is_number(value):
                stages.setdefault(entry["stage"], {}).setdefault(name, []).append((entry["epoch"], value))
    groups = []
    for stage, losses in stages.items():
        drawn = []
        for name, points in losses.items():
            epochs, values = zip(*points, strict=True)
            plot, logarithmic = plots.curve(epochs, values)
            drawn.append({"name": name, "plot": plot, "logarithmic": logarithmic, "first": f"{values[0]:.3g}",
                          "last": f"{values[-1]:.3g}", "epochs": f"{min(epochs):g} to {max(epochs):g}"})
        kind, _, method = stage.partition(":")
        title = {"pretrain": "Pretraining on the other subjects", "tune": "Tuning"}.get(kind, kind)
        groups.append({"title": f"{title}: {label_of(method)[0]}" if method else title, "plots": drawn})
    return groups


def facts(results: dict) -> dict[str, list[tuple[str, str]]]:
    """Settings, times and versions as label and text; the command and the notes have places of their own."""
    setting = results["setting"]
    apart = ("command", "stimuli_note", "simulated_brains", "simulated_scenes", "versions")
    facts = {"Setting": _flat({key: value for key, value in setting.items() if key not in apart}, str)}
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
            rows.append((f"{prefix}{key}".replace("_", " ").removeprefix("n "), show(value)))
    return rows


def _duration(seconds) -> str:
    if not is_number(seconds):
        return str(seconds)
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
