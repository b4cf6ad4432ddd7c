"""Fitting: the objectives, one loop, pretraining, tuning, and networks on disk."""

from mindtuner.training.batches import subject_name
from mindtuner.training.checkpoints import (
    load_fingerprint,
    load_network,
    read_card,
    save_fingerprint,
    save_network,
)
from mindtuner.training.pretrain import pretrain
from mindtuner.training.state import remove_checkpoint
from mindtuner.training.targets import Targets
from mindtuner.training.tune import METHODS, tune

__all__ = ["METHODS", "Targets", "load_fingerprint", "load_network", "pretrain", "read_card",
           "remove_checkpoint", "save_fingerprint", "save_network", "subject_name", "tune"]
