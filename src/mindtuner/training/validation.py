"""The instrument by which settings are chosen and training stops: ranks of held-out training images among all of them.

Top-1 among a few held-out images is near its ceiling for every method. The rank of the right image among all training images
is not, and its logarithm tells a little better from a little worse wherever it stands.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mindtuner import runtime
from mindtuner.data import Trials
from mindtuner.model import BrainNetwork
from mindtuner.model.backbone import Centre
from mindtuner.training.batches import Feed
from mindtuner.training.closed_form import mean_token
from mindtuner.training.targets import Targets

NUMBERS = 2**29  # of the candidates' tokens, read at each validation: all training images of the demo, 1,260 of NSD's
BLOCK = 2**25  # of them at a time
TIE = 1e-6  # cosines
TOGETHER = 64  # images whose text is asked for at a time


class Ranks(NamedTuple):
    """How far down the right one stands, of each of n decoded images, by direction.

    Attributes
    ----------
    log : dict of str to array (n,)
        log(1 + rank), from log 2, where all are first; ties take the middle rank. ``image``: rank of the image for its brain.
        ``brain``: of the brain for its image. ``text``: of the caption for the brain, of the images that have one.
    among : dict of str to int
        How many candidates there are.
    """

    log: dict[str, np.ndarray]
    among: dict[str, int]


def ranks_of(
    tokens: Tensor,
    text: Tensor,
    images: np.ndarray,
    targets: Targets,
    pool: np.ndarray,
    others: Tensor | None = None,
    less: Tensor | None = None,
) -> Ranks:
    """Rank the right image, brain and caption of n decoded images.

    Parameters
    ----------
    tokens, text : tensor (n, T, D) and (n, d)
        What was decoded of brains: retrieval tokens, and text vectors.
    images : array, int (n,)
        Stimulus ids, each once.
    targets : Targets
    pool : array, int (m,)
        The candidates, among them ``images``: each once. Captions that say the same are one candidate.
    others : tensor (k, T, D), optional
        Retrieval tokens of brains that saw other images, more candidates where brains are looked for, beside the n.
    less : tensor (T, D), optional
        Taken off image tokens: ``Centre.target``.

    Returns
    -------
    Ranks

    Examples
    --------
    >>> zeros = np.zeros((3, 1, 1, 1), np.float32)
    >>> targets = Targets(np.eye(3, dtype=np.float32)[:, None], np.eye(3, dtype=np.float32), zeros, zeros[0], zeros[0])
    >>> found = ranks_of(torch.eye(3)[:2, None], torch.eye(3)[[1, 0]], np.arange(2), targets, np.arange(3))
    >>> np.expm1(found.log["image"]).round(1), np.expm1(found.log["text"]).round(1), found.among["brain"]
    (array([1., 1.]), array([2.5, 2.5]), 2)
    """

    def seen(ids: np.ndarray) -> Tensor:
        rows = targets.rows("tokens", ids)
        return _unit(rows if less is None else rows - less)

    order = np.argsort(pool)
    own = order[np.searchsorted(pool, images, sorter=order)]
    said, right = _unit(tokens), seen(images)
    blocks = np.array_split(pool, 1 + len(pool) * right.shape[1] // BLOCK)
    among = torch.cat([said @ seen(ids).T for ids in blocks], dim=1)
    brains = said if others is None else torch.cat([said, _unit(others)])
    captions = targets.rows("text", pool)
    captioned = captions.abs().sum(1) > 0
    distinct, which = torch.unique(captions[captioned], dim=0, return_inverse=True)
    caption = torch.full((len(pool),), -1)
    caption[captioned] = which
    has = captioned[own]
    return Ranks(
        {
            "image": _log_rank(among, own),
            "brain": _log_rank(right @ brains.T, np.arange(len(said))),
            "text": _log_rank(_unit(text[has]) @ _unit(distinct).T, caption[own][has].numpy()),
        },
        {"image": len(pool), "brain": len(brains), "text": len(distinct)},
    )


def _unit(rows: Tensor) -> Tensor:
    return F.normalize(rows.flatten(1).float(), dim=1)


def _log_rank(similarity: Tensor, own: np.ndarray) -> np.ndarray:
    """Of the candidate ``own`` (n,) in each row (n, m)."""
    right = similarity[torch.arange(len(own)), torch.from_numpy(own)][:, None]
    ahead, tied = (similarity > right + TIE).sum(1), ((similarity - right).abs() <= TIE).sum(1) - 1
    return (1 + ahead + tied / 2).log1p().double().numpy()


def by_chance(candidates: int) -> float:
    """The mean of log(1 + rank) where the rank is as likely to be any of 1 .. ``candidates``."""
    return float(np.log1p(np.arange(1, candidates + 1)).mean())


def candidates(targets: Targets, is_shared: np.ndarray, images: np.ndarray, seed: int) -> np.ndarray:
    """Ids, ascending, of the training images, or of as many of them as ``NUMBERS`` allows, ``images`` first of all."""
    training = np.flatnonzero(~is_shared[: len(targets)])
    room = max(len(images), NUMBERS // int(np.prod(targets.tokens.shape[1:])))
    if len(training) <= room:
        return training
    others = np.random.default_rng(runtime.derive_seed(seed, "candidates")).permutation(np.setdiff1d(training, images))
    return np.sort(np.concatenate([images, others[: room - len(images)]]))


@torch.no_grad()
def validate(
    network: BrainNetwork,
    feeds: list[Feed],
    held_out: dict[str, Trials],
    targets: Targets,
    seed: int,
    device: torch.device,
    dtype: torch.dtype,
    chunk: int = 256,
) -> dict[str, float]:
    """Scores on held-out training trials, each the mean over subjects.

    They are the mean of ``Ranks.log`` in each direction, that of the three, ``ranks``, and what chance gives of it; and L1 of
    the latents where there is a low-level module. Retrieval tokens are centred by the held-out trials themselves, so that
    no other trial has to be decoded.
    """
    network.eval()
    found: list[dict[str, float]] = []
    for feed in feeds:
        trials = held_out[feed.name]
        images, own = np.unique(trials.stimulus, return_inverse=True)
        if len(images) == 0:
            continue
        sums = [torch.zeros(len(images), network.config.tokens, network.config.width) for _ in range(2)]
        share, error = 1 / torch.from_numpy(np.bincount(own))[:, None, None], 0.0
        for start in range(0, len(trials), chunk):
            part = slice(start, start + chunk)
            voxels = torch.from_numpy(feed.subject.betas(trials.row[part])).to(device)
            with runtime.autocast(dtype):
                outputs = network(voxels, feed.name)
            for total, said in zip(sums, (outputs.backbone_tokens, outputs.retrieval_tokens), strict=True):
                total.index_add_(0, torch.from_numpy(own[part]), said.float().cpu())
            if outputs.latents is not None:
                truth = targets.rows("latents", trials.stimulus[part])
                error += (outputs.latents.float().cpu() - truth).abs().mean((1, 2, 3)).sum().item()
        backbone, retrieval = (total * share for total in sums)
        centre = Centre(network.config.tokens, network.config.width)
        centre.backbone += backbone.mean(0)
        centre.retrieval += retrieval.mean(0)
        with runtime.autocast(dtype):
            text = torch.cat([network.projector(some.to(device)).float().cpu() for some in backbone.split(TOGETHER)])
        pool = candidates(targets, feed.subject.is_shared, images, seed)
        others = np.setdiff1d(pool, images)
        less = mean_token(targets, others if len(others) else pool)
        ranks = ranks_of(centre(backbone, retrieval), text, images, targets, pool, less=less)
        scores = {direction: float(values.mean()) for direction, values in ranks.log.items() if len(values)}
        chances = [by_chance(ranks.among[direction]) for direction in scores]
        one = scores | {"ranks": float(np.mean(list(scores.values()))), "chance": float(np.mean(chances))}
        found.append(one if network.lowlevel is None else one | {"lowlevel": error / len(trials)})
    network.train()
    names = dict.fromkeys(name for one in found for name in one)
    return {name: float(np.mean([one[name] for one in found if name in one])) for name in names}
