"""One self-contained page that shows a run, or several beside each other.

Everything that the page says is made here and in the modules beside this one; the templates only lay it out, and the scripts
only switch between what is already written.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from mindtuner.errors import UserError
from mindtuner.evaluation import published
from mindtuner.evaluation.results import Run
from mindtuner.files import write_text
from mindtuner.report import runs, settings, tables
from mindtuner.report.gallery import gallery
from mindtuner.report.labels import MAIN_METHOD, in_order, main_of

LIMIT = 40_000_000  # bytes of the page
WRITTEN = 250_000  # bytes a run that are kept for everything but the gallery: about three times what the demo takes
STYLES = ("page.css", "gallery.css", "figures.css")
SCRIPTS = ("store.js", "card.js", "viewer.js", "browse.js")  # in this order, as one script


def write_report(*run_folders: str | Path, out: str | Path | None = None) -> Path:
    """Write one page on all of these finished runs, atomically, to ``out``, and return its path.

    Without ``out`` a single run's page is ``report.html`` in its folder. Reads ``config.yaml`` and the files of
    ``results.load_run``. The page loads nothing from a network and has at most 40 MB: the more pictures, the smaller they
    are. Raises UserError where a folder is no finished run or comes twice, one of its files is missing or broken, or the
    pictures are too many.
    """
    folders = [Path(folder) for folder in run_folders]
    if out is None and len(folders) != 1:
        raise UserError(f"out: is not given, with {len(folders)} runs; expected the file to write a page on several runs to")
    path = Path(out) if out is not None else folders[0] / "report.html"
    if path.is_dir():
        raise UserError(f"{path}: is a folder; expected the file to write the page to")
    seen: set[str] = set()
    for folder in folders:
        place = os.path.realpath(folder)
        if place in seen:
            raise UserError(f"{folder}: given twice; expected each run once")
        seen.add(place)
    page = render([runs.load(folder) for folder in folders])
    if len(page.encode()) > LIMIT:
        raise UserError(f"{path}: would have {len(page.encode()):,} bytes; expected at most {LIMIT:,}, of fewer runs")
    write_text(path, page)
    return path


def render(loaded: list[runs.LoadedRun]) -> str:
    """The page on these runs."""
    labels = runs.labels(loaded)
    methods = in_order({name for one in loaded for name in one.run.results["methods"]})
    environment = Environment(
        loader=PackageLoader("mindtuner.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}  # in our order, and without spaces
    return environment.get_template("page.html.j2").render(
        style=_joined(STYLES),
        script=_joined(SCRIPTS),
        runs=[
            {
                "label": label,
                "setting": _setting(one),
                "scores": tables.of_run(one.run.results),
                "tests": len(one.run.pictures["thumbnails"]),
                "painted": len(one.run.pictures["seen"]),
                "facts": settings.setting_rows(one.run.results),
                "config": one.config,
                "folder": one.folder.name,
            }
            for one, label in zip(loaded, labels, strict=True)
        ],
        gallery=_gallery(loaded, labels),
        headline=tables.headline(loaded[0].run.results) if len(loaded) == 1 else [],
        beside=[runs.table(loaded, name) for name in sorted(methods, key=lambda name: name != main_of(methods))]
        if len(loaded) > 1
        else [],
        efficiency=runs.efficiency(loaded),
        published=_published([one.run for one in loaded]),
        curves=settings.training_curves([one.run.log for one in loaded]),
    )


def _published(found: list[Run]) -> dict | None:
    """Published numbers beside the runs; None where a run is of other measured brains, or has not the main method."""
    fits = all(published.is_of_nsd(run) and MAIN_METHOD in run.results["methods"] for run in found)
    return published.table(found, MAIN_METHOD) if fits else None


def _gallery(loaded: list[runs.LoadedRun], labels: list[str]) -> dict | None:
    """The gallery of the runs that painted; None where none did."""
    painted = [(one, label) for one, label in zip(loaded, labels, strict=True) if len(one.run.pictures["seen"])]
    return gallery(*map(list, zip(*painted, strict=True)), LIMIT - WRITTEN * len(loaded)) if painted else None


def _setting(one: runs.LoadedRun) -> dict:
    return {
        "n_training_trials": None,
        "n_pretraining_subjects": None,
        "subject_of_base": False,
        "stimuli_note": "",
        "off_domain": False,
        "command": "",
        "seed": None,
    } | one.setting


def _joined(names: tuple[str, ...]) -> Markup:
    assets = resources.files("mindtuner.report")
    return Markup("\n".join(assets.joinpath(name).read_text(encoding="utf-8") for name in names))
