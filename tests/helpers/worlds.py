"""The small simulated dataset that most tests read."""

import dataclasses

from mindtuner.config import Config, SimulateConfig, load_config
from mindtuner.simulation import cutouts

TINY = SimulateConfig(subjects=2, sessions=2, trials_per_session=48, shared_images=8, repeats=2, voxel_scale=0.01)


def draw_few(patch):
    """One drawing per kind: composing is the same, drawing takes a tenth of the time."""
    patch.setattr(cutouts, "_VARIANTS", {"train": 1, "test": 1, "generator": 1})


def tiny_config() -> Config:
    """A network and trainings of the smallest sizes, on a world of TINY's."""
    quick = load_config("quick")
    fit = dataclasses.replace(quick.tune, epochs=1, batch_per_subject=8, head_trials=8)
    return dataclasses.replace(
        quick,
        simulate=TINY,
        pretrain=dataclasses.replace(
            fit, start="random", similar_voxels=0, train_ridge=True, cross_fitted=0.0, prior_weight=30.0, lowlevel_weight=0.5
        ),
        tune=fit,
        pivot=dataclasses.replace(quick.pivot, epochs=1, batch=16),
        model=dataclasses.replace(quick.model, hidden=16, blocks=1, lowlevel_channels=(8, 4)),
    )
