"""Brain correlation of a run: what pictures are held against, and what the run's files hold of it.

Those are blocks in results.json and arrays in per_image.safetensors.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mindtuner.data import Subject
from mindtuner.errors import UserError
from mindtuner.evaluation.encoding import EncodingModel, responses
from mindtuner.evaluation.scores.brain import VoxelNoise, brain_chance, brain_scores, regions
from mindtuner.evaluation.scores.inputs import as_array
from mindtuner.evaluation.statistics import bootstrap_ci

MOST = 2000  # training images of an encoding model: what more of them add costs minutes on a laptop
Features = Callable[[np.ndarray], np.ndarray]  # stimulus ids (n,) -> (n, F)


@dataclass(frozen=True)
class BrainTruth:
    """What pictures of p test images are held against: the subject's brain, and the model that predicts it."""

    model: EncodingModel
    measured: np.ndarray  # float32 (p, V), betas averaged over the repeats of each image
    repeats: np.ndarray  # (p,), how many those were
    rois: dict[str, np.ndarray]  # name -> bool (V,)
    noise: VoxelNoise | None  # from repeats among training trials
    training_images: int

    @classmethod
    def of(
        cls, subject: Subject, shown: np.ndarray, features: Features, seed: int, groups: tuple[int, ...] | None = None
    ) -> BrainTruth:
        """Fit the encoding model on a subject's training trials, and average its test trials of the images shown.

        The training trials are those of MOST images at most, spread evenly over their ids. ``shown`` (p,) are stimulus ids.
        ``features`` are asked for training images alone here; ``groups`` are their widths by group.

        Raises UserError on a leak, where the subject has no test trial of an image, or where ``EncodingModel.fit`` and
        ``responses`` do.
        """
        train, images = subject.train, np.unique(subject.train.stimulus)
        if len(images) > MOST:
            train = train.select(np.isin(train.stimulus, images[np.linspace(0, len(images) - 1, MOST).round().astype(int)]))
        training = responses(subject, train)
        model = EncodingModel.fit(features(training.images), training.betas, training.images, seed, groups)
        test = subject.test
        measured = responses(subject, test.select(np.isin(test.stimulus, shown)))
        if unseen := sorted(set(map(int, shown)) - set(map(int, measured.images))):
            raise UserError(f"{subject.where}: subject {subject.number} has no test trial of image {unseen[0]}; expected one")
        at = np.searchsorted(measured.images, shown)
        return cls(model, measured.betas[at], measured.repeats[at], dict(subject.rois), training.noise, len(training.images))

    def reference_block(self, seen_features: np.ndarray, seed: int) -> dict:
        """What every method's numbers are read against, as plain values.

        ``{"training_images", "features", "seen": brain_block of the seen pictures, whose features (p, F) these are,
        "regions": {region: {"voxels", "noise_ceiling", "voxelwise_ceiling", "pattern_ceiling"}}}``; the ceilings are None
        where no training image was seen twice.
        """
        ceilings = {}
        for name, mask in regions(self.rois).items():
            ceiling = None if self.noise is None else self.noise.ceiling(self.repeats)[mask]
            ceilings[name] = {
                "voxels": int(mask.sum()),
                "noise_ceiling": None if ceiling is None else float(ceiling.mean()),
                "voxelwise_ceiling": None if ceiling is None else float(np.sqrt(ceiling).mean()),
                "pattern_ceiling": None if self.noise is None else self.noise.pattern_ceiling(self.repeats, mask),
            }
        return {
            "training_images": self.training_images,
            "features": len(self.model.mean),
            "seen": brain_block(seen_features, self, seed)[0],
            "regions": ceilings,
        }


def brain_block(features: np.ndarray, truth: BrainTruth, seed: int) -> tuple[dict, dict[str, np.ndarray]]:
    """Brain correlation of p pictures of one method and stage, by their features (p, F).

    Returns ``{region: {"pattern": {"mean", "ci95": [low, high], "chance"}, "voxelwise"}}`` ("voxelwise" is the mean over the
    region's voxels) and the patterns' correlations, float32 (p,) by region. Raises UserError for NaN, other shapes, or a
    single picture.
    """
    predicted = truth.model.predict(as_array(features, "features", 2))
    found = brain_scores(predicted, truth.measured, truth.rois)
    chance = brain_chance(predicted, truth.measured, truth.rois, seed)
    return (
        {
            name: {
                "pattern": {**_summary(own["pattern"], seed), "chance": chance[name]},
                "voxelwise": float(own["voxelwise"].mean()),
            }
            for name, own in found.items()
        },
        {name: own["pattern"].astype(np.float32) for name, own in found.items()},
    )


def _summary(values: np.ndarray, seed: int) -> dict:
    return {"mean": float(values.mean()), "ci95": list(bootstrap_ci(values, seed))}
