"""All scores of all methods against the test images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mindtuner.errors import UserError
from mindtuner.evaluation.scores.catalogue import ALWAYS
from mindtuner.evaluation.scores.images import score_images
from mindtuner.evaluation.scores.inputs import as_images
from mindtuner.evaluation.scores.networks import Network
from mindtuner.evaluation.scores.objects import Recognition
from mindtuner.evaluation.scores.pictures import is_flat
from mindtuner.evaluation.scores.preparation import OURS, Choices
from mindtuner.evaluation.scores.retrieval import POOL, Retrieval, brain_retrieval, image_retrieval, pools, text_retrieval
from mindtuner.evaluation.statistics import bootstrap_ci

# The last one that a method has is its picture, so a blend, where there is one, stands before the corrected.
STAGES = ("lowlevel", "reconstructed", "blended", "corrected")
DIRECTIONS = ALWAYS["retrieval"]


@dataclass(frozen=True)
class Truth:
    """What was seen, and how pictures and retrieval are to be scored.

    Seen were n test images, the first or any p of them painted, or none.
    """

    tokens: np.ndarray  # (n, T, D), the image tower's
    text: np.ndarray  # (n, d), or of those images that have captions: the mean of their embeddings
    pictures: np.ndarray  # (p, 3, H, W), floats in 0..1 or uint8, the originals
    networks: Sequence[Network]  # features.LITE2, and those of networks.find_networks
    choices: Choices = OURS
    pool: int = POOL  # candidates of the smaller retrieval, where there are more
    recognition: Recognition | None = None  # of what the p pictures show; None where that is not scored

    def __post_init__(self) -> None:
        if len(self.pictures):
            as_images(self.pictures, "seen pictures")


@dataclass(frozen=True)
class MethodScores:
    """``summary`` goes into results.json; ``retrieval`` and ``reconstruction`` one value an image."""

    summary: dict
    retrieval: dict[str, np.ndarray]  # direction -> (n,)
    reconstruction: dict[str, np.ndarray]  # score -> (p,), of the method's picture, NaN where it is undefined; {} with p = 0
    chance: dict[str, float]  # of 1,000 random pairings, for scores without an analytic chance
    flat: list[int] = field(default_factory=list)  # positions of painted pictures that have one value everywhere
    found: dict[str, Retrieval] = field(default_factory=dict)  # direction -> of what "retrieval" is the top-1


def score_methods(
    predicted: Mapping[str, Mapping],
    truth: Truth,
    seed: int,
    keep: Callable[[tuple[str, str] | None, dict], None] | None = None,
) -> dict[str, MethodScores]:
    """Score methods, {name: what it predicts}.

    What a method predicts: "retrieval_tokens" (n, T, D) and "text" (n, d), from brains averaged over repeats;
    "stages", a dict of pictures (p, 3, H, W), floats in 0..1 or uint8, with keys out of STAGES, the last of which is the
    method's picture, and none where nothing was painted (p = 0); optionally "mean_token" (T, D), taken off the tokens of
    images; "single_trials", a list of {"retrieval_tokens", "text"}, each from one trial
    for every test image (their scores are averaged). ``keep``: see ``score_images``; keys are (method, stage) of its
    picture, and None of what was seen. Raises UserError, naming the method, where something is
    missing or misshapen.
    """
    retrieved, ranked, sets = {}, {}, {}
    for name, own in predicted.items():
        try:
            ranked[name] = _retrieve(own, truth)
            retrieved[name] = _retrieved(own, ranked[name], truth, seed)
            sets |= {(name, stage): pictures for stage, pictures in _stages(own, truth).items()}
        except UserError as error:
            raise UserError(f"method {name}: {error}") from error
    picture = {name: stage for name, stage in sets}  # the last stage of each
    if not len(truth.pictures):
        return {
            name: MethodScores(summary | {"ci95": {"retrieval": _intervals(top1, seed)}}, top1, {}, {}, found=ranked[name])
            for name, (top1, summary) in retrieved.items()
        }
    scores, chance = score_images(
        truth.pictures, sets, truth.networks, truth.choices, list(picture.items()), seed, keep, truth.recognition
    )
    found = {}
    for name, (top1, summary) in retrieved.items():
        own = {stage: values for (method, stage), values in scores.items() if method == name}
        shown = own[picture[name]]
        summary |= {
            "reconstruction": _means(shown),
            "picture": picture[name],
            "stages": {stage: _means(values) for stage, values in own.items()},
            "ci95": {"retrieval": _intervals(top1, seed), "reconstruction": _intervals(shown, seed)},
        }
        flat = np.flatnonzero(is_flat(sets[name, picture[name]])).tolist()
        found[name] = MethodScores(summary, top1, shown, chance[name, picture[name]], flat, ranked[name])
    return found


def _retrieved(
    predicted: Mapping, found: Mapping[str, Retrieval], truth: Truth, seed: int
) -> tuple[dict[str, np.ndarray], dict]:
    """Top-1 of each query by direction, and what a method's summary says of its retrieval."""
    top1 = {direction: one.top1 for direction, one in found.items()}
    summary = {
        "retrieval": _means(top1),
        "retrieval_pools": {direction: pools(one, truth.pool, seed) for direction, one in found.items()},
    }
    single = [
        _means({direction: one.top1 for direction, one in _retrieve(draw, truth).items()})
        for draw in predicted.get("single_trials", ())
    ]
    if single:
        summary["single_trial_retrieval"] = {
            direction: float(np.mean([draw[direction] for draw in single])) for direction in DIRECTIONS
        }
    return top1, summary


def _retrieve(predicted: Mapping, truth: Truth) -> dict[str, Retrieval]:
    for key in ("retrieval_tokens", "text"):
        if predicted.get(key) is None:
            raise UserError(f"{key}: missing; expected the method's predictions for all test images")
    less = predicted.get("mean_token")
    tokens = truth.tokens if less is None else truth.tokens - less
    return retrieve(predicted["retrieval_tokens"], predicted["text"], tokens, truth.text)


def retrieve(tokens: np.ndarray, text: np.ndarray, true_tokens: np.ndarray, true_text: np.ndarray) -> dict[str, Retrieval]:
    """Retrieval in three directions: ``image`` (brain to image), ``brain`` (image to brain) and ``text`` (brain to text).

    tokens (n, T, D) and text (m, d) are decoded, ``true_`` those of the images that were seen.
    """
    return {
        "image": image_retrieval(tokens, true_tokens),
        "brain": brain_retrieval(tokens, true_tokens),
        "text": text_retrieval(text, true_text),
    }


def _stages(predicted: Mapping, truth: Truth) -> dict[str, np.ndarray]:
    """The method's pictures in the order of STAGES."""
    given = {stage: pictures for stage, pictures in predicted.get("stages", {}).items() if pictures is not None}
    if not len(truth.pictures):
        if given:
            raise UserError(f"stages {sorted(given)}: expected none, as no picture of what was seen is given")
        return {}
    if not given or set(given) - set(STAGES):
        raise UserError(f"stages {sorted(given)}: expected one or more of {', '.join(STAGES)}")
    for stage, pictures in given.items():
        if as_images(pictures, f"{stage} pictures").shape != truth.pictures.shape:
            raise UserError(f"{stage} pictures: shape {pictures.shape}; expected that of the seen, {truth.pictures.shape}")
    return {stage: given[stage] for stage in STAGES if stage in given}


def defined(values: np.ndarray) -> np.ndarray:
    """The values of images whose score is defined. Raises UserError where it is of none."""
    found = values[~np.isnan(values)]
    if len(found) == 0:
        raise UserError("seen pictures: each has one value everywhere; expected pictures that PixCorr is defined for")
    return found


def _means(values: dict[str, np.ndarray]) -> dict[str, float]:
    return {key: float(defined(array).mean()) for key, array in values.items()}


def _intervals(values: dict[str, np.ndarray], seed: int) -> dict[str, list[float]]:
    return {key: list(bootstrap_ci(defined(array), seed)) for key, array in values.items()}
