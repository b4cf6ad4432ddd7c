"""Which simulated images show a kind of thing, by the simulator's own labels."""

import numpy as np

from mindtuner.files import read_json
from mindtuner.simulation.drawing import KINDS


def truly(simulated, kind):
    """Which images show the kind, by the labels that the simulator composed them of."""
    scenes = read_json(simulated / "truth" / "scenes.json")["scenes"]
    return np.array([any(thing["name"] == kind for thing in scene["objects"]) for scene in scenes])


def category_in_both(simulated, dataset):
    """A kind that stands in some test images, and often enough in training."""
    shared = dataset.stimuli.is_shared
    counts = {kind: truly(simulated, kind) for kind in KINDS}
    return max(
        (kind for kind in KINDS if 2 <= counts[kind][shared].sum() < shared.sum()),
        key=lambda kind: counts[kind][~shared].sum(),
    )
