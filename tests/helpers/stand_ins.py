"""Encoders that stand in for slow ones."""

import numpy as np


class Lengths:
    """A text tower that takes no time: how long each caption is. Like the real one it wants at least one."""

    width, identity = 384, {"encoder": "lengths"}

    def embed_groups(self, groups):
        return np.array([np.full(self.width, np.mean([len(caption) for caption in group])) for group in groups])
