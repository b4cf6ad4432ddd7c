"""Published scores, and runs beside them. Nothing here ranks: rows of different data cannot be ordered by a score.

``published.csv`` holds what papers report of NSD, a row for each method and setting, with where the numbers were seen. An
empty cell was not found.
"""

from __future__ import annotations

import csv
from importlib import resources

from tabulate import tabulate

from mindtuner.data import nsd
from mindtuner.errors import UserError
from mindtuner.evaluation.results import Run
from mindtuner.evaluation.scores.catalogue import of_part

COLUMNS = {  # key -> label, in the order of the table; "down": lower is better
    "pixcorr": "PixCorr",
    "ssim": "SSIM",
    "alexnet2": "AlexNet(2)",
    "alexnet5": "AlexNet(5)",
    "inception": "Inception",
    "clip": "CLIP",
    "effnet": "EffNet-B1",
    "swav": "SwAV",
    "image_retrieval": "image retrieval (of 300)",
    "brain_retrieval": "brain retrieval (of 300)",
}
LOWER_IS_BETTER = ("effnet", "swav")
NSD = nsd.NAME
POOL = 300  # candidates of published retrieval
_COLUMN_OF = {"efficientnet_b1": "effnet"}  # scores of a run that papers call otherwise
_FACTS = ("method", "venue", "hours", "subjects", "refined", "seen_in")


def rows() -> list[dict]:
    """The published rows.

    Each has ``method``, ``venue``, ``subjects``, ``refined`` and ``seen_in`` as text ("" where not stated), ``hours`` as a
    number, and ``scores``, {column: number} of those that were found.
    """
    text = resources.files("mindtuner.evaluation").joinpath("published.csv").read_text(encoding="utf-8")
    return parse(text)


def parse(text: str) -> list[dict]:
    """Rows of a table like the package's. Raises ValueError naming the line and the field that is wrong."""
    reader = csv.DictReader(text.splitlines())
    expected = [*_FACTS, *COLUMNS]
    if reader.fieldnames != expected:
        raise ValueError(f"published.csv: columns are {reader.fieldnames}; expected {expected}")
    found, keys = [], set()
    for line in reader:
        where = f"published.csv: line {reader.line_num}"
        if None in line or None in line.values():
            raise ValueError(f"{where}: has not {len(expected)} fields; expected one for each column")
        for field in ("method", "venue", "subjects", "seen_in"):
            if not line[field].strip():
                raise ValueError(f"{where}: {field} is empty; expected text")
        if line["refined"] not in ("", "yes", "no"):
            raise ValueError(f"{where}: refined is {line['refined']!r}; expected yes, no or nothing")
        scores = {name: _number(line[name], -1, 1, f"{where}: {name}") for name in COLUMNS if line[name]}
        if not scores:
            raise ValueError(f"{where}: holds no score; expected at least one")
        row = {
            **{field: line[field] for field in _FACTS},
            "hours": _number(line["hours"], 0, 40, f"{where}: hours"),
            "scores": scores,
        }
        key = tuple(row[field] for field in ("method", "hours", "subjects", "refined"))
        if key in keys:
            raise ValueError(f"{where}: {row['method']} at {line['hours']} hours stands there already; expected it once")
        keys.add(key)
        found.append(row)
    return found


def table(runs: list[Run], method: str = "mindtuner") -> dict:
    """Published rows, then one row for ``method`` of each run: those of measured brains, then those of simulated ones.

    Returns {"columns": [{"key", "label", "lower_is_better"}], "rows": [{"label", "data": "real" or "simulated", "group",
    "setting", "cells": {key: {"value", "ci"}}, "source"}]}. ``ci`` is the 95 % interval over images, None where only a mean
    is known (what was published, and retrieval among 300 of more test images); a score that a row does not have is not
    among its cells. Retrieval stands in the published columns where it is among 300 and else in columns of its own.
    ``group`` is "published", "real" or "simulated": only rows of one group may be read against each other, so groups stand
    apart, and within one the order is that of the file or the arguments, never that of a score.

    Published numbers are of NSD, so runs of brains measured elsewhere must not stand here: see ``is_of_nsd``.

    Raises UserError where a run does not have the method, or is of other measured brains.
    """
    for number, run in enumerate(runs, 1):
        if not is_of_nsd(run):
            raise UserError(
                f"run {number}: results.json: setting.dataset is {run.results['setting'].get('dataset')!r}; expected "
                f"{NSD}, of which the published numbers are, or simulated brains"
            )
    published = [
        {
            "label": f"{row['method']} ({row['venue']})",
            "data": "real",
            "group": "published",
            "setting": ", ".join(
                [
                    f"NSD, {_hours(row['hours'])}",
                    row["subjects"].replace("mean ", "mean of subjects "),
                    _refined(row["refined"]),
                ]
            ),
            "cells": {key: {"value": value, "ci": None} for key, value in row["scores"].items()},
            "source": row["seen_in"],
        }
        for row in rows()
    ]
    ours = [_row_of(run, method, f"run {number}") for number, run in enumerate(runs, 1)]
    ours.sort(key=lambda row: row["data"] == "simulated")  # stable
    own = {key: None for row in ours for key in row["cells"] if key not in COLUMNS}
    columns = [
        {"key": key, "label": COLUMNS.get(key, key.replace("_", " ")), "lower_is_better": key in LOWER_IS_BETTER}
        for key in [*COLUMNS, *own]
    ]
    return {"columns": columns, "rows": published + ours}


def is_of_nsd(run: Run) -> bool:
    """Whether a run is of NSD, or of brains simulated after it."""
    setting = run.results["setting"]
    return setting.get("simulated_brains", True) or setting.get("dataset") == NSD


def label(part: str, score: str) -> str:
    """The name for people of a score of a run, in the catalogue or not; of a distance also which way is better."""
    known = of_part(part).get(score)
    name = known.label if known else score if part == "brain" else score.replace("_", " ")  # regions are called what they are
    about = {
        "retrieval": " retrieval",
        "captions": " of the caption",
        "written": " of the caption written",
        "brain": " brain correlation",
    }.get(part, "")
    return name + about + (" (lower is better)" if known and not known.higher_is_better else "")


def _row_of(run: Run, method: str, where: str) -> dict:
    setting = run.results["setting"]
    for field in ("simulated_brains", "subject", "sessions"):
        if field not in setting:
            raise UserError(f"{where}: results.json: setting.{field} is missing; expected a value")
    if method not in run.results["methods"]:
        raise UserError(
            f"{where}: results.json: methods.{method} is missing; expected one of {', '.join(run.results['methods'])}"
        )
    own = run.results["methods"][method]
    data = "simulated" if setting["simulated_brains"] else "real"
    cells = _retrieval_cells(own, len(run.pictures["thumbnails"]))
    for score, value in own.get("reconstruction", {}).items():
        cells[_COLUMN_OF.get(score, score)] = {"value": value, "ci": own["ci95"]["reconstruction"].get(score)}
    said = [f"{setting['sessions']} session{'s' if setting['sessions'] != 1 else ''}"]
    if "n_training_trials" in setting:
        said[0] += f" ({setting['n_training_trials']} trials)"
    said += [
        f"subject {setting['subject']}",
        *(["refined" if own["picture"] == "corrected" else "not refined"] if "picture" in own else []),
        f"{len(run.pictures['thumbnails'])} test images",
        f"{len(run.pictures['seen'])} pictures at {run.pictures['seen'].shape[-1]} px" if "picture" in own else "no pictures",
    ]
    if setting.get("scores", {}).get("as_published"):
        said.append("scored as published")
    version = setting.get("versions", {}).get("mindtuner")
    source = " ".join(filter(None, ["this package", version]))
    return {
        "label": f"{method}, this package",
        "data": data,
        "group": data,
        "setting": ", ".join(said),
        "cells": cells,
        "source": source + (f", seed {setting['seed']}" if "seed" in setting else ""),
    }


def _retrieval_cells(own: dict, n: int) -> dict[str, dict]:
    """Top-1 among all n test images, and of images and brains among 300 of them where there are more."""
    cells = {}
    for direction, value in own["retrieval"].items():
        published = f"{direction}_retrieval" in COLUMNS
        key = f"{direction}_retrieval" if published and n == POOL else f"{direction}_retrieval_of_{n}"
        cells[key] = {"value": value, "ci": own["ci95"]["retrieval"].get(direction)}
        for entry in own.get("retrieval_pools", {}).get(direction, ()) if published and n != POOL else ():
            if entry["pool"] == POOL:
                cells[f"{direction}_retrieval"] = {"value": entry["top1"], "ci": None}
    return cells


def markdown(found: dict) -> str:
    """What ``table`` returned as a Markdown table, its columns aligned; an empty line of cells parts the groups."""
    columns = [column for column in found["columns"] if any(column["key"] in row["cells"] for row in found["rows"])]
    head = [
        "method",
        "data",
        "setting",
        *(f"{column['label']}{' (lower is better)' if column['lower_is_better'] else ''}" for column in columns),
        "source",
    ]
    lines, group = [], None
    for row in found["rows"]:
        if group not in (None, row["group"]):
            lines.append([""] * len(head))
        group = row["group"]
        lines.append(
            [
                row["label"],
                row["data"],
                row["setting"],
                *(cell_text(row["cells"].get(column["key"])) for column in columns),
                row["source"],
            ]
        )
    sides = ("left", "left", "left", *("right" for _ in columns), "left")
    return tabulate(lines, head, "pipe", colalign=sides, disable_numparse=True)


def cell_text(cell: dict | None) -> str:
    """A cell as text: the number, and its interval where it has one; a dash where there is no number."""
    if cell is None:
        return "\N{EN DASH}"
    interval = "" if cell["ci"] is None else f" [{cell['ci'][0]:.3f}, {cell['ci'][1]:.3f}]"
    return f"{cell['value']:.3f}{interval}"


def _hours(hours: float) -> str:
    return f"{hours:g} hour{'s' if hours != 1 else ''} of the subject's own"


def _refined(refined: str) -> str:
    return {"": "refined or not: not stated", "yes": "refined", "no": "not refined"}[refined]


def _number(text: str, low: float, high: float, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise ValueError(f"{where} is {text!r}; expected a number, {low} to {high}")
    return value
