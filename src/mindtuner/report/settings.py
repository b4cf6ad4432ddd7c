"""Training and settings of runs in words and small plots."""

from __future__ import annotations

from mindtuner.report import plots
from mindtuner.report.labels import is_number, label_of

STAGES = {"pivot": "Pivot", "pretrain": "Pretraining on the other subjects"}  # of training; the others are methods
APART = (
    "command",
    "stimuli_note",
    "off_domain",
    "simulated_brains",
    "simulated_scenes",
    "versions",
)  # of the setting: said elsewhere


def training_curves(logs: list[list[dict]]) -> list[dict]:
    """One group of plots per stage of training, one plot per loss, a line per run, in the order of the logs."""
    stages: dict[str, dict[str, dict[int, list]]] = {}
    for run, entries in enumerate(logs):
        for entry in entries:
            for name, value in entry["losses"].items():
                if is_number(value):
                    lines = stages.setdefault(entry["stage"], {}).setdefault(name, {})
                    lines.setdefault(run, []).append((entry["epoch"], value))
    groups = []
    for stage, losses in stages.items():
        drawn = []
        for name, lines in losses.items():
            plot, logarithmic = plots.curve(list(lines.values()))
            epochs = [epoch for line in lines.values() for epoch, _ in line]
            drawn.append(
                {
                    "name": name,
                    "plot": plot,
                    "logarithmic": logarithmic,
                    "first": _range([line[0][1] for line in lines.values()]),
                    "last": _range([line[-1][1] for line in lines.values()]),
                    "epochs": f"{min(epochs):g} to {max(epochs):g}",
                }
            )
        groups.append({"title": STAGES.get(stage) or f"Tuning: {label_of(stage)[0]}", "plots": drawn})
    return groups


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def setting_rows(results: dict) -> dict[str, list[tuple[str, str]]]:
    """Settings, times and versions as label and text; the command and the notes have places of their own."""
    setting = results["setting"]
    rows = {"Setting": flattened({key: value for key, value in setting.items() if key not in APART}, str)}
    rows["Time"] = flattened(results.get("timing_s") or {}, _duration)
    if is_number(results.get("peak_memory_mb")):
        rows["Time"].append(("peak memory", f"{results['peak_memory_mb']:,.0f} MB"))
    rows["Versions"] = flattened(setting.get("versions") or {}, str)
    return {title: lines for title, lines in rows.items() if lines}


def flattened(tree: dict, show, prefix: str = "") -> list[tuple[str, str]]:
    """The leaves of nested mappings, each with its path in words."""
    rows = []
    for key, value in tree.items():
        if isinstance(value, dict):
            rows += flattened(value, show, f"{prefix}{key} ")
        elif value is not None:
            text = ", ".join(map(str, value)) if isinstance(value, list) else show(value)
            rows.append((f"{prefix}{key}".replace("_", " ").removeprefix("n "), text))
    return rows


def _duration(seconds) -> str:
    if not is_number(seconds):
        return str(seconds)
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"
