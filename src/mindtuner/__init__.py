"""MindTuner: read what a new person sees from one hour of fMRI.

>>> import mindtuner
>>> dataset = mindtuner.load("data/nsd")  # doctest: +SKIP
"""

import os as _os
import sys as _sys

__version__ = "0.1.0"

if _sys.platform == "darwin":  # asked for before torch is imported: what Apple's GPU cannot compute, the CPU does
    _os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

_HOMES = {"load": "formats", "pretrain": "training", "tune": "training", "Targets": "training", "Decoder": "decoding.decoder"}
__all__ = ["Decoder", "Targets", "__version__", "load", "pretrain", "tune"]


def __getattr__(name: str):
    """Import the main verbs when they are first used: ``mindtuner --help`` should not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'mindtuner' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"mindtuner.{_HOMES[name]}"), name)
