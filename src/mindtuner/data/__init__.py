"""Trials, betas and stimuli: one shape for all readers, and the cache of what frozen towers say about them."""

from mindtuner.data.cache import build_cache, open_cache
from mindtuner.data.cache.half_rows import HalfRows
from mindtuner.data.dataset import Dataset, Subject, Trials
from mindtuner.data.lazy import FileRows, LazyArray
from mindtuner.data.splits import check_no_leak
from mindtuner.data.stimuli import Stimuli

__all__ = [
    "Dataset",
    "FileRows",
    "HalfRows",
    "LazyArray",
    "Stimuli",
    "Subject",
    "Trials",
    "build_cache",
    "check_no_leak",
    "open_cache",
]
