"""How much of what an image's captions name is said of it, and how much of what is said is true.

Of three parts: ``things`` by their names alone ("a bird"), ``coloured`` things with their colour ("a red bird"), and
``places`` ("on the beach"). Over all images, with hits the phrases that are both said and true:

    precision = hits / said        recall = hits / true        F1 = 2 hits / (said + true)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from mindtuner.decoding.phrases import is_place, phrases_of, without_colour

PARTS = ("things", "coloured", "places")
SCORES = ("precision", "recall", "f1")


def said_scores(said: Sequence[Sequence[str]], captions: Sequence[Sequence[str]], seed: int, n_boot: int = 2000) -> dict:
    """Precision, recall and F1 of what is said of images.

    Parameters
    ----------
    said : sequence of n sequences of str
        Of each image, phrases or whole captions.
    captions : sequence of n sequences of str
        Those that people wrote; what any of them names is true. Images without a caption are left out.
    seed : int
        Of the bootstrap over images.
    n_boot : int
        Resamples.

    Returns
    -------
    dict
        By part, and in it by score: ``mean``, ``ci95`` [low, high] by the percentile bootstrap, and ``chance``, the mean of
        the score where each image is judged by the captions of every other. Where nothing is said precision is 0, where
        nothing is true recall is 0.

    Examples
    --------
    >>> captions = [["a blue bird in the sea"], ["a cat and a dog"]]
    >>> found = said_scores([["a red bird", "in the sea"], ["a cat"]], captions, seed=0)
    >>> {part: round(scores["f1"]["mean"], 2) for part, scores in found.items()}
    {'things': 0.8, 'coloured': 0.0, 'places': 1.0}
    """
    kept = [k for k, group in enumerate(captions) if any(group)]
    rng = np.random.default_rng(seed)
    weights = rng.multinomial(len(kept), np.full(len(kept), 1 / len(kept)), n_boot) if kept else np.empty((n_boot, 0))
    pairs = [(parts_of(said[k]), parts_of(captions[k])) for k in kept]
    found = {}
    for part in PARTS:
        counts = np.array([[len(own[part] & true[part]), len(own[part]), len(true[part])] for own, true in pairs])
        counts = counts.reshape(-1, 3).astype(float)
        means, resampled = _scores(counts.sum(0)), _scores(weights @ counts)
        chance = _scores(np.array([_hits_of_others(pairs, part), *counts[:, 1:].sum(0)]))
        found[part] = {
            score: {
                "mean": float(means[k]),
                "ci95": np.percentile(resampled[:, k], (2.5, 97.5)).tolist(),
                "chance": float(chance[k]),
            }
            for k, score in enumerate(SCORES)
        }
    return found


def parts_of(phrases: Sequence[str]) -> dict[str, set[str]]:
    """By part, what phrases or captions say.

    Examples
    --------
    >>> parts_of(["a red bird on the beach"])
    {'things': {'a bird'}, 'coloured': {'a red bird'}, 'places': {'on the beach'}}
    """
    every = phrases_of(phrases)
    coloured = {phrase for phrase in every if without_colour(phrase) is not None}
    places = {phrase for phrase in every if is_place(phrase)}
    return {"things": set(every) - coloured - places, "coloured": coloured, "places": places}


def _scores(counts: np.ndarray) -> np.ndarray:
    """Hits, said and true (..., 3) -> precision, recall and F1 (..., 3)."""
    hits, said, true = np.moveaxis(counts, -1, 0)
    return np.stack([hits / np.maximum(said, 1), hits / np.maximum(true, 1), 2 * hits / np.maximum(said + true, 1)], -1)


def _hits_of_others(pairs: list[tuple[dict[str, set[str]], dict[str, set[str]]]], part: str) -> float:
    """Hits to expect where each image is judged by the captions of another: the mean over all pairs of two images."""
    said = Counter(phrase for own, _ in pairs for phrase in own[part])
    true = Counter(phrase for _, other in pairs for phrase in other[part])
    every = sum(count * true[phrase] for phrase, count in said.items())
    return (every - sum(len(own[part] & true[part]) for own, true in pairs)) / max(len(pairs) - 1, 1)
