"""What the gallery shows: pictures, words and scores of single images, for every run and method.

The cards of the first run's main method are written out for a browser without scripts, and their pictures stand there.
Everything else stands in ``store`` and ``blocks``, where the script looks it up when it is shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np

from mindtuner.evaluation.results import Run, names_of
from mindtuner.report import images
from mindtuner.report.labels import STAGES, in_order, label_of, main_of, methods_of, score_of, show, unit
from mindtuner.report.runs import LoadedRun

ORDINALS = ("1st", "2nd", "3rd", "4th", "5th")
ORDER_BY = "reconstruction/two_way"  # at first
# Of a card that is written out: bytes without pictures and texts, and how often captions and file names are in it, at most.
CARD_BYTES, CAPTIONS, NAMES = 3600, 16, 12


def gallery(runs: list[LoadedRun], labels: list[str], budget: int) -> dict:
    """All that the gallery shows, in at most about ``budget`` bytes. Raises UserError where the pictures are too many."""
    sheets: list[tuple[str, int]] = []
    store_runs = [_run(loaded, label, sheets) for loaded, label in zip(runs, labels, strict=True)]
    room = budget - sum(len(sheet) for sheet, _ in sheets) - len(json.dumps(store_runs))
    longest = max(map(len, store_runs[0]["names"]), default=0)
    room -= sum(CARD_BYTES + NAMES * longest + CAPTIONS * len(caption) for caption in store_runs[0]["captions"])
    for form in images.forms_within(room, [loaded.run.pictures for loaded in runs]):
        album = images.Album(form)
        blocks = _paint(runs, store_runs, album)
        if album.bytes <= room:
            break
    first = store_runs[0]
    full = max(max(loaded.run.pictures["seen"].shape[2:]) for loaded in runs)
    methods = in_order({name for own in store_runs for name in own["methods"]})
    return {
        "runs": store_runs,
        "main": first["main"],
        "method": first["methods"][first["main"]],
        "cards": _cards(first, album.encoded),
        "sheets": sheets,
        "stages": _stages(store_runs),
        "scores": _scores(store_runs),
        "methods": {name: label_of(name)[0] for name in methods},
        "blocks": [{"first": start, "pictures": album.encoded[start:end]} for start, end in blocks[1:] if end > start],
        "written": any(method["written"] for own in store_runs for method in own["methods"].values()),
        "reduced": {"side": form.side, "quality": form.quality, "full": full} if form.side < full else None,
        "count": len(album.encoded),
        "store": {
            "runs": store_runs,
            "stages": _stages(store_runs),
            "scores": _scores(store_runs),
            "ordinals": ORDINALS,
            "columns": [columns for _, columns in sheets],
        },
    }


def _run(loaded: LoadedRun, title: str, sheets: list[tuple[str, int]]) -> dict:
    """Words and scores of a run; its pictures come later. Adds its sheet of thumbnails to ``sheets``, unless it is there."""
    run, words = loaded.run, loaded.run.words
    names = in_order(methods_of(run.pictures))
    sheet = images.sprite(run.pictures["thumbnails"])
    if sheet not in sheets:
        sheets.append(sheet)
    methods = {}
    for name in names:
        own = words["methods"].get(name, {})
        label, about = label_of(name)
        methods[name] = {
            "label": label,
            "about": about,
            "read": _read(own),
            "written": own.get("written_caption"),
            "top5": own.get("top5"),
            "scores": _scores_of(run, name),
            "pictures": {},
            "notes": {stage: _how(name, stage, loaded.setting) for stage in STAGES if f"{name}/{stage}" in run.pictures},
        }
    return {
        "label": title,
        "subject": f"Subject {loaded.setting['subject']}",
        "main": main_of(names),
        "methods": methods,
        "captions": words["seen_captions"],
        "all": words["all_captions"],
        "names": names_of(run),
        "truth": words["picture_index"],
        "sheet": sheets.index(sheet),
    }


def _scores_of(run: Run, method: str) -> dict[str, list[float | None]]:
    """Every score that the run keeps of single images, for those shown; None where an image has none."""
    found = {}
    at = {"text": {int(image): k for k, image in enumerate(run.per_image["texts"])}}
    for name, values in run.per_image.items():
        own, _, key = name.partition("/")
        if own != method:
            continue
        if key.startswith("retrieval/"):
            places = at.get(key.removeprefix("retrieval/"))
            rows = [int(image) if places is None else places.get(int(image)) for image in run.per_image["shown"]]
            shown = [None if row is None else values[row] for row in rows]
        else:
            shown = list(values)
        found[key] = [None if value is None or not np.isfinite(value) else round(float(value), 4) for value in shown]
    return found


def _paint(runs: list[LoadedRun], store_runs: list[dict], album: images.Album) -> list[tuple[int, int]]:
    """Encode all pictures, the first run's main method first; returns the range of ids that came new with each method."""
    blocks = []
    for loaded, own in zip(runs, store_runs, strict=True):
        order = sorted(own["methods"], key=lambda name: name != own["main"])
        for name in order:
            start = len(album.encoded)
            own["seen"] = album.add(loaded.run.pictures["seen"]) if name == order[0] else own["seen"]
            own["methods"][name]["pictures"] = {
                stage: album.add(loaded.run.pictures[f"{name}/{stage}"]) for stage in own["methods"][name]["notes"]
            }
            blocks.append((start, len(album.encoded)))
    return blocks


def _stages(store_runs: list[dict]) -> dict[str, str]:
    """The stages that any method of any run has."""
    held = {stage for own in store_runs for method in own["methods"].values() for stage in method["notes"]}
    return {stage: label for stage, label in STAGES.items() if stage in held}


def _scores(store_runs: list[dict]) -> dict[str, dict]:
    """The scores of single images that any method of any run has, the first to be shown first."""
    held = dict.fromkeys(key for own in store_runs for method in own["methods"].values() for key in method["scores"])
    scores = {key: score_of(*key.split("/", 1)) for key in sorted(held, key=lambda key: key != ORDER_BY)}
    about = {"retrieval": " retrieval", "captions": " of the caption read", "written": " of the caption written"}
    return {
        key: {"label": score.label + about.get(score.part, ""), "share": score.share, "lower": not score.higher_is_better}
        for key, score in scores.items()
    }


def _cards(own: dict, encoded: list[str]) -> Callable[[], list[dict]]:
    """The first run's cards with its main method, written out; called as they are rendered."""
    method = own["methods"][own["main"]]

    def cards():
        for i, caption in enumerate(own["captions"]):
            value = method["scores"].get(ORDER_BY, {i: None})[i]
            score = score_of(*ORDER_BY.split("/"))
            yield {
                "number": i + 1,
                "name": own["names"][own["truth"][i]],
                "caption": caption,
                "read": method["read"][i] if method["read"] else None,
                "written": method["written"][i] if method["written"] else None,
                "score": "" if value is None else f"{score.label} {show(score, value)}{unit(score)}",
                "seen": {"id": own["seen"][i], "data": encoded[own["seen"][i]]},
                "pictures": {
                    stage: {"id": ids[i], "data": encoded[ids[i]], "note": method["notes"][stage]}
                    for stage, ids in method["pictures"].items()
                },
                "strip": _strip(method["top5"][i], own["truth"][i], own["all"], own["names"]) if method["top5"] else None,
            }

    return cards


def _strip(top: list[int], truth: int, captions: list[str], names: list[str]) -> dict:
    """The closest five test images, and where the seen one is among them (rank 0 where it is not)."""
    rank = top.index(truth) + 1 if truth in top else 0
    found = "Found first" if rank == 1 else f"Found {ORDINALS[rank - 1]}"
    return {
        "rank": rank,
        "verdict": found if rank else "Not in the first five",
        "at": top,
        "labels": [
            f"{ordinal}{', the image seen' if position == truth else ''}: {names[position]}, "
            f"{captions[position] or 'no caption'}"
            for ordinal, position in zip(ORDINALS, top, strict=False)
        ],
    }


def _read(own: dict) -> list[str] | None:
    """What a method read of each image: its phrases, with how sure it is of them, or the nearest caption."""
    if not own.get("phrases"):  # none are kept of a run that painted nothing
        return own.get("retrieved_caption")
    listed = (", ".join(f"{phrase} ({sure:.0%})" for phrase, sure in said) for said in own["phrases"])
    return [one or "nothing that it is sure of" for one in listed]


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
        return f"+ {steps['refine']} steps with the words read"
    if method == "prior_only":
        return f"mean token, {steps['generator']} generator steps"
    return f"{steps['prior']} prior, {steps['generator']} generator steps"
