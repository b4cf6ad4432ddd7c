"""Two runs, or two sets of runs, on the same test images: paired differences, image by image.

A side is {name: Run}; names, usually folders, stand in messages. Where a side has several runs they are several seeds of a
subject, several subjects, or both, and the other side has as many of each.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from tabulate import tabulate

from mindtuner.errors import UserError
from mindtuner.evaluation.held_out import positions
from mindtuner.evaluation.published import label
from mindtuner.evaluation.results import PER_IMAGE, Run
from mindtuner.evaluation.schema import ALL_PARTS
from mindtuner.evaluation.scores.catalogue import of_part
from mindtuner.evaluation.statistics import bootstrap_ci, holm, over_seeds, over_subjects, sign_flips

LEVEL = 0.05
IMAGES = ("all", "category", "others")  # test images: all, of the category held out, the others
_NOT_TOLD = ("command", "versions", "stimuli_note", "stimuli_hash", "dtype", "subject", "seed")  # of settings that differ


def compare(
    a: Mapping[str, Run],
    b: Mapping[str, Run],
    method_a: str = "mindtuner",
    method_b: str | None = None,
    images: str = "all",
    seed: int = 0,
) -> dict:
    """``method_a`` of the runs ``a`` minus ``method_b`` (default: the same) of the runs ``b``, for every score that all have.

    For each score: the mean of either side and of the difference with 95 % bootstrap intervals, and p by sign flips over
    images (``statistics.sign_flips``) of the difference averaged over runs and subjects, as it is and after Holm's adjustment
    over all scores compared here. Intervals are over images; with several runs of one subject over images and runs
    (``over_seeds``), with several subjects over images, subjects, and runs within them (``over_subjects``). Images on which
    a score is undefined (NaN) in any of the runs are left out of it and counted. ``images`` takes the test images of the
    category that runs held out, or the others.

    Raises UserError, naming file and field, where runs are of different test sets, do not have the method, cannot be paired,
    or share no score. Returns plain JSON values: {"a", "b": {"runs", "method"}, "test_set", "subjects", "runs_per_side",
    "seed", "how": {"interval", "p", "p_holm", "in_words"}, "scores": [{"part", "score", "n", "undefined", "a", "b": {"mean",
    "ci"}, "difference", "ci", "sd_seeds", "sd_subjects", "by_run", "p", "p_holm", "in_words"}], "notes"}.
    """
    method_b = method_b or method_a
    for side, method in ((a, method_a), (b, method_b)):
        for name, run in side.items():
            _check_method(run, method, name)
    check_test_sets([*a.items(), *b.items()])
    if method_a == method_b and (both := [name for name in a if name in b]):
        raise UserError(f"{both[0]}: {method_a} stands on both sides; expected two runs, or two methods of one")
    pairs, notes = _pairs(a, b)
    first = a[pairs[0][0][0]]
    chosen = _chosen(images, [*a.items(), *b.items()])
    names, missing = _shared_scores([(run, method_a) for run in a.values()] + [(run, method_b) for run in b.values()])
    if missing:
        notes.append(f"not scored in all runs, and left out: {', '.join(missing)}")
    rows = []
    for part, score in names:
        keep = _positions(first, part, score, chosen)
        sides = [
            [
                np.stack([side[pair[k]].per_image[f"{method}/{part}/{score}"][keep].astype(np.float64) for pair in subject])
                for subject in pairs
            ]
            for k, (side, method) in enumerate(((a, method_a), (b, method_b)))
        ]
        row = _row(sides[0], sides[1], seed)
        if row is None:
            notes.append(f"{label(part, score)}: defined on fewer than 2 of the images, and left out")
        else:
            rows.append({"part": part, "score": score, **row})
    if not rows:
        raise UserError(
            f"{next(iter(b))}/{PER_IMAGE}: no score is shared with {next(iter(a))} and defined on 2 images; "
            "expected one at least"
        )
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = p
        row["in_words"] = _in_words(row)
    notes += _differing_settings(a, b)
    per_side = sum(map(len, pairs))
    return {
        "a": {"runs": list(a), "method": method_a},
        "b": {"runs": list(b), "method": method_b},
        "test_set": {
            "stimuli_hash": first.results["setting"]["stimuli_hash"],
            "which": images,
            "images": int(len(_positions(first, "retrieval", "image", chosen))),
            "pictures": min(_painted(run, chosen) for side in (a, b) for run in side.values()),
        },
        "subjects": sorted({run.results["setting"]["subject"] for run in a.values()}),
        "runs_per_side": per_side,
        "seed": seed,
        "how": _how(len(pairs), per_side, len(rows)),
        "scores": rows,
        "notes": notes,
    }


def check_test_sets(runs: list[tuple[str, Run]]) -> None:
    """Raise UserError where a run's stimuli, test images, those painted or those with a caption are not the first one's."""
    reference, first = runs[0]
    for name, run in runs:
        if not isinstance(run.results["setting"].get("stimuli_hash"), str):
            raise UserError(f"{name}/results.json: setting.stimuli_hash is missing; expected that of the stimuli")
        if "subject" not in run.results["setting"]:
            raise UserError(f"{name}/results.json: setting.subject is missing; expected a number")
    for name, run in runs[1:]:
        hashes = [other.results["setting"]["stimuli_hash"] for other in (run, first)]
        if hashes[0] != hashes[1]:
            raise UserError(
                f"{name}/results.json: setting.stimuli_hash is {hashes[0][:12]}…; expected {hashes[1][:12]}…, as "
                f"in {reference}: runs over one test set"
            )
    for field, what in (("images", "test images"), ("shown", "painted images"), ("texts", "images with a caption")):
        # What needs no picture can be compared with a run that painted nothing.
        among = [(name, run.per_image[field]) for name, run in runs if field != "shown" or len(run.per_image[field])]
        for name, mine in among[1:]:
            reference, other = among[0]
            if not np.array_equal(mine, other):
                raise UserError(
                    f"{name}/{PER_IMAGE}: {field} holds {len(mine)} {what}; expected the same {len(other)} as in {reference}"
                )


def _check_method(run: Run, method: str, name: str) -> None:
    there = sorted({key.partition("/")[0] for key in run.per_image if "/" in key})
    if method not in there:
        raise UserError(f"{name}/{PER_IMAGE}: method {method} is missing; expected one of {', '.join(there)}")


def _pairs(a: Mapping[str, Run], b: Mapping[str, Run]) -> tuple[list[list[tuple[str, str]]], list[str]]:
    """For each subject the pairs (run of a, run of b), in the order of their seeds; and what to say of the pairing."""
    if len(a) == len(b) == 1:
        return [[(next(iter(a)), next(iter(b)))]], []
    sides = []
    for side in (a, b):
        by_subject: dict = {}
        for name, run in side.items():
            by_subject.setdefault(run.results["setting"]["subject"], []).append(name)
        sides.append(
            {
                subject: sorted(names, key=lambda name: side[name].results["setting"].get("seed", 0))
                for subject, names in by_subject.items()
            }
        )
    pairs, notes = [], []
    for subject in sorted({*sides[0], *sides[1]}):
        names = [side.get(subject, []) for side in sides]
        if len(names[0]) != len(names[1]):
            more = names[0] if len(names[0]) > len(names[1]) else names[1]
            raise UserError(
                f"{more[-1]}/results.json: setting.subject is {subject}, of which A has {len(names[0])} and B "
                f"{len(names[1])} runs; expected as many on both sides"
            )
        pairs.append(list(zip(*names, strict=True)))
        seeds = [[side[name].results["setting"].get("seed") for name in own] for side, own in zip((a, b), names, strict=True)]
        if seeds[0] != seeds[1]:
            notes.append(f"subject {subject}: seeds {seeds[0]} are paired with {seeds[1]}, in this order")
    return pairs, notes


def _chosen(images: str, runs: list[tuple[str, Run]]) -> np.ndarray | None:
    """Ids of the test images that count; None for all. Raises UserError where no run says what is of the category."""
    if images not in IMAGES:
        raise UserError(f"images: is {images!r}; expected one of {', '.join(IMAGES)}")
    if images == "all":
        return None
    said = {name: run.results["held_out"] for name, run in runs if run.results.get("held_out")}
    if not said:
        raise UserError(
            f"{runs[0][0]}/results.json: held_out is missing, as in the other runs; expected a run with "
            f"hold_out_category, for images {images!r}"
        )
    (reference, first), *others = said.items()
    for name, other in others:
        if other["category"] != first["category"]:
            raise UserError(
                f"{name}/results.json: held_out.category is {other['category']!r}; expected "
                f"{first['category']!r}, as in {reference}"
            )
    of_category = np.asarray(first["images"], np.int64)
    return of_category if images == "category" else np.setdiff1d(runs[0][1].per_image["images"], of_category)


def _positions(run: Run, part: str, score: str, chosen: np.ndarray | None) -> np.ndarray:
    """Which values of a score count, by position in its array."""
    images = run.per_image["images"][positions(run.per_image, part, score)]
    return np.arange(len(images)) if chosen is None else np.flatnonzero(np.isin(images, chosen))


def _painted(run: Run, chosen: np.ndarray | None) -> int:
    """How many of the test images that count were painted."""
    shown = run.per_image["images"][run.per_image["shown"]]
    return len(shown) if chosen is None else int(np.isin(shown, chosen).sum())


def _shared_scores(runs: list[tuple[Run, str]]) -> tuple[list[tuple[str, str]], list[str]]:
    """Scores that all runs have, and labels of those that only some have.

    The first as (part, score), of the same images, in the order of the tables.
    """
    every = [[tuple(key.split("/", 2)[1:]) for key in run.per_image if key.startswith(f"{method}/")] for run, method in runs]
    known = list(dict.fromkeys(name for names in every for name in names))
    order = [score for part in ALL_PARTS for score in of_part(part)]
    known.sort(key=lambda name: (ALL_PARTS.index(name[0]), order.index(name[1]) if name[1] in order else len(order), name[1]))

    def lengths(part: str, score: str) -> set[int]:
        return {len(run.per_image[f"{method}/{part}/{score}"]) for run, method in runs}

    shared = [name for name in known if all(name in names for names in every) and len(lengths(*name)) == 1]
    return shared, [label(*name) for name in known if name not in shared]


def _row(a: list[np.ndarray], b: list[np.ndarray], seed: int) -> dict | None:
    """One score; a and b hold for each subject (runs, images). None where fewer than two images are defined."""
    defined = np.isfinite(np.concatenate([*a, *b])).all(0)
    if defined.sum() < 2:
        return None
    a, b = [x[:, defined] for x in a], [x[:, defined] for x in b]
    difference = [x - y for x, y in zip(a, b, strict=True)]
    spread = _spread(difference, seed)
    sides = {name: {key: _spread(x, seed)[key] for key in ("mean", "ci")} for name, x in (("a", a), ("b", b))}
    over_images = np.mean([x.mean(0) for x in difference], axis=0)
    return {
        "n": int(defined.sum()),
        "undefined": int((~defined).sum()),
        **sides,
        "difference": spread["mean"],
        "ci": spread["ci"],
        "sd_seeds": spread["sd_seeds"],
        "sd_subjects": spread["sd_subjects"],
        "by_run": [[float(mean) for mean in x.mean(1)] for x in difference],
        "p": sign_flips(over_images, seed),
    }


def _spread(values: list[np.ndarray], seed: int) -> dict:
    """Mean and interval by what there is several of: images, runs, subjects."""
    if len(values) > 1:
        found = over_subjects(values, seed)
        return {"mean": found["mean"], "ci": found["ci"], "sd_seeds": found["sd_seeds"], "sd_subjects": found["sd"]}
    if len(values[0]) > 1:
        found = over_seeds(values[0], seed)
        return {"mean": found["mean"], "ci": found["ci"], "sd_seeds": found["sd"], "sd_subjects": None}
    return {
        "mean": float(values[0].mean()),
        "ci": list(bootstrap_ci(values[0][0], seed)),
        "sd_seeds": None,
        "sd_subjects": None,
    }


def _in_words(row: dict) -> str:
    low, high = row["ci"]
    if row["p_holm"] > LEVEL or low <= 0 <= high:
        return "no clear difference"
    return "A is higher" if row["difference"] > 0 else "B is higher"


def _how(subjects: int, runs: int, scores: int) -> dict[str, str]:
    units = "images" if runs == 1 else "images and runs" if subjects == 1 else "images, subjects, and runs within subjects"
    averaged = "" if runs == 1 else ", of the difference averaged over runs and subjects"
    return {
        "interval": f"95 % percentile bootstrap of the mean, {units} resampled",
        "p": f"two-sided, sign flips over images{averaged}",
        "p_holm": f"p by Holm's method over the {scores} scores compared here",
        "in_words": f"higher: the interval leaves out 0 and p_holm is at most {LEVEL}",
    }


def _differing_settings(a: Mapping[str, Run], b: Mapping[str, Run]) -> list[str]:
    """Fields of the settings that are not the same on both sides, beside what is compared."""
    notes = []
    for field in dict.fromkeys(key for side in (a, b) for run in side.values() for key in run.results["setting"]):
        if field in _NOT_TOLD:
            continue
        values = [sorted({str(run.results["setting"].get(field)) for run in side.values()}) for side in (a, b)]
        if values[0] != values[1]:
            notes.append(f"setting.{field} is {', '.join(values[0])} in A and {', '.join(values[1])} in B")
    return notes


def comparison_text(found: dict) -> str:
    """What ``compare`` returned as an aligned table, with what is compared above and how below."""
    a, b, test = found["a"], found["b"], found["test_set"]
    which = {"all": "", "category": ", those of the category held out", "others": ", those not of the category held out"}
    lines = [
        f"A  {a['method']} of {', '.join(a['runs'])}",
        f"B  {b['method']} of {', '.join(b['runs'])}",
        f"{test['images']} test images{which[test['which']]}, {test['pictures']} painted; subject"
        f"{'s' if len(found['subjects']) > 1 else ''} {', '.join(map(str, found['subjects']))}, "
        f"{found['runs_per_side']} run{'s' if found['runs_per_side'] > 1 else ''} a side",
        "",
    ]
    seeds, subjects = (any(row[key] is not None for row in found["scores"]) for key in ("sd_seeds", "sd_subjects"))
    head = [
        "score",
        "n",
        "A",
        "B",
        "A - B",
        "95 % interval",
        *(["sd of seeds"] * seeds),
        *(["sd of subjects"] * subjects),
        "p",
        "p (Holm)",
        "in words",
    ]
    table = []
    for row in found["scores"]:
        spread = [_plain(row["sd_seeds"])] * seeds + [_plain(row["sd_subjects"])] * subjects
        table.append(
            [
                label(row["part"], row["score"]),
                str(row["n"]),
                *(_with_interval(row[side]) for side in ("a", "b")),
                f"{row['difference']:+.3f}",
                "[{:+.3f}, {:+.3f}]".format(*row["ci"]),
                *spread,
                f"{row['p']:.4f}",
                f"{row['p_holm']:.4f}",
                row["in_words"],
            ]
        )
    sides = ("left", *("right" for _ in head[2:]), "left")
    lines += [line.rstrip() for line in tabulate(table, head, "plain", colalign=sides, disable_numparse=True).splitlines()]
    undefined = [
        f"{label(row['part'], row['score'])} is undefined on {row['undefined']} images, which are left out"
        for row in found["scores"]
        if row["undefined"]
    ]
    how = found["how"]
    return "\n".join(
        [
            *lines,
            "",
            f"Intervals: {how['interval']}. p: {how['p']}.",
            f"p (Holm): {how['p_holm']}.",
            f"In words: {how['in_words']}.",
            *(f"Note: {note}." for note in [*undefined, *found["notes"]]),
        ]
    )


def _with_interval(side: dict) -> str:
    return "{:.3f} [{:.3f}, {:.3f}]".format(side["mean"], *side["ci"])


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
