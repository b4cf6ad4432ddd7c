"""The studies' pages: self-contained, each plot with its numbers in words beside it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mindtuner.files import write_text
from mindtuner.report import plots
from mindtuner.studies import ablate, curve
from mindtuner.studies.bench import REGRESSION, Bench, Chance

NAMES = {
    "image": "Image retrieval",
    "brain": "Brain retrieval",
    "text": "Text retrieval",
    "two_way": "Two-way identification",
    "pixcorr": "PixCorr",
    "ssim": "SSIM",
}
STYLES = (("report", "page.css"), ("report", "figures.css"), ("studies", "study.css"))


def setting_of(bench: Bench, seeds: int, chance: Chance) -> dict:
    """What a reader must know to judge the numbers."""
    return {
        "simulated_brains": bench.dataset.card["simulated"],
        "subject": bench.subject.number,
        "voxels": bench.subject.n_voxels,
        "sessions": bench.config.tuning_sessions,
        "seed": bench.config.seed,
        "seeds": seeds,
        "test_images": len(set(bench.subject.test.stimulus)),
        "pretraining_subjects": bench.others,
        "chance": chance,
    }


def write_ablation(out: Path, setting: dict, table: list[dict]) -> Path:
    """``report.html`` on ``ablate.compared``."""
    tables = []
    for score in dict.fromkeys(entry["score"] for entry in table):
        own = [entry for entry in table if entry["score"] == score]
        ends = [abs(end) for entry in own if entry["difference"] for end in entry["difference"]["ci"]]
        most = max(ends, default=0.0) or 1.0
        limits = (-most, most)
        rows = [
            {
                "title": entry["title"],
                "value": ablate.said(entry),
                "text": ablate.difference(entry),
                "plot": plots.interval(entry["difference"]["mean"], entry["difference"]["ci"], 0.0, limits)
                if entry["difference"]
                else "",
            }
            for entry in own
        ]
        tables.append(
            {
                "title": NAMES[score],
                "chance": setting["chance"][score],
                "rows": rows,
                "column": "Minus the full method",
                "limits": [f"{end:+.3f}" for end in (limits[0], 0.0, limits[1])],
            }
        )
    return _write(
        out,
        "What each part is worth",
        setting,
        tables=tables,
        sentences=[
            "Dashed: no difference. The wide line is the 95 % interval; p is corrected (Holm) for all "
            "differences on this page."
        ],
    )


def write_curve(out: Path, setting: dict, summed: dict, hours: Sequence[float]) -> Path:
    """``report.html`` on ``curve.summary``."""
    drawn_as = {method: "ridge_only" if method == REGRESSION else method for method in curve.METHODS}  # a mark and a colour
    figures, tables = [], []
    for score in curve.scores_of(summed):
        own = [row for row in summed["rows"] if row["score"] == score]
        limits = plots.axis(end for row in own for end in row["ci"])
        by_method = {method: rows for method in curve.METHODS if (rows := [row for row in own if row["method"] == method])}
        lines = {
            drawn_as[method]: [(row["hours"], row["mean"], *row["ci"]) for row in rows] for method, rows in by_method.items()
        }
        said = [
            f"{curve.METHODS[method]} " + ", ".join(f"{row['mean']:.3f} from {row['hours']:g}" for row in rows)
            for method, rows in by_method.items()
        ]
        figures.append(
            {
                "title": NAMES[score],
                "alt": f"{NAMES[score]} by hours of data: {'; '.join(said)}",
                "plot": plots.growth(
                    lines, setting["chance"][score], hours, limits, tuple(f"{end:g}" for end in limits), logarithmic=True
                ),
            }
        )
        tables.append(
            {
                "title": NAMES[score],
                "chance": setting["chance"][score],
                "column": "95 % interval",
                "limits": [],
                "rows": [
                    {
                        "title": f"{curve.METHODS[row['method']]}, {row['hours']:g} h",
                        "value": curve.said(row),
                        "text": curve.ends(row),
                        "plot": "",
                    }
                    for row in own
                ],
            }
        )
    legend = [(title, drawn_as[method], plots.marker(drawn_as[method], 12, 7)) for method, title in curve.METHODS.items()]
    return _write(
        out, "How much data", setting, tables=tables, figures=figures, legend=legend, sentences=curve.sentences(summed, hours)
    )


def _write(out: Path, title: str, setting: dict, figures: Sequence[dict] = (), legend: Sequence[tuple] = (), **told) -> Path:
    style = Markup(
        "\n".join(resources.files(f"mindtuner.{room}").joinpath(name).read_text(encoding="utf-8") for room, name in STYLES)
    )
    environment = Environment(
        loader=PackageLoader("mindtuner.studies", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    path = out / "report.html"
    write_text(
        path,
        environment.get_template("study.html.j2").render(
            title=title, setting=setting, style=style, figures=figures, legend=legend, **told
        ),
    )
    return path
