"""The schema of a run folder's files, checked by hand so that each message names the field at fault."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from mindtuner.errors import UserError
from mindtuner.evaluation.scores import catalogue
from mindtuner.evaluation.scores.catalogue import ALWAYS, RANDOM_PAIRS, Score
from mindtuner.evaluation.scoring import DIRECTIONS, STAGES
from mindtuner.thirdparty import one_line

METHODS = (
    "mindtuner",
    "ridge_only",
    "full_finetune",
    "from_scratch",
    "nearest_training_image",
    "prior_only",
    "shuffled_brain",
)
HELD_OUT_SIDES = ("of_category", "others")  # test images that show a category held out, and those that do not
PARTS = ("retrieval", "reconstruction")  # of the scores that every method has
ALL_PARTS = (*PARTS, "captions", "written", "brain")  # those of single images; regions of the brain have any names


def validate_results(results: Mapping, where: str = "results.json") -> None:
    """Check results against the schema. Raises UserError naming the first field that is missing or wrong."""
    for key in ("setting", "methods", "chance", "paired", "timing_s"):
        _mapping(results, key, where)
    _number(results, "peak_memory_mb", where)
    if not results["methods"]:
        raise UserError(f"{where}: methods is empty; expected one or more of {', '.join(METHODS)}")
    for name, method in results["methods"].items():
        at = f"{where}: methods.{name}"
        if name not in METHODS:
            raise UserError(f"{at} is unknown; expected one of {', '.join(METHODS)}")
        if not isinstance(method, Mapping):
            raise UserError(f"{at} is {method!r}; expected a mapping")
        ci = _mapping(method, "ci95", at)
        for direction in DIRECTIONS:
            _share(_mapping(method, "retrieval", at), direction, f"{at}.retrieval", 0)
            _interval(_mapping(ci, "retrieval", f"{at}.ci95"), direction, f"{at}.ci95")
        stages = _mapping(method, "stages", at)
        if not stages or set(stages) - set(STAGES):
            raise UserError(f"{at}.stages holds {sorted(stages)}; expected one or more of {', '.join(STAGES)}")
        if method.get("picture") not in stages:
            raise UserError(f"{at}.picture is {method.get('picture')!r}; expected one of {', '.join(stages)}")
        scored = _scores(_mapping(method, "reconstruction", at), f"{at}.reconstruction")
        for name_of, score in scored.items():
            _in_range(method["reconstruction"], score, f"{at}.reconstruction")
            _interval(_mapping(ci, "reconstruction", f"{at}.ci95"), name_of, f"{at}.ci95")
            for stage in stages:
                _in_range(_mapping(stages, stage, f"{at}.stages"), score, f"{at}.stages.{stage}")
        if "retrieval_pools" in method:
            for direction in DIRECTIONS:
                _pools(_mapping(method, "retrieval_pools", at), direction, f"{at}.retrieval_pools")
        if "single_trial_retrieval" in method:
            for direction in DIRECTIONS:
                single = _mapping(method, "single_trial_retrieval", at)
                _share(single, direction, f"{at}.single_trial_retrieval", 0)
    chance = results["chance"]
    for direction in DIRECTIONS:
        _share(_mapping(chance, "retrieval", f"{where}: chance"), direction, f"{where}: chance.retrieval", 0)
    _share(chance, "two_way", f"{where}: chance", 0)
    for name, method in results["methods"].items():
        for score in _scores(method["reconstruction"], where).values():
            if score.chance == RANDOM_PAIRS:
                at = f"{where}: chance.reconstruction"
                of_score = _mapping(_mapping(chance, "reconstruction", f"{where}: chance"), score.name, at)
                _number(of_score, name, f"{at}.{score.name}")
    if "held_out" in results:
        held_out = _mapping(results, "held_out", where)
        if not isinstance(held_out.get("category"), str) or not held_out["category"]:
            raise UserError(f"{where}: held_out.category is {held_out.get('category', 'missing')!r}; expected a name")
        images = held_out.get("images")
        if not isinstance(images, list) or not images or not all(type(image) is int and image >= 0 for image in images):
            raise UserError(f"{where}: held_out.images is {images!r:.60}; expected a list of stimulus ids")
        _number(held_out, "left_out", f"{where}: held_out")
        for side in HELD_OUT_SIDES:
            for name, parts in _mapping(held_out, side, f"{where}: held_out").items():
                for part, scores in parts.items():
                    for score in scores:
                        at = f"{where}: held_out.{side}.{name}.{part}"
                        entry = _mapping(scores, score, at)
                        _interval(entry, "ci", f"{at}.{score}")
                        for field in ("mean", "n"):
                            _number(entry, field, f"{at}.{score}")
    for comparison, parts in results["paired"].items():
        for part, keys in ALWAYS.items():
            at = f"{where}: paired.{comparison}.{part}"
            for key in dict.fromkeys((*keys, *_mapping(parts, part, at))):
                catalogue.find(part, key, at)
                entry = _mapping(_mapping(parts, part, at), key, at)
                _number(entry, "mean", f"{at}.{key}")
                _interval(entry, "ci", f"{at}.{key}")
                _share(entry, "p", f"{at}.{key}", 0)


def validate_pictures(pictures: Mapping[str, np.ndarray], where: str) -> None:
    """Check names, types and shapes of the run's pictures. Raises UserError."""
    for name in ("seen", "thumbnails"):
        if name not in pictures:
            raise UserError(f"{where}: {name} is missing; expected uint8 (images, 3, height, width)")
    for name, array in pictures.items():
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[1] != 3:
            raise UserError(f"{where}: {name} is {array.dtype} {array.shape}; expected uint8 (images, 3, height, width)")
        if name in ("seen", "thumbnails"):
            continue
        method, _, stage = name.partition("/")
        if method not in METHODS or stage not in STAGES:
            raise UserError(f"{where}: {name} is unknown; expected method/stage out of {', '.join(STAGES)}")
        if array.shape != pictures["seen"].shape:
            raise UserError(f"{where}: {name} has shape {array.shape}; expected that of seen, {pictures['seen'].shape}")


def validate_words(words: Mapping, pictures: Mapping[str, np.ndarray], where: str) -> None:
    """Check that words.json fits the pictures. Raises UserError."""
    p, n = len(pictures["seen"]), len(pictures["thumbnails"])
    for key, count in (("picture_index", p), ("seen_captions", p), ("all_captions", n)):
        _list(words, key, count, where)
    _positions(words["picture_index"], n, f"{where}: picture_index")
    for name, method in _mapping(words, "methods", where).items():
        at = f"{where}: methods.{name}"
        if name not in METHODS or not isinstance(method, Mapping):
            raise UserError(f"{at} is unknown or no mapping; expected methods out of {', '.join(METHODS)}")
        for key in ("retrieved_caption", "written_caption"):
            if key in method:
                _list(method, key, p, at)
        if "top5" in method:
            _list(method, "top5", p, at)
            for row in method["top5"]:
                if not isinstance(row, list) or len(row) != min(5, n):
                    raise UserError(f"{at}.top5 holds {row!r}; expected lists of {min(5, n)} positions")
                _positions(row, n, f"{at}.top5")


def validate_per_image(per_image: Mapping[str, np.ndarray], pictures: Mapping[str, np.ndarray], where: str) -> None:
    """Check names, types and lengths of the scores of single images. Raises UserError."""
    p, n = len(pictures["seen"]), len(pictures["thumbnails"])
    counts = {"images": (n, n), "shown": (p, p), "texts": (0, n)}
    for name, (low, high) in counts.items():
        array = per_image.get(name)
        if array is None or array.dtype != np.int64 or array.ndim != 1 or not low <= len(array) <= high:
            found = "missing" if array is None else f"{array.dtype} {array.shape}"
            expected = f"{low}" if low == high else f"at most {high}"
            raise UserError(f"{where}: {name} is {found}; expected {expected} int64 numbers")
    lengths = {"image": n, "brain": n, "text": len(per_image["texts"])}
    for name, array in per_image.items():
        if name in counts:
            continue
        method, _, rest = name.partition("/")
        part, _, score = rest.partition("/")
        if method not in METHODS or part not in ALL_PARTS or not score:
            raise UserError(
                f"{where}: {name} is unknown; expected METHOD/PART/SCORE with a part out of {', '.join(ALL_PARTS)}"
            )
        if part in ("reconstruction", "captions", "written"):
            catalogue.find(part, score, f"{where}: {name}")
        expected = lengths.get(score, n) if part == "retrieval" else p
        if array.dtype != np.float32 or array.shape != (expected,):
            raise UserError(f"{where}: {name} is {array.dtype} {array.shape}; expected {expected} float32 numbers")


def _mapping(parent: Mapping, key: str, where: str) -> Mapping:
    if not isinstance(parent.get(key), Mapping):
        raise UserError(f"{where}: {key} is {parent.get(key, 'missing')!r}; expected a mapping")
    return parent[key]


def _number(parent: Mapping, key: str, where: str) -> float:
    value = parent.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UserError(f"{where}: {key} is {parent.get(key, 'missing')!r}; expected a finite number")
    return value


def _share(parent: Mapping, key: str, where: str, lowest: float) -> None:
    if not lowest <= _number(parent, key, where) <= 1:
        raise UserError(f"{where}: {key} is {parent[key]}; expected {lowest} to 1")


def _scores(parent: Mapping, where: str) -> dict[str, Score]:
    """The picture scores that a run holds: known ones, and at least those that need no network of the user's."""
    for name in ALWAYS["reconstruction"]:
        _number(parent, name, where)
    return {name: catalogue.find("reconstruction", name, where) for name in parent}


def _in_range(parent: Mapping, score: Score, where: str) -> None:
    if not score.low <= _number(parent, score.name, where) <= score.high:
        raise UserError(f"{where}: {score.name} is {parent[score.name]}; expected {score.low:g} to {score.high:g}")


def _pools(parent: Mapping, direction: str, where: str) -> None:
    entries = parent.get(direction)
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, Mapping) for entry in entries):
        raise UserError(f"{where}: {direction} is {one_line(entries)}; expected a list of pools")
    for entry in entries:
        for name in ("top1", "top5"):
            _share(entry, name, f"{where}.{direction}", 0)
        for name in ("pool", "median_rank"):
            _number(entry, name, f"{where}.{direction}")
        if "ci95" in entry:
            for name in ("top1", "top5", "median_rank"):
                _interval(_mapping(entry, "ci95", f"{where}.{direction}"), name, f"{where}.{direction}.ci95")


def _interval(parent: Mapping, key: str, where: str) -> None:
    pair = parent.get(key)
    if not isinstance(pair, list) or len(pair) != 2:
        raise UserError(f"{where}: {key} is {parent.get(key, 'missing')!r}; expected [low, high]")
    low, high = (_number(dict(enumerate(pair)), i, f"{where}: {key}") for i in (0, 1))
    if low > high:
        raise UserError(f"{where}: {key} is {pair}; expected [low, high]")


def _list(parent: Mapping, key: str, count: int, where: str) -> None:
    value = parent.get(key)
    if not isinstance(value, list) or len(value) != count:
        found = f"{len(value)} entries" if isinstance(value, list) else type(value).__name__
        raise UserError(f"{where}: {key} has {found}; expected a list of {count}")


def _positions(values: list, count: int, where: str) -> None:
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < count:
            raise UserError(f"{where} holds {value!r}; expected positions 0 to {count - 1}")
