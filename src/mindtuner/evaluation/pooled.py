"""Runs of several folds as one: each test image was scored among those of its fold, and scores are averaged over all.

A query meets the candidates of its own fold alone. Images of other folds were in training, and a decoder leans to what it was
trained on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.stats import rankdata

from mindtuner.errors import UserError
from mindtuner.evaluation.results import Run, build_results, rounded
from mindtuner.evaluation.scores.inputs import TIE
from mindtuner.evaluation.scores.retrieval import PAIRINGS, TOP, Retrieval, top_k
from mindtuner.evaluation.scoring import DIRECTIONS, MethodScores
from mindtuner.evaluation.statistics import LEVELS, over_folds

OF_WORDS = ("captions", "written")
_RESAMPLES = 2000


def pool(runs: Sequence[Run], scores: Sequence[Mapping[str, MethodScores]], setting: dict, seed: int) -> Run:
    """One run of the folds' runs, with the fields of any other.

    Intervals are those of ``over_folds``; p against chance pairs images within their folds.

    Parameters
    ----------
    runs : sequence of K Run
        One a fold, of the same methods.
    scores : sequence of K mappings of str to MethodScores
        Of the same, by method.
    setting : dict
        Of the whole.
    seed : int

    Returns
    -------
    Run
        Test images in the order of the folds.
    """
    methods = {name: _method([fold[name] for fold in scores], seed) for name in scores[0]}
    per_image, words = _per_image(runs), _words(runs)
    shown = per_image["images"][per_image["shown"]]
    results = build_results(setting, methods, {}, 0, seed, shown)
    for direction in DIRECTIONS:
        results["chance"]["retrieval"][direction] = results["chance"]["retrieval_pools"][direction][0]["top1"]
    _add_words_and_brain(results, runs, per_image, seed)
    names = [name for name in runs[0].pictures if all(name in run.pictures for run in runs)]
    pictures = {name: np.concatenate([run.pictures[name] for run in runs]) for name in names}
    return Run(results, pictures, words, per_image, [])


def pools_of_folds(found: Sequence[Retrieval], seed: int) -> dict:
    """The entry of ``retrieval.pools`` for folds: ``pool`` is the mean number of candidates, by which chance is 1/pool.

    Parameters
    ----------
    found : sequence of K Retrieval
    seed : int

    Returns
    -------
    dict
        As ``retrieval.pools`` has it of all candidates.

    Examples
    --------
    >>> from mindtuner.evaluation.scores.retrieval import image_retrieval
    >>> tokens = np.eye(6)[:, None]
    >>> entry = pools_of_folds([image_retrieval(tokens, tokens), image_retrieval(tokens[:3], tokens[:3])], seed=0)
    >>> entry["pool"], entry["top1"], entry["two_way"], entry["p"]
    (4.5, 1.0, 1.0, 0.001)
    """
    ranks = [one.ranks for one in found]
    measured = {
        **{f"top{k}": [top_k(one.ahead.sum(1), one.tied.sum(1), k) for one in found] for k in TOP},
        "two_way": [one.two_way for one in found],
    }
    every = np.concatenate(ranks)
    return {
        "pool": len(every) / len(found),
        **{name: float(np.concatenate(values).mean()) for name, values in measured.items()},
        "median_rank": float(np.median(every)),
        "p": p_of_folds([one.similarity for one in found], seed),
        "ci95": {
            **{name: over_folds(values, seed) for name, values in measured.items()},
            "median_rank": _median_over_folds(ranks, seed),
        },
    }


def p_of_folds(similarity: Sequence[np.ndarray], seed: int, pairings: int = PAIRINGS) -> float:
    """As ``retrieval.p_against_chance``, of the sum of ranks over folds; images are paired at random within their fold."""
    rng, observed, drawn = np.random.default_rng(seed), 0.0, np.zeros(pairings)
    for one in similarity:
        ranks, rows = rankdata(-np.round(one / TIE), axis=1), np.arange(len(one))
        observed += ranks[rows, rows].sum()
        drawn += [ranks[rows, rng.permutation(len(one))].sum() for _ in range(pairings)]
    return float((1 + (drawn <= observed + 1e-9).sum()) / (1 + pairings))


def _median_over_folds(ranks: Sequence[np.ndarray], seed: int) -> list[float]:
    rng, count, medians = np.random.default_rng(seed), len(ranks), []
    for _ in range(_RESAMPLES):
        folds = [ranks[k] for k in rng.integers(count, size=count)]
        medians.append(np.median(np.concatenate([own[rng.integers(len(own), size=len(own))] for own in folds])))
    return np.percentile(medians, LEVELS).tolist()


def _method(folds: Sequence[MethodScores], seed: int) -> MethodScores:
    retrieval = {key: [one.retrieval[key] for one in folds] for key in DIRECTIONS}
    scored = [key for key in folds[0].reconstruction if all(key in one.reconstruction for one in folds)]
    pictures = {key: [one.reconstruction[key] for one in folds] for key in scored}
    tested = [len(one.retrieval["image"]) for one in folds]
    summary = {
        "retrieval": _means(retrieval),
        "retrieval_pools": {key: [pools_of_folds([one.found[key] for one in folds], seed)] for key in DIRECTIONS},
        "ci95": {"retrieval": _intervals(retrieval, seed)},
    }
    if "single_trial_retrieval" in folds[0].summary:
        summary["single_trial_retrieval"] = _weighted([one.summary["single_trial_retrieval"] for one in folds], tested)
    if not pictures:
        return MethodScores(summary, {key: np.concatenate(own) for key, own in retrieval.items()}, {}, {})
    painted = [len(one.reconstruction["pixcorr"]) for one in folds]
    starts = np.cumsum([0, *painted])
    summary |= {
        "reconstruction": _means(pictures),
        "picture": folds[0].summary["picture"],
        "stages": _weighted([one.summary["stages"] for one in folds], painted),
    }
    summary["ci95"]["reconstruction"] = _intervals(pictures, seed)
    return MethodScores(
        summary,
        {key: np.concatenate(own) for key, own in retrieval.items()},
        {key: np.concatenate(own) for key, own in pictures.items()},
        _weighted([one.chance for one in folds], painted),
        [int(start) + k for start, one in zip(starts, folds, strict=False) for k in one.flat],
    )


def _means(values: Mapping[str, Sequence[np.ndarray]]) -> dict[str, float]:
    return {key: float(np.nanmean(np.concatenate(own), dtype=np.float64)) for key, own in values.items()}


def _intervals(values: Mapping[str, Sequence[np.ndarray]], seed: int) -> dict[str, list[float]]:
    return {key: over_folds(own, seed) for key, own in values.items()}


def _weighted(values: Sequence, weights: Sequence[int]):
    """The mean of numbers, or of what all trees of numbers have; what is no number is that of the first."""
    if isinstance(values[0], Mapping):
        shared = [key for key in values[0] if all(key in value for value in values)]
        return {key: _weighted([value[key] for value in values], weights) for key in shared}
    if isinstance(values[0], int | float) and not isinstance(values[0], bool):
        return float(np.average(values, weights=weights))
    return values[0]


def _per_image(runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """The arrays of per_image.safetensors, positions counted on from fold to fold."""
    starts = np.cumsum([0, *(len(run.per_image["images"]) for run in runs)])
    names = [name for name in runs[0].per_image if all(name in run.per_image for run in runs)]
    joined = {name: [run.per_image[name] for run in runs] for name in names}
    for name in ("shown", "texts"):
        joined[name] = [own + start for own, start in zip(joined[name], starts, strict=False)]
    images = np.concatenate(joined["images"])
    if len(np.unique(images)) < len(images):
        raise UserError("folds: an image is tested in two; expected each image once")
    return {name: np.concatenate(own) for name, own in joined.items()}


def _words(runs: Sequence[Run]) -> dict:
    """The contents of words.json, likewise. Where a fold has fewer test images than the nearest that are listed, none are."""
    starts = np.cumsum([0, *(len(run.per_image["images"]) for run in runs)]).tolist()
    methods: dict[str, dict] = {}
    for name, own in runs[0].words["methods"].items():
        methods[name] = {
            key: [row for run in runs for row in run.words["methods"][name][key]]
            for key in own
            if key != "top5" and all(key in run.words["methods"][name] for run in runs)
        }
        nearest = [
            [at + start for at in row]
            for run, start in zip(runs, starts, strict=False)
            for row in run.words["methods"][name]["top5"]
        ]
        if len({len(row) for row in nearest}) <= 1 and (not nearest or len(nearest[0]) == 5):
            methods[name]["top5"] = nearest
    return {
        "picture_index": [at + start for run, start in zip(runs, starts, strict=False) for at in run.words["picture_index"]],
        **{key: [entry for run in runs for entry in run.words[key]] for key in ("seen_captions", "all_captions", "names")},
        "methods": methods,
    }


def _add_words_and_brain(results: dict, runs: Sequence[Run], per_image: Mapping[str, np.ndarray], seed: int) -> None:
    """What ``pipeline/captions_and_brain.py`` puts into a run: of captions, and of the brain that pictures predict."""
    counts = [len(run.per_image["shown"]) or len(run.per_image["images"]) for run in runs]
    for method, own in results["methods"].items():
        for part in (*OF_WORDS, "brain"):
            held = [run.results["methods"][method].get(part) for run in runs]
            if not all(held):
                continue
            keys = [key for key in held[0] if f"{method}/{part}/{key}" in per_image]
            values = {key: [run.per_image[f"{method}/{part}/{key}"] for run in runs] for key in keys}
            if part == "brain":
                regions = {region: _weighted([one[region] for one in held], counts) for region in keys}
                found, intervals = _means(values), _intervals(values, seed)
                own[part] = rounded(
                    {key: {**about, "correlation": found[key], "ci": intervals[key]} for key, about in regions.items()}
                )
                continue
            own[part], own["ci95"][part] = rounded(_means(values)), rounded(_intervals(values, seed))
            for key in keys:
                chance = [run.results["chance"][part][key][method] for run in runs]
                results["chance"].setdefault(part, {}).setdefault(key, {})[method] = rounded(_weighted(chance, counts))
