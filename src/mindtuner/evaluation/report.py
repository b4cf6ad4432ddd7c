"""``report.html``: one self-contained page that shows a run. Everything that the page says is made here;
the template only lays it out, and the script only switches between what is already written.
"""

from __future__ import annotations

import base64
import io
import json
import math
from importlib import resources
from pathlib import Path

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from mindtuner.errors import UserError
from mindtuner.evaluation import report_scores
from mindtuner.evaluation.figure import STAGES, methods_of, read_pictures, to_image
from mindtuner.evaluation.report_scores import GROUPS, METHODS, is_number, label_of
from mindtuner.files import read_json, write_text

SPRITE_COLUMNS = 20
ORDINALS = ("1st", "2nd", "3rd", "4th", "5th")


def write_report(run_folder: str | Path) -> Path:
    """Write ``report.html`` into a run folder, atomically, and return its path.

    Reads ``config.yaml``, ``results.json``, ``pictures.safetensors``, ``words.json`` and ``log.jsonl``.
    The page loads nothing from a network. Raises UserError where one of the files is missing or broken.
    """
    run = Path(run_folder)
    if not run.is_dir():
        raise UserError(f"{run}: not found; expected the folder of a run")
    results = read_json(run / "results.json")
    for field in ("setting", "methods"):
        if not isinstance(results.get(field), dict):
            raise UserError(f"{run / 'results.json'}: field {field} is missing; expected a JSON object")
    pictures = read_pictures(run)
    words = _read_words(run / "words.json", pictures)
    environment = Environment(loader=PackageLoader("mindtuner", "evaluation"), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    assets = resources.files("mindtuner.evaluation")
    page = environment.get_template("report.html.j2").render(
        style=Markup(assets.joinpath("report.css").read_text(encoding="utf-8")),
        script=Markup(assets.joinpath("report.js").read_text(encoding="utf-8")),
        setting=results["setting"],
        gallery=_gallery(pictures, words, results["setting"]),
        headline=report_scores.headline(results),
        tables=[report_scores.table(results, group) for group in GROUPS],
        stages=report_scores.stage_scores(results),
        paired=report_scores.paired(results.get("paired") or {}),
        curves=report_scores.curves(_read_log(run / "log.jsonl")),
        config=_read_text(run / "config.yaml"),
        facts=report_scores.facts(results),
    )
    write_text(run / "report.html", page)
    return run / "report.html"


# --- reading -----------------------------------------------------------------------------------------


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UserError(f"{path}: not found; expected a file of a run") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error}); expected a file of a run") from error


def _read_log(path: Path) -> list[dict]:
    entries = []
    for number, line in enumerate(_read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            entries.append({"stage": str(entry["stage"]), "epoch": float(entry["epoch"]),
                            "losses": dict(entry["losses"])})
        except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path}: line {number} is broken; expected an object with stage, epoch and "
                            "losses") from error
    return entries


def _read_words(path: Path, pictures: dict[str, np.ndarray]) -> dict:
    """``words.json``, checked against the pictures: every list has one entry per picture."""
    words = read_json(path)
    count, tests = len(pictures["seen"]), len(pictures["thumbnails"])

    def check(ok: bool, field: str, expected: str) -> None:
        if not ok:
            raise UserError(f"{path}: {field} is missing or wrong; expected {expected}")

    def texts(value, length: int) -> bool:
        return isinstance(value, list) and len(value) == length and all(isinstance(item, str) for item in value)

    def positions(value, length: int) -> bool:
        return (isinstance(value, list) and len(value) == length
                and all(type(item) is int and 0 <= item < tests for item in value))

    check(positions(words.get("picture_index"), count), "picture_index", f"{count} positions below {tests}")
    check(texts(words.get("seen_captions"), count), "seen_captions", f"{count} strings")
    check(texts(words.get("all_captions"), tests), "all_captions", f"{tests} strings")
    methods = words.get("methods")
    check(isinstance(methods, dict) and all(isinstance(own, dict) for own in methods.values()), "methods",
          "one object per method")
    for name, own in methods.items():
        if own.get("retrieved_caption") is not None:
            check(texts(own["retrieved_caption"], count), f"methods.{name}.retrieved_caption", f"{count} strings")
        if own.get("top5") is not None:
            top = own["top5"]
            check(isinstance(top, list) and len(top) == count and all(positions(row, min(5, tests)) for row in top),
                  f"methods.{name}.top5", f"{count} lists of {min(5, tests)} positions below {tests}")
    scores = words.setdefault("scores", {}) or {}
    check(isinstance(scores, dict) and all(
        isinstance(own, list) and len(own) == count and all(map(is_number, own)) for own in scores.values()),
        "scores", f"one list of {count} numbers per method")
    words["scores"] = scores
    return words


# --- the gallery ---------------------------------------------------------------------------------------


def _gallery(pictures: dict[str, np.ndarray], words: dict, setting: dict) -> dict:
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

    order = list(METHODS)
    names = sorted(methods_of(pictures), key=lambda name: order.index(name) if name in order else len(order))
    seen = ids_of(pictures["seen"])
    methods = {}
    for name in names:
        label, about = label_of(name)
        own = words["methods"].get(name, {})
        methods[name] = {
            "label": label, "about": about, "scores": words["scores"].get(name),
            "pictures": {stage: ids_of(pictures[f"{name}/{stage}"]) for stage in STAGES
                         if f"{name}/{stage}" in pictures},
            "notes": {stage: _how(name, stage, setting) for stage in STAGES},
            "read": own.get("retrieved_caption"),
            "strips": None if own.get("top5") is None else [
                _strip(top, truth, words["all_captions"])
                for top, truth in zip(own["top5"], words["picture_index"], strict=True)],
        }
    shown = {number for numbers in ([seen], methods[names[0]]["pictures"].values()) for row in numbers
             for number in row}
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
    if stage == "corrected":
        return f"+ {steps['refine']} steps with the text read"
    if method == "prior_only":
        return f"mean token, {steps['generator']} generator steps"
    return f"{steps['prior']} prior, {steps['generator']} generator steps"


def _strip(top: list[int], truth: int, captions: list[str]) -> dict:
    """The closest five test images, and where the seen one is among them (rank 0 where it is not)."""
    rank = top.index(truth) + 1 if truth in top else 0
    verdict = "Found first" if rank == 1 else f"Found {ORDINALS[rank - 1]}" if rank else "Not in the first five"
    return {"rank": rank, "verdict": verdict, "at": top,
            "labels": [f"{ORDINALS[place]}{', the image seen' if position == truth else ''}: {captions[position]}"
                       for place, position in enumerate(top)]}


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
