"""The small simulated dataset that most tests read."""

import dataclasses

from mindtuner.config import Config, SimulateConfig, load_config
from mindtuner.simulation import cutouts

TINY = SimulateConfig(subjects=2, sessions=2, trials_per_session=48, shared_images=8, repeats=2, voxel_scale=0.01)


def draw_few(patch):
    """One drawing per kind: composing is the same, drawing takes a tenth of the time."""
    patch.setattr(cutouts, "_VARIANTS", {"train": 1, "test": 1, "generator": 1})


def brief(pictures: int) -> dict:
    """Settings of a config file for the path from files to scores: an epoch of each training, and so many pictures."""
    fit = {"epochs": 1, "batch_per_subject": 8, "head_trials": 8, "dtype": "float32"}
    return {
        "base": "quick",
        "model": {"hidden": 32},
        "pretrain": fit,
        "tune": fit,
        "pivot": {"epochs": 1},
        "decode": {"pictures": pictures, "generator_steps": 2, "refine_steps": 1},
    }


def tiny_config() -> Config:
    """A network and trainings of the smallest sizes, on a world of TINY's."""
    quick = load_config("quick")
    few = {"epochs": 1, "batch_per_subject": 8, "head_trials": 8}
    return dataclasses.replace(
        quick,
        simulate=TINY,
        pretrain=dataclasses.replace(quick.pretrain, **few),
        tune=dataclasses.replace(quick.tune, **few),
        pivot=dataclasses.replace(quick.pivot, epochs=1, batch=16),
        model=dataclasses.replace(quick.model, hidden=16, blocks=1, lowlevel_channels=(8, 4)),
    )
