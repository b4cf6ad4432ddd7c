"""How sure a subject may be of what it retrieves: a likelihood by hand, chance for shuffled brains, and calibration."""

import dataclasses

import numpy as np
import pytest
import torch
from linear_world import CONFIG, world

from mindtuner.decoding.confidence import SHARPEST, fit_sharpness
from mindtuner.decoding.decoder import Decoder
from mindtuner.evaluation.scores.retrieval import cosine
from mindtuner.model.backbone import Confidence
from mindtuner.pipeline.confidence import learned_sharpness
from mindtuner.training import load_fingerprint, load_network, pretrain, save_fingerprint, save_network, tune

CLOSED = dataclasses.replace(CONFIG, tune=dataclasses.replace(CONFIG.tune, start="closed_form", epochs=1))


def test_the_sharpness_that_made_the_answers_is_found():
    """Brains that see an image with the very probability that ``Confidence`` gives; and fewer and more candidates."""
    rng = np.random.default_rng(0)
    for sharpness, candidates in ((20.0, 30), (5.0, 30), (20.0, 300)):
        similarity = rng.normal(0, 0.1, (4000, candidates))
        weight = np.exp(sharpness * similarity)
        own = np.array([rng.choice(candidates, p=row / row.sum()) for row in weight])
        assert fit_sharpness(similarity, own) == pytest.approx(sharpness, rel=0.1)


def test_what_is_never_and_always_right():
    similarity = np.eye(5)
    assert fit_sharpness(similarity, (np.arange(5) + 1) % 5) == pytest.approx(0, abs=1e-2)
    assert fit_sharpness(similarity / 1000, np.arange(5)) == pytest.approx(SHARPEST, rel=1e-3)
    np.testing.assert_allclose(Confidence(0.0)(torch.rand(2, 8)), np.full((2, 8), 1 / 8), rtol=1e-6)


@pytest.fixture(scope="module")
def tuned():
    dataset, targets = world(noise=2.0)  # where about half of the images are found
    base, subject = pretrain(dataset.without(subject=1), targets, CONFIG, seed=0), dataset.subject(1)

    def tuned_by(method, config=CLOSED):
        def learn(network, feed):
            sharpness = learned_sharpness(network, base, feed, targets, config, method)
            network.confidence = None if sharpness is None else Confidence(sharpness)

        return tune(base, subject, targets, config, 0, method, then=learn)

    return base, subject, targets, tuned_by("mindtuner"), tuned_by


def test_it_is_kept_with_the_network(tuned, tmp_path):
    base, subject, _, network, _ = tuned
    save_network(tmp_path / "whole.safetensors", network, {})
    save_fingerprint(tmp_path / "own.safetensors", network, subject, CLOSED)
    for found in (
        load_network(tmp_path / "whole.safetensors"),
        load_fingerprint(tmp_path / "own.safetensors", base, subject),
    ):
        assert torch.equal(found.confidence.sharpness, network.confidence.sharpness)
    assert base.confidence is None and network.confidence.sharpness > 1


def test_shuffled_brains_are_sure_of_nothing(tuned):
    *_, network, tuned_by = tuned
    assert tuned_by("shuffled_brain").confidence.sharpness < network.confidence.sharpness / 4


def test_a_ridge_that_is_not_solved_has_no_answers_to_learn_from(tuned):
    *_, tuned_by = tuned
    assert tuned_by("mindtuner", CONFIG).confidence is None


@pytest.mark.parametrize("method", ["mindtuner", "ridge"])
def test_test_images_are_right_as_often_as_it_says(tuned, method):
    """Single trials of images that tuning never saw. Who is surer is right more often, too."""
    _, subject, targets, network, tuned_by = tuned
    network = network if method == "mindtuner" else tuned_by(method)
    test = subject.test
    images, own = np.unique(test.stimulus, return_inverse=True)
    found = Decoder(network, "subj01", CLOSED.decode, 0).predict(subject.betas(test.row), np.arange(len(test)))
    tokens = targets.rows("tokens", images).numpy()
    tokens = found.compared(tokens)
    similarity = cosine(found.retrieval_tokens.reshape(len(own), -1), tokens.reshape(len(images), -1))
    sure = network.confidence(torch.from_numpy(similarity)).numpy()
    right, first = sure.argmax(1) == own, sure.max(1)
    assert 0.3 < right.mean() < 0.9
    assert first.mean() == pytest.approx(right.mean(), abs=0.1)  # sd of the share of 80 trials: 0.055
    surer = first > np.median(first)
    assert right[surer].mean() > right[~surer].mean() + 0.15
