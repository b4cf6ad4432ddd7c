"""Ablations: the method without a part, or with a part of another size, over tuning seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from mindtuner.config import Config
from mindtuner.errors import UserError
from mindtuner.evaluation.statistics import holm, over_seeds, paired_over_seeds, sign_flips
from mindtuner.studies.bench import REGRESSION, Chance, Run, Scores

FULL = "full"
RANKS = (4, 16, 64, 128)
BASES = (1, 3, 5, 7)  # pretraining subjects
ALPHA = 0.05


@dataclass(frozen=True)
class Variant:
    """One row of the ablation's table: the full method, or the method with one part changed.

    ``changes``: section -> the fields of the config that differ. ``base``: pretraining subjects, 0 for all. ``same``: scores
    that the part cannot touch.
    """

    name: str
    title: str
    changes: dict = field(default_factory=dict)
    method: str = "mindtuner"
    base: int = 0
    pivot: bool = True
    same: tuple[str, ...] = ()

    def of(self, config: Config) -> Config:
        """The config with the variant's changes."""
        return replace(
            config, **{section: replace(getattr(config, section), **fields) for section, fields in self.changes.items()}
        )


def variants(config: Config, others: int) -> list[Variant]:
    """The table, where a base has ``others`` subjects. What ``config`` says already is the full method, no other row.

    LoRA's scale, alpha over rank, stays the config's at every rank, so that only the rank differs.
    """
    own, every = config.fingerprint, {"skip_head": False, "skip_blocks": -1}

    def entering(name: str, title: str, **where) -> Variant:
        return Variant(name, f"Skip-LoRA enters at {title}", {"fingerprint": {"skip": True, **every, **where}})

    rows = [
        Variant("ridge_only", "ridge only", method="ridge_only"),
        Variant("lora", "LoRA alone", {"fingerprint": {"lora": True, "skip": False, **every}}),
        Variant("skip", "Skip-LoRA alone", {"fingerprint": {"lora": False, "skip": True}}),
        Variant("both", "LoRA and Skip-LoRA", {"fingerprint": {"lora": True, "skip": True}}),
        Variant("lora_blocks", "LoRA on the residual blocks too", {"fingerprint": {"lora": True, "lora_blocks": True}}),
        Variant("train_ridge", "the ridge trains too", {"tune": {"train_ridge": True}}),
        Variant("no_cross_fitting", "adapters see the ridge's own trials only", {"tune": {"cross_fitted": 0.0}}),
        Variant("no_text_loss", "without L_text", {"tune": {"text_weight": 0.0}}),
        Variant("by_c", "retrieved by C, as published", {"decode": {"retrieval_tokens": "projected"}}, same=("text",)),
        Variant("no_similar", "the ridge starts each voxel for itself", {"tune": {"similar_voxels": 0}}),
        *([Variant("no_l_skip", "without L_skip", {"tune": {"skip_weight": 0.0}})] if own.skip else []),
        Variant(
            "no_pivot",
            "without the Pivot: words of the nearest training image, pictures not corrected",
            pivot=False,
            same=("image", "brain"),
        ),
        entering("skip_x0", "x0 alone", skip_blocks=0),
        entering("skip_half", "x0 and the first half of the blocks", skip_blocks=config.model.blocks // 2),
        entering("skip_head", "the token head too", skip_head=True),
        *(
            Variant(f"rank{rank}", f"rank {rank}", {"fingerprint": {"rank": rank, "alpha": own.alpha * rank / own.rank}})
            for rank in RANKS
        ),
        *(
            Variant(f"base{count}", f"base of {count} subject{'s' * (count > 1)}", base=count)
            for count in BASES
            if count < others
        ),
        Variant(REGRESSION, "baseline: ridge regression from voxels to tokens, no base", method=REGRESSION),
        Variant("shuffled_brain", "control: brains shuffled over training trials", method="shuffled_brain"),
    ]
    return [Variant(FULL, "the full method"), *(row for row in rows if not row.changes or row.of(config) != config)]


def chosen(rows: Sequence[Variant], names: Sequence[str] | None) -> list[Variant]:
    """The full method and the variants of these names, or all. Raises UserError for a name that is none of them."""
    known = [row.name for row in rows]
    for name in names or ():
        if name not in known:
            raise UserError(f"variants: {name!r} is unknown; expected some of {', '.join(known)}")
    return [row for row in rows if names is None or row.name in (FULL, *names)]


def runs_of(rows: Sequence[Variant], config: Config, seeds: int, others: int) -> list[Run]:
    """Every variant with the tuning seeds config.seed, config.seed + 1, ..."""
    return [
        Run(
            row.name,
            seed,
            replace(row.of(config), seed=seed),
            config.tuning_sessions,
            row.method,
            row.base or others,
            row.pivot,
        )
        for seed in range(config.seed, config.seed + seeds)
        for row in rows
    ]


def compared(rows: Sequence[Variant], found: dict[str, Scores], seed: int) -> list[dict]:
    """An entry a variant and score: its values over seeds, and the difference from the full method.

    The values are summed up by ``over_seeds``. ``difference`` is the variant minus the full method, paired by image and seed:
    mean, sd and interval of ``paired_over_seeds``, p by sign flips of the images' differences, p_holm over the whole table,
    and the verdict in words. None where the variant cannot differ.

    Images on which a score is undefined in a run of either are left out.
    """
    table = []
    for row in rows:
        for score, values in found[row.name].items():
            full = found[FULL][score]
            kept = ~np.isnan(values + full).any(0)
            values, full = values[:, kept], full[:, kept]
            difference = None
            if row.name != FULL and score not in row.same:
                difference = paired_over_seeds(values, full, seed) | {"p": sign_flips((values - full).mean(0), seed)}
            table.append(
                {
                    "variant": row.name,
                    "title": row.title,
                    "score": score,
                    **over_seeds(values, seed),
                    "images": int(kept.sum()),
                    "difference": difference,
                }
            )
    differences = [entry["difference"] for entry in table if entry["difference"] is not None]
    for difference, p in zip(differences, holm([one["p"] for one in differences]), strict=True):
        low, high = difference["ci"]
        shown = p <= ALPHA and not low <= 0 <= high
        difference |= {"p_holm": p, "verdict": ("higher" if low > 0 else "lower") if shown else "no difference shown"}
    return table


def text(table: list[dict], chance: Chance) -> str:
    """``compared`` as a Markdown table: a row a variant; of each score mean ± sd over seeds, and the difference."""
    scores = list(dict.fromkeys(entry["score"] for entry in table))
    lines = [
        "| variant | " + " | ".join(f"{score} | minus full" for score in scores) + " |",
        "|---|" + "---:|---|" * len(scores),
    ]
    for name in dict.fromkeys(entry["variant"] for entry in table):
        own = {entry["score"]: entry for entry in table if entry["variant"] == name}
        cells = [f"{said(own[score])} | {difference(own[score])}" if score in own else " | " for score in scores]
        lines.append(f"| {next(iter(own.values()))['title']} | " + " | ".join(cells) + " |")
    lines.append("| chance | " + " | ".join(f"{chance[score]:.4f} | " for score in scores) + " |")
    return "\n".join(lines)


def said(entry: dict) -> str:
    """Mean ± sd over seeds, as the text of a cell."""
    return f"{entry['mean']:.3f} ± {entry['sd']:.3f}"


def difference(entry: dict) -> str:
    """The difference from the full method, its interval, p and verdict, as the text of a cell."""
    found = entry["difference"]
    if found is None:
        return "" if entry["variant"] == FULL else "the same by construction"
    low, high = found["ci"]
    return f"{found['mean']:+.3f} [{low:+.3f}, {high:+.3f}], p {found['p_holm']:.2g}: {found['verdict']}"
