"""Ablations: the method without a part, or with a part of another size, over tuning seeds."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from mindtuner.analysis.runs import SCORES, Run
from mindtuner.config import Config
from mindtuner.evaluation.statistics import holm, over_seeds, paired_over_seeds, sign_flips

FULL = "full"
RANKS = (2, 4, 8, 16, 32)
BASES = (1, 3, 5, 7)


class Variant(NamedTuple):
    """``changes``: section -> the config's fields that differ. ``base``: pretraining subjects, 0 for all."""

    name: str
    title: str
    changes: dict = {}
    method: str = "mindtuner"
    base: int = 0
    pivot: bool = True

    def of(self, config: Config) -> Config:
        return dataclasses.replace(config, **{section: dataclasses.replace(getattr(config, section), **fields)
                                              for section, fields in self.changes.items()})


def variants(config: Config, others: int) -> list[Variant]:
    """The whole table on a base of ``others`` subjects; what ``config`` says already is the full method and not named again.

    LoRA's scale, alpha over rank, stays the config's at every rank, so that only the rank differs.
    """
    own = config.fingerprint
    rows = [Variant(FULL, "both: the full method"),
            Variant("ridge_only", "ridge only", method="ridge_only"),
            Variant("lora", "ridge + LoRA", {"fingerprint": {"lora": True, "skip": False, "skip_head": False}}),
            Variant("skip", "ridge + Skip-LoRA", {"fingerprint": {"lora": False, "skip": True}}),
            Variant("no_l_skip", "without L_skip", {"tune": {"skip_weight": 0.0}}),
            Variant("no_pivot", "without the Pivot: captions of the nearest training image", pivot=False),
            Variant("skip_head", "Skip-LoRA enters at the token head too", {"fingerprint": {"skip": True, "skip_head": True}})]
    rows += [Variant(f"rank{rank}", f"rank {rank}", {"fingerprint": {"rank": rank, "alpha": own.alpha * rank / own.rank}})
             for rank in RANKS]
    rows += [Variant(f"base{count}", f"base of {count} subject{'s' * (count > 1)}", base=count)
             for count in BASES if count < others]
    return [row for row in rows if row.name == FULL or row.method != "mindtuner" or row.base or not row.pivot
            or row.of(config) != config]


def runs_of(rows: list[Variant], config: Config, seeds: int, others: int) -> list[Run]:
    """Every variant with the tuning seeds config.seed, config.seed + 1, ..."""
    return [Run(row.name, seed, dataclasses.replace(row.of(config), seed=seed), config.tuning_sessions, row.method,
                row.base or others, row.pivot)
            for seed in range(config.seed, config.seed + seeds) for row in rows]


def compared(rows: list[Variant], hits: dict[str, dict[str, np.ndarray]], seed: int) -> list[dict]:
    """For each variant and score the mean, sd over seeds and 95 % interval (images and seeds resampled), and the variant
    minus the full method, paired by image and seed: mean, interval, p by sign flips of images, Holm's p over the table, and
    the verdict in words."""
    found = []
    for row in rows:
        for score in SCORES:
            values, full = hits[row.name][score], hits[FULL][score]
            entry = {"variant": row.name, "title": row.title, "score": score, **over_seeds(values, seed), "difference": None}
            if row.name != FULL:
                difference = paired_over_seeds(values, full, seed)
                entry["difference"] = {**difference, "p": sign_flips((values - full).mean(0), seed)}
            found.append(entry)
    against = [entry["difference"] for entry in found if entry["difference"]]
    for difference, p in zip(against, holm([d["p"] for d in against]), strict=True):
        low, high = difference["ci"]
        shown = p <= 0.05 and not low <= 0 <= high
        difference |= {"p_holm": p, "verdict": ("higher" if low > 0 else "lower") if shown else "no difference shown"}
    return found
