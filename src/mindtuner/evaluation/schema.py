"""The schema of a run folder's files.

JSON is checked by pydantic, arrays by name, type and shape. Each message names the file and the field at fault.

A run that painted nothing (``decode.pictures`` is 0) has retrieval and scores of captions, and no block ``reconstruction``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Generic, Literal, TypeVar, get_args

import numpy as np
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StrictInt, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from mindtuner.errors import UserError
from mindtuner.evaluation.scores import catalogue
from mindtuner.evaluation.scores.catalogue import ALWAYS, RANDOM_PAIRS, of_part
from mindtuner.evaluation.scoring import STAGES
from mindtuner.thirdparty import one_line

MethodName = Literal[
    "mindtuner",
    "pretrained",
    "ridge_only",
    "ridge",
    "full_finetune",
    "from_scratch",
    "nearest_training_image",
    "prior_only",
    "shuffled_brain",
]
METHODS = get_args(MethodName)
HELD_OUT_SIDES = ("of_category", "others")  # test images that show a category held out, and those that do not
PARTS = ("retrieval", "reconstruction")  # of the scores that every method has, but for a run that painted nothing
ALL_PARTS = (*PARTS, "captions", "written", "brain")  # those of single images; regions of the brain have any names


class _Missing:
    """Stands where a field is missing, so that it is refused as what was expected there."""

    def __repr__(self) -> str:
        return "'missing'"


MISSING: Any = _Missing()
_EXPECTED = {  # what pydantic calls a fault -> what was expected
    "float_type": "a finite number",
    "finite_number": "a finite number",
    "model_type": "a mapping",
    "dict_type": "a mapping",
    "list_type": "a list",
    "string_type": "text",
    "string_too_short": "text",
    "int_type": "a whole number",
    "greater_than_equal": "0 or more",
    "too_short": "[low, high]",
    "too_long": "[low, high]",
}


def _inside(message: str) -> PydanticCustomError:
    """A fault of a field within what is checked, which the message names."""
    return PydanticCustomError("inside", "{message}", {"message": message})


def _expecting(expected: str) -> PydanticCustomError:
    """A fault of what is checked itself."""
    return PydanticCustomError("expected", "{expected}", {"expected": expected})


def _share(value: float) -> float:
    if not 0 <= value <= 1:
        raise _expecting("0 to 1")
    return value


def _in_order(pair: list[float]) -> list[float]:
    if pair[0] > pair[1]:
        raise _expecting("[low, high]")
    return pair


def _maybe() -> Any:
    """The default of a field that may be absent; where it is there, it is checked."""
    return Field(None, validate_default=False)


def _some(expected: str):
    def check(values):
        if not values:
            raise _expecting(expected)
        return values

    return AfterValidator(check)


Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Share = Annotated[Number, AfterValidator(_share)]
Interval = Annotated[list[Number], Field(min_length=2, max_length=2), AfterValidator(_in_order)]
Scores = dict[str, Number]
T = TypeVar("T")


class _Block(BaseModel):
    """A mapping that has at least these fields."""

    model_config = ConfigDict(extra="allow", validate_default=True, strict=True)


class _Directions(_Block, Generic[T]):
    image: T = MISSING
    brain: T = MISSING
    text: T = MISSING


class _Ranks(_Block, Generic[T]):
    top1: T = MISSING
    top5: T = MISSING


class _RankIntervals(_Ranks[Interval]):
    median_rank: Interval = MISSING


class _Pool(_Ranks[Share]):
    pool: Number = MISSING
    median_rank: Number = MISSING
    two_way: Share = _maybe()
    p: Share = _maybe()
    ci95: _RankIntervals = _maybe()


class _Intervals(_Block):
    retrieval: _Directions[Interval] = MISSING
    reconstruction: dict[str, Interval] = _maybe()


class _Method(_Block):
    """Scores of a method. What is of pictures is there as a whole or not at all."""

    retrieval: _Directions[Share] = MISSING
    ci95: _Intervals = MISSING
    reconstruction: Scores = _maybe()
    stages: Annotated[dict[Literal[STAGES], Scores], _some(f"one or more of {', '.join(STAGES)}")] = _maybe()
    picture: Any = None
    retrieval_pools: _Directions[Annotated[list[_Pool], _some("a list of pools")]] = _maybe()
    single_trial_retrieval: _Directions[Share] = _maybe()

    @model_validator(mode="after")
    def _pictures(self):
        of_pictures = {
            "reconstruction": self.reconstruction,
            "stages": self.stages,
            "picture": self.picture,
            "ci95.reconstruction": self.ci95.reconstruction,
        }
        there = [name for name, value in of_pictures.items() if value is not None]
        if not there:
            return self
        for name, value in of_pictures.items():
            if value is None:
                raise _inside(f"{name} is 'missing'; expected it beside {there[0]}")
        if self.picture not in list(self.stages):
            raise _inside(f"picture is {self.picture!r}; expected one of {', '.join(self.stages)}")
        for name in (*ALWAYS["reconstruction"], *self.reconstruction):
            _known("reconstruction", name)
            score = of_part("reconstruction")[name]
            for at, scores in (
                ("reconstruction", self.reconstruction),
                *((f"stages.{k}", v) for k, v in self.stages.items()),
            ):
                value = scores.get(name, MISSING)
                if value is MISSING:
                    raise _inside(f"{at}: {name} is 'missing'; expected a finite number")
                if not score.low <= value <= score.high:
                    raise _inside(f"{at}: {name} is {value}; expected {score.low:g} to {score.high:g}")
            if name not in self.ci95.reconstruction:
                raise _inside(f"ci95.reconstruction: {name} is 'missing'; expected [low, high]")
        return self


def _known(part: str, name: str, at: str = "") -> None:
    try:
        catalogue.find(part, name, at or part)
    except UserError as error:
        raise _inside(str(error)) from error


class _Chance(_Block):
    retrieval: _Directions[Share] = MISSING
    two_way: Share = _maybe()
    reconstruction: dict[str, Scores] = _maybe()


class _Difference(_Block):
    mean: Number = MISSING
    ci: Interval = MISSING
    p: Share = MISSING


class _ScoreApart(_Block):
    mean: Number = MISSING
    ci: Interval = MISSING
    n: Number = MISSING


Sides = dict[str, dict[str, dict[str, _ScoreApart]]]


class _HeldOut(_Block):
    category: Annotated[str, Field(min_length=1)] = MISSING
    images: Annotated[list[Annotated[StrictInt, Field(ge=0)]], _some("a list of stimulus ids")] = MISSING
    left_out: Number = MISSING
    of_category: Sides = MISSING
    others: Sides = MISSING


class _Rate(_Block):
    value: Share = MISSING
    ci95: Interval = MISSING
    chance: Share = MISSING
    p: Share = MISSING


class _OwnRate(_Block):
    images: Number = MISSING
    accuracy: Share = MISSING
    chance: Share = MISSING


class _Categories(_Block):
    names: Annotated[list[str], _some("a list of categories")] = MISSING
    confusion: list[list[StrictInt]] = MISSING
    accuracy: _Rate = MISSING
    balanced: _Rate = MISSING
    own: Annotated[dict[str, _OwnRate], _some("a mapping of categories")] = MISSING

    @model_validator(mode="after")
    def _square(self):
        if [len(row) for row in self.confusion] != [len(self.names)] * len(self.names):
            raise _inside(f"confusion is no table of {len(self.names)} rows and columns; expected one for each of names")
        return self


class _Results(_Block):
    setting: dict = MISSING
    methods: Annotated[dict[MethodName, _Method], _some(f"one or more of {', '.join(METHODS)}")] = MISSING
    chance: _Chance = MISSING
    paired: dict[str, dict[str, dict[str, _Difference]]] = MISSING
    timing_s: dict = MISSING
    peak_memory_mb: Number = MISSING
    held_out: _HeldOut = _maybe()
    categories: dict[MethodName, _Categories] = _maybe()

    @model_validator(mode="after")
    def _together(self):
        painted = {name for name, method in self.methods.items() if method.reconstruction is not None}
        if painted and (without := [name for name in self.methods if name not in painted]):
            raise _inside(
                f"methods.{without[0]}: reconstruction is 'missing'; expected a mapping, as of {sorted(painted)[0]}"
            )
        if painted and self.chance.two_way is None:
            raise _inside("chance: two_way is 'missing'; expected a finite number")
        for name in painted:
            for score in self.methods[name].reconstruction:
                if of_part("reconstruction")[score].chance == RANDOM_PAIRS:
                    at, table = "chance.reconstruction", self.chance.reconstruction or {}
                    if score not in table:
                        raise _inside(f"{at}: {score} is 'missing'; expected a mapping")
                    if name not in table[score]:
                        raise _inside(f"{at}.{score}: {name} is 'missing'; expected a finite number")
        for comparison, parts in self.paired.items():
            for part in PARTS if painted else PARTS[:1]:
                at = f"paired.{comparison}"
                if part not in parts:
                    raise _inside(f"{at}: {part} is 'missing'; expected a mapping")
                for key in parts[part]:
                    _known(part, key, f"{at}.{part}")
                for key in ALWAYS[part]:
                    if key not in parts[part]:
                        raise _inside(f"{at}.{part}: {key} is 'missing'; expected a mapping")
        return self


Said = str | list[str] | None  # of one image


class _WordsOfMethod(_Block):
    retrieved_caption: list[Said] = _maybe()
    written_caption: list[Said] = _maybe()
    top5: list[list[StrictInt]] = _maybe()
    phrases: list[list[list[str | float]]] = _maybe()


class _Words(_Block):
    picture_index: list[StrictInt] = MISSING
    seen_captions: list[Said] = MISSING
    all_captions: list[Said] = MISSING
    names: list[str] = _maybe()
    methods: dict[MethodName, _WordsOfMethod] = MISSING


def validate_results(results: Mapping, where: str = "results.json") -> None:
    """Check results against the schema. Raises UserError naming the first field that is missing or wrong."""
    _checked(_Results, results, where)


def _checked(model: type[_Block], value: Mapping, where: str) -> Any:
    try:
        return model.model_validate(dict(value))
    except ValidationError as error:
        raise UserError(f"{where}: {_said(error.errors(include_url=False)[0])}") from None


def _said(fault) -> str:
    """A fault that pydantic found, in one line: where it stands, the field, what was found, and what was expected."""
    *parents, field = [str(part) for part in fault["loc"]] or [""]
    if field == "[key]":
        return f"{'.'.join(parents)} is unknown; expected one of {fault['ctx']['expected'].replace(chr(39), '')}"
    if fault["type"] == "inside":
        place = ".".join([*parents, field])
        return f"{place}.{fault['msg']}" if place else fault["msg"]
    expected = fault["msg"] if fault["type"] == "expected" else _EXPECTED.get(fault["type"], fault["msg"])
    found = one_line(repr(fault["input"]))
    return f"{'.'.join(parents)}{': ' if parents else ''}{field} is {found}; expected {expected}"


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
    checked = _checked(_Words, words, where)
    p, n = len(pictures["seen"]), len(pictures["thumbnails"])
    for key, count in (("picture_index", p), ("seen_captions", p), ("all_captions", n)):
        _of_length(getattr(checked, key), count, f"{where}: {key}")
    if checked.names is not None:
        _of_length(checked.names, n, f"{where}: names")
    _positions(checked.picture_index, n, f"{where}: picture_index")
    for name, method in checked.methods.items():
        at = f"{where}: methods.{name}"
        for key, count in (("retrieved_caption", p or n), ("written_caption", p), ("top5", p), ("phrases", p)):
            if (values := getattr(method, key)) is not None:
                _of_length(values, count, f"{at}: {key}")
        for row in method.phrases or ():
            if not all(len(pair) == 2 and isinstance(pair[0], str) and not isinstance(pair[1], str) for pair in row):
                raise UserError(f"{at}.phrases holds {one_line(row)}; expected pairs of a phrase and a number")
        for row in method.top5 or ():
            if len(row) != min(5, n):
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
        expected = lengths.get(score, n) if part == "retrieval" else p or n if part == "captions" else p
        if array.dtype != np.float32 or array.shape != (expected,):
            raise UserError(f"{where}: {name} is {array.dtype} {array.shape}; expected {expected} float32 numbers")


def _of_length(values: list, count: int, where: str) -> None:
    if len(values) != count:
        raise UserError(f"{where} has {len(values)} entries; expected a list of {count}")


def _positions(values: list[int], count: int, where: str) -> None:
    for value in values:
        if not 0 <= value < count:
            raise UserError(f"{where} holds {value!r}; expected positions 0 to {count - 1}")
