"""The run folder: what ``demo`` and ``evaluate`` leave behind, and what the report reads.

``config.yaml``            everything needed to run it again (written by the caller)
``log.jsonl``              one object for each epoch: {"stage", "epoch", "step", "losses": {...}, "seconds"}
``pictures.safetensors``   uint8: "seen" (p, 3, H, W); "{method}/{stage}" (p, 3, H, W) for each stage that the
                           method has, out of lowlevel, reconstructed, blended, corrected; "thumbnails" (n, 3, h, w)
                           of all test images. p is 0 where nothing was painted
``words.json``             {"picture_index": [p positions in the test list], "seen_captions": [p],
                           "all_captions": [n], "methods": {method: {"retrieved_caption": [p],
                           "phrases": [p lists of [phrase, probability]],
                           "written_caption": [p], "top5": [p lists of 5 positions in the test list]}}}
                           (each may be absent where a method has none). Where nothing was painted, captions are
                           retrieved for all test images: "retrieved_caption" is [n]
``per_image.safetensors``  the scores of single images, float32: "{method}/retrieval/{direction}" (n,), of text (t,), and
                           "{method}/reconstruction/{score}" (p,) of the method's picture; with them int64 "images" (n,)
                           stimulus ids of the test images, and as positions among these "shown" (p,), those painted, and
                           "texts" (t,), those that have a caption. Also "{method}/captions/{score}" (p,), or (n,) where
                           nothing was painted, of the retrieved caption, "{method}/written/{score}" (p,) of the one that
                           a network wrote, and "{method}/brain/{region}" (p,). A score is NaN where it is undefined:
                           PixCorr of an image that has one value everywhere, words of an image that has no caption
``results.json``           the scores, see ``build_results``; written last: a folder that has it is complete
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mindtuner.claims import record
from mindtuner.errors import UserError
from mindtuner.evaluation.schema import (
    METHODS,
    PARTS,
    validate_per_image,
    validate_pictures,
    validate_results,
    validate_words,
)
from mindtuner.evaluation.scores.catalogue import RANDOM_PAIRS, of_part
from mindtuner.evaluation.scores.inputs import as_images
from mindtuner.evaluation.scores.retrieval import chance_of_pools
from mindtuner.evaluation.scoring import DIRECTIONS, MethodScores, defined
from mindtuner.evaluation.statistics import paired_difference
from mindtuner.files import read_json, write_arrays, write_json, write_text
from mindtuner.inputs import open_tensors, parse_json, read_text

DIGITS = 6
PICTURES, PER_IMAGE = "pictures.safetensors", "per_image.safetensors"
EXPECTED = "arrays of a run that mindtuner demo or evaluate finished"


@dataclass(frozen=True)
class Run:
    """A complete run folder. Pictures may be gigabytes: an array of them is read from disk each time that it is asked for."""

    results: dict
    pictures: Mapping[str, np.ndarray]
    words: dict
    per_image: dict[str, np.ndarray]
    log: list[dict]


def names_of(run: Run) -> list[str]:
    """What a run's n test images are called: by file name, or by number in a run that kept no names."""
    return run.words.get("names") or [f"image {k}" for k in run.per_image["images"]]


def build_results(
    setting: dict, scores: Mapping[str, MethodScores], timing_s: dict, peak_memory_mb: float, seed: int, shown=None
) -> dict:
    """Assemble results.json, floats rounded to 6 digits so that equal runs give equal files.

    {"setting", "methods": {name: MethodScores.summary},
     "chance": {"retrieval": {direction: 1/candidates}, "retrieval_pools": {direction: [...]}, "two_way": 0.5,
                "reconstruction": {score: {method: float}}},
     "undefined": {"pixcorr": {"left_out": {"count", "images"}, "counted_zero": {method: {"count", "images"}}}},
     "paired": {"mindtuner_minus_X": {"retrieval": {direction: {"mean", "ci", "p"}}, "reconstruction": ...}},
     "timing_s", "peak_memory_mb"}
    ``pipeline/stages.py`` adds "words" to methods: precision, recall and F1 of phrases and of whole captions (``said``).
    ``pipeline/captions_and_brain.py`` adds the scores of captions, to methods, ci95 and chance, and brain correlations, to
    methods and as "brain". ``pipeline/evaluation.py`` adds "categories" where captions are categories: by method
    ``scores.categories.category_block``.

    shown : (p,) stimulus ids of the painted images, which "undefined" names (default: their positions)

    Two-way identifications by any network have the chance that stands at "two_way". Where nothing was painted there is
    nothing of "reconstruction", and no "two_way"; "undefined" is empty. Methods stand in the order of METHODS.
    "paired" is empty where mindtuner was not scored. Raises UserError
    for an unknown method, methods scored on different numbers of images, or a number that is not finite.
    """
    for name in scores:
        if name not in METHODS:
            raise UserError(f"results.json: unknown method {name}; expected one of {', '.join(METHODS)}")
    if not scores:
        raise UserError(f"results.json: no methods; expected one or more of {', '.join(METHODS)}")
    ordered = {name: scores[name] for name in METHODS if name in scores}
    counts = {(len(s.retrieval["image"]), len(s.reconstruction.get("pixcorr", ()))) for s in ordered.values()}
    if len(counts) > 1:
        raise UserError(
            f"results.json: methods scored on different numbers of images {sorted(counts)}; "
            "expected one set of test images for all"
        )
    first = next(iter(ordered.values()))
    candidates = {direction: len(first.retrieval[direction]) for direction in DIRECTIONS}
    measured = [
        score.name
        for score in of_part("reconstruction").values()
        if score.chance == RANDOM_PAIRS and score.name in first.reconstruction
    ]
    results = rounded(
        {
            "setting": setting,
            "methods": {name: s.summary for name, s in ordered.items()},
            "chance": {
                "retrieval": {direction: 1 / candidates[direction] for direction in DIRECTIONS},
                "retrieval_pools": {
                    direction: chance_of_pools(first.summary["retrieval_pools"][direction]) for direction in DIRECTIONS
                },
                **(
                    {
                        "two_way": 0.5,
                        "reconstruction": {
                            score: {name: s.chance[score] for name, s in ordered.items()} for score in measured
                        },
                    }
                    if first.reconstruction
                    else {}
                ),
            },
            "undefined": {"pixcorr": _undefined(ordered, shown)} if first.reconstruction else {},
            "paired": _paired(ordered, seed),
            "timing_s": timing_s,
            "peak_memory_mb": peak_memory_mb,
        }
    )
    validate_results(results)
    return results


def rounded(value, where: str = "results.json"):
    """``value`` as plain JSON values, floats rounded to 6 digits.

    UserError names a number that is not finite.
    """
    if isinstance(value, Mapping):
        return {str(key): rounded(item, f"{where} > {key}") for key, item in value.items()}
    if isinstance(value, (list, tuple, np.ndarray)):
        return [rounded(item, where) for item in value]
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if isinstance(value, (int, np.integer)):
        return int(value)
    if isinstance(value, (float, np.floating)):
        if not math.isfinite(value):
            raise UserError(f"{where} is {value}; expected a finite number")
        return round(float(value), DIGITS) + 0.0  # + 0.0 turns -0.0 into 0.0
    if value is None or isinstance(value, str):
        return value
    raise UserError(f"{where} holds a {type(value).__name__}; expected JSON values")


def to_uint8(images) -> np.ndarray:
    """Float images (n, 3, H, W) in 0..1 as uint8, rounded to the nearest; of uint8 the same. UserError as for the scores."""
    checked = as_images(images, "pictures")
    return checked if checked.dtype == np.uint8 else np.round(np.clip(checked, 0, 1) * 255).astype(np.uint8)


def from_uint8(images: np.ndarray) -> np.ndarray:
    """uint8 images as float32 in 0..1."""
    return images.astype(np.float32) / 255


def per_image_scores(scores: Mapping[str, MethodScores], images, shown, texts) -> dict[str, np.ndarray]:
    """The arrays of per_image.safetensors; images (n,), shown (p,), texts (t,) as described there."""
    arrays = {name: np.asarray(values, np.int64) for name, values in (("images", images), ("shown", shown), ("texts", texts))}
    return arrays | {
        f"{method}/{part}/{score}": values.astype(np.float32)
        for method, own in scores.items()
        for part in PARTS
        for score, values in getattr(own, part).items()
    }


def save_run(
    folder: str | Path, results: dict, pictures: Mapping[str, np.ndarray], words: dict, per_image: Mapping[str, np.ndarray]
) -> None:
    """Write pictures, words, scores of single images and, last, results into ``folder``, each file whole or not at all.

    Raises UserError where one of them breaks its schema or the disk refuses.
    """
    folder = Path(folder)
    validate_results(results, str(folder / "results.json"))
    validate_pictures(pictures, str(folder / PICTURES))
    validate_words(words, pictures, str(folder / "words.json"))
    validate_per_image(per_image, pictures, str(folder / PER_IMAGE))
    for name, arrays in ((PICTURES, pictures), (PER_IMAGE, per_image)):
        write_arrays(folder / name, arrays)
    write_json(folder / "words.json", words)
    write_json(folder / "results.json", results)


def load_run(folder: str | Path) -> Run:
    """Read a complete run folder. Raises UserError naming the file that is missing or broken."""
    folder = Path(folder)
    results = read_json(folder / "results.json")
    validate_results(results, str(folder / "results.json"))
    pictures, per_image = _Arrays(folder / PICTURES), dict(_Arrays(folder / PER_IMAGE))
    validate_pictures(pictures, str(folder / PICTURES))
    validate_per_image(per_image, pictures, str(folder / PER_IMAGE))
    words = read_json(folder / "words.json")
    validate_words(words, pictures, str(folder / "words.json"))
    return Run(results, pictures, words, per_image, load_log(folder))


class _Arrays(Mapping):
    """The arrays of a safetensors file by name. It is open only while one is read, so that no more of it is in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with open_tensors(path, EXPECTED, "numpy") as file:
            self._names = sorted(file.keys())

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        with open_tensors(self._path, EXPECTED, "numpy") as file:
            return file.get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def log_to(folder: str | Path) -> Callable[[dict], None]:
    """A function that appends one entry to ``folder``/log.jsonl, one JSON object a line.

    A run that goes on from a checkpoint sends its entries so far again: one that stands there already is not written
    twice. A last line that a killed process left unfinished is dropped.
    """
    path = Path(folder) / "log.jsonl"
    before = read_text(path, "the run's training log") if path.exists() else ""
    whole = before[: before.rfind("\n") + 1]
    if whole != before:
        write_text(path, whole)
    written = set(whole.splitlines(keepends=True))

    def append(entry: dict) -> None:
        line = json.dumps(rounded(entry, str(path)), allow_nan=False) + "\n"
        if line in written:
            return
        try:
            record(path)
            with path.open("a", encoding="utf-8", newline="\n") as stream:
                stream.write(line)
        except OSError as error:
            raise UserError(f"{path}: cannot be written ({error.strerror or error}); expected free space") from error
        written.add(line)

    return append


def load_log(folder: str | Path) -> list[dict]:
    """Entries of log.jsonl, in order. Raises UserError naming a line that is not a JSON object."""
    path = Path(folder) / "log.jsonl"
    lines = read_text(path, "the run's training log").split("\n")  # JSON may hold other separators of lines
    if lines[-1] == "":
        lines.pop()
    entries = []
    for number, line in enumerate(lines, 1):
        entry = parse_json(line, f"{path}: line {number}", "one object a line")
        if not isinstance(entry, dict) or "stage" not in entry or not isinstance(entry.get("losses"), dict):
            raise UserError(f"{path}: line {number} is not a log entry; expected an object with stage and losses")
        entries.append(entry)
    return entries


def _undefined(scores: Mapping[str, MethodScores], shown) -> dict:
    """Which images PixCorr leaves out, their original being flat, and where it counts 0, the picture being flat."""
    left_out = np.flatnonzero(np.isnan(next(iter(scores.values())).reconstruction["pixcorr"])).tolist()

    def named(positions) -> dict:
        return {"count": len(positions), "images": [k if shown is None else int(shown[k]) for k in positions]}

    flat = {name: sorted(set(s.flat) - set(left_out)) for name, s in scores.items()}
    return {"left_out": named(left_out), "counted_zero": {name: named(some) for name, some in flat.items() if some}}


def _paired(scores: Mapping[str, MethodScores], seed: int) -> dict:
    if "mindtuner" not in scores:
        return {}
    ours = scores["mindtuner"]
    return {
        f"mindtuner_minus_{name}": {
            part: {
                key: paired_difference(defined(values), defined(getattr(other, part)[key]), seed)
                for key, values in getattr(ours, part).items()
            }
            for part in PARTS
            if getattr(ours, part)
        }
        for name, other in scores.items()
        if name != "mindtuner"
    }
