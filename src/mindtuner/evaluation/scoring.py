"""All scores of one method against the test images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from mindtuner.errors import UserError
from mindtuner.evaluation.scores.pictures import as_images, pixcorr, random_pairing, ssim, two_way
from mindtuner.evaluation.scores.retrieval import brain_retrieval, image_retrieval, text_retrieval
from mindtuner.evaluation.statistics import bootstrap_ci

# The last one that a method has is its picture, so a blend, where there is one, stands before the corrected.
STAGES = ("lowlevel", "reconstructed", "blended", "corrected")
DIRECTIONS = ("image", "brain", "text")
PICTURE_SCORES = ("pixcorr", "ssim", "two_way")


@dataclass(frozen=True)
class Truth:
    """What was seen: n test images, the first or any p of them painted."""

    tokens: np.ndarray  # (n, T, D), the image tower's
    text: np.ndarray  # (n, d), or of those images that have captions: the mean of their embeddings
    pictures: np.ndarray  # float (p, 3, H, W) in 0..1, the originals at the size of the painted ones
    embed: Callable[[np.ndarray], np.ndarray]  # pictures -> (p, F), features.PooledFeatures()
    features: np.ndarray = field(init=False)  # (p, F) of the originals

    def __post_init__(self) -> None:
        object.__setattr__(self, "features", self.embed(as_images(self.pictures, "seen pictures")))


@dataclass(frozen=True)
class MethodScores:
    """``summary`` goes into results.json; ``retrieval`` and ``reconstruction`` one value an image."""

    summary: dict
    retrieval: dict[str, np.ndarray]  # direction -> (n,)
    reconstruction: dict[str, np.ndarray]  # score -> (p,), of the method's picture
    chance: dict[str, float]  # PixCorr and SSIM of 1,000 random pairings


def score_method(name: str, predicted: Mapping, truth: Truth, seed: int) -> MethodScores:
    """Score one method.

    ``predicted``: "retrieval_tokens" (n, T, D) and "text" (n, d), from brains averaged over repeats;
    "stages", a dict of float pictures (p, 3, H, W) in 0..1 with keys out of STAGES, the last of which is the
    method's picture; optionally "single_trials", a list of {"retrieval_tokens", "text"}, each from one trial
    for every test image (their scores are averaged). Raises UserError, naming the method, where something is
    missing or misshapen.
    """
    try:
        retrieval = _retrieve(predicted, truth)
        single = [_retrieve(draw, truth) for draw in predicted.get("single_trials", ())]
        stages = {stage: pictures for stage in STAGES
                  if (pictures := predicted.get("stages", {}).get(stage)) is not None}
        if not stages or set(predicted["stages"]) - set(STAGES):
            raise UserError(f"stages {sorted(predicted.get('stages', {}))}: expected one or more of "
                            f"{', '.join(STAGES)}")
        scored = {stage: _score_pictures(pictures, truth) for stage, pictures in stages.items()}
        picture = list(stages)[-1]
        chance = random_pairing(stages[picture], truth.pictures, seed)
    except UserError as error:
        raise UserError(f"method {name}: {error}") from error
    reconstruction = scored[picture]
    summary = {
        "retrieval": _means(retrieval),
        "reconstruction": _means(reconstruction),
        "picture": picture,
        "stages": {stage: _means(values) for stage, values in scored.items()},
        "ci95": {"retrieval": _intervals(retrieval, seed),
                 "reconstruction": _intervals(reconstruction, seed)},
    }
    if single:
        summary["single_trial_retrieval"] = {
            direction: float(np.mean([draw[direction].mean() for draw in single]))
            for direction in DIRECTIONS}
    return MethodScores(summary, retrieval, reconstruction, chance)


def _retrieve(predicted: Mapping, truth: Truth) -> dict[str, np.ndarray]:
    for key in ("retrieval_tokens", "text"):
        if predicted.get(key) is None:
            raise UserError(f"{key}: missing; expected the method's predictions for all test images")
    return {"image": image_retrieval(predicted["retrieval_tokens"], truth.tokens).top1,
            "brain": brain_retrieval(predicted["retrieval_tokens"], truth.tokens).top1,
            "text": text_retrieval(predicted["text"], truth.text).top1}


def _score_pictures(pictures, truth: Truth) -> dict[str, np.ndarray]:
    return {"pixcorr": pixcorr(pictures, truth.pictures), "ssim": ssim(pictures, truth.pictures),
            "two_way": two_way(truth.embed(pictures), truth.features)}


def _means(values: dict[str, np.ndarray]) -> dict[str, float]:
    return {key: float(array.mean()) for key, array in values.items()}


def _intervals(values: dict[str, np.ndarray], seed: int) -> dict[str, list[float]]:
    return {key: list(bootstrap_ci(array, seed)) for key, array in values.items()}
