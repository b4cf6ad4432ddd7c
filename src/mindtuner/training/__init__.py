"""Fitting: the objectives, one loop, pretraining, tuning, and networks and fingerprints on disk."""

from mindtuner.training.batches import subject_name
from mindtuner.training.checkpoint import remove_checkpoint
from mindtuner.training.fingerprint import (
    Fingerprint,
    facts_of,
    load_fingerprint,
    read_fingerprint,
    save_fingerprint,
    write_fingerprint,
)
from mindtuner.training.monitor import tensorboard_to
from mindtuner.training.network_files import kind_of, load_network, read_card, save_network
from mindtuner.training.pretrain import pretrain
from mindtuner.training.targets import Targets
from mindtuner.training.tune import METHODS, WITHOUT_BASE, tune

__all__ = [
    "METHODS",
    "WITHOUT_BASE",
    "Fingerprint",
    "Targets",
    "facts_of",
    "load_fingerprint",
    "kind_of",
    "load_network",
    "pretrain",
    "read_card",
    "read_fingerprint",
    "remove_checkpoint",
    "save_fingerprint",
    "save_network",
    "subject_name",
    "tensorboard_to",
    "tune",
    "write_fingerprint",
]
