"""What all subjects share between ridges and prior.

That is residual blocks, token head, retrieval projector, the Pivot's Adaptive Projector, and what hidden features to expect
of an image.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

CENTRED_BACKBONE = 0.3  # share of B in centred retrieval tokens (benchmarks/retrieval_tokens.py)


class Dropout(nn.Module):
    """Dropout of rows (n, ...), on a CPU number for number as nn.Dropout does it.

    Where several processes train on one batch, ``drawn`` is (how many rows the whole batch has, places (n,) of the own ones):
    all draw for the whole batch, so who has which rows changes nothing.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p
        self.drawn: tuple[int, np.ndarray] | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Rows (n, ...) -> (n, ...); unchanged where the module does not train."""
        if not self.training or self.p == 0:
            return x
        total = len(x) if self.drawn is None else self.drawn[0]
        kept = x.new_empty(total, *x.shape[1:]).bernoulli_(1 - self.p).div_(1 - self.p)
        return x * (kept if self.drawn is None else kept[self.drawn[1]])


class ResidualBlock(nn.Module):
    """``x + MLP(LN(x))`` with ``MLP = Linear(h, h) -> GELU -> Dropout -> Linear(h, h)``; (n, h) -> (n, h).

    MindEye2's published code follows such an MLP with a second one over a sequence of length 1. Its LayerNorm then sees a
    single number, so the first MLP never reaches the output and stays untrained. There is no second MLP here: every block
    takes part in the function and gets gradient.

    Parameters
    ----------
    hidden : int
        h.
    dropout : float
    silent : bool
        Start as the identity, the last Linear at zero: a block that is put into a trained network changes nothing before it
        is trained.

    Examples
    --------
    >>> x = torch.ones(2, 4)
    >>> torch.equal(ResidualBlock(4, dropout=0.0, silent=True)(x), x)
    True
    """

    def __init__(self, hidden: int, dropout: float, silent: bool = False) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden)
        self.mlp = nn.Sequential(nn.Linear(hidden, hidden), nn.GELU(), Dropout(dropout), nn.Linear(hidden, hidden))
        if silent:
            nn.init.zeros_(self.mlp[-1].weight)
            nn.init.zeros_(self.mlp[-1].bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden features (n, h) -> (n, h)."""
        return x + self.mlp(self.norm(x))


class TokenHead(nn.Module):
    """One Linear, (n, h) -> (n, T * D): the backbone tokens, still flat so that a skip path can be added.

    Parameters
    ----------
    hidden, tokens, width : int
        h, T and D.

    Examples
    --------
    >>> TokenHead(4, tokens=3, width=2)(torch.ones(5, 4)).shape
    torch.Size([5, 6])
    """

    def __init__(self, hidden: int, tokens: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, tokens * width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Hidden features (n, h) -> tokens, flattened (n, T·D)."""
        return self.linear(x)


class RetrievalProjector(nn.Sequential):
    """Three times ``LN -> GELU -> Linear`` of one width; backbone tokens (n, T, D) -> retrieval tokens (n, T, D).

    Parameters
    ----------
    width : int
        D.

    Examples
    --------
    >>> RetrievalProjector(8)(torch.ones(2, 3, 8)).shape
    torch.Size([2, 3, 8])
    """

    def __init__(self, width: int) -> None:
        layers = [nn.Sequential(nn.LayerNorm(width), nn.GELU(), nn.Linear(width, width)) for _ in range(3)]
        super().__init__(*layers)


class AdaptiveProjector(nn.Module):
    """From image tokens into the joint image-text space, (n, T, D) -> (n, d), rows of unit length.

    One bias-free matrix applied to the mean over tokens (MindTuner paper, Pivot).

    Tuning aligns brain tokens with image tokens, so what is trained on images maps brains to text as well.

    Parameters
    ----------
    width : int
        D.
    text_width : int
        d.

    Examples
    --------
    >>> text = AdaptiveProjector(8, 4)(torch.randn(2, 3, 8))
    >>> text.shape, torch.allclose(text.norm(dim=1), torch.ones(2))
    (torch.Size([2, 4]), True)
    """

    def __init__(self, width: int, text_width: int) -> None:
        super().__init__()
        self.matrix = nn.Linear(width, text_width, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Image or brain tokens (n, T, D) -> (n, d), rows of unit length."""
        return F.normalize(self.matrix(tokens.mean(dim=1)), dim=-1)


class ExpectedHidden(nn.Module):
    """The expectation E[x0 | image], linear in what the token head can say of the image's tokens Z (T, D).

        x0 = M Wᵀ (Z - b) + c        W (T·D, h), b: those of the token head

    No subject's voxels are in it, so it holds for a new one. Fitted once, when a base is trained, to the ridges' outputs for
    the training images of its subjects (``training.closed_form.learn_expectation``); never by gradients.

    Buffers: matrix M (h, h); offset c (h,); spread, the variance of x0 over single trials, summed over features and averaged
    over subjects.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.zeros(hidden, hidden))
        self.register_buffer("offset", torch.zeros(hidden))
        self.register_buffer("spread", torch.zeros(()))

    def forward(self, tokens: torch.Tensor, head: nn.Linear) -> torch.Tensor:
        """Image tokens (n, T, D) and the base's token head (its Linear, without adapters) -> x0 (n, h)."""
        return F.linear(head_projection(tokens, head), self.matrix, self.offset)


class Centre(nn.Module):
    """What an image changes in B and C (n, T, D), which is what retrieval compares with image tokens Z by the cosine.

        s (B - mean B) / |B - mean B| + (1 - s) (C - mean C) / |C - mean C|        s = 0.3, means over training trials

    Tokens of all images have much in common, and what is decoded is drawn to it the more the less a brain tells: its amount
    says nothing of the image, but moves the cosine. B is trained to be the image's tokens, C to be told from other images'
    (docs/model.md). The same holds of Z: where its mean over training images holds much of it, as in photographs, the cosine
    is that with ``Z - mean Z``. Buffers (T, D): ``backbone`` and ``retrieval``, the means of B and C, and ``target``, what is
    taken off Z, 0 for nothing.

    Parameters
    ----------
    tokens, width : int
        T and D.

    Examples
    --------
    >>> centre, said = Centre(2, 3), torch.eye(6).view(6, 2, 3)
    >>> centre.backbone += said.mean(0)
    >>> centre.retrieval += said.mean(0)
    >>> centre(said, said).sum(0).abs().max().item() < 1e-6
    True
    """

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.register_buffer("backbone", torch.zeros(tokens, width))
        self.register_buffer("retrieval", torch.zeros(tokens, width))
        self.register_buffer("target", torch.zeros(tokens, width))

    def forward(self, backbone_tokens: torch.Tensor, retrieval_tokens: torch.Tensor) -> torch.Tensor:
        """B and C -> retrieval tokens, all (n, T, D)."""

        def unit(tokens: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
            return F.normalize((tokens - mean.to(tokens)).flatten(1), dim=1).view_as(tokens)

        share = CENTRED_BACKBONE
        return share * unit(backbone_tokens, self.backbone) + (1 - share) * unit(retrieval_tokens, self.retrieval)


class Sureness(nn.Module):
    """How sure a brain may be that an image shows a phrase: its evidence, calibrated.

        p = sigmoid(c_0 + c_1 e_1 + c_2 e_2 + ...)

    The evidence e is ``decoding.reading``'s; c is fitted to how often it was right on trials that its ridge had not seen.
    Buffer: ``coefficients`` (1 + k).

    Parameters
    ----------
    kinds : int
        Of evidence, k.

    Examples
    --------
    >>> Sureness(2)(torch.ones(5, 7, 2)).shape
    torch.Size([5, 7])
    """

    def __init__(self, kinds: int) -> None:
        super().__init__()
        self.register_buffer("coefficients", torch.zeros(1 + kinds))

    def forward(self, evidence: torch.Tensor) -> torch.Tensor:
        """Evidence (..., k) -> probabilities (...), of its type and where it lies."""
        coefficients = self.coefficients.to(evidence)
        return torch.sigmoid(coefficients[0] + evidence @ coefficients[1:])


class Confidence(nn.Module):
    """How likely it is that each of m candidates is the image that a brain saw, where one of them is.

        p_j = exp(b s_j) / sum_k exp(b s_k)

    s are the similarities of the candidates' tokens to the brain's. The sharpness b is fitted to how often they were right on
    training images, by ridges that had not seen them (temperature scaling, Guo et al. 2017). Buffer: ``sharpness`` ().

    Examples
    --------
    >>> confidence = Confidence(10.0)
    >>> confidence(torch.tensor([[0.5, 0.3, 0.3]])).round(decimals=2)
    tensor([[0.7900, 0.1100, 0.1100]])
    """

    def __init__(self, sharpness: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("sharpness", torch.tensor(float(sharpness)))

    def forward(self, similarity: torch.Tensor) -> torch.Tensor:
        """Similarities (..., m) -> probabilities (..., m), of their type and where they lie."""
        return torch.softmax(self.sharpness.to(similarity) * similarity, -1)


def head_projection(tokens: torch.Tensor, head: nn.Linear) -> torch.Tensor:
    """Wᵀ (Z - b): image tokens (n, T, D) -> (n, h), all that a head of h inputs can tell of them."""
    return (tokens.flatten(1) - head.bias) @ head.weight
