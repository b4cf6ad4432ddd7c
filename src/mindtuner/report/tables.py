"""The scores of one run in words and small plots: beside chance, by stage, by region, and differences."""

from __future__ import annotations

import math

from mindtuner.evaluation.compare import LEVEL
from mindtuner.evaluation.published import label
from mindtuner.evaluation.said import PARTS as SAID
from mindtuner.evaluation.said import SCORES as SAID_SCORES
from mindtuner.evaluation.schema import HELD_OUT_SIDES
from mindtuner.evaluation.scores.catalogue import Score
from mindtuner.report import plots
from mindtuner.report.labels import (
    DASH,
    GROUPS,
    PARTS,
    STAGES,
    chance_of,
    in_order,
    label_of,
    main_of,
    pick,
    score_of,
    scores_in,
    show,
    show_difference,
    spread,
    tick,
    unit,
)

SAID_LABELS = {"precision": "precision", "recall": "recall", "f1": "F1"}
POOLED = ("top1", "top5", "median_rank")
AGAINST_CHANCE = ("two_way", "p")  # of retrieval among all
SHARE = Score("categories", "accuracy", "Named right", "", share=True)
COLUMNS = 5  # of scores that stand side by side and can still be read


def of_run(results: dict) -> dict:
    """Everything that the page says of one run's scores."""
    return {
        "tables": [table for part in PARTS for table in tables(results, part)],
        "not_scored": not_scored(results),
        "recognised": recognised(results),
        "said": said(results),
        "single_trials": single_trials(results),
        "stages": stage_scores(results),
        "regions": regions(results),
        "pools": pool_tables(results),
        "subsets": subsets(results),
        "held_out": held_out(results),
        "categories": categories(results),
        "candidates": candidates(results),
        "paired": paired(results["paired"]),
    }


def headline(results: dict) -> list[dict]:
    """The numbers at the top, each beside chance: of ``mindtuner``, or of the first method where it was not run.

    Of images that the painter was not trained on its pictures do not stand there, but the low-level picture and the nearest
    training image.
    """
    main = main_of(results["methods"])
    tests = candidates(results) or "all"
    pictures = [((main, "reconstruction"), "two-way identification of the pictures")]
    if results["setting"].get("off_domain"):
        pictures = [
            ((main, "stages", "lowlevel"), "two-way identification of the low-level pictures"),
            (("nearest_training_image", "reconstruction"), "two-way identification of the nearest training images"),
        ]
    rows = []
    for (method, *at), name, text in (
        ((main, "retrieval"), "image", f"of images found among {tests}"),
        ((main, "retrieval"), "text", f"of captions found among {tests}"),
        *((path, "two_way", text) for path, text in pictures),
    ):
        part = "retrieval" if at == ["retrieval"] else "reconstruction"
        value, score = pick(results["methods"], method, *at, name), score_of(part, name)
        chance = chance_of(results, part, name, method)
        if value is not None:
            rows.append(
                {"value": show(score, value), "text": text, "chance": None if chance is None else show(score, chance)}
            )
    return rows


def candidates(results: dict) -> str | None:
    """Among how many images each was looked for: all test images, or those of its fold; None of a run that does not say."""
    sizes = results["setting"].get("folds", {}).get("test_images") or [results["setting"].get("n_test_images")]
    if sizes[0] is None:
        return None
    return f"{sizes[0]:,}" if min(sizes) == max(sizes) else f"{min(sizes):,} to {max(sizes):,}"


def categories(results: dict) -> list[dict]:
    """Of each method how often it named the category right, for each of them too, and what it took for what; [] without."""
    block = results.get("categories") or {}
    groups = []
    for name in sorted(in_order(block), key=lambda name: name != main_of(block)):
        found = block[name]
        rows = []
        for seen, counts in zip(found["names"], found["confusion"], strict=True):
            if (own := found["own"].get(seen)) is None:  # decoded, and never shown
                continue
            cells = [
                {"count": count, "share": count / own["images"], "right": decoded == seen}
                for decoded, count in zip(found["names"], counts, strict=True)
            ]
            rows.append({"name": seen, **own, "cells": cells})
        rates = [
            {
                "kind": kind,
                "value": show(SHARE, rate["value"]),
                "ci": f"{show(SHARE, rate['ci95'][0])} to {show(SHARE, rate['ci95'][1])}",
                "chance": show(SHARE, rate["chance"]),
                "p": f"{rate['p']:.4f}",
            }
            for kind, rate in (("of all images", found["accuracy"]), ("mean over categories", found["balanced"]))
        ]
        groups.append(
            {
                "label": label_of(name)[0],
                "open": name == main_of(block),
                "names": found["names"],
                "rates": rates,
                "rows": [
                    {**row, "accuracy": show(SHARE, row["accuracy"]), "chance": show(SHARE, row["chance"])} for row in rows
                ],
            }
        )
    return groups


def tables(results: dict, part: str) -> list[dict]:
    """Tables of scores: a row per method, a column per score, a last row with chance; COLUMNS scores in one at most."""
    scores = list(scores_in(results, part).items())
    count = math.ceil(len(scores) / COLUMNS)
    width = math.ceil(len(scores) / max(count, 1))
    return [
        _table(
            results,
            part,
            f"{PARTS[part]}{f', {k + 1} of {count}' if count > 1 else ''}",
            dict(scores[k * width : (k + 1) * width]),
        )
        for k in range(count)
    ]


def _table(results: dict, part: str, title: str, scores: dict) -> dict:
    names = in_order(results["methods"])
    return _filled(
        title,
        names,
        [
            (
                score,
                [
                    (
                        pick(results["methods"], name, part, key),
                        pick(results["methods"], name, "ci95", part, key),
                        chance_of(results, part, key, name),
                    )
                    for name in names
                ],
            )
            for key, score in scores.items()
        ],
    )


def _filled(title: str, names: list[str], scored: list[tuple[Score, list[tuple]]]) -> dict:
    """A table with a row for each method and a column for each score.

    Each method has its value, interval and chance, or None for what there is not.
    """
    columns = []
    rows = [{"label": label_of(name)[0], "about": label_of(name)[1], "cells": []} for name in names]
    for score, found in scored:
        values, intervals, chances = zip(*found, strict=True)
        limits = _limits(values, intervals, chances)
        for row, value, ci, chance in zip(rows, values, intervals, chances, strict=True):
            row["cells"].append(_cell(score, value, ci, chance, limits))
        columns.append(
            {
                "label": score.label,
                "meaning": score.meaning,
                "unit": unit(score).strip(),
                "lower": not score.higher_is_better,
                "chance": spread(score, chances),
                "limits": [tick(score, limit) for limit in limits],
            }
        )
    return {"title": title, "columns": columns, "rows": [row for row in rows if any(row["cells"])]}


def _limits(values, intervals, chances) -> tuple[float, float]:
    """An axis that holds all of them, some of which may be None."""
    return plots.axis(
        [number for number in [*values, *chances] if number is not None] + [end for ends in intervals if ends for end in ends]
    )


def _cell(score: Score, value, ci, chance, limits: tuple[float, float]) -> dict | None:
    return (
        None
        if value is None
        else {
            "value": show(score, value),
            "ci": f"{show(score, ci[0])} to {show(score, ci[1])}" if ci else None,
            "plot": plots.interval(value, ci, chance, limits),
        }
    )


def pool_tables(results: dict) -> list[dict]:
    """Retrieval by more than top-1 among all, a table for each direction: all test images and smaller pools as candidates."""
    names = [name for name in in_order(results["methods"]) if results["methods"][name].get("retrieval_pools")]
    tables = []
    for direction, score in GROUPS["retrieval"].items() if names else ():
        scored = []
        for at, entry in enumerate(results["methods"][names[0]]["retrieval_pools"][direction]):
            keys = POOLED if at else (*POOLED[1:], *(key for key in AGAINST_CHANCE if key in entry))
            for key in keys:  # top-1 among all stands above
                held = [results["methods"][name]["retrieval_pools"][direction][at] for name in names]
                scored.append(
                    (
                        _pooled(key, entry["pool"], score),
                        [
                            (pick(own, key), pick(own, "ci95", key), _chance_of_pool(results, direction, at, key))
                            for own in held
                        ],
                    )
                )
        tables.append(_filled(f"{score.label} retrieval", names, scored))
    return tables


def _pooled(key: str, size: int, score: Score) -> Score:
    if key == "median_rank":
        return Score(
            "pools",
            key,
            f"Median rank of {size:,}",
            f"{score.meaning}: 1 is found first",
            higher_is_better=False,
            low=1,
            high=size,
        )
    if key == "two_way":
        return Score("pools", key, "2AFC", f"{score.meaning}: share of the others that are less alike", share=True)
    if key == "p":
        return Score(
            "pools", key, "p", f"{score.meaning}: of pairings at random whose ranks are as good", higher_is_better=False
        )
    return Score("pools", key, f"Top-{key.removeprefix('top')} of {size:,}", score.meaning, share=True)


def _chance_of_pool(results: dict, direction: str, at: int, key: str) -> float | None:
    entries = results["chance"].get("retrieval_pools", {}).get(direction, [])
    return pick(entries[at], key) if at < len(entries) else None


def subsets(results: dict) -> dict | None:
    """What random subsets gave in the place of all of them, as published: mean and sd of one subset, as text."""
    rows, columns = [], {}
    for name in in_order(results["methods"]):
        cells = {}
        for direction, entries in (results["methods"][name].get("retrieval_pools") or {}).items():
            for entry in entries:
                for key in POOLED if "subsets" in entry else ():
                    score, drawn = _pooled(key, entry["pool"], GROUPS["retrieval"][direction]), entry["subsets"][key]
                    label = f"{GROUPS['retrieval'][direction].label}: {score.label[0].lower()}{score.label[1:]}"
                    columns[label] = entry["subsets"]["count"]
                    cells[label] = f"{show(score, drawn['mean'])} \N{PLUS-MINUS SIGN} {show(score, drawn['sd'])}{unit(score)}"
        rows.append({"heads": [label_of(name)[0]], "cells": cells})
    rows = [{**row, "cells": [row["cells"].get(label, DASH) for label in columns]} for row in rows if row["cells"]]
    return {"columns": list(columns), "rows": rows, "count": max(columns.values())} if rows else None


def held_out(results: dict) -> dict | None:
    """Of each method every score on the test images of the category that no training saw, beside the others; None without."""
    block = results.get("held_out")
    if not block:
        return None
    names = in_order(block["others"])
    first, groups = main_of(names), []
    for name in sorted(names, key=lambda name: name != first):
        rows = []
        for part, scores in block["others"][name].items():
            for key in scores:
                score = score_of(part, key)
                sides = [block[side].get(name, {}).get(part, {}).get(key) for side in HELD_OUT_SIDES]
                values, intervals = ([pick(own, field) for own in sides] for field in ("mean", "ci"))
                chance = (
                    pick(results["methods"][name], "brain", key, "chance")
                    if part == "brain"
                    else chance_of(results, part, key, name)
                )
                limits = _limits(values, intervals, [chance])
                cells = [_cell(score, value, ci, chance, limits) for value, ci in zip(values, intervals, strict=True)]
                rows.append(
                    {
                        "score": label(part, key),
                        "unit": unit(score).strip(),
                        "cells": [cell and {**cell, "n": own["n"]} for cell, own in zip(cells, sides, strict=True)],
                        "chance": None if chance is None else show(score, chance),
                    }
                )
        groups.append({"label": label_of(name)[0], "open": name == first, "rows": rows})
    return {"category": block["category"], "images": len(block["images"]), "left_out": block["left_out"], "groups": groups}


def recognised(results: dict) -> dict | None:
    """What is recognised in the seen pictures themselves, and by how many training images and words; None without."""
    block = results.get("objects")
    if not block:
        return None
    seen = {score_of("reconstruction", name): found["mean"] for name, found in block["seen"].items()}
    return {
        "training": f"{block['training_images']:,}",
        "words": f"{sum(map(len, block['words'].values())):,}",
        "seen": ", ".join(f"{score.label} {show(score, value)}{unit(score)}" for score, value in seen.items()),
    }


def not_scored(results: dict) -> str:
    """Names of the scores that lacked what they need; none where there was nothing to score."""
    if not scores_in(results, "reconstruction"):
        return ""
    scores = results["setting"].get("scores")
    names = scores.get("not_scored") if isinstance(scores, dict) else None
    return ", ".join(score_of("reconstruction", str(name)).label for name in names or ())


def _plain(results: dict, part: str, rows: list[tuple[list[str], dict]]) -> dict | None:
    """A table of numbers alone: each row its heads and its scores; None where there is no row."""
    scores = scores_in(results, part)
    if not rows:
        return None
    return {
        "columns": [score.label for score in scores.values()],
        "rows": [
            {
                "heads": heads,
                "cells": [
                    DASH if pick(own, key) is None else show(score, own[key]) + unit(score) for key, score in scores.items()
                ],
            }
            for heads, own in rows
        ],
    }


def stage_scores(results: dict) -> dict | None:
    """Picture scores of each stage of each method, as text."""
    return _plain(
        results,
        "reconstruction",
        [
            ([label_of(name)[0], label], results["methods"][name]["stages"][stage])
            for name in in_order(results["methods"])
            for stage, label in STAGES.items()
            if stage in results["methods"][name].get("stages", {})
        ],
    )


def single_trials(results: dict) -> dict | None:
    """Retrieval from single trials, as text."""
    return _plain(
        results,
        "retrieval",
        [
            ([label_of(name)[0]], single)
            for name in in_order(results["methods"])
            if (single := results["methods"][name].get("single_trial_retrieval"))
        ],
    )


def said(results: dict) -> dict | None:
    """F1 of what is said of the test images, by phrases and by whole captions, as text; None of a run without it."""
    ways = {"phrases": "Phrases", "captions": "Nearest caption"}
    rows = [
        ([label_of(name)[0], label], results["methods"][name]["words"][way])
        for name in in_order(results["methods"])
        for way, label in ways.items()
        if way in results["methods"][name].get("words", {})
    ]
    columns = [(part, score) for part in SAID for score in SAID_SCORES]
    return (
        {
            "columns": [f"{part.capitalize()}, {SAID_LABELS[score]}" for part, score in columns],
            "rows": [
                {"heads": heads, "cells": [_said_cell(own[part][score]) for part, score in columns]} for heads, own in rows
            ],
        }
        if rows
        else None
    )


def _said_cell(found: dict) -> str:
    low, high = found["ci95"]
    return f"{found['mean']:.2f} [{low:.2f}, {high:.2f}], chance {found['chance']:.2f}"


def regions(results: dict) -> list[dict]:
    """Brain correlation by region, for each method that has it.

    The brain predicted from the method's picture stands beside the one predicted from the seen picture, and the ceiling that
    noise sets.
    """
    methods = {name: own["brain"] for name, own in results["methods"].items() if own.get("brain")}
    if not methods:
        return []
    marks = ("correlation", "seen", "ceiling")
    held = [pick(entry, mark) for own in methods.values() for entry in own.values() for mark in marks]
    ends = [end for own in methods.values() for entry in own.values() for end in pick(entry, "ci") or ()]
    limits = plots.axis([value for value in held if value is not None] + ends)
    score = score_of("reconstruction", "correlation")
    first = main_of(methods)
    return [
        {
            "label": label_of(name)[0],
            "limits": [tick(score, limit) for limit in limits],
            "open": name == first,
            "rows": [
                {
                    "region": region,
                    "ci": f"{show(score, ci[0])} to {show(score, ci[1])}" if (ci := pick(entry, "ci")) else None,
                    **{mark: None if pick(entry, mark) is None else show(score, entry[mark]) for mark in marks},
                    "plot": plots.bar(pick(entry, "correlation"), ci, pick(entry, "seen"), pick(entry, "ceiling"), limits),
                }
                for region, entry in methods[name].items()
                if pick(entry, "correlation") is not None
            ],
        }
        for name in sorted(in_order(methods), key=lambda name: name != first)
    ]


def paired(differences: dict) -> list[dict]:
    """Each paired difference in words: which method is ahead, or that no clear difference was seen.

    Ahead is who is so by the interval and by the test, at ``LEVEL``.
    """
    groups = []
    for name, parts in differences.items():
        first, second = (label_of(method)[0] for method in name.split("_minus_"))
        lines = [
            _difference(first, second, part, key, parts[part][key])
            for part in parts
            for key in dict.fromkeys([*GROUPS[part], *parts[part]])
            if key in parts[part]
        ]
        groups.append({"title": f"{first} minus {second}", "lines": lines})
    return groups


def _difference(first: str, second: str, part: str, key: str, entry: dict) -> dict:
    mean, (low, high), p = entry["mean"], entry["ci"], entry["p"]
    score = score_of(part, key)
    clear = (low > 0 or high < 0) and p <= LEVEL
    ahead, behind = (first, second) if (mean > 0) == score.higher_is_better else (second, first)
    interval = f"95 % interval {show_difference(score, low)} to {show_difference(score, high)}"
    p_value = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    return {
        "metric": score.label,
        "is_clear": clear,
        "words": f"{ahead} is ahead of {behind}" if clear else "no clear difference",
        "numbers": f"{show_difference(score, mean)}{' points' if score.share else ''}, {interval}, {p_value}",
    }
