"""The studies' tables, as Markdown, and their pages: self-contained, with every number in words beside its plot."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mindtuner.analysis.curve import GOAL, METHODS, said
from mindtuner.analysis.runs import SCORES, Bench
from mindtuner.evaluation.report import plots
from mindtuner.files import write_text

LABELS = {"image": "image retrieval", "brain": "brain retrieval", "text": "text retrieval"}
STYLES = ("page.css", "figures.css")


def setting_of(bench: Bench, seeds: int, chance: dict[str, float]) -> dict:
    config, subject = bench.config, bench.dataset.subject(bench.config.target_subject)
    return {"simulated_brains": bench.dataset.card["simulated"], "subject": subject.number, "voxels": subject.n_voxels,
            "sessions": config.tuning_sessions, "first_seed": config.seed, "seeds": seeds, "chance": chance,
            "pretraining_subjects": bench.others}


def ablation_text(rows: list[dict]) -> str:
    """A Markdown table: a row a variant; per score the mean and its difference from the full method, [95 %], p, verdict."""
    lines = ["| variant | " + " | ".join(f"{LABELS[s]} | minus full" for s in SCORES) + " |", "|---|" + 6 * "---:|"]
    for title, cells in _grouped(rows):
        lines.append(f"| {title} | " + " | ".join(f"{spread(c)} | {difference(c)}" for c in cells) + " |")
    return "\n".join(lines)


def spread(row: dict) -> str:
    return f"{row['mean']:.3f} ± {row['sd']:.3f}"


def difference(row: dict) -> str:
    d = row["difference"]
    return "" if d is None else (f"{d['mean']:+.3f} [{d['ci'][0]:+.3f}, {d['ci'][1]:+.3f}], p {d['p_holm']:.3g}: "
                                 f"{d['verdict']}")


def _grouped(rows: list[dict]) -> list[tuple[str, list[dict]]]:
    titles = {row["variant"]: row["title"] for row in rows}
    return [(title, [row for row in rows if row["variant"] == name]) for name, title in titles.items()]


def curve_text(found: dict, hours: list[float]) -> str:
    """A Markdown table, a row a method and amount, and what an hour is worth in words."""
    lines = ["| method | hours | " + " | ".join(LABELS[s] for s in SCORES) + " |", "|---|---:|" + 3 * "---:|"]
    for method, title in METHODS.items():
        for amount in hours:
            cells = [row for row in found["rows"] if row["method"] == method and row["hours"] == amount]
            lines.append(f"| {title} | {amount:g} | " + " | ".join(
                f"{spread(c)} [{c['ci'][0]:.3f}, {c['ci'][1]:.3f}]" for c in cells) + " |")
    return "\n".join([*lines, "", *(f"- {line}" for line in sentences(found, hours))])


def sentences(found: dict, hours: list[float]) -> list[str]:
    lines = []
    for score in SCORES:
        worth, share = found["worth"][score], found["share"][score]
        lines.append(f"{LABELS[score]}: one hour of tuning is worth {said(worth['hours'], hours)} from scratch "
                     f"[{said(worth['ci'][0], hours)}, {said(worth['ci'][1], hours)}]")
        if share["share"] is not None:
            low, high = share["ci"]
            lines.append(f"{LABELS[score]}: one hour gives {share['share']:.1%} of what all {hours[-1]:g} hours give "
                         f"[{low:.1%}, {high:.1%}]; goal {GOAL:.0%}: "
                         + {"yes": "reached", "no": "not reached", "open": "not decided by these data"}[share["reached"]])
    return lines


def write_ablation(out: Path, setting: dict, rows: list[dict]) -> Path:
    limits = {}
    for score in SCORES:
        ends = [end for row in rows if row["score"] == score and row["difference"] for end in row["difference"]["ci"]]
        most = max([abs(end) for end in ends], default=0.0) or 1.0
        limits[score] = (-most, most)
    tables = [{"label": LABELS[score], "limits": [f"{end:+.3f}" for end in limits[score]],
               "rows": [{"title": row["title"], "value": spread(row), "text": difference(row),
                         "plot": "" if row["difference"] is None else plots.interval(
                             row["difference"]["mean"], row["difference"]["ci"], 0.0, limits[score])}
                        for row in rows if row["score"] == score]} for score in SCORES]
    return _write(out, "Ablations", setting, tables=tables, figures=[], sentences=[])


def write_curve(out: Path, setting: dict, found: dict, hours: list[float]) -> Path:
    figures, classes = [], dict(zip(METHODS, ("mindtuner", "from_scratch", "full_finetune", "ridge_only"), strict=True))
    for score in SCORES:
        own = [row for row in found["rows"] if row["score"] == score]
        limits = plots.axis(row["ci"][1] for row in own)
        lines = {classes[m]: [(r["hours"], r["mean"], *r["ci"]) for r in own if r["method"] == m] for m in METHODS}
        drawn = plots.growth(lines, setting["chance"][score], hours if len(hours) < 4 else [h for h in hours if h >= 1], limits,
                             (f"{limits[0]:g}", f"{limits[1]:g}"))
        figures.append({"label": LABELS[score], "plot": drawn, "alt": f"{LABELS[score]} by hours of data: " + "; ".join(
            f"{METHODS[m]} " + ", ".join(f"{r['mean']:.3f} at {r['hours']:g}" for r in own if r["method"] == m)
            for m in METHODS)})
    legend = [{"label": title, "kind": classes[m], "mark": plots.marker(classes[m], 10, 7)} for m, title in METHODS.items()]
    tables = [{"label": LABELS[score], "limits": None,
               "rows": [{"title": f"{METHODS[r['method']]}, {r['hours']:g} h", "value": spread(r),
                         "text": f"[{r['ci'][0]:.3f}, {r['ci'][1]:.3f}]", "plot": ""}
                        for r in found["rows"] if r["score"] == score]} for score in SCORES]
    return _write(out, "How much data", setting, tables=tables, figures=figures, legend=legend,
                  sentences=sentences(found, hours))


def _write(out: Path, title: str, setting: dict, legend: list[dict] = (), **told) -> Path:
    assets = resources.files("mindtuner.evaluation.report")
    style = Markup("\n".join(assets.joinpath(name).read_text(encoding="utf-8") for name in STYLES))
    environment = Environment(loader=PackageLoader("mindtuner", "analysis"), autoescape=True, undefined=StrictUndefined,
                              trim_blocks=True, lstrip_blocks=True)
    text = environment.get_template("study.html.j2").render(title=title, setting=setting, style=style, legend=legend, **told)
    write_text(out / "report.html", text)
    return out / "report.html"
