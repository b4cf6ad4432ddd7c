"""Data efficiency: scores by hours of data, and what an hour of tuning is worth."""

from __future__ import annotations

import dataclasses

import numpy as np

from mindtuner.analysis.runs import REGRESSION, SCORES, Run
from mindtuner.config import Config
from mindtuner.evaluation.statistics import over_seeds

AMOUNTS = (0.25, 0.5, 1.0, 2.0, 4.0, 10.0)  # sessions, an hour each
METHODS = {"mindtuner": "tuned", "from_scratch": "from scratch", "full_finetune": "full fine-tuning",
           REGRESSION: "ridge regression, voxels to tokens"}
RESAMPLES = 2000
GOAL = 0.9


def amounts(last: int) -> list[float]:
    """Those of ``AMOUNTS`` that ``last`` sessions have, and all of them."""
    return sorted({amount for amount in AMOUNTS if amount <= last} | {float(last)})


def runs_of(config: Config, hours: list[float], seeds: int, others: int) -> list[Run]:
    """Every method with every amount of data and tuning seed."""
    return [Run(f"{method}.{amount:g}", seed, dataclasses.replace(config, seed=seed), amount, method, others)
            for seed in range(config.seed, config.seed + seeds) for amount in hours for method in METHODS]


def summary(hits: dict[str, dict[str, np.ndarray]], hours: list[float], seed: int) -> dict:
    """``rows``: one a method, amount and score, with mean, sd over seeds and interval. ``worth`` and ``share``: by score, what
    ``worth`` and ``share`` say, with intervals."""
    rows = [{"method": method, "hours": amount, "score": score, **over_seeds(hits[f"{method}.{amount:g}"][score], seed)}
            for method in METHODS for amount in hours for score in SCORES]

    def curve(method: str, score: str) -> np.ndarray:
        return np.stack([hits[f"{method}.{amount:g}"][score] for amount in hours])

    one = hours.index(1.0)
    return {"rows": rows,
            "worth": {score: worth(curve("mindtuner", score)[one], curve("from_scratch", score), hours, seed) for score in SCORES},
            "share": {score: share(curve("mindtuner", score)[one], curve("mindtuner", score)[-1], seed) for score in SCORES}}


def hours_to_reach(goal: float, scores: np.ndarray, hours: list[float]) -> float:
    """Where the line through (hours, scores) first reaches ``goal``; the first of ``hours`` where it starts there, inf where it
    never does."""
    if scores[0] >= goal:
        return hours[0]
    for k in range(1, len(hours)):
        if scores[k] >= goal:
            return hours[k - 1] + (goal - scores[k - 1]) / (scores[k] - scores[k - 1]) * (hours[k] - hours[k - 1])
    return float("inf")


def worth(tuned: np.ndarray, scratch: np.ndarray, hours: list[float], seed: int) -> dict:
    """Hours from scratch that reach what one hour of tuning does.

    tuned (S, n), scratch (A, S, n), S seeds and n images. The interval resamples images and seeds, the same for both.
    Returns {"hours", "ci"}; inf where all hours are not enough.
    """
    found = [hours_to_reach(t, s, hours) for t, s in _resampled(tuned[None], scratch, seed)]
    low, high = np.quantile(found, (0.025, 0.975), method="inverted_cdf")  # never between a number and inf
    return {"hours": hours_to_reach(tuned.mean(), scratch.mean((1, 2)), hours), "ci": [float(low), float(high)]}


def share(hour: np.ndarray, whole: np.ndarray, seed: int) -> dict:
    """Score of one hour over that of all hours, both (S, n). Returns {"share", "ci", "reached"}: whether the goal lies below
    the whole interval ("yes"), above it ("no"), or in it ("open"). The share is None where all hours score 0."""
    if whole.mean() == 0:
        return {"share": None, "ci": None, "reached": "open"}
    found = [t / s[0] for t, s in _resampled(hour[None], whole[None], seed) if s[0] > 0]
    low, high = np.quantile(found, (0.025, 0.975))
    return {"share": float(hour.mean() / whole.mean()), "ci": [float(low), float(high)],
            "reached": "yes" if low >= GOAL else "no" if high < GOAL else "open"}


def _resampled(one: np.ndarray, several: np.ndarray, seed: int):
    """Means of one (1, S, n) and several (A, S, n) over resampled seeds and images, crossed: pairs (float, (A,))."""
    rng = np.random.default_rng(seed)
    every = np.concatenate([one, several])
    seeds, images = every.shape[1:]
    for _ in range(RESAMPLES):
        drawn = rng.multinomial(seeds, np.full(seeds, 1 / seeds)) / seeds
        shown = rng.multinomial(images, np.full(images, 1 / images)) / images
        means = drawn @ every @ shown
        yield float(means[0]), means[1:]


def said(value: float, hours: list[float]) -> str:
    """Hours in words."""
    if value == float("inf"):
        return f"more than all {hours[-1]:g} hours"
    return f"at most {hours[0]:g}" if value <= hours[0] else f"{value:.2g}"


def plain(found: dict) -> dict:
    """``summary`` for JSON, which has no inf: None in its place."""
    def number(value: float) -> float | None:
        return None if value == float("inf") else value

    return {**found, "worth": {score: {"hours": number(w["hours"]), "ci": [number(v) for v in w["ci"]]}
                               for score, w in found["worth"].items()}}
