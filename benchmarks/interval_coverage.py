"""How often do the intervals of ``mindtuner compare`` hold the true mean? Simulated studies with few seeds or subjects.

    python benchmarks/interval_coverage.py [--studies 1000]

A study is a difference for each subject, run and image: normal parts of the subject, the run, the image and the rest, with
the standard deviations in the table, around a true mean of 0. "images drawn within", for subjects with one run each: the same
bootstrap with other images for each subject, which is not what the package does. Prints a Markdown table; a share has a
standard error of about 0.01.
"""

from __future__ import annotations

import argparse

import numpy as np

from mindtuner.evaluation.statistics import LEVELS, over_seeds, over_subjects

IMAGES, RESAMPLES = 60, 1000
STUDIES = [  # subjects, runs of each, sd of subjects, runs, images, rest
    (1, 2, 0, 0.3, 0.5, 0.7),
    (1, 3, 0, 0.3, 0.5, 0.7),
    (1, 5, 0, 0.3, 0.5, 0.7),
    (1, 10, 0, 0.3, 0.5, 0.7),
    (1, 3, 0, 0.1, 0.5, 0.7),
    (2, 1, 0.3, 0, 0.5, 0.7),
    (4, 1, 0.3, 0, 0.5, 0.7),
    (8, 1, 0.3, 0, 0.5, 0.7),
    (4, 3, 0.3, 0.1, 0.5, 0.7),
    (8, 1, 0.1, 0, 0.5, 0.7),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=1000)
    options = parser.parse_args()
    print(f"{IMAGES} images, {options.studies} studies a row, 95 % intervals\n")
    print("| subjects | runs of each | sd of subjects, runs, images, rest | holds the true mean | images drawn within |")
    print("|---:|---:|---|---:|---:|")
    for study in STUDIES:
        subjects, runs, *sds = study
        rng = np.random.default_rng([1000 * subjects + runs, *(int(100 * sd) for sd in sds)])
        held = [covered(subjects, runs, sds, rng, seed) for seed in range(options.studies)]
        ours, within = (f"{np.mean(column):.3f}" for column in zip(*held, strict=True))
        within = within if subjects > 1 == runs else ""
        print(f"| {subjects} | {runs} | {', '.join(map(str, sds))} | {ours} | {within} |", flush=True)


def covered(subjects: int, runs: int, sds: list[float], rng: np.random.Generator, seed: int) -> tuple[bool, bool]:
    shapes = ((subjects, 1, 1), (subjects, runs, 1), (1, 1, IMAGES), (subjects, runs, IMAGES))
    values = sum(sd * rng.normal(size=shape) for sd, shape in zip(sds, shapes, strict=True))
    if subjects == 1:
        low, high = over_seeds(values[0], seed, RESAMPLES)["ci"]
        return low <= 0 <= high, False
    low, high = over_subjects(list(values), seed, RESAMPLES)["ci"]
    times = rng.multinomial(subjects, np.full(subjects, 1 / subjects), size=RESAMPLES)
    total = np.zeros(RESAMPLES)
    for own, drawn in zip(values, times.T, strict=True):
        shown = rng.multinomial(drawn * IMAGES, np.full(IMAGES, 1 / IMAGES))
        total += shown @ own.mean(0)
    nested = np.percentile(total / (subjects * IMAGES), LEVELS)
    return low <= 0 <= high, nested[0] <= 0 <= nested[1]


if __name__ == "__main__":
    main()
