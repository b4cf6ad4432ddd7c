"""The networks: pure ``nn.Module``s that know nothing of files, options or losses (but the prior's own)."""

from mindtuner.model.backbone import AdaptiveProjector
from mindtuner.model.network import BrainNetwork, BrainOutputs
from mindtuner.model.prior import DiffusionPrior

__all__ = ["AdaptiveProjector", "BrainNetwork", "BrainOutputs", "DiffusionPrior"]
