"""Through which route, and from which voxel, a decoded token gets its variance.

A brain reaches the tokens through three doors: the ridge, and in Skip-LoRA ``GELU(z) = z / 2 + z (Phi(z) - 1/2)``, whose
first half is linear in the voxels and whose second is even. LoRA has no door of its own; what goes through it is what goes
through the ridge and then through at least one low-rank update. So there are four routes, and each path from a voxel to a
token belongs to one of them.

Let V go on a straight line from a reference brain to the trial's. The change of the tokens is the integral of the gradient
along the line (integrated gradients, Sundararajan et al. 2017), and the gradient is a sum over paths, so a sum over routes.
Ridge and low-rank products are linear: the integral runs over hidden features alone, and is taken to voxels exactly. With
a(i, v, route) the part of image i, a vector over all numbers of the tokens C (averaged over the image's trials),

    C(i) - C(reference) = sum over v and routes of a(i, v, route)
    share(v, route) = mean_i a(i, v, route) . (C(i) - mean C) / mean_i |C(i) - mean C|^2

is the share of the decoded variance, and all shares add up to 1. A share is a covariance: it can be negative, where a
voxel pulls against what the others say.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from mindtuner.model import BrainNetwork
from mindtuner.model.lora import LoRALinear, SkipLoRA
from mindtuner.runtime import progress

ROUTES = ("ridge", "lora", "skip_linear", "skip_nonlinear")
TOKENS = ("retrieval_tokens", "backbone_tokens")
NODES = 32  # of the Gauss-Legendre rule along the line
CHUNK = 128  # trials at a time


@dataclass(frozen=True)
class Shares:
    """What flows where, of one subject and one network.

    images    int64 (n,), ascending
    voxel     float64 (4, V): share of each route (``ROUTES``) and voxel
    by_roi    region -> float64 (n, 4): what each image adds to the region's shares; summed over images they are the shares
    residual  |sum of all shares - 1|: what the quadrature misses
    """

    images: np.ndarray
    voxel: np.ndarray
    by_roi: dict[str, np.ndarray]
    residual: float


def shares(
    network: BrainNetwork,
    subject: str,
    voxels: np.ndarray,
    images: np.ndarray,
    reference: np.ndarray,
    rois: dict[str, np.ndarray],
    tokens: str = TOKENS[0],
    nodes: int = NODES,
) -> Shares:
    """Shares of the decoded variance over ``images``.

    voxels     betas (trials, V) of at least two images
    images     (trials,) which image each trial shows; trials of an image are averaged after decoding, as the decoder does
    reference  betas (V,) of the brain from which all lines start, such as the mean training trial
    rois       region -> bool (V,)
    tokens     which tokens count as decoded: ``retrieval_tokens`` C, which all parts of the fingerprint reach, or
               ``backbone_tokens`` B

    Raises ValueError where shapes do not fit, there are fewer than two images, or the tokens are the same for all images.
    """
    if voxels.shape != (len(images), len(reference)):
        raise ValueError(f"voxels: shape {voxels.shape}; expected ({len(images)}, {len(reference)})")
    shown, group = np.unique(images, return_inverse=True)
    if len(shown) < 2:
        raise ValueError(f"images: {len(shown)}; expected at least 2")
    device = next(network.parameters()).device
    start = torch.from_numpy(reference).to(device, torch.float32)
    rows = [torch.from_numpy(part) for part in np.array_split(np.arange(len(images)), 1 + len(images) // CHUNK)]

    def betas(some: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(voxels[some.numpy()]).to(device, torch.float32)

    with torch.no_grad():
        said = torch.cat([getattr(network(betas(some), subject), tokens).flatten(1).cpu().double() for some in rows])
    count = torch.from_numpy(np.bincount(group))
    mean = torch.zeros(len(shown), said.shape[1], dtype=torch.double).index_add_(0, torch.from_numpy(group), said)
    mean /= count[:, None]
    direction = mean - mean.mean(0)
    variance = float(direction.square().sum())
    if variance == 0:
        raise ValueError("tokens: the same for all images; expected a network that tells brains apart")
    cotangent = (direction / variance / count[:, None])[torch.from_numpy(group)].float()

    total = np.zeros((len(ROUTES), voxels.shape[1]))
    regions = np.array(list(rois.values()), np.float32).reshape(len(rois), voxels.shape[1])
    inside = np.zeros((len(ROUTES), len(shown), len(rois)))
    for some in progress(rows, "shares", len(rows), "block"):
        with _tokens_alone(network):
            parts = _attributions(network, subject, betas(some), start, cotangent[some].to(device), tokens, nodes)
        for k, part in enumerate(parts):
            total[k] += part.sum(0, dtype=np.float64)
            np.add.at(inside[k], group[some.numpy()], part @ regions.T)
    by_roi = {name: inside[:, :, k].T for k, name in enumerate(rois)}
    return Shares(shown, total, by_roi, abs(float(total.sum()) - 1))


def weights(network: BrainNetwork, subject: str) -> tuple[np.ndarray, np.ndarray]:
    """Norm of each voxel's weights, (V,) each: in the ridge, and in Skip-LoRA's linear products over all entry points."""
    with torch.no_grad():
        ridge = network.ridges[subject].weight.norm(dim=0)
        skip = torch.zeros_like(ridge)
        for path in network.skips:  # |B A[:, v]|^2 without making the product: A^T (B^T B) A
            skip += path.scale**2 * ((path.B.T @ path.B) @ path.A * path.A).sum(0)
    return ridge.cpu().numpy(), skip.clamp_min(0).sqrt().cpu().numpy()


def _attributions(
    network: BrainNetwork,
    subject: str,
    voxels: torch.Tensor,
    start: torch.Tensor,
    cotangent: torch.Tensor,
    tokens: str,
    nodes: int,
) -> list[np.ndarray]:
    """For each route a . cotangent, float32 (n, V)."""
    ridge, step = network.ridges[subject], voxels - start
    with torch.no_grad():
        ends = [(network.embed(at, subject), [path.product(at) for path in network.skips]) for at in (start[None], voxels)]
    hidden = {name: torch.zeros_like(ends[1][0]) for name in ("ridge", "all")}
    linear, curved = ([torch.zeros_like(product) for product in ends[1][1]] for _ in range(2))
    for t, weight in zip(*_rule(nodes), strict=True):
        x0, *products = [torch.lerp(a, b, t) for a, b in zip(*([x0, *products] for x0, products in ends), strict=True)]
        whole = _gradients(network, x0, products, cotangent, tokens)
        hidden["all"] += weight * whole[0]
        if any(isinstance(part, LoRALinear) for part in network.modules()):
            with _lora_cut(network):
                hidden["ridge"] += weight * _gradients(network, x0, products, cotangent, tokens)[0]
        else:
            hidden["ridge"] += weight * whole[0]
        for k, (z, gradient) in enumerate(zip(products, whole[1:], strict=True)):
            linear[k] += weight * gradient / 2
            curved[k] += weight * gradient * (_gelu_slope(z) - 0.5)
    with torch.no_grad():
        through = [hidden["ridge"] @ ridge.weight, (hidden["all"] - hidden["ridge"]) @ ridge.weight]
        through += [
            sum((_to_voxels(path, g) for path, g in zip(network.skips, found, strict=True)), torch.zeros_like(step))
            for found in (linear, curved)
        ]
        return [(gradient * step).cpu().numpy() for gradient in through]


def _gradients(
    network: BrainNetwork, x0: torch.Tensor, products: list[torch.Tensor], cotangent: torch.Tensor, tokens: str
) -> list[torch.Tensor]:
    """Gradients of tokens . cotangent (n, ...) by x0 (n, h) and by each skip's output."""
    doors = [x0.detach().requires_grad_(), *(F.gelu(z).detach().requires_grad_() for z in products)]
    with torch.enable_grad():
        said = getattr(network.decode_hidden(doors[0], doors[1:]), tokens).flatten(1)
        return list(torch.autograd.grad((said * cotangent).sum(), doors))


@contextlib.contextmanager
def _tokens_alone(network: BrainNetwork) -> Iterator[None]:
    """Within, the network has no low-level submodule, whose pictures would cost most of the time."""
    lowlevel, network.lowlevel = network.lowlevel, None
    try:
        yield
    finally:
        network.lowlevel = lowlevel


@contextlib.contextmanager
def _lora_cut(network: BrainNetwork) -> Iterator[None]:
    """Within, LoRA's updates are computed as ever and count as constants for gradients."""

    def cut(module: LoRALinear, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
        frozen = module.linear(*inputs)
        return frozen + (output - frozen).detach()

    hooks = [part.register_forward_hook(cut) for part in network.modules() if isinstance(part, LoRALinear)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _to_voxels(path: SkipLoRA, gradient: torch.Tensor) -> torch.Tensor:
    return path.scale * (gradient @ path.B) @ path.A


def _gelu_slope(z: torch.Tensor) -> torch.Tensor:
    """d GELU / dz = Phi(z) + z phi(z)."""
    return 0.5 * (1 + torch.erf(z / 2**0.5)) + z * torch.exp(-z.square() / 2) / (2 * torch.pi) ** 0.5


def _rule(nodes: int) -> tuple[list[float], list[float]]:
    """Places and weights of Gauss-Legendre on 0..1."""
    places, weight = np.polynomial.legendre.leggauss(nodes)
    return ((places + 1) / 2).tolist(), (weight / 2).tolist()
