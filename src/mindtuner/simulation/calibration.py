"""``python -m mindtuner.simulation.calibration``: measure what the simulated brains are like.

Looks at random scenes of its own (coloured ellipses on 1/f textures, labels to match), estimates every
planted number from the simulated data alone, and prints the table of benchmarks/results/calibration.md. No decoder takes
part.
"""

from __future__ import annotations

import argparse

import numpy as np

from mindtuner.simulation.brains import Brain, measure, simulate_brain
from mindtuner.simulation.cortex import AREAS
from mindtuner.simulation.early import early_features
from mindtuner.simulation.labels import PlacedObject, SceneLabels
from mindtuner.simulation.semantic import semantic_features

_GROUPS = {
    "animal": "dog cat horse cow bird fish",
    "vehicle": "car bus train boat plane bike",
    "food": "apple bread cake pizza carrot melon",
    "plant": "tree flower cactus bush fern palm",
    "tool": "hammer saw fork knife brush spoon",
    "person": "man woman boy girl baby nurse",
}
_PLACES = ("beach", "street", "kitchen", "forest", "field", "snow", "room", "sky")
_COLOURS = {
    "red": (0.8, 0.15, 0.1),
    "green": (0.15, 0.6, 0.2),
    "blue": (0.15, 0.25, 0.8),
    "yellow": (0.9, 0.8, 0.2),
    "black": (0.08, 0.08, 0.08),
    "white": (0.92, 0.92, 0.92),
}


def random_scenes(count: int, seed: int, side: int = 64) -> tuple[np.ndarray, list[SceneLabels]]:
    """Images float32 (count, 3, side, side) in 0..1 and their labels."""
    rng = np.random.default_rng(seed)
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side))
    frequency[0, 0] = np.inf
    grid = (np.arange(side) + 0.5) / side
    images, labels = np.empty((count, 3, side, side), np.float32), []
    for image in images:
        white = np.fft.rfft2(rng.standard_normal((3, side, side)))
        texture = np.fft.irfft2(white / frequency, (side, side))
        image[:] = rng.uniform(0.3, 0.7, (3, 1, 1)) + 0.12 * texture / texture.std()
        objects = []
        for _ in range(rng.integers(1, 5)):
            group, colour = rng.choice(list(_GROUPS)), rng.choice(list(_COLOURS))
            name = rng.choice(_GROUPS[group].split())
            x, y, size = *rng.uniform(0.2, 0.8, 2), rng.uniform(0.15, 0.5)
            width = size * rng.uniform(0.6, 1.4)
            inside = ((grid - x) / width) ** 2 + ((grid[:, None] - y) / size) ** 2 < 0.25
            image[:, inside] = np.array(_COLOURS[colour])[:, None] + 0.3 * (image[:, inside] - 0.5)
            objects.append(PlacedObject(str(name), str(group), str(colour), x, y, size))
        labels.append(SceneLabels(str(rng.choice(_PLACES)), tuple(objects)))
    return images.clip(0, 1), labels


def estimated_ceiling(betas: np.ndarray) -> np.ndarray:
    """Noise ceiling of the mean of the repeats, (V,), as NSD estimates it (Allen et al. 2022).

    From ``betas`` (images, repeats, V): noise variance = mean variance across repeats, signal variance = total variance less
    that, floored at 0.
    """
    noise = betas.var(1, ddof=1).mean(0)
    signal = np.maximum(betas.reshape(-1, betas.shape[-1]).var(0, ddof=1) - noise, 0)
    return signal / (signal + noise / betas.shape[1])


def repeats_of(brain: Brain, repeats: int = 3, noise: float = 1.0, seed: int = 0) -> np.ndarray:
    """Every image measured ``repeats`` times in random order, sessions of 750: (images, repeats, V)."""
    order = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(brain.signal)), repeats))
    betas = measure(brain, order, np.arange(len(order)) // 750 + 1, noise)
    return betas[np.argsort(order, kind="stable")].reshape(len(brain.signal), repeats, -1)


def effective_dimension(responses: np.ndarray) -> float:
    """Participation ratio of the covariance over images: (sum of eigenvalues)^2 / sum of their squares."""
    centred = (responses - responses.mean(0)).astype(np.float64)
    gram = centred @ centred.T
    return float(np.trace(gram) ** 2 / (gram**2).sum())


def held_out_r2(source: np.ndarray, target: np.ndarray, train: np.ndarray, smooth: bool = False) -> np.ndarray:
    """R^2 per column of ``target`` on left-out images, of ridge regression from ``source``.

    Images are left out where ``train`` (bool) is False. The regression is linear, or has a Gaussian kernel where ``smooth``.
    The penalty that does best on the left-out images is taken, in favour of the regression.
    """
    gram = (source - source[train].mean(0)) @ (source - source[train].mean(0)).T
    if smooth:
        distance = np.diag(gram)[:, None] + np.diag(gram) - 2 * gram
        gram = np.exp(-distance / (0.6 * np.median(distance)))
    inner, outer = gram[np.ix_(train, train)], gram[np.ix_(~train, train)]
    offset, best = target[train].mean(0), np.full(target.shape[1], -np.inf)
    variance = ((target[~train] - offset) ** 2).mean(0)
    for penalty in (0.01, 0.1, 1.0, 10.0):
        ridge = inner + penalty * np.trace(inner) / len(inner) * np.eye(len(inner))
        predicted = offset + outer @ np.linalg.solve(ridge, target[train] - offset)
        best = np.maximum(best, 1 - ((target[~train] - predicted) ** 2).mean(0) / variance)
    return best


def similarity(first: np.ndarray, second: np.ndarray) -> float:
    """Correlation of two brains' image-by-image pattern correlations."""
    upper = np.triu_indices(len(first), 1)
    return float(np.corrcoef(np.corrcoef(first)[upper], np.corrcoef(second)[upper])[0, 1])


def table(early: np.ndarray, semantic: np.ndarray, n_voxels: int, phi: float, seed: int) -> str:
    """The calibration of the first two subjects of a simulation, as text."""
    brain, other = (simulate_brain(number, n_voxels, early, semantic, phi, seed) for number in (1, 2))
    estimate = estimated_ceiling(repeats_of(brain))
    part = brain.fingerprint
    train = np.arange(len(early)) % 5 > 0
    nothing = np.zeros(n_voxels)
    straight, smooth = (held_out_r2(brain.linear, part, train, kind) if phi else nothing for kind in (False, True))
    lines = [
        f"{len(early)} images, subject 1, {n_voxels} voxels, phi {phi}, seed {seed}",
        f"{'':12} voxels  noise ceiling: planted         esti-  phi:     mea-   dimension   R2 of N from L",
        f"{'':20} mean   p5    p50   p95         mated  planted  sured   L     N     linear  smooth",
    ]
    for name in ("nsd_general", *AREAS):
        here = brain.rois[name]
        ceiling, planted = brain.noise_ceiling[here], brain.phi[here].mean()
        low, middle, high = np.percentile(ceiling, (5, 50, 95))
        measured = (part[:, here].std(0) / brain.linear[:, here].std(0)).mean()
        dims = [effective_dimension(x[:, here]) if x.any() else 0 for x in (brain.linear, part)]
        lines.append(
            f"{name:12} {here.sum():6}  {ceiling.mean():.2f}   {low:.2f}  {middle:.2f}  {high:.2f}"
            f"        {estimate[here].mean():.2f}   {planted:.2f}     {measured:.2f}   {dims[0]:5.1f} "
            f"{dims[1]:5.1f}   {straight[here].mean():5.2f}   {smooth[here].mean():5.2f}"
        )
    few = slice(0, 300)
    lines.append(
        f"subjects 1 and 2, similarity of 300 images' geometry: L "
        f"{similarity(brain.linear[few], other.linear[few]):.2f}"
        + (f", N {similarity(part[few], other.fingerprint[few]):.2f}" if phi else "")
    )
    if phi:
        one, two = (simulate_brain(number, n_voxels, early, semantic, phi, seed, group=0) for number in (1, 2))
        alike = similarity(one.fingerprint[few], two.fingerprint[few])
        lines.append(f"the same where both recode alike (--fingerprint-groups): N {alike:.2f}")
    error = estimate - brain.noise_ceiling
    lines.append(f"estimated less planted noise ceiling: mean {error.mean():+.3f}, sd {error.std():.3f}")
    return "\n".join(lines)


def main() -> None:
    """Print the table for the options of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--voxels", type=int, default=3000)
    parser.add_argument("--phi", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    images, labels = random_scenes(options.images, options.seed)
    print(table(early_features(images), semantic_features(labels), options.voxels, options.phi, options.seed))


if __name__ == "__main__":
    main()
