"""Maps of a fingerprint over voxels: which part of each voxel's share it has, by region, beside what was planted."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from scipy.optimize import nnls
from scipy.stats import norm, rankdata

from mindtuner.errors import UserError
from mindtuner.evaluation.statistics import bootstrap_ci
from mindtuner.model import BrainNetwork
from mindtuner.model.lora import LoRALinear
from mindtuner.runtime import derive_seed
from mindtuner.simulation.cortex import smooth_fields
from mindtuner.studies.routes import CHUNK, ROUTES, Shares, weights

OWN = ROUTES[1:]  # the routes that a fingerprint adds to a ridge
PERMUTATIONS = 999
LENGTHS = 6  # of the fields in a surrogate map, from the distance of neighbours to half of the sheet
PAIRS, BINS = 200_000, 30  # pairs of voxels, and bins of distance, of a variogram
DRAWS = 4  # of random directions of the tokens, a trial
FIELDS = 20  # surrogates that are drawn from the same random waves


def maps_of(found: Shares) -> dict[str, np.ndarray]:
    """Maps (V,), of magnitudes, since a share can be negative.

    There is one for each route, and ``fingerprint``, the part of the routes that a fingerprint adds in the sum of all; 0
    where a voxel has no share at all.
    """
    size = np.abs(found.voxel)
    total = size.sum(0)
    part = np.divide(size[1:].sum(0), total, out=np.zeros_like(total), where=total > 0)
    return {**dict(zip(ROUTES, size, strict=True)), "fingerprint": part}


def gains_of(network: BrainNetwork, subject: str, voxels: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Maps of how strongly adapters act on a voxel, whatever it has in common with what is decoded.

    ``skip_weights`` is the norm of the voxel's weights in Skip-LoRA. LoRA has no weights of its own for a voxel: what goes
    through it comes by the ridge. So ``lora_gain`` is how much LoRA changes what the ridge brings. With w_v the voxel's ridge
    weights and J the derivative of the tokens C by x0, with LoRA and without,

        gain(v) = mean |(J_with - J_without) w_v|^2 / mean |J_without w_v|^2

    over trials, by random directions of C (Hutchinson 1990). A map is 0 where the network has no such adapter.

    Parameters
    ----------
    network : BrainNetwork
    subject : str
    voxels : float32 array (trials, V)
        Betas.
    seed : int

    Returns
    -------
    dict of arrays (V,)
    """
    ridge = network.ridges[subject].weight.detach()
    adapters = [part for part in network.modules() if isinstance(part, LoRALinear)]
    rng = torch.Generator().manual_seed(derive_seed(seed, "gains"))
    changed, plain = (torch.zeros(ridge.shape[1], dtype=torch.double) for _ in range(2))
    for some in torch.from_numpy(voxels).split(CHUNK) if adapters else ():
        betas = some.to(ridge)
        with torch.no_grad():
            x0, skips = network.embed(betas, subject), [path(betas) for path in network.skips]
        for _ in range(DRAWS):
            state = rng.get_state()
            with_lora = _token_gradient(network, x0, skips, rng)
            rng.set_state(state)  # the same direction
            with _silent(adapters):
                without = _token_gradient(network, x0, skips, rng)
            changed += ((with_lora - without) @ ridge).square().sum(0).double().cpu()
            plain += (without @ ridge).square().sum(0).double().cpu()
    gain = np.divide(changed.numpy(), plain.numpy(), out=np.zeros(len(plain)), where=plain.numpy() > 0)
    return {"lora_gain": gain, "skip_weights": weights(network, subject)[1].astype(float)}


def _token_gradient(
    network: BrainNetwork, x0: torch.Tensor, skips: Sequence[torch.Tensor], rng: torch.Generator
) -> torch.Tensor:
    """Gradient (n, h) by x0 of the retrieval tokens in random directions."""
    x0 = x0.detach().requires_grad_()
    with torch.enable_grad():
        tokens = network.decode_hidden(x0, skips, lowlevel=False).retrieval_tokens
        direction = torch.randn(tokens.shape, generator=rng).to(tokens)
        return torch.autograd.grad((tokens * direction).sum(), x0)[0]


@contextlib.contextmanager
def _silent(adapters: Sequence[LoRALinear]) -> Iterator[None]:
    """Within, LoRA adds nothing."""
    scales = [part.scale for part in adapters]
    for part in adapters:
        part.scale = 0.0
    try:
        yield
    finally:
        for part, scale in zip(adapters, scales, strict=True):
            part.scale = scale


def regions(found: Shares, rois: Mapping[str, np.ndarray], seed: int) -> list[dict]:
    """An entry a region and route: ``share`` of the decoded variance, and its 95 % interval over images, ``ci``.

    The variance that is shared out is that of all images; only which of them count is resampled.
    """
    rows = []
    for name, added in found.by_roi.items():
        for route, values in zip(ROUTES, added.T, strict=True):
            low, high = bootstrap_ci(values * len(values), seed)
            rows.append(
                {
                    "region": name,
                    "voxels": int(rois[name].sum()),
                    "route": route,
                    "share": float(values.sum()),
                    "ci": [low, high],
                }
            )
    return rows


def by_itself(subject_rois: Mapping[str, np.ndarray]) -> np.ndarray:
    """Of each voxel the set of regions that hold it, as a number (V,)."""
    masks = np.array(list(subject_rois.values()), bool)
    return np.unique(masks, axis=1, return_inverse=True)[1].ravel()


def recovery(found: np.ndarray, planted: np.ndarray, region: np.ndarray, seed: int, sheet: np.ndarray | None = None) -> dict:
    """Spearman correlation of a map (V,) with what was planted (V,), and what chance gives.

    Both are taken apart. ``between``: what regions (V,) have more, by the correlation as it is; its ``null``, the middle
    95 %, and one-sided ``p`` come from handing the regions' planted mean ranks to other regions, in every order where there
    are few. ``within``: the correlation of ranks from which each region's mean is taken, with voxels permuted within
    regions; None where what was planted is the same all over each region. ``smooth``, where voxels have places on a ``sheet``
    (V, 2): the correlation as it is, against that of ``surrogates`` of the map; neither of the other two nulls knows that
    neighbours are alike. Raises UserError where nothing varies at all.
    """
    for name, values in (("planted", planted), ("found", found)):
        if np.ptp(values) == 0:
            raise UserError(f"{name}: is the same in all voxels; expected a map that varies")
    a, b = rankdata(found), rankdata(planted)
    count = np.bincount(region)
    means = [np.bincount(region, x) / np.maximum(count, 1) for x in (a, b)]
    inner = [x - mean[region] for x, mean in zip((a, b), means, strict=True)]
    rng, held = np.random.default_rng(seed), np.flatnonzero(count)
    orders = (
        list(itertools.permutations(held))
        if math.factorial(len(held)) <= 1 + PERMUTATIONS
        else [held, *(rng.permutation(held) for _ in range(PERMUTATIONS))]
    )
    moved = np.tile(means[1], (len(orders), 1))
    moved[:, held] = means[1][np.array(orders)]
    result = {"between": _against(_correlation(a, b), [_correlation(a, inner[1] + m[region]) for m in moved]), "within": None}
    if np.abs(inner[1]).max() > 1e-6:
        order = np.argsort(region, kind="stable")
        parts = np.split(order, np.flatnonzero(np.diff(region[order])) + 1)
        drawn = []
        for _ in range(PERMUTATIONS):
            mixed = np.empty_like(order)
            mixed[order] = np.concatenate([rng.permutation(part) for part in parts])
            drawn.append(_correlation(inner[0][mixed], inner[1]))
        true = _correlation(*inner)
        result["within"] = _against(true, [true, *drawn])
    if sheet is not None:
        true = _correlation(a, b)
        drawn = rankdata(surrogates(found, sheet, PERMUTATIONS, seed), axis=0)
        result["smooth"] = _against(true, [true, *(_correlation(one, b) for one in drawn.T)])
    return result


def surrogates(values: np.ndarray, sheet: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Random maps (V, count) that are as smooth over the sheet as a map is, and know nothing of it.

    The idea is that of surrogates with a matched variogram (Burt et al. 2020). The variogram of the map's normal scores,
    half the mean squared difference of two voxels at distance d, is fitted by that of uncorrelated voxels and smooth fields
    of several lengths l, whose weights are not negative, and each surrogate is a draw of their sum:

        gamma(d) = w_0 + sum over l of w_l (1 - exp(-d^2 / (2 l^2)))

    Parameters
    ----------
    values : array (V,)
        The map, of which only the order counts.
    sheet : array (V, 2)
        Where the voxels lie.
    count : int
    seed : int

    Returns
    -------
    array (V, count)

    Examples
    --------
    >>> sheet = np.random.default_rng(0).random((500, 2))
    >>> maps = surrogates(np.sin(4 * sheet[:, 0]), sheet, count=3, seed=0)
    >>> near = np.argsort(np.linalg.norm(sheet - sheet[0], axis=1))[:10]
    >>> maps.shape, bool((maps[near].std(0) < maps.std(0)).all())
    ((500, 3), True)
    """
    rng = np.random.default_rng(derive_seed(seed, "surrogates"))
    extent = np.ptp(sheet, axis=0)
    nearest = np.sqrt(max(extent.prod(), 1e-12) / len(values))
    farthest = max(np.linalg.norm(extent) / 2, 2 * nearest)  # beyond that, too few pairs are independent
    lengths = np.geomspace(nearest, farthest, LENGTHS)
    distance, gamma = _variogram(norm.ppf(rankdata(values) / (len(values) + 1)), sheet, (nearest, farthest), rng)
    of_fields = 1 - np.exp(-np.square(distance[:, None] / lengths) / 2)
    weight = nnls(np.column_stack([np.ones(len(gamma)), of_fields]), gamma)[0]
    drawn = np.sqrt(weight[0]) * rng.standard_normal((len(values), count))
    for k in np.flatnonzero(weight[1:]):
        for some in np.array_split(np.arange(count), 1 + count // FIELDS):
            own = derive_seed(seed, "surrogates", int(k), int(some[0])) if len(some) else 0
            drawn[:, some] += np.sqrt(weight[1 + k]) * smooth_fields(sheet, len(some), lengths[k], own)
    return drawn


def _variogram(
    scores: np.ndarray, sheet: np.ndarray, reach: tuple[float, float], rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Of random pairs of voxels, in each bin of distance, the mean of it and of half the squared difference of ``scores``."""
    i, j = rng.integers(len(scores), size=(2, PAIRS))
    i, j = i[i != j], j[i != j]
    distance, half = np.linalg.norm(sheet[i] - sheet[j], axis=1), np.square(scores[i] - scores[j]) / 2
    place = np.digitize(distance, np.geomspace(*reach, BINS))
    pairs = np.bincount(place, minlength=BINS + 1)[:BINS]  # the last bin is beyond reach
    sums = [np.bincount(place, x, BINS + 1)[:BINS] for x in (distance, half)]
    return tuple(x[pairs > 0] / pairs[pairs > 0] for x in sums)


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    x, y = x - x.mean(), y - y.mean()
    size = np.linalg.norm(x) * np.linalg.norm(y)
    return float(x @ y / size) if size > 0 else 0.0


def _against(true: float, drawn: list[float]) -> dict:
    """``drawn`` has the true one among them."""
    low, high = np.quantile(drawn, (0.025, 0.975))
    return {"spearman": true, "null": [float(low), float(high)], "p": float(np.mean(np.array(drawn) >= true - 1e-12))}
