"""A small world where every brain is a linear function of the image's tokens, and a training that fits it."""

import dataclasses

import numpy as np
import torch

from mindtuner.config import (
    Config,
    DecodeConfig,
    FingerprintConfig,
    FitConfig,
    ModelConfig,
    PivotConfig,
    SimulateConfig,
)
from mindtuner.data import Dataset, Stimuli, Subject, Trials
from mindtuner.training import (
    Targets,
)

N, TESTED, T, D, TEXT = 120, 40, 4, 16, 12
MODEL = ModelConfig(
    hidden=32,
    blocks=1,
    tokens=T,
    width=D,
    text_width=TEXT,
    backbone_dropout=0.0,
    prior_depth=1,
    prior_heads=2,
    prior_head_dim=32,
    latent_channels=4,
    latent_side=4,
    lowlevel_channels=(4, 4),
    lowlevel_side=2,
    feature_positions=4,
    feature_width=8,
)
FIT = FitConfig(
    epochs=12,
    batch_per_subject=20,
    lr=1e-2,
    weight_decay=1e-2,
    ridge_weight_decay=1e-2,
    warmup=0.1,
    mixco_share=0.33,
    head_trials=16,
    dtype="float32",
)  # on any machine: curves are compared more closely than bfloat16 rounds
SHORT = dataclasses.replace(FIT, epochs=0.5)
CONFIG = Config(
    simulate=SimulateConfig(),
    model=MODEL,
    fingerprint=FingerprintConfig(rank=2, alpha=2.0),
    pretrain=FIT,
    tune=FIT,
    pivot=PivotConfig(epochs=20, batch=40, lr=1e-2, weight_decay=1e-3),
    decode=DecodeConfig(1, 1, 1, 1, 0.5, 1.0, 0),
)
QUICK = dataclasses.replace(CONFIG, pretrain=SHORT, tune=SHORT, pivot=dataclasses.replace(CONFIG.pivot, epochs=1))


class Spy(np.ndarray):
    """Betas that write down which rows were read."""

    seen: set

    def __getitem__(self, rows):
        if isinstance(rows, np.ndarray):
            self.seen.update(rows.tolist())
        return np.asarray(self).__getitem__(rows)


def world(seed=0, n_subjects=4, noise=0.3):
    """Tokens of 8 dimensions, subjects' brains linear in them, with noise of this sd; the first TESTED images are shared."""
    rng = np.random.default_rng(seed)
    factors = rng.standard_normal((N, 8))

    def linear(*shape):
        flat = factors @ rng.standard_normal((8, int(np.prod(shape)))) / np.sqrt(8)
        return flat.reshape(N, *shape).astype(np.float32)

    text = linear(TEXT)
    features = linear(4, 8)
    augmented = features + 0.1 * rng.standard_normal(features.shape).astype(np.float32)
    text /= np.linalg.norm(text, axis=1, keepdims=True)
    targets = Targets(linear(T, D), text, linear(4, 4, 4), features, augmented)
    shared = np.arange(N) < TESTED
    subjects = {}
    for number in range(1, n_subjects + 1):
        stimulus = rng.permutation(np.repeat(np.arange(N), 2))
        repeat = np.array([np.sum(stimulus[:i] == s) for i, s in enumerate(stimulus)])
        trials = Trials(np.arange(2 * N), stimulus, 1 + np.arange(2 * N) // N, repeat, shared[stimulus])
        voxels = 20 + number
        added = noise * rng.standard_normal((2 * N, voxels))
        betas = factors[stimulus] @ rng.standard_normal((8, voxels)) + added
        source = betas.astype(np.float32).view(Spy)
        source.seen = set()
        subjects[number] = Subject(number, trials, {}, source, shared, f"subject {number}")
    images = np.broadcast_to(np.zeros(1, np.float16), (N, 3, 224, 224))
    return Dataset(None, subjects, Stimuli(images, [("a scene",)] * N, shared, "images"), {}), targets


def weights(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@torch.no_grad()
def top1(network, subject, targets):
    """Retrieval of the test image among all test images, and of its text."""
    network.eval()
    trials = subject.test
    out = network(torch.from_numpy(subject.betas(trials.row)), f"subj{subject.number:02d}")
    candidates = torch.nn.functional.normalize(targets.rows("tokens", np.arange(TESTED)).flatten(1), dim=1)
    image = (out.retrieval_tokens.flatten(1) @ candidates.T).argmax(1).numpy() == trials.stimulus
    texts = targets.rows("text", np.arange(TESTED))
    text = (network.projector(out.backbone_tokens) @ texts.T).argmax(1).numpy() == trials.stimulus
    return image.mean(), text.mean()


# Everything that a checkpoint has to hold is in use: dropout, mixing, running average, best weights, part of an epoch.
FULL = dataclasses.replace(
    FIT, epochs=1.5, batch_per_subject=8, head_trials=6, accumulate=2, ema=0.9, patience=9, checkpoint_steps=3
)
SMALL = dataclasses.replace(
    CONFIG,
    model=dataclasses.replace(MODEL, hidden=16, backbone_dropout=0.2),
    tune=FULL,
    pretrain=dataclasses.replace(FULL, epochs=1),
    pivot=dataclasses.replace(CONFIG.pivot, epochs=3),
)
PLAIN = dataclasses.replace(SMALL, tune=dataclasses.replace(FIT, epochs=1, batch_per_subject=16, head_trials=6))
