"""Worlds in which something is planted that an adapter can represent, for controls.py, which says what they are."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from scipy.linalg import eigh
from world import World

from mindtuner.data.zscore import zscore
from mindtuner.model import BrainNetwork
from mindtuner.runtime import derive_seed
from mindtuner.simulation.brains import Brain, measure, simulate_brain
from mindtuner.simulation.cortex import Sheet, smooth_fields
from mindtuner.simulation.early import early_features
from mindtuner.simulation.labels import PlacedObject, SceneLabels
from mindtuner.simulation.semantic import semantic_features
from mindtuner.training.closed_form import HiddenRidge, stretched
from mindtuner.training.ridge import FoldSums

HOUR = 450  # training trials of the subject
PATCH, LENGTH = 0.15, 0.4  # share of the voxels in a smooth patch, and smoothness of the field that it is cut from
PARCEL, PLANTED = 130, 4  # voxels of a parcel of the sheet, about, and parcels in which something is planted
RANKS = {"lora": 4, "skip": 2}  # of what is planted
LEADING = 40  # components of x0 that a patch's own signals are told apart from
PENALTIES = np.logspace(-3.5, 1, 10)  # of the closed form, in units of the mean square of a row


# ---- brains and their measurement


def brain_of(world: World, fingerprint: float) -> Brain:
    """Subject 1's noise-free responses to all images of the world."""
    scenes = json.loads((world.dataset.root / "truth" / "scenes.json").read_text())["scenes"]
    labels = [SceneLabels(scene["place"], tuple(PlacedObject(**one) for one in scene["objects"])) for scene in scenes]
    stimuli = world.dataset.stimuli
    parts = np.array_split(np.arange(len(stimuli)), 1 + len(stimuli) // 64)
    early = np.concatenate([early_features(stimuli.images(part)) for part in parts])
    semantic = semantic_features(labels)
    return simulate_brain(1, world.subject.n_voxels, early, semantic, fingerprint, world.config.simulate.seed)


@dataclass(frozen=True, eq=False)
class Measured:
    """Trials of a brain: z-scored betas (n, V) and the images (n,) that they show; means of test trials (m, V) and theirs."""

    betas: np.ndarray
    images: np.ndarray
    test: np.ndarray
    test_images: np.ndarray

    @classmethod
    def of(cls, brain: Brain, training: np.ndarray, hours: float, noise: float, seed: int) -> Measured:
        """``hours`` of training images in random order, again and again where there are more trials than images."""
        rng, count = np.random.default_rng(derive_seed(seed, "order")), round(HOUR * hours)
        rounds = [rng.permutation(training) for _ in range(1 + count // len(training))]
        test_images, repeats = np.setdiff1d(np.arange(len(brain.signal)), training), 3 if noise else 1
        images = np.concatenate([*rounds, np.empty(0, int)])[:count]
        shown = np.concatenate([images, np.repeat(test_images, repeats)])
        # sessions of another seed are others, and test trials have sessions of their own
        session = np.concatenate([np.arange(count) // HOUR, np.tile(np.arange(repeats) + 50, len(test_images))]) + 100 * seed
        betas = measure(brain, shown, session, noise)
        betas = zscore(betas, np.zeros(len(betas)), np.arange(len(betas)) < count)
        return cls(betas[:count], images, betas[count:].reshape(len(test_images), repeats, -1).mean(1), test_images)

    def folds(self, count: int) -> Iterator[Measured]:
        """Each with a part of the images held out, of whose trials there may be several: as test trials."""
        shown = np.unique(self.images)
        for part in range(count):
            held = np.isin(self.images, shown[part::count])
            yield Measured(self.betas[~held], self.images[~held], self.betas[held], self.images[held])


class ClosedForm:
    """Ridge regressions from one set of betas (n, V) to anything, by one decomposition.

    The penalty is chosen on a fifth of the images.
    """

    def __init__(self, measured: Measured):
        self.betas = measured.betas
        self.held = np.isin(measured.images, np.unique(measured.images)[::5])
        self.whole, self.part = self._decomposed(np.ones(len(self.betas), bool)), self._decomposed(~self.held)

    def __call__(self, y: np.ndarray, spread: float | None = None) -> HiddenRidge:
        """Of y (n, q); stretched to the variance ``spread`` where it is given."""

        def predicted(penalty: float) -> np.ndarray:
            weight, offset = self._solved(self.part, y, penalty)
            return self.betas[self.held] @ weight + offset

        errors = [np.square(predicted(penalty) - y[self.held]).sum() for penalty in PENALTIES]
        best = PENALTIES[int(np.argmin(errors))]
        found = HiddenRidge(*self._solved(self.whole, y, best))
        if spread is None:
            return found
        return stretched(found.weight, found.bias, predicted(best).var(0).sum(), spread, y.mean(0))

    def _decomposed(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        x = self.betas[rows] - self.betas[rows].mean(0)
        few = len(x) <= x.shape[1]
        values, vectors = np.linalg.eigh(x @ x.T if few else x.T @ x)
        values = np.maximum(values, 1e-6 * values[-1])
        return rows, values, x.T @ (vectors / np.sqrt(values)) if few else vectors

    def _solved(self, decomposed: tuple, y: np.ndarray, penalty: float) -> tuple[np.ndarray, np.ndarray]:
        rows, values, right = decomposed
        x, mean = self.betas[rows], y[rows].mean(0)
        alpha = penalty * values.sum() / len(x)
        inner = right.T @ ((x - x.mean(0)).T @ (y[rows] - mean))
        weight = right @ (inner / (values + alpha)[:, None])
        return weight.astype(np.float32), (mean - x.mean(0) @ weight).astype(np.float32)


# ---- what is planted


@dataclass(frozen=True, eq=False)
class Planted:
    """A world in which to tune.

    base      network to tune on
    tokens    float32 (N, T * D): what is to be decoded of each image
    expected  (N, h): the x0 that the closed form regresses on
    spread    variance of x0 that the closed form is stretched to, None for none
    share     of the tokens' variance that the planted path carries
    curved    share of what it carries that no linear read-out of all voxels gives
    """

    base: BrainNetwork
    tokens: np.ndarray
    expected: np.ndarray
    spread: float | None = None
    share: float = 0.0
    curved: float = 0.0


def without_pictures(world: World) -> BrainNetwork:
    """The base, with what tokens are made by alone."""
    base = copy.deepcopy(world.base.network).eval().requires_grad_(False)
    base.lowlevel = base.prior = None
    return base


def simulator(world: World) -> Planted:
    """The simulator's world as it is: images' own tokens."""
    base = without_pictures(world)
    tokens = world.features.targets.rows("tokens", np.arange(len(world.dataset.stimuli)))
    expected = base.expectation(tokens, base.head.linear).numpy()
    return Planted(base, tokens.flatten(1).numpy(), expected, float(base.expectation.spread))


def nothing_planted(world: World, brain: Brain) -> Planted:
    """A base that reads a brain's noise-free signals, of all voxels alike: to it no patch is special."""
    base = without_pictures(world)
    base.retrieval = torch.nn.Identity()
    x0 = affine(brain.signal, simulator(world).expected, world.dataset.stimuli.training_images, 1e-2)
    return Planted(base, decoded(base, x0), x0)


def decoded(base: BrainNetwork, x0: np.ndarray) -> np.ndarray:
    """Backbone tokens (n, T * D) of hidden features (n, h)."""
    with torch.no_grad():
        return base.decode_hidden(torch.from_numpy(x0.astype(np.float32))).backbone_tokens.flatten(1).numpy()


class Teacher:
    """A base that reads a brain's noise-free signals; ``planted`` adds its one path."""

    def __init__(self, world: World, brain: Brain, kind: str, patch: np.ndarray, seed: int):
        self.base, self.brain, self.kind = without_pictures(world), brain, kind
        self.base.retrieval = torch.nn.Identity()
        self.train = world.dataset.stimuli.training_images
        self.rng = np.random.default_rng(derive_seed(seed, "teacher", kind))
        self.patch = patch
        hidden, signal = simulator(world).expected, brain.signal
        self.x0 = affine(signal[:, ~self.patch], hidden, self.train, 1e-2)
        own = signal @ own_signals(brain, self.patch, self.x0, RANKS[kind])
        self.own = own - own.mean(0)
        if kind == "lora":  # without this the new ridge could not know that x0 should tell of them
            self.x0 = self.x0 + self.own @ self._directions()
        self.plain = decoded(self.base, self.x0)

    def planted(self, strength: float) -> Planted:
        """With the share ``strength`` of the tokens' variance in the planted path."""
        if strength == 0:
            return Planted(self.base, self.plain, self.x0)
        tokens = self._mixed(strength) if self.kind == "lora" else self._skipped(strength)
        part = tokens - self.plain
        test = np.setdiff1d(np.arange(len(part)), self.train)
        left = part - affine(self.brain.signal, part, self.train, 1e-2)
        share, curved = share_of(part, tokens), share_of(left[test], part[test])
        return Planted(self.base, tokens.astype(np.float32), self.x0, None, share, curved)

    def _mixed(self, strength: float) -> np.ndarray:
        """Tokens of the head W + P Q."""
        x = torch.from_numpy(self.x0.astype(np.float32))
        with torch.no_grad():
            for block in self.base.blocks:
                x = block(x)
        read = affine(x.numpy(), self.own, self.train, 1e-3)
        reached = np.linalg.qr(self.base.head.linear.weight.detach().numpy())[0]
        out = self.rng.standard_normal((RANKS["lora"], len(reached)))
        change = (read - read.mean(0)) @ (out - out @ reached @ reached.T)
        scale = scale_for(strength, lambda scale: self.plain + scale * change, self.plain)
        return self.plain + scale * change

    def _skipped(self, strength: float) -> np.ndarray:
        """Tokens of x0 + GELU(B A V)."""

        def tokens(scale: float, images: np.ndarray | slice) -> np.ndarray:
            z = torch.from_numpy((scale * self.own[images] @ self._up).astype(np.float32))
            return decoded(self.base, self.x0[images] + F.gelu(z).numpy())

        some = self.train[:600]
        scale = scale_for(strength, lambda scale: tokens(scale, some), self.plain[some])
        return tokens(scale, slice(None))

    @cached_property
    def _up(self) -> np.ndarray:
        """B, (rank, h): sizes by which the even half of the GELU adds up in the tokens, signs by which the linear one does
        not."""
        some = self.x0[self.train[:48]]
        steps = np.eye(some.shape[1]) * some.std(0)
        slope = np.stack(
            [(decoded(self.base, some + one) - decoded(self.base, some - one)).mean(0) / one.max() for one in steps]
        )
        up = np.zeros((RANKS["skip"], len(slope)))
        for row, own in zip(up, np.array_split(self.rng.permutation(len(slope)), len(up)), strict=True):
            towards = self.rng.standard_normal(len(self.plain)) @ (self.plain - self.plain.mean(0))
            size = np.maximum(slope[own] @ towards, 0)
            size /= np.sqrt(np.square(size).mean())
            row[own] = size * balanced(slope[own] * size[:, None])
        return up

    def _directions(self) -> np.ndarray:
        """(rank, h), such as x0 varies along anyway, for a tenth of its variance."""
        around = self.x0 - self.x0.mean(0)
        mixed = self.rng.standard_normal((RANKS["lora"], len(around))) @ around
        mixed /= np.linalg.norm(mixed, axis=1, keepdims=True)
        return mixed * np.sqrt(0.1 * around.var(0).sum() / len(mixed))


def smooth_patch(brain: Brain, seed: int) -> np.ndarray:
    """bool (V,): where a smooth random field over the sheet is highest; of the first field that reaches three areas."""
    for draw in range(100):
        field = smooth_fields(brain.sheet.position, 1, LENGTH, derive_seed(seed, "patch", draw))[:, 0]
        patch = field > np.quantile(field, 1 - PATCH)
        if len(np.unique(brain.sheet.area[patch])) >= 3:
            return patch
    raise SystemExit("no patch reaches three areas")


def parcels_of(sheet: Sheet) -> np.ndarray:
    """Of each voxel its parcel (V,): every area is cut across the middle of its height, and into columns of about
    2 * ``PARCEL`` voxels."""
    parcel, start = np.zeros(len(sheet.area), int), 0
    for area in np.unique(sheet.area):
        inside = np.flatnonzero(sheet.area == area)
        x, y = sheet.position[inside].T
        columns = max(1, round(len(inside) / PARCEL / 2))
        column = np.minimum((columns * (x - x.min()) / np.ptp(x)).astype(int), columns - 1)
        parcel[inside] = start + 2 * column + (y > 0.5)
        start += 2 * columns
    return parcel


def parcel_patch(sheet: Sheet, seed: int) -> np.ndarray:
    """bool (V,): whole parcels, ``PLANTED`` of them drawn at random."""
    parcel = parcels_of(sheet)
    rng = np.random.default_rng(derive_seed(seed, "patch"))
    return np.isin(parcel, rng.choice(parcel.max() + 1, PLANTED, replace=False))


def own_signals(brain: Brain, patch: np.ndarray, x0: np.ndarray, count: int) -> np.ndarray:
    """(V, count): weights that read those signals of a patch that x0 (n, h) tells least of, each of sd 1 over images.

    Of all directions within the patch they have most variance outside of x0's leading components, as a share of their whole
    variance; the penalty keeps out directions that no noisy trial would tell.
    """
    inside, around = brain.signal[:, patch].astype(float), x0 - x0.mean(0)
    size = around.shape[1]
    leading = eigh(around.T @ around, subset_by_index=[size - LEADING, size - 1])[1]
    known = np.linalg.qr(around @ leading)[0]
    unknown, whole = inside - known @ (known.T @ inside), inside.T @ inside
    whole += 0.003 * np.trace(whole) * np.eye(len(whole))
    found = eigh(unknown.T @ unknown, whole, subset_by_index=[len(whole) - count, len(whole) - 1])[1]
    weights = np.zeros((len(patch), count))
    weights[patch] = found / (inside @ found).std(0)
    return weights


def balanced(rows: np.ndarray) -> np.ndarray:
    """Signs (n,) by which rows (n, d), the longest first, about add up to 0."""
    signs, total = np.ones(len(rows)), np.zeros(rows.shape[1])
    for k in np.argsort(-np.linalg.norm(rows, axis=1)):
        signs[k] = -1.0 if total @ rows[k] > 0 else 1.0
        total += signs[k] * rows[k]
    return signs


def affine(x: np.ndarray, y: np.ndarray, train: np.ndarray, penalty: float) -> np.ndarray:
    """What a ridge regression of y (n, q) on x (n, p), fitted to the rows ``train``, says of all rows."""
    sums = FoldSums(1, x.shape[1], y.shape[1])
    sums.add(np.zeros(len(train), int), x[train], y[train])
    weight, offset = sums.ridge(np.array([penalty]))
    return x @ weight + offset


def share_of(part: np.ndarray, whole: np.ndarray) -> float:
    return float(part.var(0).sum() / whole.var(0).sum())


def scale_for(strength: float, tokens_at: Callable[[float], np.ndarray], plain: np.ndarray) -> float:
    """The scale at which what is added to ``plain`` has this share of the tokens' variance, by bisection."""

    def carried(scale: float) -> float:
        tokens = tokens_at(scale)
        return share_of(tokens - plain, tokens)

    low, high = 0.0, 1.0
    while carried(high) < strength:
        low, high = high, 2 * high
    for _ in range(10):
        middle = (low + high) / 2
        low, high = (middle, high) if carried(middle) < strength else (low, middle)
    return high
