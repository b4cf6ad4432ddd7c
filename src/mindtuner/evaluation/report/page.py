"""``report.html``: one self-contained page that shows a run. Everything that the page says is made here;
the template only lays it out, and the script only switches between what is already written.
"""

from __future__ import annotations

import base64
import io
import math
from importlib import resources
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from mindtuner.errors import UserError
from mindtuner.evaluation.report import tables
from mindtuner.evaluation.report.figure import STAGES, methods_of, to_image
from mindtuner.evaluation.report.tables import METHODS, is_number, label_of
from mindtuner.evaluation.results import load_run
from mindtuner.files import write_text

SPRITE_COLUMNS = 20
ORDINALS = ("1st", "2nd", "3rd", "4th", "5th")


def write_report(run_folder: str | Path) -> Path:
    """Write ``report.html`` into a complete run folder, atomically, and return its path.

    Reads ``config.yaml`` and the files of ``results.load_run``. The page loads nothing from a network.
    Raises UserError where one of the files is missing or broken.
    """
    folder = Path(run_folder)
    run = load_run(folder)
    for field in ("simulated_brains", "simulated_scenes", "subject", "sessions"):
        if field not in run.results["setting"]:
            raise UserError(f"{folder / 'results.json'}: setting.{field} is missing; expected a value")
    for number, entry in enumerate(run.log, 1):
        if not is_number(entry.get("epoch")):
            raise UserError(f"{folder / 'log.jsonl'}: entry {number} has no epoch; expected a number")
    if not methods_of(run.pictures):
        raise UserError(f"{folder / 'pictures.safetensors'}: no method has pictures; expected METHOD/STAGE")
    setting = dict.fromkeys(("n_training_trials", "stimuli_note", "command")) | run.results["setting"]
    scores = {name.partition("/")[0]: array.round(6).tolist() for name, array in run.per_image.items()
              if name.endswith("/reconstruction/two_way")}
    environment = Environment(loader=PackageLoader("mindtuner.evaluation", "report"), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    assets = resources.files("mindtuner.evaluation.report")
    page = environment.get_template("page.html.j2").render(
        style=Markup(assets.joinpath("page.css").read_text(encoding="utf-8")),
        script=Markup(assets.joinpath("page.js").read_text(encoding="utf-8")),
        setting=setting,
        gallery=_gallery(run.pictures, run.words, scores, setting),
        headline=tables.headline(run.results),
        tables=[tables.table(run.results, group) for group in tables.GROUPS],
        stages=tables.stage_scores(run.results),
        single_trials=tables.single_trials(run.results),
        paired=tables.paired(run.results["paired"]),
        curves=tables.curves(run.log),
        config=_config(folder / "config.yaml"),
        facts=tables.facts(run.results),
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def _config(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; expected the configuration of the run") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}); expected YAML") from error


def _gallery(pictures: dict[str, np.ndarray], words: dict, scores: dict, setting: dict) -> dict:
    """All that the cards show, for every method; each distinct picture is encoded once.

    ``uris`` holds the data URIs by id. Those of ``main`` (the method shown without JavaScript) stand in
    the page itself, so ``store``, which the script reads, leaves them out.
    """
    ids: dict[bytes, int] = {}
    uris: list[str] = []

    def ids_of(images: np.ndarray) -> list[int]:
        found = []
        for image in images:
            key = image.tobytes() + repr(image.shape).encode()
            if key not in ids:
                ids[key] = len(uris)
                uris.append(_data_uri(to_image(image)))
            found.append(ids[key])
        return found

    names = sorted(methods_of(pictures), key=list(METHODS).index)
    seen = ids_of(pictures["seen"])
    methods = {}
    for name in names:
        label, about = label_of(name)
        own = words["methods"].get(name, {})
        methods[name] = {
            "label": label, "about": about, "scores": scores.get(name),
            "pictures": {stage: ids_of(pictures[f"{name}/{stage}"]) for stage in STAGES
                         if f"{name}/{stage}" in pictures},
            "notes": {stage: _how(name, stage, setting) for stage in STAGES},
            "read": own.get("retrieved_caption"),
            "strips": None if own.get("top5") is None else [
                _strip(top, truth, words["all_captions"])
                for top, truth in zip(own["top5"], words["picture_index"], strict=True)],
        }
    shown = {*seen, *(number for row in methods[names[0]]["pictures"].values() for number in row)}
    tests = len(pictures["thumbnails"])
    return {"main": names[0], "methods": methods, "stages": STAGES, "captions": words["seen_captions"],
            "seen": seen, "uris": uris, "tests": tests, "sprite": _sprite(pictures["thumbnails"]),
            "columns": SPRITE_COLUMNS, "has_scores": any(method["scores"] for method in methods.values()),
            "store": {"main": names[0], "methods": methods, "stages": STAGES, "columns": SPRITE_COLUMNS,
                      "uris": [None if number in shown else uri for number, uri in enumerate(uris)]}}


def _how(method: str, stage: str, setting: dict) -> str:
    """How a picture was made, for the line under it."""
    steps = {key: setting.get(f"{key}_steps", "?") for key in ("prior", "generator", "refine")}
    if method == "nearest_training_image":
        return "a training image"
    if stage == "lowlevel":
        return "one pass, no sampling"
    if stage == "blended":
        return "three quarters corrected, one of the low level"
    if stage == "corrected":
        return f"+ {steps['refine']} steps with the text read"
    if method == "prior_only":
        return f"mean token, {steps['generator']} generator steps"
    return f"{steps['prior']} prior, {steps['generator']} generator steps"


def _strip(top: list[int], truth: int, captions: list[str]) -> dict:
    """The closest five test images, and where the seen one is among them (rank 0 where it is not)."""
    rank = top.index(truth) + 1 if truth in top else 0
    found = "Found first" if rank == 1 else f"Found {ORDINALS[rank - 1]}"
    return {"rank": rank, "verdict": found if rank else "Not in the first five", "at": top,
            "labels": [f"{ordinal}{', the image seen' if position == truth else ''}: {captions[position]}"
                       for ordinal, position in zip(ORDINALS, top, strict=False)]}


def _data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=88, method=2)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _sprite(thumbnails: np.ndarray) -> str:
    """All thumbnails on one sheet, ``SPRITE_COLUMNS`` a row."""
    count, _, height, width = thumbnails.shape
    sheet = Image.new("RGB", (SPRITE_COLUMNS * width, math.ceil(count / SPRITE_COLUMNS) * height))
    for number, thumbnail in enumerate(thumbnails):
        row, column = divmod(number, SPRITE_COLUMNS)
        sheet.paste(to_image(thumbnail), (column * width, row * height))
    return _data_uri(sheet)
