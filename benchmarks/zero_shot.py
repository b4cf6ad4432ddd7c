"""How far does a base get with a new subject that nothing was tuned to?

    python benchmarks/zero_shot.py OUT [--seed 0]
    python benchmarks/zero_shot.py --table OUT [OUT ...]

On one simulated dataset and base (kept in OUT, shared with tuning_seeds.py), subject 1 gets a ridge by each way of
``mindtuner.studies.zero_shot``, and its test images are retrieved. Rows:

- regions, connectome: no trial's picture is known; the first session's betas alone
- shuffled regions: the same with the labels of the voxels' regions permuted, the control
- shared images: fitted on half of the test images, scored on the other half, and the other way round; so retrieval of these
  rows is among half as many. Shuffled: with brains permuted over trials. As many training trials: the same regression on the
  same number of trials of session 1, to what the base expects of their images; the baseline, scored alike
- one hour: that regression on the whole session, no training

All rows but the regressions' folds, parcels and transports are without chance; their seed is --seed. One line per row goes to
OUT/zero-shot.jsonl.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
from closing_the_gap import DIRECTIONS, scores
from tuning_seeds import in_worlds, of_world, prepare

from mindtuner.decoding.decoder import Decoder
from mindtuner.evaluation.statistics import paired_difference
from mindtuner.runtime import derive_seed, progress
from mindtuner.studies import zero_shot
from mindtuner.training import subject_name
from mindtuner.training.batches import make_feeds
from mindtuner.training.closed_form import solve_ridge

FILE = "zero-shot.jsonl"


def measure(out: Path, seed: int, fingerprint: float) -> None:
    config = of_world(seed, fingerprint)
    dataset, caches, targets, base = prepare(out, config)
    subject = dataset.subject(config.target_subject)
    others = dataset.without(subject=config.target_subject).subjects
    hour = subject.sessions(config.tuning_sessions)
    unlabelled = hour.betas(hour.train.row)
    order = np.random.default_rng(derive_seed(seed, "regions")).permutation(subject.n_voxels)
    mixed_up = dataclasses.replace(subject, rois={name: mask[order] for name, mask in subject.rois.items()})
    shared = np.unique(subject.test.stimulus)
    half = np.isin(shared, np.random.default_rng(derive_seed(seed, "halves")).permutation(shared)[: len(shared) // 2])

    def asked(network, images) -> dict:
        trials = zero_shot.of_images(subject.test, images)
        decoder = Decoder(network, subject_name(subject.number), config.decode, seed)
        return scores(decoder.predict(subject.betas(trials.row), trials.stimulus), caches)

    def halves(network_of) -> dict:
        found = [asked(network_of(shared[fitted]), shared[~fitted]) for fitted in (half, ~half)]
        return {d: found[0][d] + found[1][d] for d in DIRECTIONS}

    def solved(trials) -> object:
        network = zero_shot.network_with(
            base,
            subject,
            zero_shot.HiddenRidge(
                *(np.zeros(s, np.float32) for s in ((subject.n_voxels, base.config.hidden), base.config.hidden))
            ),
        )
        name = subject_name(subject.number)
        solve_ridge(network, base, make_feeds({name: subject}, {name: trials}, seed)[0], targets, seed)
        return network

    def shuffled(images):
        rng = np.random.default_rng(derive_seed(seed, "brains"))
        at = np.flatnonzero(np.isin(subject.trials.stimulus, images))
        row = subject.trials.row.copy()
        row[at] = rng.permutation(row[at])
        other = dataclasses.replace(subject, trials=dataclasses.replace(subject.trials, row=row))
        return zero_shot.by_shared_images(base, others, other, images, seed)

    def of(ridge):
        return zero_shot.network_with(base, subject, ridge)

    def as_many(images):
        count = len(zero_shot.of_images(subject.test, images))
        return solved(hour.train.select(np.arange(len(hour.train)) < count))

    rows = {
        "regions": lambda: asked(of(zero_shot.by_regions(base, others, subject, unlabelled)), shared),
        "regions, shuffled regions": lambda: asked(of(zero_shot.by_regions(base, others, mixed_up, unlabelled)), shared),
        "connectome": lambda: asked(of(zero_shot.by_connectome(base, others, subject, unlabelled, seed)), shared),
        "connectome, shuffled regions": lambda: asked(
            of(zero_shot.by_connectome(base, others, mixed_up, unlabelled, seed)), shared
        ),
        "shared images": lambda: halves(lambda images: of(zero_shot.by_shared_images(base, others, subject, images, seed))),
        "shared images, shuffled": lambda: halves(lambda images: of(shuffled(images))),
        "as many training trials": lambda: halves(as_many),
        "one hour": lambda: asked(solved(hour.train), shared),
    }
    done = known(out)
    for name in progress([name for name in rows if name not in done], "rows"):
        with (out / FILE).open("a") as file:
            file.write(json.dumps({"row": name, "scores": rows[name]()}) + "\n")


def known(out: Path) -> dict:
    lines = (out / FILE).read_text().splitlines() if (out / FILE).exists() else []
    return {entry["row"]: entry["scores"] for entry in map(json.loads, lines)}


def table(outs: list[Path]) -> str:
    """A Markdown table over worlds: means (sd over worlds), and differences to the control or baseline of a row, paired."""
    worlds = [known(out) for out in outs]
    count = len(worlds[0]["one hour"]["image"])
    beside = {
        "regions": "regions, shuffled regions",
        "connectome": "connectome, shuffled regions",
        "shared images": "as many training trials",
    }
    lines = [
        f"{len(worlds)} worlds",
        "",
        "| the new subject by | candidates | " + " | ".join(f"{d} | minus control or baseline" for d in DIRECTIONS) + " |",
        "|---|---:|" + 6 * "---:|",
    ]
    for name in worlds[0]:
        halved = name.startswith("shared images") or name == "as many training trials"
        cells = [str(count // 2 if halved else count)]
        for d in DIRECTIONS:
            means = [np.mean(w[name][d]) for w in worlds]
            spread = f" ({np.std(means, ddof=1):.3f})" if len(worlds) > 1 else ""
            cells += [f"{np.mean(means):.3f}{spread}", ""]
            if name in beside:
                found = paired_difference(*(np.concatenate([w[row][d] for w in worlds]) for row in (name, beside[name])), 0)
                cells[-1] = f"{found['mean']:+.3f} [{found['ci'][0]:+.3f}, {found['ci'][1]:+.3f}]"
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines.append(f"| *chance* | {count} | " + " | | ".join([f"{1 / count:.3f}"] * 3) + " | |")
    return "\n".join(lines)


if __name__ == "__main__":
    in_worlds(__doc__, measure, table)
