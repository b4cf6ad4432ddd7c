"""Words recognised in pictures and named in captions: against sets of words, against refitting, where truth is planted."""

import numpy as np
import pytest
import torch

from mindtuner.errors import UserError
from mindtuner.evaluation.scores import objects
from mindtuner.evaluation.scores.features import KeptFeatures
from mindtuner.evaluation.scores.images import score_images
from mindtuner.evaluation.scores.networks import Network
from mindtuner.evaluation.scores.objects import (
    ClipWords,
    Probe,
    Recognition,
    best_threshold,
    enough,
    f1,
    named_block,
    share_found,
    top,
)
from mindtuner.evaluation.scores.preparation import Choices
from mindtuner.evaluation.statistics import random_pairs
from mindtuner.evaluation.vocabulary import Vocabulary

N, F, K = 40, 12, 5


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def words(row):
    return set(np.flatnonzero(row))


def test_shares_are_those_of_sets_of_words(rng):
    likely, shown = rng.normal(size=(30, K)), rng.random((30, K)) < 0.3
    found = top(likely, shown.sum(1))
    share, harmonic = share_found(found, shown), f1(likely > 0, shown)
    for k in range(30):
        true, picked = words(shown[k]), words(likely[k] > 0)
        assert words(found[k]) == set(sorted(range(K), key=lambda word: -likely[k, word])[: len(true)])
        if not true:
            assert np.isnan(share[k]) and np.isnan(harmonic[k])
            continue
        assert share[k] == pytest.approx(len(true & words(found[k])) / len(true))
        assert harmonic[k] == pytest.approx(2 * len(true & picked) / (len(true) + len(picked)))


def test_what_is_as_likely_is_taken_in_order():
    assert top(np.zeros((2, 4)), np.array([2, 0])).tolist() == [[True, True, False, False], [False] * 4]


@pytest.mark.parametrize("groups", [None, (4, 8)])
def test_the_probe_is_ridge_regression_and_leaves_images_out_in_closed_form(rng, groups):
    features, named = rng.normal(3, 2, (N, F)), rng.random((N, K)) < 0.3
    probe = Probe.fit(features, named, groups)
    assert probe.alpha in objects.ALPHAS
    x = np.c_[np.ones(N), (features - features.mean(0)) * probe.scale]  # the constant is not penalised
    np.testing.assert_allclose(
        (x[:, 1:] ** 2).sum(0), np.repeat(N / F, F) if groups is None else np.repeat([N / 8, N / 16], groups)
    )
    penalty = probe.alpha * np.diag([0.0, *np.ones(F)])
    solution = np.linalg.solve(x.T @ x + penalty, x.T @ named)
    np.testing.assert_allclose(probe(features), x @ solution, atol=1e-9)
    for k in range(0, N, 7):
        some = np.arange(N) != k
        without = np.linalg.solve(x[some].T @ x[some] + penalty, x[some].T @ named[some])
        np.testing.assert_allclose(probe.left_out[k], x[k] @ without, atol=1e-9)


def test_the_penalty_is_the_one_that_predicts_best(rng):
    """Where features say nothing of the words the largest does, where they say all a small one."""
    features = rng.normal(size=(200, F))
    assert Probe.fit(features, rng.random((200, K)) < 0.3).alpha == objects.ALPHAS[-1]
    assert Probe.fit(features, features[:, :K] + 3).alpha == objects.ALPHAS[0]


def test_a_constant_feature_says_nothing(rng):
    features, named = rng.normal(size=(N, F)), rng.random((N, K)) < 0.3
    more = np.c_[features, np.full(N, 7.0)]
    shifted = np.c_[features, np.full(N, 9.0)]
    probe = Probe.fit(more, named)
    np.testing.assert_array_equal(probe(more), probe(shifted))


def test_bad_features_are_refused(rng):
    with pytest.raises(UserError, match="features: holds NaN"):
        Probe.fit(np.full((3, 2), np.nan), np.ones((3, 1), bool))
    with pytest.raises(UserError, match="features: 3 training images, 4 with words; expected as many"):
        Probe.fit(np.ones((3, 2)), np.ones((4, 1), bool))


def test_the_threshold_is_the_best_of_all(rng):
    shown = rng.random((50, K)) < 0.4
    likely = 0.6 * shown + rng.normal(0.2, 0.2, (50, K))
    every = [np.nanmean(f1(likely > level, shown)) for level in objects.THRESHOLDS]
    assert np.nanmean(f1(likely > best_threshold(likely, shown), shown)) == max(every)


def planted(rng, images):
    """Features that tell words, and the words by kind; every image shows one place."""
    shown = {"objects": rng.random((images, 20)) < 0.1, "places": np.eye(4, dtype=bool)[rng.integers(4, size=images)]}
    code = np.random.default_rng(1).normal(size=(24, 60))
    return np.concatenate(list(shown.values()), 1) @ code + rng.normal(0, 0.3, (images, 60)), shown


def test_what_is_planted_is_recognised_and_chance_is_that_of_wrong_images(rng):
    features, training = planted(rng, 300)
    pictures, shown = planted(rng, 200)
    recognition = Recognition.of(features, training, shown)
    scores = recognition.scores(recognition.probe(pictures))
    assert list(scores) == ["objects", "objects_f1", "places"]
    assert all(np.nanmean(values) > 0.95 for values in scores.values())
    np.testing.assert_array_equal(np.isnan(scores["objects"]), ~shown["objects"].any(1))
    likely, pairs = recognition.probe(pictures), random_pairs(200, 0)
    chance = recognition.chance(likely, pairs)
    i, j = pairs
    by_hand = [shown["places"][b, likely[a, 20:].argmax()] for a, b in zip(i, j, strict=True)]
    assert chance["places"] == pytest.approx(np.mean(by_hand)) and 0.15 < chance["places"] < 0.35
    assert chance["objects"] < 0.2


def shares_of_words(likely, shown):
    """By sets: of the k words shown, the share among the k likeliest; None of an image that shows none."""
    found = []
    for own, true in zip(likely, shown, strict=True):
        true = words(true)
        picked = set(sorted(range(len(own)), key=lambda word: -own[word])[: len(true)])
        found.append(len(true & picked) / len(true) if true else np.nan)
    return np.array(found)


def seen_by_clip(rng, embedded, shown):
    """Embeddings of pictures that are like each word that they show, and, all of them, rather like the last word."""
    own = shown @ embedded + 3 * embedded[-1] + rng.normal(0, 0.02, (len(shown), embedded.shape[1]))
    return own * rng.uniform(1, 9, (len(shown), 1))  # CLIP's embeddings have some length or other


def test_clip_finds_the_words_that_are_planted_though_one_is_like_every_picture(rng):
    embedded = np.linalg.qr(rng.normal(size=(32, 20)))[0].T * rng.uniform(1, 9, (20, 1))
    directions = embedded / np.linalg.norm(embedded, axis=1, keepdims=True)
    shown = {"objects": rng.random((200, 20)) < 0.1}
    shown["objects"][:, -1] = False  # the hub, which no picture shows
    training = rng.random((300, 20)) < 0.1
    reader = ClipWords.of(embedded, seen_by_clip(rng, directions, training))
    pictures = seen_by_clip(rng, directions, shown["objects"])
    alike = reader(pictures)
    cosines = [[np.dot(x, w) / np.sqrt(np.dot(x, x) * np.dot(w, w)) for w in embedded] for x in pictures[:5]]
    np.testing.assert_allclose(alike[:5] + reader.usual, cosines, atol=1e-12)
    recognition = Recognition.of(pictures, shown, shown, clip=reader)
    nothing = np.zeros((200, 20))  # what the probe says does not matter
    assert "objects_clip" not in recognition.scores(nothing)
    found = recognition.scores(nothing, alike)["objects_clip"]
    np.testing.assert_array_equal(found, shares_of_words(alike, shown["objects"]))
    assert np.nanmean(found) > 0.95 > 0.8 > np.nanmean(shares_of_words(alike + reader.usual, shown["objects"]))
    i, j = random_pairs(200, 0)
    chance = recognition.chance(nothing, (i, j), alike)["objects_clip"]
    assert chance == pytest.approx(np.nanmean(shares_of_words(alike[i], shown["objects"][j]))) and chance < 0.2


def test_only_kinds_with_something_to_tell_are_scored():
    two = np.array([[True, False], [False, True], [False, False]])
    one_image = np.array([[True, True], [False, False], [False, False]])
    assert list(enough({"objects": two, "colours": two[:, :1], "places": one_image})) == ["objects"]


def test_captions_are_scored_by_the_words_they_name():
    vocabulary = Vocabulary.of([["a red dog on the beach"], ["a blue cat in the snow"], ["a car"]], fewest=1)
    references = [("a red dog on the beach", "a cat"), ("a car",), (), ("a blue cat in the snow",)]
    captions = ["a blue dog on the beach", "a cat and a dog and a car", "a dog", ""]
    block, arrays = named_block(captions, references, vocabulary, seed=0)
    expected = {
        "objects": [1 / 2, 1, np.nan, 0],
        "colours": [0, np.nan, np.nan, 0],
        "places": [1, np.nan, np.nan, 0],
        "objects_f1": [2 / 3, 2 / 4, np.nan, 0],
    }
    assert set(arrays) == set(expected) and block["missing"] == {}
    for score, values in expected.items():
        np.testing.assert_allclose(arrays[score], values, atol=1e-6)
        own = block["scores"][score]
        assert own["mean"] == pytest.approx(np.nanmean(values)) and own["ci95"][0] <= own["mean"] <= own["ci95"][1]
    own_words, their_words = ([{"cat", "dog"}, {"car"}, set(), {"cat"}], [{"dog"}, {"cat", "dog", "car"}, {"dog"}, set()])
    drawn = [
        len(own_words[b] & their_words[a]) / len(own_words[b])
        for a, b in zip(*random_pairs(4, 0), strict=True)
        if own_words[b]
    ]
    assert block["scores"]["objects"]["chance"] == pytest.approx(np.mean(drawn))


def test_captions_that_name_nothing_known_leave_the_scores_out_by_name():
    vocabulary = Vocabulary.of([["a dog"], ["a cat"]], fewest=1)
    block, arrays = named_block(["a dog", "a cat"], [("a cat",), ("a dog",)], vocabulary, seed=0)
    assert list(arrays) == ["objects", "objects_f1"] and list(block["missing"]) == ["colours", "places"]
    assert block["scores"]["objects"]["mean"] == 0 and block["scores"]["objects"]["chance"] == 1


class Halves(torch.nn.Module):
    """Pixels of the upper and of the lower half, as EfficientNet-lite2's two kinds of features."""

    def forward(self, pixels):
        return {"two_way": pixels[:, :, :2], "places": pixels[:, :, 2:]}


class Whole(torch.nn.Module):
    """All pixels, as CLIP's embedding."""

    looked = 0

    def forward(self, pixels):
        Whole.looked += len(pixels)
        return {"clip": pixels}


@pytest.mark.parametrize("by_clip", [False, True])
def test_one_pass_recognises_in_every_set_and_gives_chance_of_those_asked_for(rng, monkeypatch, by_clip):
    monkeypatch.setattr(Whole, "looked", 0)
    networks = [
        Network(module.__name__, "", 4, (0.0,) * 3, (1.0,) * 3, {score: ""}, module, "none")
        for module, score in ((Halves, "two_way"), (Whole, "clip"))
    ]
    images = rng.random((60, 3, 4, 4)).astype(np.float32)
    features = np.concatenate([images[:, :, 2:].reshape(60, -1), images[:, :, :2].reshape(60, -1)], 1)
    named = features[:, :6] > 0.7
    clip = ClipWords.of(rng.normal(size=(6, 48)), images[:40].reshape(40, -1)) if by_clip else None
    recognition = Recognition.of(features[:40], {"objects": named[:40]}, {"objects": named[40:]}, clip=clip)
    seen = images[40:].repeat(4, 2).repeat(4, 3)  # large enough for SSIM, and exactly itself when it is reduced again
    sets, choices = {"a": seen[::-1].copy(), "b": seen}, Choices(antialias=False)
    kept = KeptFeatures()
    scores, chance = score_images(seen, sets, networks, choices, ["a"], 2, kept.keep, recognition)
    assert Whole.looked == 3 * 20  # each picture once, whatever is read from what CLIP makes of it
    np.testing.assert_allclose(kept.seen_by_clip, images[40:].reshape(20, -1), atol=1e-6)
    likely, alike = recognition.probe(features[40:]), clip(images[40:].reshape(20, -1)) if clip else None
    back = alike[::-1] if by_clip else None
    for key, said, other in (("a", likely[::-1], back), ("b", likely, alike)):
        assert list(scores[key]) == ["pixcorr", "ssim", "clip", "two_way", "objects", "objects_f1"] + by_clip * [
            "objects_clip"
        ]
        for score, values in recognition.scores(said, other).items():
            np.testing.assert_allclose(scores[key][score], values, atol=1e-6)
    assert np.nanmean(scores["b"]["objects"]) > np.nanmean(scores["a"]["objects"])
    assert set(chance) == {"a"}
    for score, value in recognition.chance(likely[::-1], random_pairs(20, 2), back).items():
        assert chance["a"][score] == pytest.approx(value)
