"""MindTuner: read what a new person sees from one hour of fMRI.

>>> import mindtuner
>>> dataset = mindtuner.load("data/nsd")
>>> features = mindtuner.embed(dataset)
>>> base = mindtuner.pretrain(dataset.without(subject=1), features, config="quick")
>>> subject = mindtuner.tune(base, dataset.subject(1).sessions(1), features)
>>> results = mindtuner.evaluate(subject, dataset, features)
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys

if sys.platform == "darwin":  # asked for before torch is imported: what Apple's GPU cannot compute, the CPU does
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

__version__ = "0.1.0"

_HOMES = {
    "check": "formats",
    "convert": "formats",
    "load": "formats",
    "load_config": "config",
    "use_device": "runtime",
    **dict.fromkeys(
        (
            "Base",
            "Comparison",
            "Features",
            "FittedFolds",
            "Results",
            "Scoring",
            "SubjectDecoder",
            "TunedSubject",
            "embed",
            "evaluate",
            "evaluate_folds",
            "fit",
            "fit_folds",
            "pretrain",
            "score_pictures",
            "simulate",
            "tune",
        ),
        "pipeline",
    ),
}
__all__ = ["__version__", *sorted(_HOMES)]


def __getattr__(name: str):
    """Import the main verbs and the rooms when they are first used: ``mindtuner --help`` should not wait for torch."""
    if name in _HOMES:
        return getattr(importlib.import_module(f"mindtuner.{_HOMES[name]}"), name)
    if not name.startswith("_") and importlib.util.find_spec(f"mindtuner.{name}"):
        return importlib.import_module(f"mindtuner.{name}")
    raise AttributeError(f"module 'mindtuner' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
