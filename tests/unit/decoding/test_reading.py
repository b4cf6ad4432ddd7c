"""Evidence, sureness and composed phrases, each against something that does not know them."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.sparse import csr_array
from sklearn.linear_model import LogisticRegression, Ridge

from mindtuner.decoding import reading
from mindtuner.decoding.phrases import PhraseBank, is_place, without_colour
from mindtuner.decoding.reading import RECOGNISER_PENALTY, PhraseReader, Recogniser, compose, logistic_regression, sentence
from mindtuner.decoding.words import TextBank, Words
from mindtuner.model.backbone import AdaptiveProjector, Sureness

PHRASES = ["a bird", "a red bird", "a blue bird", "a car", "a blue car", "two dogs", "on the beach", "in the sea"]


@pytest.fixture(scope="module")
def world():
    """Images whose mean token holds what they show, linearly: a bank, tokens and a projector."""
    rng = np.random.default_rng(0)
    shown = (rng.random((400, len(PHRASES))) < 0.3).astype(np.float32)
    directions = rng.normal(size=(len(PHRASES), 16)).astype(np.float32)
    tokens = (shown @ directions)[:, None] + rng.normal(size=(400, 3, 16)).astype(np.float32) / 4
    torch.manual_seed(0)
    bank = PhraseBank(PHRASES, np.eye(len(PHRASES), 24, dtype=np.float32), np.arange(100, 500), csr_array(shown))
    return bank, tokens, AdaptiveProjector(16, 24)


def text_of(projector, tokens):
    with torch.no_grad():
        return projector(torch.from_numpy(tokens)).numpy()


def test_the_readout_finds_what_new_images_show(world):
    bank, tokens, projector = world
    known = PhraseBank(PHRASES, bank.embeddings, bank.images[:300], bank.shown[:300])
    reader = PhraseReader(known, tokens[:300])
    evidence = reader.evidence(text_of(projector, tokens[300:]), projector)
    share = known.shown.toarray().mean(0)
    np.testing.assert_allclose(evidence[7, :, 0], np.log(share / (1 - share)), rtol=1e-5)
    shown = bank.shown[300:].toarray()
    for k in range(len(PHRASES)):
        apart = evidence[shown[:, k] == 1, k, 1].mean() - evidence[shown[:, k] == 0, k, 1].mean()
        assert apart > 1.2  # of 1 / sqrt(.3 * .7) = 2.2 where it were read without fault


def test_another_projector_has_a_readout_of_its_own(world):
    bank, tokens, projector = world
    reader, other = PhraseReader(bank, tokens), AdaptiveProjector(16, 24)
    first = reader.evidence(text_of(projector, tokens[:5]), projector)
    second = reader.evidence(text_of(other, tokens[:5]), other)
    assert not np.allclose(first, second)
    np.testing.assert_array_equal(reader.evidence(text_of(projector, tokens[:5]), projector), first)


def test_probabilities_are_right_as_often_as_they_say(world):
    bank, tokens, projector = world
    rng = np.random.default_rng(1)
    noisy = tokens + 2 * rng.normal(size=(len(tokens), 1, 16)).astype(np.float32)  # brains
    reader = PhraseReader(bank, tokens)
    evidence = reader.evidence(text_of(projector, noisy), projector)
    sureness = reader.learn(evidence[:200], bank.images[:200])
    with torch.no_grad():
        probability = sureness(torch.from_numpy(evidence[200:])).numpy().ravel()
    shown = bank.shown[200:].toarray().ravel()
    for low, high in itertools.pairwise((0, 0.2, 0.4, 0.7, 1)):
        some = (probability >= low) & (probability < high)
        assert some.sum() > 20 and abs(probability[some].mean() - shown[some].mean()) < 0.12
    assert np.log(np.where(shown == 1, probability, 1 - probability)).mean() > -0.56  # -0.61 by the share alone


@pytest.mark.parametrize("seed", range(3))
def test_logistic_regression_against_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(300, 2)) * (1, 5)
    y = (rng.random(300) < 1 / (1 + np.exp(2 - x @ (1.0, 0.3)))).astype(float)
    expected = LogisticRegression(C=1e3, tol=1e-10, max_iter=1000).fit(x, y)
    np.testing.assert_allclose(logistic_regression(x, y), np.r_[expected.intercept_, expected.coef_[0]], atol=1e-3)


def test_logistic_regression_is_finite_where_classes_can_be_told_apart_or_there_is_one():
    x = np.array([[-1.0], [1.0]])
    assert np.isfinite(logistic_regression(x, np.array([0, 1]))).all()
    assert logistic_regression(x, np.array([0, 0]))[0] < -5


# ---- composing


def expected_f1(said, probability):
    """As ``compose`` says, in a plain loop."""
    things = {}
    for k, phrase in enumerate(PHRASES):
        key = phrase if is_place(phrase) else without_colour(phrase) or phrase
        things[key] = max(things.get(key, 0), probability[k])
    own = [things[PHRASES[k] if is_place(PHRASES[k]) else without_colour(PHRASES[k]) or PHRASES[k]] for k in said]
    return 2 * sum(own) / (len(own) + sum(things.values()))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.floats(0.01, 0.99), min_size=len(PHRASES), max_size=len(PHRASES)), st.integers(1, 5))
def test_no_other_phrases_are_better_in_expectation(probability, most):
    [said] = compose(np.array([probability]), PHRASES, most)
    assert 1 <= len(said) <= most
    names = [PHRASES[k] for k in said]
    assert sum(map(is_place, names)) <= 1 and not any(map(is_place, names[:-1]))
    kinds = [without_colour(name) or name for name in names]
    assert len(set(kinds)) == len(kinds)
    own = expected_f1(said, probability)
    plain = [0, 3, 5]  # other colours are the same thing
    for count in range(1, most + 1):
        for other in itertools.combinations([*plain, 6, 7], count):
            if not {6, 7} <= set(other):
                assert expected_f1(other, probability) <= own + 1e-9


@pytest.mark.parametrize(
    ("sure", "said"),
    [
        ({"a bird": 0.9, "a red bird": 0.8, "on the beach": 0.9}, ["a red bird", "on the beach"]),
        ({"a bird": 0.9, "a red bird": 0.1, "a blue bird": 0.1}, ["a bird"]),  # sure of the bird, not of its colour
        ({"on the beach": 0.5, "in the sea": 0.4, "two dogs": 0.6}, ["two dogs", "on the beach"]),  # one place
        ({}, ["a red bird"]),  # nothing is likely, and the likeliest is said
    ],
)
def test_what_a_brain_says(sure, said):
    probability = np.array([[sure.get(phrase, 0.01) for phrase in PHRASES]])
    found = [PHRASES[k] for k in compose(probability, PHRASES)[0]]
    assert found[: len(said)] == said
    assert len(found) == len(said) or not sure


def test_a_thing_whose_plain_phrase_the_bank_lacks_has_its_likeliest_colour():
    phrases = ["a red bird", "a blue bird", "a car", "a red car"]
    assert compose(np.array([[0.9, 0.3, 0.1, 0.0]]), phrases) == [[0]]
    assert compose(np.array([[0.3, 0.9, 0.1, 0.0]]), phrases) == [[1]]


def test_nothing_is_said_where_nothing_is_known():
    assert compose(np.zeros((2, len(PHRASES))), PHRASES) == [[], []]
    assert compose(np.zeros((1, 0)), []) == [[]]


def test_a_sentence_names_each_phrase_once_in_order():
    for count in range(4):
        phrases = [*PHRASES[:count], "on the beach"]
        said = sentence(phrases)
        assert [said.index(phrase) for phrase in phrases] == sorted(said.index(phrase) for phrase in phrases)
        assert said.endswith("on the beach")


# ---- recognising in tokens what is said


def test_things_are_recognised_where_tokens_tell_them(world):
    """Against scikit-learn's ridge, of things by any of their phrases; and the F1 against its definition for sure sets."""
    bank, tokens, _ = world
    found = PhraseReader(bank, tokens).recogniser
    assert sorted(k for own in found.groups for k in own) == list(range(len(PHRASES)))
    named = [{without_colour(PHRASES[k]) or PHRASES[k] for k in own} for own in found.groups]
    assert all(len(names) == 1 for names in named)
    rows = np.asarray(tokens, float).reshape(len(tokens), -1)
    shown = np.stack([bank.shown.toarray()[:, own].max(1) for own in found.groups], 1)
    size = np.square(rows - rows.mean(0)).sum(1).mean()
    other = Ridge(RECOGNISER_PENALTY * size).fit(rows, shown)
    np.testing.assert_allclose(found.weight, other.coef_.T, atol=1e-6)
    np.testing.assert_allclose(found.intercept, other.intercept_, atol=1e-6)


@given(arrays(bool, (4, 6)), arrays(bool, (4, 6)))
def test_agreement_of_sure_sets_is_their_f1(seen, said):
    found = Recogniser(np.eye(6), np.zeros(6), [[k] for k in range(6)], np.eye(6))
    both, count = (seen & said).sum(1), seen.sum(1) + said.sum(1)
    expected = np.divide(2 * both, count, out=np.zeros(4), where=count > 0)
    np.testing.assert_allclose(found.agreement(seen[:, None].astype(float), said.astype(float)), expected, atol=1e-6)


def test_tokens_that_were_told_say_of_things_what_words_say_and_nothing_else(world):
    """By the readout itself, and by how tokens and things vary together over the training images: not at all any more, so
    that no linear readout can do better than guess. What has nothing to do with things stays."""
    bank, tokens, _ = world
    reader = PhraseReader(bank, tokens)
    found, sure = reader.recogniser, np.random.default_rng(0).random((len(tokens), len(PHRASES)))
    things = len(found.moves)
    assert [is_place(PHRASES[own[0]]) for own in found.groups] == [k >= things for k in range(len(found.groups))]
    told = found.told(tokens, sure)
    assert told.dtype == np.float32 and told.shape == tokens.shape
    read = told.reshape(len(told), -1) @ found.weight + found.intercept
    wanted = np.stack([sure[:, own].max(1) for own in found.groups[:things]], 1)
    np.testing.assert_allclose(read[:, :things], wanted, atol=1e-4)
    alike = found.told(tokens, np.repeat(sure[:1], len(tokens), 0)).reshape(len(tokens), -1).astype(float)
    shown = np.stack([bank.shown.toarray()[:, own].max(1) for own in found.groups[:things]], 1)
    covariance = lambda x: (x - x.mean(0)).T @ (shown - shown.mean(0)) / len(x)
    before = np.abs(covariance(np.asarray(tokens, float).reshape(len(tokens), -1))).max()
    assert np.abs(covariance(alike)).max() < 1e-4 * before
    bare = found.without_things(tokens - tokens.mean(0)).reshape(len(tokens), -1).astype(float)
    np.testing.assert_allclose(bare @ found.weight[:, :things], 0, atol=1e-4)
    np.testing.assert_allclose(bare - bare.mean(0), alike - alike.mean(0), atol=1e-4)  # the rest is the rest
    moved = (told - tokens).reshape(len(tokens), -1)
    assert np.linalg.matrix_rank(moved, tol=1e-3) == things < min(moved.shape)


def test_of_many_things_the_most_common_alone_are_taken_out(world, monkeypatch):
    bank, tokens, _ = world
    monkeypatch.setattr(reading, "TOLD", 2)
    found = PhraseReader(bank, tokens).recogniser
    counts = [bank.counts[own].max() for own in found.groups if not is_place(PHRASES[own[0]])]
    assert len(found.moves) == 2 < len(counts) and min(counts[:2]) >= max(counts[2:])
    told = found.told(tokens, np.ones((len(tokens), len(PHRASES)))).reshape(len(tokens), -1)
    np.testing.assert_allclose((told @ found.weight + found.intercept)[:, :2], 1, atol=1e-4)


# ---- words


def test_words_of_phrases_and_of_whole_captions(world):
    bank, tokens, projector = world
    reader, text = PhraseReader(bank, tokens), text_of(projector, tokens[:3])
    sureness = Sureness(2)
    sureness.coefficients.copy_(torch.tensor([-1.0, 0.5, 3.0]))
    captions = TextBank(["a cat"], np.ones((1, 24), np.float32), 0)
    words = Words(text, captions, reader.probabilities(text, projector, sureness), reader)
    vectors, there = words.phrase_embeddings
    assert vectors.dtype == np.float32 and vectors.shape[:2] == there.shape
    for k, phrases in enumerate(words.phrases):
        assert there[k].sum() == len(phrases) == len(words.said[k])
        for phrase, vector in zip(phrases, vectors[k], strict=False):
            np.testing.assert_array_equal(vector, bank.embeddings[PHRASES.index(phrase)])
        assert not vectors[k, len(phrases) :].any()
        assert words.prompts[k] == sentence(phrases)
        assert all(0 < sure < 1 for _, sure in words.said[k])
    assert words.captions == ["a cat"] * 3
    assert words.rows(np.array([2, 0])).phrases == [words.phrases[2], words.phrases[0]]
    assert words.rows(slice(1, 3)).prompts == words.prompts[1:]
    shown = tokens[:3].astype(np.float32)
    np.testing.assert_array_equal(words.agreement(shown), reader.recogniser.agreement(shown, words.probabilities))
    assert words.rows(slice(1, 3)).agreement(shown[1:]) == pytest.approx(words.agreement(shown)[1:])
    np.testing.assert_array_equal(words.told(shown), reader.recogniser.told(shown, words.probabilities))
    whole = Words(text, captions)
    np.testing.assert_array_equal(words.without_things(shown), reader.recogniser.without_things(shown))
    assert whole.told(shown) is shown is whole.without_things(shown)
    assert whole.agreement(shown).tolist() == [0, 0, 0]
    assert whole.prompts == ["a cat"] * 3 and whole.said is None
    assert whole.phrase_embeddings[0].shape == (3, 1, 24) and whole.phrase_embeddings[1].all()
    assert whole.rows(slice(1, 3)).phrases == [["a cat"]] * 2


def test_most_is_what_a_prompt_has_room_for():
    said = compose(np.full((1, len(PHRASES)), 0.99), PHRASES)[0]
    assert len(said) <= reading.MOST_SAID
