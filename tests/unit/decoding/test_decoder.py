"""Averaging repeats, the text bank and the controls, each against plain loops."""

import copy
import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mindtuner.config import DecodeConfig, ModelConfig
from mindtuner.data import Stimuli, Subject, Trials
from mindtuner.decoding.decoder import Decoder
from mindtuner.decoding.training_images import draw_to_neighbours, mean_token, nearest_training_image
from mindtuner.decoding.words import TextBank
from mindtuner.errors import UserError
from mindtuner.evaluation.scores.retrieval import cosine
from mindtuner.model import BrainNetwork
from mindtuner.model.backbone import Centre
from mindtuner.pipeline.stages import TestSet, first_trials
from mindtuner.runtime import derive_seed

MODEL = ModelConfig(
    hidden=16,
    blocks=1,
    tokens=4,
    width=8,
    text_width=6,
    backbone_dropout=0.3,
    prior_depth=1,
    prior_heads=2,
    prior_head_dim=32,
    latent_channels=8,
    latent_side=16,
    lowlevel_channels=(8, 4),
    lowlevel_side=4,
    feature_positions=16,
    feature_width=8,
)
CONFIG = DecodeConfig(
    pictures=4, prior_steps=5, generator_steps=2, refine_steps=1, refine_start=0.5, guidance=2.0, neighbours=0
)
VOXELS = 20


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(0)
    return Decoder(BrainNetwork(MODEL, {"subj01": VOXELS}), "subj01", CONFIG, seed=3)


@pytest.fixture(scope="module")
def trials():
    rng = np.random.default_rng(0)
    stimulus = np.array([7, 2, 7, 40, 2, 7, 13])
    return rng.normal(size=(len(stimulus), VOXELS)).astype(np.float32), stimulus


def test_repeats_of_an_image_are_averaged(decoder, trials):
    voxels, stimulus = trials
    found = decoder.predict(voxels, stimulus)
    np.testing.assert_array_equal(found.images, [2, 7, 13, 40])
    with torch.no_grad():
        each = [decoder.network(torch.from_numpy(v)[None], "subj01") for v in voxels]
    for row, image in enumerate(found.images):
        shown = [each[k] for k in range(len(stimulus)) if stimulus[k] == image]
        for name, got in (("retrieval_tokens", found.retrieval_tokens), ("latents", found.latents)):
            mean = sum(getattr(one, name)[0].numpy() for one in shown) / len(shown)
            np.testing.assert_allclose(got[row], mean, atol=1e-5)


def test_centred_retrieval_tokens_rank_images_by_what_differs_from_the_mean_answer(decoder, trials):
    centred = dataclasses.replace(CONFIG, retrieval_tokens="centred")
    asked = Decoder(copy.deepcopy(decoder.network), "subj01", centred, seed=3)
    with pytest.raises(UserError, match="network: holds no mean answer to measure from.*; expected"):
        asked.predict(*trials)
    plain, rng = decoder.predict(*trials), np.random.default_rng(5)
    means, candidates = rng.normal(size=(2, 4, 8)), rng.normal(size=(30, 4 * 8))
    asked.network.centre = Centre(4, 8)
    for buffer, mean in zip((asked.network.centre.backbone, asked.network.centre.retrieval), means, strict=True):
        buffer.copy_(torch.from_numpy(mean))
    found = asked.predict(*trials)
    for field in ("images", "backbone_tokens", "latents", "text"):
        np.testing.assert_array_equal(getattr(found, field), getattr(plain, field))
    of_b, of_c = (
        cosine((tokens - mean).reshape(len(tokens), -1), candidates)
        for tokens, mean in zip((plain.backbone_tokens, plain.retrieval_tokens), means, strict=True)
    )
    scale = cosine(found.retrieval_tokens.reshape(len(of_b), -1), candidates) / (0.3 * of_b + 0.7 * of_c)
    np.testing.assert_allclose(scale, np.broadcast_to(scale[:, :1], scale.shape), rtol=1e-3)  # one number for each brain
    assert (scale > 0).all() and np.abs(of_b - of_c).max() > 0.05


def test_the_prior_runs_on_averaged_backbone_tokens_with_its_own_seed(decoder, trials):
    voxels, stimulus = trials
    found = decoder.predict(voxels, stimulus)
    with torch.no_grad():
        each = decoder.network(torch.from_numpy(voxels), "subj01").backbone_tokens
    mean = torch.stack([each[torch.from_numpy(stimulus == image)].mean(0) for image in found.images])
    torch.manual_seed(123)  # the global stream has no say
    np.testing.assert_allclose(found.backbone_tokens, mean, atol=1e-5)
    tokens = decoder.image_tokens(found.backbone_tokens, found.images)
    np.testing.assert_array_equal(tokens, decoder.image_tokens(found.backbone_tokens, found.images))
    again = Decoder(decoder.network, "subj01", CONFIG, seed=4)
    other = again.predict(voxels, stimulus)
    assert np.abs(again.image_tokens(other.backbone_tokens, other.images) - tokens).max() > 1e-3
    np.testing.assert_allclose(other.retrieval_tokens, found.retrieval_tokens, atol=1e-6)


def test_as_many_pass_together_as_their_tokens_allow(decoder, trials, monkeypatch):
    """At paper size a GPU holds few; what comes out is the same."""
    found = decoder.predict(*trials)
    tokens = decoder.image_tokens(found.backbone_tokens, found.images)
    monkeypatch.setattr("mindtuner.decoding.decoder.NUMBERS", 3 * 4 * 8 + 5)  # three rows of 4 tokens of width 8
    seen = []
    handles = [
        module.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
        for module in (decoder.network, decoder.network.prior)
    ]
    few = decoder.predict(*trials)
    drawn = decoder.image_tokens(found.backbone_tokens, found.images)
    for handle in handles:
        handle.remove()
    assert seen == [3, 3, 1] + [3] * CONFIG.prior_steps + [1] * CONFIG.prior_steps
    for field in ("backbone_tokens", "retrieval_tokens", "latents", "text"):
        np.testing.assert_allclose(getattr(few, field), getattr(found, field), atol=1e-5)
    np.testing.assert_allclose(drawn, tokens, atol=1e-5)


def test_an_image_s_tokens_depend_on_nothing_else(decoder, trials):
    """Its noise is the seed's and its own; the rest is the prior on one image."""
    found = decoder.predict(*trials)
    whole = decoder.image_tokens(found.backbone_tokens, found.images)
    for rows in ([2], [3, 0]):
        some = decoder.image_tokens(found.backbone_tokens[rows], found.images[rows])
        np.testing.assert_allclose(some, whole[rows], atol=1e-5)
    source = torch.Generator().manual_seed(derive_seed(3, "prior", 13))
    noise, brain = torch.randn(1, 4, 8, generator=source), torch.from_numpy(found.backbone_tokens[2:3])
    alone = decoder.network.prior.sample(brain, CONFIG.prior_steps, start=noise)
    np.testing.assert_allclose(whole[2:3], alone, atol=1e-5)
    assert np.abs(whole - decoder.image_tokens(found.backbone_tokens, found.images + 1)).max() > 1e-3


def test_texts_are_unit_vectors_of_the_projected_backbone_tokens(decoder, trials):
    found = decoder.predict(*trials)
    assert found.text.shape == (4, 6)
    np.testing.assert_allclose(np.linalg.norm(found.text, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(decoder.text_of(torch.from_numpy(found.backbone_tokens)), found.text, atol=1e-5)


def test_the_order_of_trials_does_not_matter_and_decoding_is_in_evaluation_mode(decoder, trials):
    voxels, stimulus = trials
    decoder.network.train()
    decoder = Decoder(decoder.network, "subj01", CONFIG, seed=3)  # puts it back
    one, order = decoder.predict(voxels, stimulus), np.array([3, 6, 0, 5, 2, 4, 1])
    other = decoder.predict(voxels[order], stimulus[order])
    for field in ("images", "retrieval_tokens", "backbone_tokens", "latents", "text"):
        np.testing.assert_allclose(getattr(one, field), getattr(other, field), atol=1e-4)


def test_more_trials_than_one_chunk(decoder):
    voxels = np.random.default_rng(1).normal(size=(1030, VOXELS)).astype(np.float32)
    stimulus = np.arange(1030)
    found = decoder.predict(voxels, stimulus)
    assert found.retrieval_tokens.shape == (1030, 4, 8)
    with torch.no_grad():
        last = decoder.network(torch.from_numpy(voxels[1029:]), "subj01").retrieval_tokens
    np.testing.assert_allclose(found.retrieval_tokens[1029], last[0].numpy(), atol=1e-5)


# ---- words


class LengthEncoder:
    """Embeds a sentence as (1, its length), so that nearest is easy to know."""

    def embed(self, sentences):
        return np.array([[1, len(s)] for s in sentences], np.float32).reshape(len(sentences), 2)


def stimuli(captions, shared):
    images = np.zeros((len(captions), 3, 224, 224), np.float16)
    return Stimuli(images, captions, np.array(shared), "memory")


def test_the_bank_holds_captions_of_training_images_only_and_counts_equal_ones():
    captions = [("a dog", "an animal"), ("a cat", "an animal"), ("a dog", "only in test"), ("a cat",), ("unused",)]
    found = TextBank.of(stimuli(captions, [False, False, True, True, False]), np.array([0, 1]), LengthEncoder())
    assert found.captions == ["a cat", "a dog", "an animal"]  # once each, in order
    assert found.equal_to_test == 2  # "a dog" of image 2 and "a cat" of image 3, by their words alone
    np.testing.assert_array_equal(found.embeddings, LengthEncoder().embed(found.captions))


def test_a_bank_of_a_test_image_is_refused():
    with pytest.raises(ValueError, match="holds a test image"):
        TextBank.of(stimuli([("a",), ("b",)], [False, True]), np.array([0, 1]), LengthEncoder())


def test_the_nearest_caption_has_the_largest_inner_product():
    rng = np.random.default_rng(0)
    embeddings, text = rng.normal(size=(9, 5)), rng.normal(size=(6, 5))
    bank = TextBank([str(k) for k in range(9)], embeddings, 0)
    expected = [max(range(9), key=lambda k, t=t: sum(a * b for a, b in zip(t, embeddings[k], strict=True))) for t in text]
    np.testing.assert_array_equal(bank.nearest(text), expected)


# ---- controls


def test_nearest_training_image_against_a_loop():
    rng = np.random.default_rng(0)
    predicted, training = rng.normal(size=(7, 4, 3)), rng.normal(size=(11, 4, 3))
    training[3] *= 100  # long vectors have no advantage
    expected = []
    for p in predicted:
        cosines = [(p * t).sum() / ((p * p).sum() * (t * t).sum()) ** 0.5 for t in training]
        expected.append(max(range(11), key=cosines.__getitem__))
    np.testing.assert_array_equal(nearest_training_image(predicted, training), expected)
    np.testing.assert_array_equal(nearest_training_image(training[[4, 9]] * 2, training), [4, 9])


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 12), st.integers(0, 2**31))
def test_recalled_tokens_against_a_loop(n, m, neighbours, seed):
    rng = np.random.default_rng(seed)
    tokens, training = (rng.normal(size=(k, 4, 3)).astype(np.float32) for k in (n, m))
    for one, got in zip(tokens, draw_to_neighbours(tokens, training, neighbours), strict=True):
        by_angle = sorted(training, key=lambda t, one=one: -(one * t).sum() / np.sqrt((t.astype(float) ** 2).sum()))
        np.testing.assert_allclose(got, (one + sum(by_angle[:neighbours]) / min(m, neighbours)) / 2, atol=1e-5)


def test_without_neighbours_nothing_is_recalled():
    tokens = np.ones((2, 4, 3), np.float32)
    np.testing.assert_array_equal(draw_to_neighbours(tokens, np.zeros((5, 4, 3)), 0), tokens)
    np.testing.assert_array_equal(draw_to_neighbours(tokens, np.zeros((0, 4, 3)), 10), tokens)


def test_mean_token_is_the_same_for_every_image():
    training = np.random.default_rng(0).normal(size=(6, 4, 3)).astype(np.float32)
    tokens = mean_token(training, 5)
    assert tokens.shape == (5, 4, 3)
    for token in tokens:
        np.testing.assert_allclose(token, sum(training) / 6, atol=1e-6)


# ---- which trials and pictures


def test_first_trials_are_each_image_s_earliest_row():
    row = np.array([40, 3, 17, 8, 25, 11, 30])
    stimulus = np.array([2, 9, 2, 5, 9, 5, 2])
    zeros = np.zeros(7, int)
    chosen = first_trials(Trials(row, stimulus, zeros + 1, zeros, np.ones(7, bool)))
    assert stimulus[chosen].tolist() == [2, 5, 9] and row[chosen].tolist() == [17, 8, 3]


@pytest.mark.parametrize("pictures, expected", [(3, [0, 2, 4]), (5, [0, 1, 2, 3, 4]), (64, [0, 1, 2, 3, 4])])
def test_painted_images_are_spread_over_the_test_images(pictures, expected):
    zeros = np.zeros(10, int)
    trials = Trials(np.arange(10), np.repeat([9, 3, 6, 1, 7], 2), zeros + 1, zeros, np.ones(10, bool))
    shared = np.isin(np.arange(10), [9, 3, 6, 1, 7])
    subject = Subject(1, trials, {}, np.zeros((10, 2), np.float32), shared, "memory")
    test = TestSet.of(subject, stimuli([(str(k),) for k in range(10)], shared), {}, pictures)
    assert test.images.tolist() == [1, 3, 6, 7, 9] and test.shown.tolist() == expected
    assert test.training.tolist() == [0, 2, 4, 5, 8] and test.captions == [(str(k),) for k in test.images]
