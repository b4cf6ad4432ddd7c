"""Are two subjects' fingerprints alike? Three measures, of networks tuned on the same base.

``overlap``   LoRA and Skip-LoRA write into features that all subjects share: do two subjects' updates write into the same
              directions of them? What Skip-LoRA reads is not compared, since no two subjects have the same voxels; nor what
              LoRA reads, which hardly leaves the random start.
``cka``       responses to the same images: hidden features as they are, or what the adapters add to them.
``crossed``   one subject's ridge with another's LoRA, to be scored as any network. Skip-LoRA reads voxels, whose number
              and order are a subject's own, so it cannot be lent: it is silent.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator

import numpy as np
import torch
from scipy.linalg import subspace_angles

from mindtuner.model import BrainNetwork
from mindtuner.model.lora import LoRALinear, SkipLoRA
from mindtuner.training import Fingerprint

CHUNK = 256  # trials at a time


def overlap(a: BrainNetwork, b: BrainNetwork) -> tuple[float, float]:
    """How far two fingerprints write into the same directions, 0 to 1, and what random directions give.

    The mean over adapters of mean cos^2 of the principal angles between the column spaces of the two factors ``B`` (out, r).
    Random subspaces of dimensions p and q in n give max(p, q) / n. Raises ValueError where the networks are not tuned on
    one base with the same adapters, or an adapter is silent.
    """
    _refuse_apart(a, b)
    found, chance = [], []
    for (name, one), (_, other) in zip(_adapters(a), _adapters(b), strict=True):
        factors = [adapter.B.detach().cpu().double().numpy() for adapter in (one, other)]
        ranks = [np.linalg.matrix_rank(factor) for factor in factors]
        if min(ranks) == 0:
            raise ValueError(f"{name}: is silent; expected adapters that were trained")
        found.append(np.square(np.cos(subspace_angles(*factors))).mean())
        chance.append(max(ranks) / len(factors[0]))
    return float(np.mean(found)), float(np.mean(chance))


def hidden(network: BrainNetwork, voxels: np.ndarray, images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Hidden features before the token head, averaged over an image's trials, and what the adapters add to them.

    Three arrays: images (m,), ascending; of each its hidden features (m, h); and what the adapters add, (m, h): whole less
    what the same ridge gives with all adapters silent.

    ``voxels`` (n, V) betas, ``images`` (n,) which image each trial shows. Raises ValueError where the network holds no
    fingerprint, or shapes do not fit.
    """
    if network.fingerprint_subject is None:
        raise ValueError("network: holds no fingerprint; expected a tuned one")
    if len(voxels) != len(images):
        raise ValueError(f"voxels: {len(voxels)} trials; expected {len(images)}, as images has")
    shown, group = np.unique(images, return_inverse=True)
    whole = _before_the_head(network, voxels)
    with _silent(network):
        bare = _before_the_head(network, voxels)
    means = []
    for features in (whole, whole - bare):
        total = np.zeros((len(shown), features.shape[1]))
        np.add.at(total, group, features)
        means.append(total / np.bincount(group)[:, None])
    return shown, *means


def cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear centred kernel alignment of features (n, p) and (n, q) of the same n >= 4 images (Kornblith et al. 2019).

    HSIC is estimated without bias (Song et al. 2012): about 0 for features that have nothing to do with each other,
    however many there are; 1 for one a rotation of the other. Raises ValueError where shapes do not fit, or features are the
    same for all images.
    """
    if len(x) != len(y) or len(x) < 4:
        raise ValueError(f"features: of {len(x)} and {len(y)} images; expected the same, at least 4")
    kernels = []
    for features in (x, y):
        centred = features - features.mean(0)
        kernels.append(centred @ centred.T)
        np.fill_diagonal(kernels[-1], 0)
    own = [_hsic(kernel, kernel) for kernel in kernels]
    if min(own) <= 0:
        raise ValueError("features: are the same for all images; expected some that differ")
    return float(_hsic(*kernels) / np.sqrt(own[0] * own[1]))


def crossed(network: BrainNetwork, lender: BrainNetwork) -> BrainNetwork:
    """A copy of ``network`` with its own ridge, the lender's LoRA, and Skip-LoRA silent; evaluation mode.

    With the network itself as lender, the control: what is lost with Skip-LoRA alone. Raises ValueError as ``overlap`` does.
    """
    _refuse_apart(network, lender)
    mixed, lent = copy.deepcopy(network), dict(_adapters(lender))
    with torch.no_grad():
        for name, adapter in _adapters(mixed):
            if isinstance(adapter, SkipLoRA):
                adapter.B.zero_()
            else:
                adapter.A.copy_(lent[name].A)
                adapter.B.copy_(lent[name].B)
    return mixed.eval()


# ---- parts


def _adapters(network: BrainNetwork) -> list[tuple[str, LoRALinear | SkipLoRA]]:
    return [(name, part) for name, part in network.named_modules() if isinstance(part, (LoRALinear, SkipLoRA))]


def _refuse_apart(a: BrainNetwork, b: BrainNetwork) -> None:
    for network in (a, b):
        if network.fingerprint_subject is None or not _adapters(network) or len(network.new_blocks):
            raise ValueError("network: has no adapters, or new blocks; expected LoRA or Skip-LoRA on a base, and no more")
    if a.fingerprint_config != b.fingerprint_config:
        raise ValueError(f"fingerprints: {a.fingerprint_config} and {b.fingerprint_config}; expected the same")
    if Fingerprint.of(a).base != Fingerprint.of(b).base:
        raise ValueError("networks: are tuned on different bases; expected the same base")


@contextlib.contextmanager
def _silent(network: BrainNetwork) -> Iterator[None]:
    """Within, the network is its ridge and the base."""
    scales = [(part, part.scale) for _, part in _adapters(network)]
    blocks, network.new_blocks = network.new_blocks, torch.nn.ModuleList()
    try:
        for part, _ in scales:
            part.scale = 0.0
        yield
    finally:
        network.new_blocks = blocks
        for part, scale in scales:
            part.scale = scale


@torch.no_grad()
def _before_the_head(network: BrainNetwork, voxels: np.ndarray) -> np.ndarray:
    """(n, V) -> (n, h), float64."""
    device, found = next(network.parameters()).device, []
    hook = network.head.register_forward_pre_hook(lambda _, inputs: found.append(inputs[0].cpu().double().numpy()))
    try:
        for part in np.array_split(voxels, 1 + len(voxels) // CHUNK):
            network(torch.from_numpy(part).to(device, torch.float32), network.fingerprint_subject)
    finally:
        hook.remove()
    return np.concatenate(found)


def _hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Unbiased, of kernels (n, n) whose diagonal is 0 (Song et al. 2012, equation 5)."""
    n = len(k)
    return float(
        ((k * m).sum() + k.sum() * m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * k.sum(0) @ m.sum(1)) / (n * (n - 3))
    )
