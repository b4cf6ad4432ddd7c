"""How tuning learns to be sure of what it retrieves."""

from __future__ import annotations

import numpy as np

from mindtuner.config import Config
from mindtuner.decoding.confidence import fit_sharpness
from mindtuner.decoding.decoder import Decoder
from mindtuner.decoding.training_images import TrainingTokens, similarity
from mindtuner.model import BrainNetwork
from mindtuner.training.batches import Feed
from mindtuner.training.closed_form import held_out_hidden, learn_centre, solve_ridge
from mindtuner.training.targets import Targets
from mindtuner.training.tune import starting_network

MOST_TRIALS = 500  # that confidence is learned from, and images that they are looked for among


def learned_sharpness(
    network: BrainNetwork, base: BrainNetwork, feed: Feed, targets: Targets, config: Config, method: str
) -> float | None:
    """Sharpness of a tuned network's ``Confidence``, from trials that it was tuned on, each as if it had not been.

    Their images are looked for among each other. A plain regression has such answers (``feed.shift``). For a base with a
    ridge that was solved in closed form, the ridge is solved again without some of the images (``held_out_hidden``), and the
    base, without adapters, which saw all of them, answers. Another network has none: None.

    A ridge of fewer images is a little worse, so that confidence is a little too low rather than too high.
    """
    if feed.shift is None:
        return None
    rows = np.unique(np.linspace(0, len(feed.trials) - 1, min(MOST_TRIALS, len(feed.trials))).round().astype(int))
    images, own = np.unique(feed.trials.stimulus[rows], return_inverse=True)
    if len(images) < 2:
        return None
    betas = feed.subject.betas(feed.trials.row) if feed.betas is None else feed.betas
    judged, shift = network, feed.shift
    if "retrieval" not in network.without:
        judged = starting_network(base, feed.name, feed.subject.n_voxels, config, "ridge_only").eval()
        similar, kept = config.fitting(method).similar_voxels, feed.shift
        solve_ridge(judged, base, feed, targets, config.seed, similar)  # also where the network's own trained on
        feed.shift = kept
        ridge = judged.ridges[feed.name].state_dict()
        learn_centre(judged, feed.subject, feed.trials.row, targets, feed.trials.stimulus)
        weight, bias = (ridge[part].cpu().numpy() for part in ("weight", "bias"))
        held_out = held_out_hidden(base, feed, targets, config.seed, similar)
        shift = (held_out - (betas @ weight.T + bias)).astype(np.float32)
    decoder = Decoder(judged, feed.name, config.decode, config.seed)
    said, less = decoder.trial_tokens(betas[rows], shift[rows]), decoder.mean_token(feed.name)
    found = similarity(said, TrainingTokens(targets.tokens, images), less)
    return fit_sharpness(found, own)
