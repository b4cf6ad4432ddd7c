"""What is taken off image tokens in retrieval: their mean over training images, where it holds much of them."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from linear_world import CONFIG, QUICK, D, T, world
from safetensors import safe_open
from safetensors.torch import save_file

from mindtuner.config import DecodeConfig
from mindtuner.decoding.decoder import Decoder
from mindtuner.evaluation.scores.retrieval import image_retrieval
from mindtuner.training import load_fingerprint, load_network, pretrain, save_fingerprint, save_network, tune
from mindtuner.training.closed_form import SHARED, mean_token

CENTRED = DecodeConfig(1, 1, 1, 1, 0.5, 1.0, 0, retrieval_tokens="centred")


@pytest.fixture(scope="module")
def photographs():
    """The linear world, with tokens that have much in common, as those of photographs have, and unequal lengths."""
    dataset, targets = world()
    common = 6 * np.random.default_rng(5).normal(size=(T, D)).astype(np.float32)
    targets = dataclasses.replace(targets, tokens=targets.tokens + common)
    return dataset, targets, pretrain(dataset.without(subject=1), targets, QUICK, seed=0)


def test_it_is_the_mean_of_training_images_or_nothing(photographs):
    dataset, targets, _ = photographs
    plain = world()[1]
    images = dataset.subject(1).train.stimulus
    for one in (targets, plain):
        rows = one.tokens[np.unique(images)].astype(float)
        share = np.square(rows.mean(0)).sum() / np.square(rows).sum((1, 2)).mean()
        expected = rows.mean(0) if share > SHARED else np.zeros((T, D))
        np.testing.assert_allclose(mean_token(one, images), expected, atol=1e-5)
    assert mean_token(targets, images).any() and not mean_token(plain, images).any()


def test_retrieval_compares_what_images_change(photographs):
    dataset, targets, base = photographs
    subject = dataset.subject(1)
    network = tune(base, subject, targets, QUICK, 0, "ridge")
    betas, shown = subject.betas(subject.test.row), subject.test.stimulus
    said = Decoder(network, "subj01", CENTRED, 0).predict(betas, shown)
    fitted = targets.tokens[np.unique(subject.train.stimulus)].mean(0)
    np.testing.assert_allclose(said.mean_token, fitted, atol=1e-4)
    true = targets.tokens[said.images]
    np.testing.assert_allclose(said.compared(true), true - fitted, atol=1e-4)
    raw, centred = (image_retrieval(said.retrieval_tokens, one).ranks.mean() for one in (true, said.compared(true)))
    assert centred < raw - 0.2
    assert said.rows(np.arange(3)).mean_token is said.mean_token
    assert Decoder(network, "subj01", CONFIG.decode, 0).predict(betas, shown).mean_token is None  # as published


def test_a_control_and_a_file_keep_it_and_older_files_take_off_nothing(photographs, tmp_path):
    dataset, targets, base = photographs
    subject = dataset.subject(1)
    tuned = tune(base, subject, targets, QUICK, 0, "ridge_only")
    whole, part = tmp_path / "whole.safetensors", tmp_path / "part.safetensors"
    save_network(whole, tuned, {})
    save_fingerprint(part, tuned, subject, QUICK)
    for path, read in ((whole, load_network), (part, lambda file: load_fingerprint(file, base))):
        assert torch.equal(read(path).centre.target, tuned.centre.target)
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys() if name != "centre.target"}  # noqa: SIM118
            header = json.loads(file.metadata()["mindtuner"])
        del header["checksum"]
        save_file(tensors, path, {"mindtuner": json.dumps(header)})
        assert not read(path).centre.target.any()
