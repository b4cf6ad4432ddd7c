"""Which decoded tokens should retrieve? On training images that tuning did not see.

    python benchmarks/retrieval_tokens.py OUT [--seeds 0 1 2] [--tuning-seeds 3] [--write FILE]

For each simulator seed, simulates, embeds and pretrains once (kept in OUT/seed-N, shared with painting.py), then tunes
``mindtuner`` and ``ridge_only`` without a fifth of the training images and looks those up among themselves: by the projected
tokens C, as published, by the backbone tokens B, and by both, as ``decode.retrieval_tokens: both`` does. Mean (sd over
simulator seeds); paired differences to C over all tuning seeds and images, with 95 % intervals. ``--write`` puts the table
between the file's ``tokens:begin`` and ``tokens:end`` comments.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
import torch
from painting import add_seeds, configured
from sides import write_between
from tuning_seeds import HOLDOUT, difference, held_out, prepare

from mindtuner.decoding.decoder import Decoder, both
from mindtuner.evaluation.scores.retrieval import brain_retrieval, image_retrieval
from mindtuner.generators.compact import starting_prior
from mindtuner.training import subject_name, tune

METHODS = ("mindtuner", "ridge_only")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_seeds(parser)
    parser.add_argument("--tuning-seeds", type=int, default=3)
    options = parser.parse_args()
    hits: dict[tuple[str, str, str], list[list[np.ndarray]]] = {}
    for seed in options.seeds:
        config = configured(seed)
        dataset, caches, targets, base = prepare(options.out / f"seed-{seed}", config)
        subject = dataset.subject(config.target_subject)
        hour = subject.sessions(config.tuning_sessions)
        found: dict[tuple[str, str, str], list[np.ndarray]] = {}
        for tuning in range(options.tuning_seeds):
            trials = held_out(subject, hour, tuning)
            for method in METHODS:
                network = tune(
                    base, hour, targets, config, tuning, method, holdout=HOLDOUT, prior=starting_prior(config.model)
                )
                decode = dataclasses.replace(config.decode, retrieval_tokens="projected")
                said = Decoder(network, subject_name(subject.number), decode, seed).predict(
                    subject.betas(trials.row), trials.stimulus
                )
                true = np.asarray(caches["tokens"][said.images])
                b, c = said.backbone_tokens, said.retrieval_tokens
                for name, tokens in {"C": c, "B": b, "both": both(torch.from_numpy(b), torch.from_numpy(c)).numpy()}.items():
                    found.setdefault((method, name, "image"), []).append(image_retrieval(tokens, true).top1)
                    found.setdefault((method, name, "brain"), []).append(brain_retrieval(tokens, true).top1)
        for key, rows in found.items():
            hits.setdefault(key, []).append(np.array(rows))
    n = hits[METHODS[0], "C", "image"][0].shape[1]
    lines = ["| method | by | image | brain | minus C, image | minus C, brain |", "|---|---|---:|---:|---:|---:|"]
    for method in METHODS:
        for name in ("C", "B", "both"):
            cells = [spread(hits[method, name, d]) for d in ("image", "brain")]
            cells += (
                ["", ""]
                if name == "C"
                else [
                    difference(np.concatenate(hits[method, name, d], 1), np.concatenate(hits[method, "C", d], 1))
                    for d in ("image", "brain")
                ]
            )
            lines.append(f"| {method} | {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"    python benchmarks/retrieval_tokens.py OUT --seeds {' '.join(map(str, options.seeds))} "
        f"--tuning-seeds {options.tuning_seeds}",
        "",
        f"{n} held-out training images at a time, chance {1 / n:.3f}.",
    ]
    print("\n".join(lines))
    if options.write:
        write_between(options.write, "tokens", "\n".join(lines))


def spread(of_seeds: list[np.ndarray]) -> str:
    """Hits (tuning seeds, images) of each simulator seed -> mean (sd over simulator seeds)."""
    means = [hits.mean() for hits in of_seeds]
    return f"{np.mean(means):.3f} ({np.std(means, ddof=1):.3f})" if len(means) > 1 else f"{means[0]:.3f}"


if __name__ == "__main__":
    main()
