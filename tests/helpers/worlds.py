"""The small simulated dataset that most tests read."""

from mindtuner.config import SimulateConfig
from mindtuner.simulation import cutouts

TINY = SimulateConfig(subjects=2, sessions=2, trials_per_session=48, shared_images=8, repeats=2, voxel_scale=0.01)


def draw_few(patch):
    """One drawing per kind: composing is the same, drawing takes a tenth of the time."""
    patch.setattr(cutouts, "_VARIANTS", {"train": 1, "test": 1, "generator": 1})
