"""Words of a tuned subject: what reads phrases, how tuning learns to be sure of them, and what a decoded brain says."""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping

import numpy as np
import torch

from mindtuner.config import DecodeConfig
from mindtuner.data import Stimuli
from mindtuner.decoding.decoder import Decoder, Predictions
from mindtuner.decoding.phrases import PhraseBank, TextEncoder
from mindtuner.decoding.reading import PhraseReader
from mindtuner.decoding.training_images import TrainingTokens
from mindtuner.decoding.words import TextBank, Words
from mindtuner.model import BrainNetwork
from mindtuner.runtime import device
from mindtuner.training.batches import Feed

MOST_TRIALS = 1000  # that tuning learns from, with all phrases of each
_logger = logging.getLogger(__name__)


def phrase_reader(
    stimuli: Stimuli, caches: Mapping[str, np.ndarray], training_images: np.ndarray, encoder: TextEncoder | None
) -> PhraseReader | None:
    """What reads phrases of the captions of ``training_images`` (ids); None where these have none.

    Without an encoder it can be sure of phrases, but has no embeddings of them.
    """
    bank = PhraseBank.of(stimuli, training_images, encoder)
    return PhraseReader(bank, TrainingTokens(caches["tokens"], bank.images)) if bank.phrases else None


@torch.no_grad()
def learn_sureness(network: BrainNetwork, feed: Feed, reader: PhraseReader | None, config: DecodeConfig, seed: int) -> None:
    """Give a tuned network its ``sureness``, from the trials that it was tuned on.

    Each trial is decoded by the ridge as fitted without its image, so that the evidence is about as good as of an image that
    tuning did not see; what the adapters learned of it stays. A network whose ridge was not solved in closed form has no such
    answers, and gets none: whole captions stand for its words.
    """
    if reader is None or feed.shift is None:
        return
    decoder = Decoder(network, feed.name, config, seed)
    rows = np.flatnonzero(np.isin(feed.trials.stimulus, reader.bank.images))
    if len(rows) == 0:
        return
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, min(MOST_TRIALS, len(rows))).round().astype(int))]
    betas = feed.subject.betas(feed.trials.row) if feed.betas is None else feed.betas
    text = decoder.trial_texts(betas[rows], feed.shift[rows])
    network.sureness = reader.learn(reader.evidence(text, network.projector), feed.trials.stimulus[rows]).to(device())


def read_words(found: Predictions, network: BrainNetwork | None, bank: TextBank, reader: PhraseReader | None = None) -> Words:
    """What brains say in words: phrases where the network knows how sure it may be of them, and else whole captions.

    Parameters
    ----------
    found : Predictions
    network : BrainNetwork or None
        That predicted; None for a control that is no network of a subject.
    bank : TextBank
        Captions of training images.
    reader : PhraseReader or None
        What reads phrases, where there are any.

    Returns
    -------
    Words
    """
    if network is None or not bank.captions:
        return Words(found.text, bank)
    if network.sureness is None:
        _say_whole_captions("the network does not know how sure it may be of phrases")
        return Words(found.text, bank)
    if reader is None:
        _say_whole_captions("no features of training images are there to read phrases by")
        return Words(found.text, bank)
    return Words(found.text, bank, reader.probabilities(found.text, network.projector, network.sureness), reader)


@functools.cache
def _say_whole_captions(why: str) -> None:
    """Said once for each reason."""
    _logger.warning("words: %s; whole captions stand for them", why)
