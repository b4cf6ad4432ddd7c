"""Is a fingerprint its subject's own, and do subjects whose fingerprints were planted alike look alike?

    python benchmarks/subjects_compared.py OUT [--seed 0] [--fingerprint 0.5]
    python benchmarks/subjects_compared.py --table OUT [OUT ...] [--picture PNG]

On one simulated dataset (kept in OUT) a base is pretrained on subjects 5 to 8, and each of subjects 1 to 4 is tuned twice:
on session 1, and, with another seed, on session 2 alone. The two tunings of a subject share its brain and no trial: hidden
features of the first are of each test image's first trial, those of the second of its last. Every first tuning is compared
with every second one (``mindtuner.studies.similarity``):

- overlap of the directions that adapters write into
- CKA of hidden features as they are, and of what the adapters add
- image retrieval of the first's test trials with the second's LoRA, Skip-LoRA silent; against its own LoRA, Skip-LoRA silent
  too, and against no adapters

A measure of the subject is higher within a subject than between two, and names the subject: its own second tuning is the
most like of four (chance 0.25). One line per pair goes to OUT/subjects.jsonl.

Subjects 1 and 3 recode alike, and so do 2 and 4 (``fingerprint_groups`` 2). A measure of what was planted is higher within
these families than across, and tells the families: of the three ways to pair four subjects off, the planted one has the most
alike pairs (chance 1/3). Here every subject gives all it has: overlap is the mean over both sessions' tunings, CKA takes the
features of both together and all repeats of each test image; and CKA of the betas themselves, without a network, stands
beside. One line per pair goes to OUT/families.jsonl.
"""

from __future__ import annotations

import dataclasses
import json
from itertools import combinations
from pathlib import Path

import numpy as np
from pages import spread
from scipy import stats
from world import config_of, in_worlds, open_world

from mindtuner.data import Subject, Trials
from mindtuner.model import BrainNetwork
from mindtuner.pipeline import SubjectDecoder
from mindtuner.runtime import progress
from mindtuner.studies.similarity import cka, crossed, hidden, overlap
from mindtuner.training import subject_name

FILE, FAMILIES, NEW, GROUPS = "subjects.jsonl", "families.jsonl", (1, 2, 3, 4), 2
PAIRINGS = (((1, 3), (2, 4)), ((1, 2), (3, 4)), ((1, 4), (2, 3)))  # the first was planted
MEASURES = {
    "overlap": "overlap of directions",
    "whole": "CKA, hidden features",
    "added": "CKA, what adapters add",
    "lent": "retrieval, LoRA lent",
}
OF_FAMILIES = {"overlap": MEASURES["overlap"], "added": MEASURES["added"], "whole": MEASURES["whole"], "betas": "CKA, betas"}


def measure(out: Path, seed: int, fingerprint: float) -> None:
    config = config_of(seed, fingerprint)
    config = dataclasses.replace(config, simulate=dataclasses.replace(config.simulate, fingerprint_groups=GROUPS))
    world = open_world(out, config, "base-of-four", without=NEW)
    subjects = {number: world.dataset.subject(number) for number in NEW}
    networks = {}
    for number, session in progress([(n, s) for n in NEW for s in (1, 2)], "tunings"):
        tuned = world.tune("mindtuner", 1000 * seed + 10 * number + session, subject=only(subjects[number], session))
        networks[number, session] = tuned.networks["mindtuner"].eval()

    def found(network: BrainNetwork, number: int) -> list[float]:
        decoder = SubjectDecoder(network, subject_name(number), config.decode, seed)
        return world.top1(world.decode(decoder, subject=subjects[number]))["image"]

    features = {}
    for (number, session), network in networks.items():
        trials = one_trial_each(subjects[number].test, last=session == 2)
        features[number, session] = hidden(network, subjects[number].betas(trials.row), trials.stimulus)
    lines = []
    for a in NEW:
        first = networks[a, 1]
        own = {"tuned": found(first, a), "own": found(crossed(first, first), a), "none": found(bare(first), a)}
        for b in NEW:
            second = networks[b, 2]
            shown, *x = features[a, 1]
            also, *y = features[b, 2]
            common, at, to = np.intersect1d(shown, also, return_indices=True)
            value, chance = overlap(first, second)
            lines.append(
                {
                    "first": a,
                    "second": b,
                    "fingerprint": fingerprint,
                    "overlap": value,
                    "chance": chance,
                    "images": len(common),
                    "whole": cka(x[0][at], y[0][to]),
                    "added": cka(x[1][at], y[1][to]),
                    "lent": found(crossed(first, second), a),
                    **own,
                }
            )
    (out / FILE).write_text("".join(json.dumps(line) + "\n" for line in lines))
    (out / FAMILIES).write_text("".join(json.dumps(line) + "\n" for line in families(networks, subjects, fingerprint)))


def families(networks: dict[tuple[int, int], BrainNetwork], subjects: dict[int, Subject], fingerprint: float) -> list[dict]:
    """Of each two subjects how alike they are, by everything that is known of both."""
    known = {}
    for number in NEW:
        trials = subjects[number].test
        betas, averaged = subjects[number].betas(trials.row), subjects[number].averaged()
        tuned = [hidden(networks[number, session], betas, trials.stimulus) for session in (1, 2)]
        known[number] = {
            "images": averaged.test.stimulus,
            "betas": averaged.betas(averaged.test.row),
            "whole": np.hstack([whole for _, whole, _ in tuned]),
            "added": np.hstack([added for _, _, added in tuned]),
        }
    lines = []
    for a, b in combinations(NEW, 2):
        _, at, to = np.intersect1d(known[a]["images"], known[b]["images"], return_indices=True)
        lines.append(
            {
                "first": a,
                "second": b,
                "fingerprint": fingerprint,
                "images": len(at),
                "overlap": np.mean([overlap(networks[a, s], networks[b, t])[0] for s in (1, 2) for t in (1, 2)]),
                **{measure: cka(known[a][measure][at], known[b][measure][to]) for measure in ("added", "whole", "betas")},
            }
        )
    return lines


def only(subject: Subject, session: int) -> Subject:
    """With the training trials of one session alone."""
    keep = subject.trials.is_test | (subject.trials.session == session)
    return dataclasses.replace(subject, trials=subject.trials.select(keep))


def one_trial_each(trials: Trials, last: bool) -> Trials:
    """The first trial of each image, or the last."""
    order = np.arange(len(trials))[:: -1 if last else 1]
    return trials.select(order[np.unique(trials.stimulus[order], return_index=True)[1]])


def bare(network: BrainNetwork) -> BrainNetwork:
    """The ridge of the tuned network on the base, without any adapter's effect."""
    lender = crossed(network, network)
    for name, parameter in lender.named_parameters():
        if name.endswith(".B"):
            parameter.data.zero_()
    return lender


def table(outs: list[Path]) -> str:
    """Of subjects and of families: a row a planted strength and measure, means over worlds (sd over worlds); the difference
    between families with its 95 % interval (Student's t)."""
    return "\n".join([*table_of_subjects(outs), "", *table_of_families(outs)])


def table_of_subjects(outs: list[Path]) -> list[str]:
    lines = [
        "| planted | worlds | measure | same subject | other subjects | same minus others | chance or control "
        "| subjects named |",
        "|---|---:|---|" + 5 * "---:|",
    ]
    for strength, worlds in by_strength(outs, FILE).items():
        for measure, title in MEASURES.items():
            tables = [{(p["first"], p["second"]): np.mean(p[measure]) for p in world} for world in worlds]
            own = [np.mean([values[n, n] for n in NEW]) for values in tables]
            others = [np.mean([value for (a, b), value in values.items() if a != b]) for values in tables]
            named = sum(max(NEW, key=lambda b: values[a, b]) == a for values in tables for a in NEW)
            same = [p for world in worlds for p in world if p["first"] == p["second"]]
            control = {
                "overlap": f"random {worlds[0][0]['chance']:.3f}",
                "lent": ", ".join(
                    f"{words} {np.mean([p[key] for p in same]):.3f}"
                    for key, words in (("own", "own"), ("none", "no adapters"), ("tuned", "with Skip-LoRA"))
                ),
            }.get(measure, "")
            lines.append(
                f"| {strength:g} | {len(worlds)} | {title} | {spread(own)} | {spread(others)} "
                f"| {spread(np.subtract(own, others), '+.3f')} | {control} | {named} of {len(same)} |"
            )
    return lines


def table_of_families(outs: list[Path]) -> list[str]:
    lines = [
        "| planted | worlds | measure | same family | other family | same minus other | families told |",
        "|---|---:|---|" + 4 * "---:|",
    ]
    for strength, worlds in by_strength(outs, FAMILIES).items():
        for measure, title in OF_FAMILIES.items():
            tables = [{(p["first"], p["second"]): p[measure] for p in world} for world in worlds]
            means = [[np.mean([values[pair] for pair in pairing]) for pairing in PAIRINGS] for values in tables]
            same, other = ([m[0] for m in means], [np.mean(m[1:]) for m in means])
            told = sum(int(np.argmax(m)) == 0 for m in means)
            lines.append(
                f"| {strength:g} | {len(worlds)} | {title} | {spread(same)} | {spread(other)} "
                f"| {interval(np.subtract(same, other))} | {told} of {len(worlds)} |"
            )
    return lines


def draw(outs: list[Path], file: Path) -> None:
    """A panel a measure: every pair of subjects of every world, within a family and across."""
    from matplotlib import pyplot

    strengths = by_strength(outs, FAMILIES)
    figure, panels = pyplot.subplots(1, len(OF_FAMILIES), figsize=(12, 3.4), layout="constrained")
    for panel, (measure, title) in zip(panels, OF_FAMILIES.items(), strict=True):
        for within, colour, label, shift in (
            (False, "#888888", "of other families", -0.12),
            (True, "#c2410c", "of one family", 0.12),
        ):
            for place, worlds in enumerate(strengths.values()):
                values = [
                    pair[measure]
                    for world in worlds
                    for pair in world
                    if ((pair["first"], pair["second"]) in PAIRINGS[0]) == within
                ]
                along = place + shift + np.linspace(-0.07, 0.07, len(values))
                panel.scatter(along, values, s=12, color=colour, alpha=0.7, label=None if place else label)
                panel.hlines(np.mean(values), place + shift - 0.1, place + shift + 0.1, color=colour)
        panel.set_xticks(range(len(strengths)), [f"{strength:g}" for strength in strengths])
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("planted strength")
    panels[0].legend(fontsize=8, title="pairs of subjects", title_fontsize=8)
    figure.savefig(file, dpi=110)


def by_strength(outs: list[Path], file: str) -> dict[float, list[list[dict]]]:
    """The lines of each world, by what was planted there."""
    found: dict[float, list[list[dict]]] = {}
    for out in outs:
        world = [json.loads(line) for line in (out / file).read_text().splitlines()]
        found.setdefault(world[0]["fingerprint"], []).append(world)
    return dict(sorted(found.items()))


def interval(values) -> str:
    if len(values) < 2:
        return f"{np.mean(values):+.3f}"
    low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    return f"{np.mean(values):+.3f} [{low:+.3f}, {high:+.3f}]"


if __name__ == "__main__":
    in_worlds(__doc__, measure, table, draw)
