"""The losses, each a pure function of tensors.

Similarities are cosines: every row is L2-normalised here, so callers pass raw outputs. ``tau`` is the softmax
temperature.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

TAU_MIXCO = 0.006
TAU_SOFT_START, TAU_SOFT_END = 0.004, 0.0075
TAU_FEATURES = 0.2
SAME_TEXT = 1 - 1e-5  # captions whose embeddings are closer than this say the same thing


def draw_mixco(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Who is mixed with whom, and how much, within one subject's ``n`` trials.

    Half of the trials (rounded down) draw lambda ~ Beta(.15, .15); the others keep lambda = 1. Partners are a
    random permutation, so a trial may be its own partner. Returns partner (n,) int64 and lam (n,) float32.
    MindEye2 paper, section on BiMixCo.
    """
    partner = rng.permutation(n)
    lam = np.ones(n, dtype=np.float32)
    lam[rng.permutation(n)[: n // 2]] = rng.beta(0.15, 0.15, n // 2)
    return partner, lam


def mix(voxels: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """``lam * v_i + (1 - lam) * v_partner(i)``; voxels (n, V), partner (n,), lam (n,) -> (n, V)."""
    return torch.lerp(voxels[partner], voxels, lam[:, None])


def bimixco(predicted: Tensor, target: Tensor, partner: Tensor, lam: Tensor, tau: float = TAU_MIXCO) -> Tensor:
    """Bidirectional InfoNCE of mixed trials (MindEye2 paper, L_BiMixCo).

    With s_ij = cos(p_i, z_j) / tau and W = the weights (lam_i on column i, 1 - lam_i on column partner_i):

        L = -1/(2n) sum_ij W_ij [ log softmax_j(s_ij) + log softmax_i(s_ij) ]

    predicted, target: (n, ...) flattened per row. partner (n,) indexes rows of this same joined batch. A
    trial that is its own partner has weight 1 on itself. An image that stands twice in the batch has two
    equal columns of s, so it makes no difference which of them carries the weight: both are equally right. At
    lam = 1 this is InfoNCE.
    """
    scores = _normal(predicted) @ _normal(target).T / tau
    weights = torch.diag(lam)
    rows = torch.arange(len(lam), device=lam.device)
    weights[rows, partner] += 1 - lam
    both = scores.log_softmax(1) + scores.log_softmax(0)
    return -(weights * both).sum() / (2 * len(lam))


def soft_clip(predicted: Tensor, target: Tensor, tau: float) -> Tensor:
    """SoftCLIP, both directions (MindEye2 paper, L_SoftCLIP).

        q_ij = softmax_j(cos(z_i, z_j) / tau)
        L = -1/(2n) sum_ij q_ij [ log softmax_j(cos(p_i, z_j) / tau) + log softmax_j(cos(z_i, p_j) / tau) ]

    predicted, target: (n, ...) flattened per row. An image that stands twice in the batch has the same q in
    both places.
    """
    predicted, target = _normal(predicted), _normal(target)
    return _soft_cross_entropy(predicted @ target.T / tau, target @ target.T / tau)


def soft_clip_tau(progress: float) -> float:
    """tau .004 -> .0075, cosine-annealed; ``progress`` 0..1 through the SoftCLIP phase."""
    return TAU_SOFT_END + 0.5 * (TAU_SOFT_START - TAU_SOFT_END) * (1 + math.cos(math.pi * progress))


def soft_contrastive(predicted: Tensor, features: Tensor, augmented: Tensor, tau: float = TAU_FEATURES) -> Tensor:
    """Soft contrastive loss of the low-level features (MindEye2 paper, low-level submodule).

    As SoftCLIP, with the augmented view as what is matched and the plain view as who should match it:
    q_ij = softmax_j(cos(f_i, a_j) / tau) against softmax_j(cos(p_i, a_j) / tau), and the same from a_i to f_j
    and p_j. All (n, P, F). Images are contrasted at each position apart, so the cost is P n^2, not (P n)^2.
    """
    predicted, features, augmented = (
        F.normalize(x.float(), dim=-1).transpose(0, 1) for x in (predicted, features, augmented)
    )
    scores = predicted @ augmented.mT / tau
    teacher = features @ augmented.mT / tau
    return _soft_cross_entropy(scores, teacher, teacher.mT)


def l_skip(pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Keep the skip path from relearning what the linear path carries (MindTuner paper, L_skip).

        L = mean over entries and samples of |cov(x, s)| / (max(sd_s, .01 sd_x) * sd_x)

    ``pairs`` holds (x, s) for each entry point: x (n, ...) the features that are added to, taken as constant;
    s (n, ...) the skip output, which gets the gradient. Moments run over a sample's features. Where sd_s is
    above .01 sd_x this is |Pearson r|; below, the floor keeps value and gradient finite (0 at the zero
    start).
    """
    terms = []
    for linear, skip in pairs:
        linear, skip = linear.detach().flatten(1).float(), skip.flatten(1).float()
        linear = linear - linear.mean(1, keepdim=True)
        skip = skip - skip.mean(1, keepdim=True)
        variance = linear.square().mean(1).clamp_min(1e-12)
        # The floor stands inside the root: where it holds the root has no gradient instead of an infinite
        # one.
        product = (skip.square().mean(1).clamp_min(1e-4 * variance) * variance).sqrt()
        terms.append(((linear * skip).mean(1).abs() / product).mean())
    return torch.stack(terms).mean()


def image_to_text(image: Tensor, text: Tensor, tau: float) -> Tensor:
    """InfoNCE from projected images to texts; images with the same text are all right.

        L = -1/n sum_i log sum_{j: text_j = text_i} softmax_j(cos(image_i, text_j) / tau)

    image, text: (n, d).
    """
    text = _normal(text)
    scores = _normal(image) @ text.T / tau
    same = text @ text.T > SAME_TEXT
    return (scores.logsumexp(1) - scores.masked_fill(~same, -torch.inf).logsumexp(1)).mean()


def _normal(rows: Tensor) -> Tensor:
    return F.normalize(rows.flatten(1).float(), dim=1)


def _soft_cross_entropy(scores: Tensor, teacher: Tensor, teacher_back: Tensor | None = None) -> Tensor:
    """Mean of both directions; (..., n, n). ``teacher_back`` where the teacher's scores are not symmetric."""
    back = teacher if teacher_back is None else teacher_back
    forth = F.cross_entropy(scores.flatten(0, -2), teacher.softmax(-1).flatten(0, -2))
    return 0.5 * (forth + F.cross_entropy(scores.mT.flatten(0, -2), back.softmax(-1).flatten(0, -2)))
