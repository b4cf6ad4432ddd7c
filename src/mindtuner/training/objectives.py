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
TAU_TEXT = 0.02
SAME_TEXT = 1 - 1e-5  # captions whose embeddings are closer than this say the same thing


def draw_mixco(n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw who is mixed with whom, and how much, within one subject's trials.

    Half of the trials (rounded down) draw lambda ~ Beta(.15, .15); the others keep lambda = 1. Partners are a
    random permutation, so a trial may be its own partner. MindEye2 paper, section on BiMixCo.

    Parameters
    ----------
    n : int
        Number of trials.
    rng : numpy.random.Generator

    Returns
    -------
    partner : array, int64 (n,)
    lam : array, float32 (n,), in 0..1

    Examples
    --------
    >>> partner, lam = draw_mixco(4, np.random.default_rng(0))
    >>> sorted(partner.tolist()), int((lam == 1).sum()) >= 2
    ([0, 1, 2, 3], True)
    """
    partner = rng.permutation(n)
    lam = np.ones(n, dtype=np.float32)
    lam[rng.permutation(n)[: n // 2]] = rng.beta(0.15, 0.15, n // 2)
    return partner, lam


def mix(voxels: Tensor, partner: Tensor, lam: Tensor) -> Tensor:
    """Mix each trial's voxels with its partner's: ``lam v_i + (1 - lam) v_partner(i)``.

    Parameters
    ----------
    voxels : tensor, float32 (n, V)
        Betas of one subject.
    partner : tensor, int64 (n,)
    lam : tensor, float32 (n,)

    Returns
    -------
    tensor, float32 (n, V)

    Examples
    --------
    >>> mix(torch.tensor([[0.0], [1.0]]), torch.tensor([1, 0]), torch.tensor([0.75, 1.0]))
    tensor([[0.2500],
            [1.0000]])
    """
    return torch.lerp(voxels[partner], voxels, lam[:, None])


def bimixco(predicted: Tensor, target: Tensor, partner: Tensor, lam: Tensor, tau: float = TAU_MIXCO) -> Tensor:
    """Bidirectional InfoNCE of mixed trials (MindEye2 paper, L_BiMixCo).

    With s_ij = cos(p_i, z_j) / tau and W = the weights (lam_i on column i, 1 - lam_i on column partner_i):

        L = -1/(2n) sum_ij W_ij [ log softmax_j(s_ij) + log softmax_i(s_ij) ]

    A trial that is its own partner has weight 1 on itself. An image that stands twice in the batch has two
    equal columns of s, so it makes no difference which of them carries the weight: both are equally right. At
    lam = 1 this is InfoNCE.

    Parameters
    ----------
    predicted, target : tensor (n, ...)
        Tokens of the brains and of the images; flattened per row.
    partner : tensor, int64 (n,)
        Rows of this same joined batch.
    lam : tensor, float32 (n,)
    tau : float
        Softmax temperature.

    Returns
    -------
    tensor, scalar

    Examples
    --------
    >>> tokens = torch.eye(3)
    >>> bimixco(tokens, tokens, torch.arange(3), torch.ones(3)).item() < 1e-6
    True
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

    An image that stands twice in the batch has the same q in both places.

    Parameters
    ----------
    predicted, target : tensor (n, ...)
        Tokens of the brains p and of the images z; flattened per row.
    tau : float
        Softmax temperature.

    Returns
    -------
    tensor, scalar

    Examples
    --------
    >>> tokens = torch.eye(3)
    >>> soft_clip(tokens, tokens, 0.005).item() < soft_clip(tokens.flip(0), tokens, 0.005).item()
    True
    """
    predicted, target = _normal(predicted), _normal(target)
    return _soft_cross_entropy(predicted @ target.T / tau, target @ target.T / tau)


def soft_clip_tau(progress: float) -> float:
    """The temperature of SoftCLIP, .004 -> .0075, cosine-annealed (MindEye2 paper).

    Parameters
    ----------
    progress : float, 0..1
        Through the SoftCLIP phase.

    Returns
    -------
    float

    Examples
    --------
    >>> soft_clip_tau(0.0), soft_clip_tau(1.0)
    (0.004, 0.0075)
    """
    return TAU_SOFT_END + 0.5 * (TAU_SOFT_START - TAU_SOFT_END) * (1 + math.cos(math.pi * progress))


def soft_contrastive(predicted: Tensor, features: Tensor, augmented: Tensor, tau: float = TAU_FEATURES) -> Tensor:
    """Soft contrastive loss of the low-level features (MindEye2 paper, low-level submodule).

    As SoftCLIP, with the augmented view as what is matched and the plain view as who should match it:
    q_ij = softmax_j(cos(f_i, a_j) / tau) against softmax_j(cos(p_i, a_j) / tau), and the same from a_i to f_j
    and p_j. Images are contrasted at each position apart, so the cost is P n^2, not (P n)^2.

    Parameters
    ----------
    predicted, features, augmented : tensor (n, P, F)
        Features p of the brains, f of the images, a of their augmented views, at P positions.
    tau : float
        Softmax temperature.

    Returns
    -------
    tensor, scalar

    Examples
    --------
    >>> features = torch.eye(3)[:, None]
    >>> right = soft_contrastive(features, features, features)
    >>> bool(right < soft_contrastive(features.flip(0), features, features))
    True
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

    Moments run over a sample's features. Where sd_s is above .01 sd_x this is |Pearson r|; below, the floor keeps value
    and gradient finite (0 at the zero start).

    Parameters
    ----------
    pairs : list of (x, s)
        One for each entry point. x (n, ...), the features that are added to, is taken as constant; s (n, ...), the skip
        output, gets the gradient.

    Returns
    -------
    tensor, scalar in 0..1

    Examples
    --------
    >>> x = torch.tensor([[1.0, 2.0, 3.0]])
    >>> round(l_skip([(x, -2 * x)]).item(), 4), l_skip([(x, torch.zeros(1, 3))]).item()
    (1.0, 0.0)
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
    """InfoNCE from projected images to texts; images with the same text are all right (MindTuner paper, Pivot).

        L = -1/n sum_i log sum_{j: text_j = text_i} softmax_j(cos(image_i, text_j) / tau)

    Parameters
    ----------
    image, text : tensor (n, d)
    tau : float
        Softmax temperature.

    Returns
    -------
    tensor, scalar

    Examples
    --------
    >>> image_to_text(torch.eye(2), torch.ones(2, 2), 0.1).item()  # one text for both
    0.0
    """
    text = _normal(text)
    scores = _normal(image) @ text.T / tau
    same = text @ text.T > SAME_TEXT
    return (scores.logsumexp(1) - scores.masked_fill(~same, -torch.inf).logsumexp(1)).mean()


def brain_to_text(said: Tensor, text: Tensor, tau: float = TAU_TEXT) -> Tensor:
    """SoftCLIP between what brains say in text space and the captions of their images (ours).

    Parameters
    ----------
    said : tensor (n, d)
        What the Adaptive Projector makes of backbone tokens.
    text : tensor (n, d)
        Caption embeddings, 0 where an image has none: it takes no part.
    tau : float
        Softmax temperature.

    Returns
    -------
    tensor, scalar
        0 where no image has a caption.

    Examples
    --------
    >>> text = torch.eye(3)
    >>> (brain_to_text(text, text) < brain_to_text(text.flip(0), text)).item()
    True
    """
    if not text.is_meta:  # there, memory is counted, and every image may have a caption
        captioned = text.abs().sum(1) > 0
        if not captioned.any():
            return 0 * said.float().sum()
        said, text = said[captioned], text[captioned]
    return soft_clip(said, text, tau)


def _normal(rows: Tensor) -> Tensor:
    return F.normalize(rows.flatten(1).float(), dim=1)


def _soft_cross_entropy(scores: Tensor, teacher: Tensor, teacher_back: Tensor | None = None) -> Tensor:
    """Mean of both directions; (..., n, n). ``teacher_back`` where the teacher's scores are not symmetric."""
    back = teacher if teacher_back is None else teacher_back
    forth = F.cross_entropy(scores.flatten(0, -2), teacher.softmax(-1).flatten(0, -2))
    return 0.5 * (forth + F.cross_entropy(scores.mT.flatten(0, -2), back.softmax(-1).flatten(0, -2)))
