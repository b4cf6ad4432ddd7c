"""How sure a subject may be of phrases: learned in tuning, kept with the network, and what is said without it."""

import dataclasses
import logging

import numpy as np
import pytest
import torch
from linear_world import CONFIG, world
from scipy.sparse import csr_array

from mindtuner.decoding.decoder import Decoder
from mindtuner.decoding.phrases import PhraseBank
from mindtuner.decoding.reading import PhraseReader
from mindtuner.decoding.words import TextBank
from mindtuner.pipeline import words
from mindtuner.pipeline.words import learn_sureness, read_words
from mindtuner.training import load_fingerprint, load_network, pretrain, save_fingerprint, save_network, tune

CLOSED = dataclasses.replace(CONFIG, tune=dataclasses.replace(CONFIG.tune, start="closed_form", epochs=1))


@pytest.fixture(scope="module")
def tuned():
    """A subject tuned in closed form, with a reader of phrases that tokens of training images know of, linearly."""
    dataset, targets = world()
    base, subject = pretrain(dataset.without(subject=1), targets, CONFIG, seed=0), dataset.subject(1)
    images = np.flatnonzero(~subject.is_shared)
    tokens = targets.rows("tokens", images).numpy()
    pooled = tokens.mean(1)
    shown = (pooled[:, :3] > np.median(pooled[:, :3], axis=0)).astype(np.float32)
    names = ["a bird", "a car", "on the beach"]
    reader = PhraseReader(PhraseBank(names, np.eye(3, targets.text.shape[1]), images, csr_array(shown)), tokens)

    def learn(network, feed):
        learn_sureness(network, feed, reader, CLOSED.decode, 0)

    network = tune(base, subject, targets, CLOSED, 0, then=learn)
    found = Decoder(network, "subj01", CLOSED.decode, 0).predict(subject.betas(subject.test.row), subject.test.stimulus)
    return base, subject, targets, reader, network, found, learn


def test_sureness_is_kept_with_the_network(tuned, tmp_path):
    base, subject, _, _, network, _, _ = tuned
    save_network(tmp_path / "whole.safetensors", network, {})
    save_fingerprint(tmp_path / "own.safetensors", network, subject, CLOSED)
    for found in (
        load_network(tmp_path / "whole.safetensors"),
        load_fingerprint(tmp_path / "own.safetensors", base, subject),
    ):
        assert torch.equal(found.sureness.coefficients, network.sureness.coefficients)
    assert base.sureness is None


def test_it_is_surer_the_more_the_brain_knows(tuned):
    """The readout counts for something, and for nothing where brains and images are mixed up."""
    base, subject, targets, _, network, _, learn = tuned
    assert network.sureness.coefficients[2] > 0
    shuffled = tune(base, subject, targets, CLOSED, 0, "shuffled_brain", then=learn)
    assert shuffled.sureness.coefficients[2].abs() < network.sureness.coefficients[2] / 2


def test_phrases_are_said_with_sureness_and_whole_captions_without(tuned, caplog):
    _, _, _, reader, network, found, _ = tuned
    bank = TextBank(["a whole caption"], np.ones((1, found.text.shape[1]), np.float32), 0)
    said = read_words(found, network, bank, reader)
    assert all(set(phrases) <= set(reader.bank.phrases) and phrases for phrases in said.phrases)
    sureness, network.sureness = network.sureness, None  # as of a file from before
    words._say_whole_captions.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            for _ in range(2):
                assert read_words(found, network, bank, reader).prompts == ["a whole caption"] * len(found.images)
    finally:
        network.sureness = sureness
    assert caplog.text.count("whole captions stand for them") == 1
    assert read_words(found, None, bank, reader).said is None
    assert read_words(found, network, bank, None).said is None


def test_a_ridge_that_is_not_solved_gives_no_sureness(tuned):
    base, subject, targets, _, _, _, learn = tuned
    assert tune(base, subject, targets, CONFIG, 0, then=learn).sureness is None
