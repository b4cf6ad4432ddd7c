"""Data efficiency: scores by hours of data, and what an hour of tuning is worth."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from mindtuner.config import Config
from mindtuner.evaluation.statistics import over_seeds
from mindtuner.studies.bench import REGRESSION, Chance, Run, Scores

AMOUNTS = (0.25, 0.5, 1.0, 2.0, 4.0, 10.0)  # sessions, an hour of scanning each
TUNED, SCRATCH = "mindtuner", "from_scratch"
METHODS = {
    TUNED: "tuned",
    SCRATCH: "from scratch",
    "full_finetune": "full fine-tuning",
    REGRESSION: "ridge regression, no base",
}
WORDS = {SCRATCH: "training from scratch", REGRESSION: "ridge regression"}
RESAMPLES = 2000
GOAL = 0.9  # of what all hours give, from one


def amounts(last: int) -> list[float]:
    """Those of ``AMOUNTS`` that ``last`` sessions have, and all of them."""
    return sorted({amount for amount in AMOUNTS if amount <= last} | {float(last)})


def variant(method: str, hours: float) -> str:
    """The name of a method with an amount of data, such as "full_finetune-1"."""
    return f"{method}-{hours:g}"


def runs_of(config: Config, hours: Sequence[float], seeds: int, others: int) -> list[Run]:
    """Every method with every amount of data and the tuning seeds config.seed, config.seed + 1, ..."""
    return [
        Run(variant(method, amount), seed, replace(config, seed=seed), amount, method, others)
        for seed in range(config.seed, config.seed + seeds)
        for amount in hours
        for method in METHODS
    ]


def summary(found: dict[str, Scores], chance: Chance, hours: Sequence[float], seed: int) -> dict:
    """What the curve says: scores by method and amount, what an hour is worth, and its share of all hours' score.

    ``rows``: an entry a score, method and amount, with its ``over_seeds``. By score: ``worth``, hours of the methods without
    a base that one hour of tuning is worth, and of the tuned and the regression the ``share`` that one hour gives of all
    hours' score. Each is {method: ...}, of those methods that have the score: the regression paints no pictures.

    Images on which a score is undefined in any run are left out.
    """
    rows, worths, shares = [], {}, {}
    for score in found[variant(TUNED, 1)]:
        curves = {
            method: np.stack([found[variant(method, amount)][score] for amount in hours])
            for method in METHODS
            if score in found[variant(method, 1)]
        }  # (A, S, n) each
        kept = ~np.isnan(sum(curve.sum((0, 1)) for curve in curves.values()))
        curves = {method: curve[..., kept] for method, curve in curves.items()}
        rows += [
            {"method": method, "hours": amount, "score": score, "images": int(kept.sum()), **over_seeds(one, seed)}
            for method, curve in curves.items()
            for amount, one in zip(hours, curve, strict=True)
        ]
        hour = {method: curve[list(hours).index(1.0)] for method, curve in curves.items()}
        worths[score] = {
            method: worth(hour[TUNED], curves[method], hours, seed) for method in (SCRATCH, REGRESSION) if method in curves
        }
        shares[score] = {
            method: share(hour[method], curves[method][-1], chance[score], seed)
            for method in (TUNED, REGRESSION)
            if method in curves
        }
    return {"rows": rows, "worth": worths, "share": shares}


def hours_to_reach(goal: float, scores: Sequence[float], hours: Sequence[float]) -> float:
    """Where the line through (hours, scores) first reaches ``goal``.

    The first of ``hours`` where it is there from the start, inf where it never does.
    """
    if scores[0] >= goal:
        return float(hours[0])
    for k in range(1, len(hours)):
        if scores[k] >= goal:
            part = (goal - scores[k - 1]) / (scores[k] - scores[k - 1])
            return float(hours[k - 1] + part * (hours[k] - hours[k - 1]))
    return math.inf


def worth(tuned: np.ndarray, other: np.ndarray, hours: Sequence[float], seed: int) -> dict:
    """Hours with which another method scores as one hour of tuning does.

    tuned (S, n), other (A, S, n): A amounts, S seeds, n images. The 95 % interval resamples images and seeds, those of all
    curves together. Returns {"hours", "ci"}; None stands for more than all hours.
    """
    reached = [hours_to_reach(means[0], means[1:], hours) for means in _resampled(np.stack([tuned, *other]), seed)]
    low, high = np.quantile(reached, (0.025, 0.975), method="inverted_cdf")  # never between a number and inf
    middle = hours_to_reach(tuned.mean(), other.mean((1, 2)), hours)
    return {"hours": _finite(middle), "ci": [_finite(low), _finite(high)]}


def share(hour: np.ndarray, whole: np.ndarray, chance: float, seed: int) -> dict:
    """What one hour scores above chance over what all hours do, both (S, n), as a ratio of means.

    The 95 % interval is over images and seeds. ``goal`` is "reached" where that lies above GOAL, "not reached" where it
    lies below, else "not decided".

    Where a resample of all hours is not above chance there is no ratio, and all three are None.
    """
    means = np.array(list(_resampled(np.stack([hour, whole]), seed))) - chance
    if (means[:, 1] <= 0).any():
        return {"share": None, "ci": None, "goal": None}
    low, high = map(float, np.quantile(means[:, 0] / means[:, 1], (0.025, 0.975)))
    goal = "reached" if low >= GOAL else "not reached" if high < GOAL else "not decided"
    return {"share": float((hour.mean() - chance) / (whole.mean() - chance)), "ci": [low, high], "goal": goal}


def _resampled(values: np.ndarray, seed: int) -> Iterator[np.ndarray]:
    """Means (K,) of values (K, S, n) over S seeds and n images drawn anew, the same for all K."""
    rng = np.random.default_rng(seed)
    seeds, images = values.shape[1:]
    for _ in range(RESAMPLES):
        drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds)) / seeds
        shown = rng.multinomial(images, np.full(images, 1 / images)) / images
        yield drawn @ values @ shown


def _finite(hours: float) -> float | None:
    return float(hours) if math.isfinite(hours) else None


def scores_of(summed: dict) -> list[str]:
    """Names of the scores that a summary holds, in its order."""
    return list(summed["worth"])


def text(summed: dict, hours: Sequence[float], chance: Chance) -> str:
    """A Markdown table, a row a method and amount, and below it ``sentences``."""
    scores = scores_of(summed)
    lines = [
        "| method | hours | " + " | ".join(f"{score} | 95 %" for score in scores) + " |",
        "|---|---:|" + "---:|---|" * len(scores),
    ]
    for method, title in METHODS.items():
        for amount in hours:
            own = {row["score"]: row for row in summed["rows"] if (row["method"], row["hours"]) == (method, amount)}
            cells = [f"{said(own[score])} | {ends(own[score])}" if score in own else " | " for score in scores]
            lines.append(f"| {title} | {amount:g} | " + " | ".join(cells) + " |")
    lines.append("| chance | | " + " | ".join(f"{chance[score]:.4f} | " for score in scores) + " |")
    return "\n".join([*lines, "", *(f"- {line}" for line in sentences(summed, hours))])


def said(row: dict) -> str:
    """Mean ± sd over seeds, as the text of a cell."""
    return f"{row['mean']:.3f} ± {row['sd']:.3f}"


def ends(row: dict) -> str:
    """The interval, as the text of a cell."""
    return f"[{row['ci'][0]:.3f}, {row['ci'][1]:.3f}]"


def sentences(summed: dict, hours: Sequence[float]) -> list[str]:
    """What an hour is worth, and what share of all hours' score it gives, in words."""

    def amount(value: float | None) -> str:
        if value is None:
            return f"more than all {hours[-1]:g}"
        return f"at most {value:g}" if value == hours[0] else f"{value:.2f}"

    lines = []
    for score in scores_of(summed):
        for method, found in summed["worth"][score].items():
            lines.append(
                f"{score}: one hour of tuning is worth {amount(found['hours'])} hours of {WORDS[method]} "
                f"[{', '.join(map(amount, found['ci']))}]"
            )
        for method, one in summed["share"][score].items():
            if hours[-1] > 1 and one["share"] is not None:
                low, high = one["ci"]
                lines.append(
                    f"{score}, {METHODS[method]}: above chance, one hour gives {one['share']:.1%} of what all "
                    f"{hours[-1]:g} hours give [{low:.1%}, {high:.1%}]"
                    + (f"; the goal, {GOAL:.0%}, is {one['goal']}" if method == TUNED else "")
                )
    return lines
