"""What the report calls methods and scores, and how it writes a number."""

from __future__ import annotations

import math
from collections.abc import Iterable

from mindtuner.evaluation.scores.catalogue import Score, of_part

MAIN_METHOD = "mindtuner"
METHODS = {
    "mindtuner": ("MindTuner", "The base is frozen; the subject gets a ridge and adapters (LoRA, Skip-LoRA) of its own."),
    "pretrained": ("Pretrained", "The base itself, which was trained on this subject among others."),
    "ridge_only": ("Ridge only", "The base is frozen; only a new ridge trains on the subject."),
    "ridge": ("Ridge regression", "No base: one cross-validated regression from voxels to tokens."),
    "full_finetune": ("Full fine-tuning", "Backbone and heads of the base train on the subject."),
    "from_scratch": ("From scratch", "No base: every weight trains on the subject alone."),
    "nearest_training_image": (
        "Nearest training image",
        "No painting: the training image closest to the decoded tokens is shown.",
    ),
    "prior_only": ("Prior only", "A control: the generator sees the mean token, never the brain."),
    "shuffled_brain": ("Shuffled brain", "A control: tuned on permuted brains; what it gets right is not read from them."),
}
STAGES = {"lowlevel": "Low level", "reconstructed": "Reconstructed", "blended": "Blended", "corrected": "Corrected"}
PARTS = {
    "retrieval": "Retrieval",
    "reconstruction": "Pictures",
    "captions": "Captions retrieved",
    "written": "Captions written",
}
DASH, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
GROUPS = {part: of_part(part) for part in PARTS}


def label_of(method: str) -> tuple[str, str]:
    """A method's name for people, and a sentence on it (empty for one this module does not know)."""
    return METHODS.get(method, (method.replace("_", " ").capitalize(), ""))


def in_order(methods) -> list[str]:
    """Methods as the page lists them: those of METHODS first, in its order."""
    order = list(METHODS)
    return sorted(methods, key=lambda name: (order.index(name) if name in order else len(order), name))


def methods_of(pictures: Iterable[str]) -> list[str]:
    """Names of the methods that have pictures, ``mindtuner`` first."""
    names = {name.rpartition("/")[0] for name in pictures if "/" in name}
    return sorted(names, key=lambda name: (name != MAIN_METHOD, name))


def main_of(methods) -> str:
    """The method that is shown first."""
    return MAIN_METHOD if MAIN_METHOD in methods else in_order(methods)[0]


def score_of(part: str, name: str) -> Score:
    """A score's label; one that this module does not know is called by its own name."""
    return GROUPS.get(part, {}).get(name) or Score(part, name, name.replace("_", " "), "")


def scores_in(results: dict, part: str) -> dict[str, Score]:
    """Every score of ``part`` that a method of the run has as a number, the known ones first."""
    held = [name for own in results["methods"].values() for name, value in (own.get(part) or {}).items() if is_number(value)]
    return {name: score_of(part, name) for name in dict.fromkeys([*GROUPS[part], *held]) if name in held}


def is_number(value) -> bool:
    """Whether ``value`` is a finite number (a bool is not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def pick(tree, *path):
    """The number or pair of numbers at ``path``, or None where the run has none."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    if isinstance(tree, list) and len(tree) == 2 and all(map(is_number, tree)):
        return tuple(tree)
    return tree if is_number(tree) else None


def show(score: Score, value: float) -> str:
    """A score as text: percent for shares, three decimals for correlations, one for ranks."""
    if score.share:
        return f"{100 * value:.1f}" if abs(value) >= 0.01 or value == 0 else f"{100 * value:.2f}"
    return f"{value:.{1 if score.high > 2 else 3}f}".replace("-", MINUS)


def show_difference(score: Score, value: float) -> str:
    """A difference of two scores, with its sign."""
    return (f"{100 * value:+.1f}" if score.share else f"{value:+.3f}").replace("-", MINUS)


def tick(score: Score, value: float) -> str:
    """The end of an axis."""
    return f"{100 * value if score.share else value:.3g}".replace("-", MINUS) + unit(score)


def unit(score: Score) -> str:
    """A per cent sign for scores that are shares, else nothing."""
    return "\N{NO-BREAK SPACE}%" if score.share else ""


def chance_of(results: dict, part: str, name: str, method: str) -> float | None:
    """Chance level of a score, where the run holds one; of a two-way identification it stands once for all networks."""
    chance = results.get("chance")
    if part == "retrieval":
        return pick(chance, "retrieval", name)
    own = pick(chance, part, name, method)
    return pick(chance, "two_way") if own is None and score_of(part, name).share else own


def spread(score: Score, values) -> str | None:
    """Numbers as text: one, or lowest to highest where they differ; None where there is none."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, high = show(score, min(known)), show(score, max(known))
    return low if low == high else f"{low} to {high}"
