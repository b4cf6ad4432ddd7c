"""All scores of several sets of pictures against one set of originals, in one pass.

Each network is loaded once, for all sets, and let go before the next. It sees the originals once and each picture once, in
batches; networks that want pictures of one size share the resized batch. Of the widest features (AlexNet's, 184,512
numbers an image) only the originals' are kept: each group of pictures is compared with them and forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from itertools import groupby

import numpy as np
import torch

from mindtuner import runtime
from mindtuner.errors import UserError
from mindtuner.evaluation.scores import catalogue
from mindtuner.evaluation.scores.features import Reader, joined
from mindtuner.evaluation.scores.inputs import as_images
from mindtuner.evaluation.scores.networks import Network
from mindtuner.evaluation.scores.objects import Recognition
from mindtuner.evaluation.scores.pictures import Lineup, pixel_scores, standardised
from mindtuner.evaluation.scores.preparation import OURS, Choices
from mindtuner.evaluation.statistics import random_pairs

BATCH, GROUP = 32, 128  # pictures that a network sees together; that are compared with all originals together


def score_images(
    originals,
    sets: Mapping[Hashable, np.ndarray],
    networks: Sequence[Network],
    choices: Choices = OURS,
    chance_of: Collection[Hashable] = (),
    seed: int = 0,
    keep: Callable[[Hashable, dict[str, torch.Tensor]], None] | None = None,
    recognition: Recognition | None = None,
) -> tuple[dict, dict]:
    """Scores of each set of pictures, and of those in ``chance_of`` the scores that chance would give.

    originals : (p, 3, H, W), p > 1, floats in 0..1 or uint8; each set is of the same number of pictures, its own size
    networks : see ``networks.find_networks``; PixCorr and SSIM need none
    keep : is called with what networks make of each group of pictures, in order, before it is compared: of the sets in
        ``chance_of`` by their key, of the originals by None
    recognition : what the p originals show; looks for it in the pictures, where ``features.LITE2`` is among the networks, and
        by its ``clip`` in what the network behind the score "clip" makes of them

    Returns ({set: {score: float64 (p,)}}, {set: {score: float}}) with scores by the names and in the order of the
    catalogue. Chance is there for scores without an analytic one: the mean over 1,000 random pairings. PixCorr of a flat
    original is NaN, see ``pictures.pixcorr``. Raises UserError for unequal counts, NaN, values outside 0..1, or fewer than
    two originals.
    """
    true = as_images(originals, "seen pictures")
    checked = {key: as_images(pictures, "predicted images") for key, pictures in sets.items()}
    for pictures in checked.values():
        if len(pictures) != len(true):
            raise UserError(f"predicted images: {len(pictures)} of them; expected one for each of the {len(true)} seen")
    if len(true) < 2:
        raise UserError("seen pictures: 1 image; expected at least 2, to compare between")
    pairs = random_pairs(len(true), seed)
    distinct, drawn = np.unique(pairs, axis=1, return_inverse=True)
    sided = choices.pixel_side or choices.first_side
    scores: dict = {}
    chance: dict = {key: {} for key in chance_of}
    for key, pictures in runtime.progress(checked.items(), "pixels", len(checked), "set"):
        if not sided and pictures.shape != true.shape:
            raise UserError(f"predicted images: shape {pictures.shape}; expected that of the seen, {true.shape}")
        scores[key] = pixel_scores(pictures, true, choices)
        if key in chance:
            found = pixel_scores(pictures, true, choices, *distinct)  # of few images the same pairs are drawn again and again
            chance[key] = {name: _mean(values[drawn]) for name, values in found.items()}

    likely: dict[Hashable, list[np.ndarray]] = {}  # what the probe says
    alike: dict[Hashable, list[np.ndarray]] = {}  # what CLIP says

    def watched(key: Hashable, features: dict[str, torch.Tensor]) -> None:
        if recognition and "places" in features:
            likely.setdefault(key, []).append(recognition.probe(joined(features)))
        if recognition and recognition.clip and "clip" in features:
            alike.setdefault(key, []).append(recognition.clip(features["clip"].cpu().numpy()))
        if keep and (key is None or key in chance):
            keep(key, features)

    by_side = sorted(networks, key=lambda network: network.side)
    for _, group in groupby(by_side, key=lambda network: network.side):
        for key, found, by_chance in _by_networks(list(group), true, checked, choices, pairs, watched):
            scores[key] |= found
            if key in chance:
                chance[key] |= by_chance
    for key in set(likely) & set(scores):
        said, by_clip = np.concatenate(likely[key]), np.concatenate(alike[key]) if key in alike else None
        scores[key] |= recognition.scores(said, by_clip)
        if key in chance:
            chance[key] |= recognition.chance(said, pairs, by_clip)
    order = list(catalogue.of_part("reconstruction"))
    return tuple(
        {key: {name: own[name] for name in order if name in own} for key, own in table.items()} for table in (scores, chance)
    )


@torch.inference_mode()
def _by_networks(
    networks: list[Network],
    true: np.ndarray,
    sets: Mapping[Hashable, np.ndarray],
    choices: Choices,
    pairs: tuple[np.ndarray, np.ndarray],
    watched: Callable,
) -> Iterator[tuple[Hashable, dict, dict]]:
    """Of each set the scores by these networks, which want pictures of one side, and what chance gives of the distances."""
    reader = Reader(networks, choices)
    kinds = {name: catalogue.find("reconstruction", name) for network in networks for name in network.layers}
    lineups = {name: Lineup(choices.ties) for name in kinds if kinds[name].higher_is_better}
    rows: dict[str, list[torch.Tensor]] = {name: [] for name in kinds if name not in lineups}
    for features in _grouped(reader, true):
        watched(None, features)
        for name in lineups:
            lineups[name].add(features[name])
        for name in rows:
            rows[name].append(standardised(features[name]))
    originals = {name: torch.cat(parts) for name, parts in rows.items()}
    title = " and ".join(network.label for network in networks)
    for key, pictures in runtime.progress(sets.items(), title, len(sets), "set"):
        values: dict[str, list] = {name: [] for name in kinds}
        for number, features in enumerate(_grouped(reader, pictures, reuse=True)):
            watched(key, features)
            for name in lineups:
                values[name].append(lineups[name](features[name], number))
            for name in originals:
                values[name].append(standardised(features[name]))
        scores, chance = {name: np.concatenate(values[name]) for name in lineups}, {}
        for name, true_rows in originals.items():
            painted, (i, j) = torch.cat(values[name]), (torch.from_numpy(index).to(true_rows.device) for index in pairs)
            scores[name] = (1 - (painted * true_rows).sum(1)).cpu().numpy()
            chance[name] = float((1 - (painted[i] * true_rows[j]).sum(1)).mean())
        yield key, scores, chance


def _grouped(reader: Reader, images: np.ndarray, reuse: bool = False) -> Iterator[dict[str, torch.Tensor]]:
    """Features of GROUP images at a time; with ``reuse`` each group's lie where the last one's did, as new memory is slow."""
    memory: dict[str, torch.Tensor] = {}
    for start in range(0, len(images), GROUP):
        group = images[start : start + GROUP]
        parts = [reader(group[at : at + BATCH]) for at in range(0, len(group), BATCH)]
        for name in list(parts[0]):
            rows = [part.pop(name) for part in parts]
            if not reuse or name not in memory:
                memory[name] = rows[0].new_empty(len(group), rows[0].shape[1])
            torch.cat(rows, out=memory[name][: len(group)])
        yield {name: block[: len(group)] for name, block in memory.items()}


def _mean(values: np.ndarray) -> float:
    """Over the pairs whose score is defined; 0, no relation, where none is."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else 0.0
