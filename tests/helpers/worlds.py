"""The small simulated dataset that most tests read."""

from mindtuner.config import SimulateConfig

TINY = SimulateConfig(subjects=2, sessions=2, trials_per_session=48, shared_images=8, repeats=2, voxel_scale=0.01)
