"""The model card of a folder that travels: what a stranger must know before using it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from huggingface_hub import ModelCardData

from mindtuner.errors import UserError

if TYPE_CHECKING:
    from mindtuner.pipeline.base import Base
    from mindtuner.pipeline.results import Results
    from mindtuner.pipeline.subject import TunedSubject

LICENSE = "mit"  # of the code
SIMULATED = "**Made on simulated brains.** What it decodes, and how well, says nothing about real ones."
MEASURED = "Trained on measured brains."
UNKNOWN = "Whether it was trained on measured or on simulated brains is not recorded."
PAPERS = """\
- Gong et al., *MindTuner: Cross-Subject Visual Decoding with Visual Fingerprint and Semantic Correction*, AAAI 2025,
  [arXiv:2404.12630](https://arxiv.org/abs/2404.12630)
- Scotti et al., *MindEye2: Shared-Subject Models Enable fMRI-To-Image With 1 Hour of Data*, ICML 2024,
  [arXiv:2403.11207](https://arxiv.org/abs/2403.11207)
- Allen et al., *A massive 7T fMRI dataset to bridge cognitive neuroscience and artificial intelligence*,
  Nature Neuroscience 25, 116-126, 2022"""


def base_card(base: Base, where: str, results: Results | None = None, datasets: Sequence[str] = ()) -> str:
    """The card of a base. ``where``: how a reader names it, an id on the hub or a folder."""
    card, counts = base.card, {name: ridge.in_features for name, ridge in base.network.ridges.items()}
    sessions = card.get("sessions") or {}
    subjects = "\n".join(f"| {name} | {count:,} | {sessions.get(name, 'not recorded')} |" for name, count in counts.items())
    weights = sum(weight.numel() for weight in base.network.parameters())
    new = next(number for number in range(1, len(counts) + 2) if not base.knows(number))
    text = f"""\
# A base of {len(counts)} subject{"s" if len(counts) > 1 else ""}

What many people's brains have in common, for decoding what a person sees from fMRI with
[MindTuner](https://github.com/mindtuner/mindtuner). It decodes a new subject after tuning on as little as one session.

{brains(card)}

| subject | voxels | sessions |
|---|---|---|
{subjects}

{weights:,} weights. {_facts(card)}

{_towers(card)}

## Use

```python
import mindtuner
dataset = mindtuner.load("data/nsd")  # your own
features = mindtuner.embed(dataset)
base = mindtuner.Base.from_pretrained("{where}")
subject = mindtuner.tune(base, dataset.subject({new}).sessions(1), features)
```

{_scores(results, "of one subject tuned on it")}## Limits

- It decodes nobody without tuning; a new subject needs betas of their own, z-scored as those above.
- Images and captions must be embedded by the towers above; others are refused.
- {_terms()}

## Cite

{PAPERS}
"""
    return _front_matter(card, ("base",), datasets) + text


def subject_card(
    subject: TunedSubject, card: dict, where: str, results: Results | None = None, datasets: Sequence[str] = ()
) -> str:
    """The card of a fingerprint.

    card : of the first method, as it is saved
    """
    if results is not None and results.run.results["setting"]["subject"] != subject.number:
        raise UserError(f"results: are of subject {results.run.results['setting']['subject']}; expected {subject.number}")
    base, path = card.get("base_id"), card.get("base_path")
    repo = base and base.partition("@")[0]
    on = f"the base [{base}](https://huggingface.co/{repo})" if base else f"the base in `{path}`" if path else "a base"
    given = "" if base or path else ', base="path/to/the/base"'
    text = f"""\
# Visual fingerprint of subject {subject.number}

What one person adds to {on}, for decoding what they see from fMRI with
[MindTuner](https://github.com/mindtuner/mindtuner).

{brains(card)}

| subject | voxels | sessions | training trials | method |
|---|---|---|---|---|
| {subject.number} | {card["voxels"]:,} | {card.get("sessions", "not recorded")} | {card["trials"]:,} | {card["method"]} |

Hash of the base: `{card.get("base", "none, all weights are here")}`. {_facts(card)}

{_towers(card)}

## Use

```python
import mindtuner
dataset = mindtuner.load("data/nsd")  # with this subject
features = mindtuner.embed(dataset)
subject = mindtuner.TunedSubject.from_pretrained("{where}", dataset{given}, features=features)
print(subject.decoder().describe(dataset.subject({subject.number}).betas([0, 1, 2])))
```

{_scores(results, f"of subject {subject.number}")}## Limits

- It reads the voxels of this one person, in this mask and order, and no other's.
- It stands on the very base of that hash; others are refused, and so are other towers.
- It is data about a person: share it as their consent allows.
- {_terms()}

## Cite

{PAPERS}
"""
    return _front_matter(card, ("visual-fingerprint", "lora"), datasets, repo) + text


def brains(card: Mapping) -> str:
    """Whether brains were simulated, in words."""
    return UNKNOWN if card.get("simulated") is None else SIMULATED if card["simulated"] else MEASURED


def _front_matter(card: Mapping, tags: Sequence[str], datasets: Sequence[str], base: str | None = None) -> str:
    simulated = ["simulated-brains"] if card.get("simulated") else []
    data = ModelCardData(
        library_name="mindtuner",
        license=LICENSE,
        tags=["mindtuner", "fmri", "brain-decoding", "neuroscience", *tags, *simulated],
        datasets=list(datasets) or None,
        base_model=base or None,
        base_model_relation="adapter" if base else None,
    )
    return f"---\n{data.to_yaml()}\n---\n\n"


def _facts(card: Mapping) -> str:
    category = card.get("hold_out_category")
    facts = {
        "Seed": card.get("seed", card.get("config", {}).get("seed")),
        "Betas z-scored by": card.get("zscore"),
        "Category held out": category or "none",
    }
    return " ".join(f"{name}: {value}." for name, value in facts.items() if value is not None)


def _towers(card: Mapping) -> str:
    """A table of the frozen towers behind each cache, and the conventions of the tokens."""
    rows = [
        f"| {name} | {', '.join(f'{field}: {value}' for field, value in identity.items())} |"
        for name, identity in (card.get("towers") or {}).items()
    ]
    conventions = ", ".join(f"{field}: {value}" for field, value in (card.get("conventions") or {}).items())
    table = "\n".join(["| output | tower |", "|---|---|", *rows]) if rows else "The towers are not recorded."
    return table + (f"\n\nConventions of the tokens: {conventions}." if conventions else "")


def _scores(results: Results | None, of: str) -> str:
    if results is None:
        return ""
    setting = results.run.results["setting"]
    return f"""\
## Scores

On {setting["n_test_images"]:,} test images {of}, beside chance:

```
{results!r}
```

"""


def _terms() -> str:
    return "The licence is that of the code. Data and frozen towers have terms of their own."
