"""How tuning learns to be sure of what it retrieves."""

from __future__ import annotations

import numpy as np

from mindtuner.config import DecodeConfig
from mindtuner.decoding.confidence import fit_sharpness
from mindtuner.decoding.decoder import Decoder
from mindtuner.decoding.training_images import TrainingTokens, similarity
from mindtuner.model import BrainNetwork
from mindtuner.model.backbone import Confidence
from mindtuner.runtime import device
from mindtuner.training.batches import Feed
from mindtuner.training.targets import Targets

MOST_TRIALS = 500  # that confidence is learned from, and images that they are looked for among


def learn_confidence(network: BrainNetwork, feed: Feed, targets: Targets, config: DecodeConfig, seed: int) -> None:
    """Give a tuned network its ``confidence``, from the trials that it was tuned on.

    Each trial is decoded by the ridge as fitted without its image, and its image looked for among those of the other trials:
    ``learn_sureness`` says more. A network whose ridge was not solved in closed form has no such answers, and gets none.
    """
    if feed.shift is None:
        return
    rows = np.unique(np.linspace(0, len(feed.trials) - 1, min(MOST_TRIALS, len(feed.trials))).round().astype(int))
    images, own = np.unique(feed.trials.stimulus[rows], return_inverse=True)
    if len(images) < 2:
        return
    betas = feed.subject.betas(feed.trials.row[rows]) if feed.betas is None else feed.betas[rows]
    decoder = Decoder(network, feed.name, config, seed)
    said, less = decoder.trial_tokens(betas, feed.shift[rows]), decoder.mean_token(feed.name)
    found = similarity(said, TrainingTokens(targets.tokens, images), less)
    network.confidence = Confidence(fit_sharpness(found, own)).to(device())
