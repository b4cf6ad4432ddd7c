"""A subject without tuning data: a ridge for it, made of the ridges that the base has.

Three ways, by what is known of the new subject:

``by_regions``      its voxels' regions of interest. Each region's mean response is read as the other subjects' is.
``by_connectome``   its regions, and trials of which nobody knows what was shown. Voxels are joined to parcels, and parcels
                    matched with each other subject's by how they covary (fused Gromov-Wasserstein transport).
``by_shared_images``  its responses to some images that the others saw too. No network is trained: one ridge regression on
                    the others' mean hidden features. Shared images are the test images of NSD, so what is scored
                    must be other ones.

None of the first two is told what picture belongs to a trial of the subject.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import ot
import torch
from sklearn.cluster import KMeans

from mindtuner.config import FingerprintConfig
from mindtuner.data import Subject, Trials
from mindtuner.errors import UserError
from mindtuner.model import BrainNetwork
from mindtuner.runtime import derive_seed, progress
from mindtuner.training import subject_name
from mindtuner.training.closed_form import CHUNK, HiddenRidge, fit_hidden, learn_centre, stretched

TRIALS = 1000  # of each subject, at most, that tell how its voxels covary
PARCELS = 60  # about as many in all, shared out to regions by their voxels
FEWEST = 3  # voxels of a parcel, on average, at least
ALPHA = 0.5  # weight of Gromov-Wasserstein's own term beside the profiles'
STARTS = 5  # of the transport, which finds local optima; the best is taken


def by_regions(base: BrainNetwork, others: Mapping[int, Subject], subject: Subject, betas: np.ndarray) -> HiddenRidge:
    """x0 = sum over regions of (mean response of the region) x (what a uniform response of it adds in the other subjects).

    A region is a set of voxels with the same labels (``region_of``). ``betas`` (n, V) of any trials of the subject, whose
    pictures nobody needs to know, set mean and spread of x0. Raises UserError where no region is known to the others.
    """
    own, own_names = region_of(subject)
    found, count = np.zeros((len(own_names), base.config.hidden)), np.zeros(len(own_names))
    for number, other in others.items():
        region, names = region_of(other)
        weight = ridge_weight(base, number)
        for k, name in enumerate(own_names):
            if name in names:
                found[k] += weight[:, region == names.index(name)].sum(1)
                count[k] += 1
    if not count.any():
        raise UserError(f"{subject.where}: regions are {', '.join(own_names)}; expected one that another subject has")
    found /= np.maximum(count, 1)[:, None]
    return _finished(base, others, (found / np.bincount(own, minlength=len(own_names))[:, None])[own].T, betas)


def by_connectome(
    base: BrainNetwork, others: Mapping[int, Subject], subject: Subject, betas: np.ndarray, seed: int
) -> HiddenRidge:
    """x0 = mean over other subjects j of W_j x_j, their voxels x_j guessed from the subject's through matched parcels.

    Parcels are k-means clusters of the voxels of a region by their responses over trials. Two subjects' parcels are matched
    by fused Gromov-Wasserstein transport (Vayer et al. 2020; POT): its structure is the correlation of parcels with each
    other, its features are each parcel's region, its correlation with each region's mean and the skewness of its
    responses. A parcel of the other is given the mean response of those matched with it, by the transport's weights.

    ``betas`` (n, V) are the subject's, of any trials: their pictures are not asked for. Of the others, training trials are
    read. Raises UserError where subjects have no region in common.
    """
    mine = Parcels(subject, betas[:TRIALS], derive_seed(seed, "parcels", subject.number))
    total = np.zeros((base.config.hidden, subject.n_voxels))
    for number, other in progress(others.items(), "connectomes", len(others), "subject"):
        theirs = Parcels(other, other.betas(other.train.row[:TRIALS]), derive_seed(seed, "parcels", number))
        plan = match(mine, theirs, derive_seed(seed, "transport", number))  # (own parcels, theirs)
        share = plan / np.maximum(plan.sum(0), 1e-12)
        weight = ridge_weight(base, number)
        adds = np.stack([weight[:, theirs.parcel == a].sum(1) for a in range(theirs.count)], 1)  # (h, their parcels)
        total += (adds @ share.T / np.bincount(mine.parcel))[:, mine.parcel]
    return _finished(base, others, total / len(others), betas)


def by_shared_images(
    base: BrainNetwork, others: Mapping[int, Subject], subject: Subject, images: np.ndarray, seed: int
) -> HiddenRidge:
    """The ridge regression from the subject's responses to ``images`` to the mean hidden features of the others' responses.

    ``images`` (m,) are ids of shared images, which no base was trained on. They are used up: score on other ones. Raises
    UserError where an image is not shared, the subject did not see one, or none of the others did.
    """
    for image in images:
        if not subject.is_shared[image]:
            raise UserError(f"images: {image} is not a shared image; expected shared ones")
        if not (subject.test.stimulus == image).any():
            raise UserError(f"images: subject {subject.number} saw no trial of {image}; expected images that it saw")
    total, count = np.zeros((len(images), base.config.hidden)), np.zeros(len(images))
    for number, other in others.items():
        trials = of_images(other.test, images)
        at = {image: k for k, image in enumerate(images)}
        row = np.array([at[image] for image in trials.stimulus], int)
        said = embedded(base, number, other.betas(trials.row))
        mean, seen = np.zeros_like(total), np.bincount(row, minlength=len(images))
        np.add.at(mean, row, said)
        total += np.divide(mean, seen[:, None], out=np.zeros_like(mean), where=seen[:, None] > 0)
        count += seen > 0
    if not count.all():
        raise UserError(f"images: no other subject saw {images[int(np.argmin(count))]}; expected images that one saw")
    trials = of_images(subject.test, images)
    rows = np.searchsorted(images, trials.stimulus, sorter=(order := np.argsort(images)))
    expected = (total / count[:, None])[order[rows]].astype(np.float32)
    return fit_hidden(expected, subject.betas(trials.row), trials.stimulus, float(base.expectation.spread), seed)


def network_with(base: BrainNetwork, subject: Subject, ridge: HiddenRidge) -> BrainNetwork:
    """A copy of the base that knows the subject by this ridge, and a fingerprint without adapters, so it can be saved.

    Its mean answer is that to the subject's training trials, of which nothing but the betas is looked at; where there are
    none, it has no mean answer, and can be looked up by the published tokens alone.
    """
    network, name = copy.deepcopy(base), subject_name(subject.number)
    network.add_fingerprint(name, subject.n_voxels, FingerprintConfig(lora=False, skip=False))
    ridge.put_into(network.ridges[name])
    if len(subject.train):
        learn_centre(network, subject, subject.train.row)
    return network.eval()


# ---- parts


def region_of(subject: Subject) -> tuple[np.ndarray, list[str]]:
    """Of each voxel the region, as a position (V,) in the names that are returned too.

    Voxels in the same masks are of the same region, named by those masks, so masks may overlap, and one that holds all tells
    nothing.
    """
    told = [name for name, mask in sorted(subject.rois.items()) if 0 < mask.sum() < subject.n_voxels]
    held = np.array([[subject.rois[name][v] for name in told] for v in range(subject.n_voxels)], bool)
    kinds, region = np.unique(held.reshape(subject.n_voxels, -1), axis=0, return_inverse=True)
    return region.ravel(), [
        "+".join(name for name, inside in zip(told, kind, strict=True) if inside) or "no region" for kind in kinds
    ]


class Parcels:
    """A subject's voxels in clusters, each within a region.

    ``parcel`` (V,), ``names`` of each parcel's region, ``structure`` (count, count) and ``features`` (count, regions + 1), of
    ``by_connectome``.
    """

    def __init__(self, subject: Subject, betas: np.ndarray, seed: int) -> None:
        region, names = region_of(subject)
        z = (betas - betas.mean(0)) / np.maximum(betas.std(0), 1e-6)
        self.parcel, self.names = np.zeros(subject.n_voxels, int), []
        for k, name in enumerate(names):
            voxels = np.flatnonzero(region == k)
            parts = max(1, min(round(PARCELS * len(voxels) / subject.n_voxels), len(voxels) // FEWEST))
            found = KMeans(parts, n_init=1, random_state=seed % 2**31).fit(z[:, voxels].T).labels_
            self.parcel[voxels] = len(self.names) + np.unique(found, return_inverse=True)[1]
            self.names += [name] * len(np.unique(found))
        self.count = len(self.names)
        means = np.stack([z[:, self.parcel == a].mean(1) for a in range(self.count)])
        means = (means - means.mean(1, keepdims=True)) / np.maximum(means.std(1, keepdims=True), 1e-6)
        self.structure = means @ means.T / means.shape[1]
        of_region = {name: means[[n == name for n in self.names]].mean(0) for name in names}
        self.profile = {name: means @ mean / (len(mean) * max(mean.std(), 1e-6)) for name, mean in of_region.items()}
        self.skewness = (means**3).mean(1)
        self.mass = np.bincount(self.parcel) / len(self.parcel)


def match(a: Parcels, b: Parcels, seed: int) -> np.ndarray:
    """Transport of parcels (a.count, b.count); see ``by_connectome``.

    Rows sum to a's share of voxels, columns to b's, as far as regions differ in size. The best of STARTS: the independent
    coupling within regions, and random ones.
    """
    common = [name for name in a.profile if name in b.profile]
    if not common:
        raise UserError(f"regions: {', '.join(a.profile)} and {', '.join(b.profile)}; expected one in common")
    cost = np.square(a.skewness[:, None] - b.skewness)
    for name in common:
        cost = cost + np.square(a.profile[name][:, None] - b.profile[name])
    same = np.array([[x == y for y in b.names] for x in a.names])
    cost = cost / max(cost.mean(), 1e-12) + 10.0 * ~same  # within regions, wherever masses allow
    mass_a, mass_b = _balanced(a, b, common)
    rng = np.random.default_rng(seed)
    best, lowest = None, np.inf
    for start in range(STARTS):
        first = np.where(same, 1.0, 1e-3) * (1 if start == 0 else rng.exponential(size=same.shape))
        first = ot.sinkhorn(mass_a, mass_b, -np.log(first), 1.0, numItermax=2000, warn=False)
        plan, log = ot.gromov.fused_gromov_wasserstein(
            cost, a.structure, b.structure, mass_a, mass_b, alpha=ALPHA, G0=first, log=True
        )
        if log["fgw_dist"] < lowest:
            best, lowest = plan, log["fgw_dist"]
    return best


def _balanced(a: Parcels, b: Parcels, common: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Masses of both sides' parcels by their shares of voxels, in which each common region counts alike on both sides."""
    masses = []
    shares = {name: [sum(m for m, n in zip(x.mass, x.names, strict=True) if n == name) for x in (a, b)] for name in common}
    for k, x in enumerate((a, b)):
        mass = np.array(
            [m * np.mean(shares[n]) / shares[n][k] if n in shares else m for m, n in zip(x.mass, x.names, strict=True)]
        )
        masses.append(mass / mass.sum())
    return masses[0], masses[1]


def ridge_weight(base: BrainNetwork, number: int) -> np.ndarray:
    """W (h, V) of a subject that the base knows, float64. Raises UserError where it does not."""
    name = subject_name(number)
    if name not in base.ridges:
        raise UserError(f"base: has no ridge of {name}; expected one of {', '.join(base.ridges)}")
    return base.ridges[name].weight.detach().cpu().double().numpy()


@torch.no_grad()
def embedded(base: BrainNetwork, number: int, betas: np.ndarray) -> np.ndarray:
    """x0 (n, h) of a subject that the base knows."""
    ridge = base.ridges[subject_name(number)]
    parts = np.array_split(betas, 1 + len(betas) // CHUNK)
    return torch.cat([ridge(torch.from_numpy(part).to(ridge.weight.device)).cpu() for part in parts]).numpy()


def of_images(trials: Trials, images: np.ndarray) -> Trials:
    """The trials that show one of ``images``."""
    return trials.select(np.isin(trials.stimulus, images))


def _finished(base: BrainNetwork, others: Mapping[int, Subject], weight: np.ndarray, betas: np.ndarray) -> HiddenRidge:
    """With the mean x0 of the others, and the spread that the base is used to."""
    mean = np.mean([base.ridges[subject_name(number)].bias.detach().cpu().numpy() for number in others], 0)
    weight = weight.T.astype(np.float32)
    x0 = betas @ weight
    return stretched(weight, mean - x0.mean(0), x0.var(0).sum(), float(base.expectation.spread), mean)
