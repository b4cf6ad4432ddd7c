"""Ranks of held-out images: against sorting by hand, and what they hold."""

import numpy as np
import pytest
import torch
from linear_world import CONFIG, QUICK, TESTED, world
from scipy.spatial.distance import cdist

from mindtuner.training import Targets, pretrain, tune
from mindtuner.training import validation as instrument
from mindtuner.training.batches import make_feeds, split_holdout
from mindtuner.training.validation import by_chance, candidates, ranks_of, validate

DIRECTIONS = ("image", "brain", "text")


def some_targets(rng, count=30, doubled=True):
    text = rng.normal(size=(count, 5))
    if doubled:
        text[7] = text[3]  # the same words
        text[9] = 0  # no caption
    rest = np.zeros((count, 1, 1, 1), np.float32)
    return Targets(rng.normal(size=(count, 3, 4)).astype(np.float32), text.astype(np.float32), rest, rest[0], rest[0])


def position(distances, own):
    """1 for the nearest, the middle of those that are as near."""
    return 1 + (distances < distances[own] - 1e-9).sum() + ((np.abs(distances - distances[own]) <= 1e-9).sum() - 1) / 2


@pytest.mark.parametrize("block", [2**25, 40])
def test_ranks_are_those_of_sorting_by_hand(monkeypatch, block):
    monkeypatch.setattr(instrument, "BLOCK", block)
    rng = np.random.default_rng(0)
    targets, pool = some_targets(rng), rng.permutation(np.setdiff1d(np.arange(30), [4, 5]))
    images = np.array([3, 9, 20, 12])
    said, text, others = (rng.normal(size=shape).astype(np.float32) for shape in ((4, 3, 4), (4, 5), (6, 3, 4)))
    tensors = (torch.from_numpy(values) for values in (said, text))
    found = ranks_of(*tensors, images, targets, pool, torch.from_numpy(others))
    flat, brains = targets.tokens.reshape(30, -1), np.concatenate([said, others]).reshape(10, -1)
    to_images, to_brains = cdist(said.reshape(4, -1), flat[pool], "cosine"), cdist(flat[images], brains, "cosine")
    image = [position(row, list(pool).index(own)) for row, own in zip(to_images, images, strict=True)]
    np.testing.assert_allclose(np.expm1(found.log["image"]), image)
    np.testing.assert_allclose(np.expm1(found.log["brain"]), [position(row, k) for k, row in enumerate(to_brains)])
    words = [k for k in pool if k not in (7, 9)]  # said once, and said at all
    to_text = cdist(text, targets.text[words], "cosine")
    expected = [position(to_text[k], words.index(images[k])) for k in (0, 2, 3)]
    np.testing.assert_allclose(np.expm1(found.log["text"]), expected, rtol=1e-5)
    assert found.among == {"image": len(pool), "brain": 10, "text": len(words)}


def test_chance_is_what_random_answers_score():
    rng = np.random.default_rng(1)
    targets, pool = some_targets(rng, 200, doubled=False), np.arange(200)
    tokens, text = torch.randn(200, 3, 4), torch.randn(200, 5)
    found = ranks_of(tokens, text, pool, targets, pool)
    assert set(found.log) == set(DIRECTIONS)
    for direction, values in found.log.items():
        assert values.mean() == pytest.approx(by_chance(found.among[direction]), abs=4 * values.std() / 200**0.5)
    assert set(found.among.values()) == {200}


def test_candidates_are_training_images_and_hold_the_right_ones(monkeypatch):
    targets, shared = some_targets(np.random.default_rng(2)), np.arange(30) % 3 == 0
    images = np.array([4, 8])
    assert candidates(targets, shared, images, 0).tolist() == [k for k in range(30) if k % 3]
    monkeypatch.setattr(instrument, "NUMBERS", 5 * 3 * 4)
    few = candidates(targets, shared, images, 0)
    assert len(few) == 5 and set(images) <= set(few) and not shared[few].any() and (np.diff(few) > 0).all()
    assert (few != candidates(targets, shared, images, 1)).any()


def test_validation_is_far_below_chance_for_a_trained_network_and_at_chance_for_a_shuffled_one():
    dataset, targets = world()
    base = pretrain(dataset.without(subject=1), targets, CONFIG, seed=0)
    subject = dataset.subject(1)
    kept, held = split_holdout({"subj01": subject.train}, 0.2, 0)
    feeds, scores = make_feeds({"subj01": subject}, kept, 0), {}
    for method in ("mindtuner", "shuffled_brain"):
        network = tune(base, subject, targets, CONFIG, 0, method, holdout=0.2)
        scores[method] = validate(network, feeds, held, targets, 0, torch.device("cpu"), torch.float32)
        assert network.training
    own, shuffled = scores["mindtuner"], scores["shuffled_brain"]
    assert own["ranks"] == pytest.approx(np.mean([own[direction] for direction in DIRECTIONS]))
    assert own["ranks"] < 0.5 * own["chance"] and shuffled["ranks"] > 0.8 * shuffled["chance"]
    assert len(np.unique(held["subj01"].stimulus)) == round(0.2 * (len(targets) - TESTED))


def test_where_held_out_images_leave_no_room_they_are_ranked_among_each_other(monkeypatch):
    """No rank is below 1, and what is taken off image tokens is a number."""
    dataset, targets = world()
    base, subject = pretrain(dataset.without(subject=1), targets, QUICK, seed=0), dataset.subject(1)
    kept, held = split_holdout({"subj01": subject.train}, 0.2, 0)
    feeds = make_feeds({"subj01": subject}, kept, 0)
    network = tune(base, subject, targets, QUICK, 0, "mindtuner", holdout=0.2)
    monkeypatch.setattr(instrument, "NUMBERS", 1)
    found = validate(network, feeds, held, targets, 0, torch.device("cpu"), torch.float32)
    assert all(np.log(2) <= found[direction] <= found["chance"] for direction in DIRECTIONS)
    assert found["chance"] == pytest.approx(by_chance(len(np.unique(held["subj01"].stimulus))))
