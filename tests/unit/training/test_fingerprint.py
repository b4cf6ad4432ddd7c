"""A fingerprint apart from its base: its file and card, what it refuses, and several of them on one base."""

import copy
import dataclasses
import datetime
import hashlib

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.utils._python_dispatch import TorchDispatchMode

from mindtuner.config import DecodeConfig, FingerprintConfig, ModelConfig, as_dict, load_config
from mindtuner.data import Subject, Trials
from mindtuner.decoding.decoder import Decoder
from mindtuner.errors import UserError
from mindtuner.model import BrainNetwork
from mindtuner.training import (
    Fingerprint,
    load_fingerprint,
    load_network,
    read_card,
    read_fingerprint,
    save_fingerprint,
    save_network,
)

MODEL = ModelConfig(
    hidden=16,
    blocks=2,
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
DECODE = DecodeConfig(
    pictures=4, prior_steps=5, generator_steps=2, refine_steps=1, refine_start=0.5, guidance=2.0, neighbours=0
)
DEMO = load_config("demo")
# Brains of every kind: all of it, parts of it, a ridge alone, blocks and a projector of their own.
KINDS = {
    1: FingerprintConfig(rank=2, alpha=3.0, skip_head=True),
    2: FingerprintConfig(lora=False, rank=3),
    3: FingerprintConfig(lora=False, skip=False),
    4: FingerprintConfig(rank=1, new_blocks=2, tune_projector=True),
}
VOXELS = {1: 20, 2: 31, 3: 12, 4: 20}


def tuned(base, number):
    """A network as tuning might leave it: every number of the fingerprint has moved."""
    torch.manual_seed(number)
    network = copy.deepcopy(base)
    network.add_fingerprint(f"subj{number:02d}", VOXELS[number], KINDS[number])
    with torch.no_grad():
        for p in network.trainable_parameters():
            p.add_(0.3 * torch.randn_like(p))
    return network.eval()


def person(number, voxels=None, rois=None):
    trials = Trials(np.arange(8), np.arange(8), np.array([1, 1, 1, 2, 2, 2, 2, 2]), np.zeros(8), np.arange(8) > 5)
    voxels = voxels or VOXELS[number]
    betas = np.random.default_rng(number).standard_normal((8, voxels)).astype(np.float32)
    rois = {"early": np.arange(voxels) < 5} if rois is None else rois
    return Subject(number, trials, rois, betas, np.arange(8) > 5, f"betas of {number}")


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(0)
    return BrainNetwork(MODEL, {"subj07": 15}).eval()


@pytest.fixture(scope="module")
def brains(base):
    return {number: tuned(base, number) for number in KINDS}


def state(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ---- the file


@pytest.mark.parametrize("number", KINDS)
def test_the_file_holds_what_is_new_and_gives_the_network_back(base, brains, tmp_path, number):
    path = tmp_path / "fingerprint.safetensors"
    save_fingerprint(path, brains[number], person(number), DEMO)
    with safe_open(path, "pt") as file:
        names = set(file.keys())
    both = names & state(base).keys()
    assert both == ({"projector.matrix.weight"} if KINDS[number].tune_projector else set())
    parts = {name.split(".")[0] for name in names} | {name[-2:] for name in names if name[-2:] in (".A", ".B")}
    kind = KINDS[number]
    assert parts >= {"ridges"} and ("skips" in parts) == kind.skip and ("new_blocks" in parts) == (kind.new_blocks > 0)
    assert ({"blocks", "head", "retrieval"} <= parts) == kind.lora
    before = state(base)
    assert equal(state(load_fingerprint(path, base, person(number))), state(brains[number]))
    assert equal(before, state(base)) and all(p.requires_grad for p in base.parameters())


def test_the_card_tells_a_reader_everything(base, brains, tmp_path):
    path = tmp_path / "fingerprint.safetensors"
    someone = person(4)
    save_fingerprint(path, brains[4], someone, DEMO, {"scores": {"top1": 0.5}, "subject": "a lie", "note": "é"}, "2026-01-31")
    card = read_card(path)
    names = [name for name in base.state_dict() if not name.startswith("projector")]  # the projector is subject 4's own
    digests = sorted(hashlib.sha256(base.state_dict()[name].numpy().tobytes()).hexdigest() for name in names)
    expected = {
        "subject": 4,
        "sessions": 2,
        "trials": 6,
        "voxels": 20,
        "date": "2026-01-31",
        "scores": {"top1": 0.5},
        "note": "é",
        "base": hashlib.sha256("".join(digests).encode()).hexdigest(),
        "config": as_dict(dataclasses.replace(DEMO, fingerprint=KINDS[4])),
        "mask": card["mask"],
    }
    assert card == expected and len(card["mask"]) == 64
    once = path.read_bytes()
    save_fingerprint(path, brains[4], someone, DEMO, {"scores": {"top1": 0.5}, "note": "é"}, "2026-01-31")
    assert path.read_bytes() == once
    save_fingerprint(path, brains[4], someone, DEMO)
    today = datetime.datetime.now(datetime.timezone.utc).date()
    assert datetime.date.fromisoformat(read_card(path)["date"]) in (today, today - datetime.timedelta(1))


def test_what_does_not_belong_together_is_refused(base, brains, tmp_path):
    path = tmp_path / "fingerprint.safetensors"
    save_fingerprint(path, brains[1], person(1), DEMO)
    moved, other_projector = copy.deepcopy(base), copy.deepcopy(base)
    with torch.no_grad():
        moved.head.linear.weight[3, 2] = torch.nextafter(moved.head.linear.weight[3, 2], torch.tensor(9.0))
        other_projector.projector.matrix.weight += 1
    other_mask = person(1, rois={"early": np.arange(20) < 6})
    other_name = person(1, rois={"late": np.arange(20) < 5})
    cases = [
        (lambda: load_fingerprint(path, moved), "belongs to another base; expected the one that subj01"),
        (lambda: load_fingerprint(path, other_projector), "belongs to another base"),
        (lambda: load_fingerprint(path, base, person(1, 21)), "voxels is 20; expected 21, as betas of 1 has"),
        (lambda: load_fingerprint(path, base, person(4)), "subject is subj01; expected subj04"),
        (lambda: load_fingerprint(path, base, other_mask), "mask differs from that of betas of 1"),
        (lambda: load_fingerprint(path, base, other_name), "mask differs from that of betas of 1"),
        (lambda: load_fingerprint(path, brains[2]), "belongs to another base"),
        (lambda: save_fingerprint(path, brains[1], person(2), DEMO), "subject is subj01; expected subj02"),
        (lambda: save_fingerprint(path, brains[1], person(1, 19), DEMO), "voxels is 20; expected 19"),
        (lambda: save_fingerprint(path, base, person(1), DEMO), "holds no fingerprint"),
    ]
    for call, message in cases:
        with pytest.raises(UserError) as caught:
            call()
        text = str(caught.value)
        assert message in text and str(path) in text and "expected" in text and "\n" not in text
    # A subject with a projector of its own does not mind the base's, which it replaces.
    save_fingerprint(path, brains[4], person(4), DEMO)
    assert equal(state(load_fingerprint(path, other_projector)), state(brains[4]))


def test_a_tuned_network_can_be_saved_whole_as_well(brains, tmp_path):
    for number in (1, 4):
        save_network(tmp_path / "whole", brains[number], {})
        assert equal(state(load_network(tmp_path / "whole")), state(brains[number]))


# ---- several fingerprints on one base


@pytest.fixture(scope="module")
def mixture(base, brains, tmp_path_factory):
    """A decoder of four brains from their files, and trials of each in which images come twice."""
    folder = tmp_path_factory.mktemp("fingerprints")
    for number in KINDS:
        save_fingerprint(folder / str(number), brains[number], person(number), DEMO)
    rng = np.random.default_rng(0)
    voxels = {f"p{n}": rng.standard_normal((9 + n, VOXELS[n])).astype(np.float32) for n in KINDS}
    stimulus = {f"p{n}": rng.permutation(np.arange(9 + n) // 2 + 5 * n) for n in KINDS}
    decoder = Decoder(base, {f"p{n}": read_fingerprint(folder / str(n)) for n in KINDS}, DECODE, 3)
    return decoder, voxels, stimulus


FIELDS = ("backbone_tokens", "retrieval_tokens", "latents", "text")


def assert_alike(found, expected):
    np.testing.assert_array_equal(found.images, expected.images)
    for field in FIELDS:
        a, b = getattr(found, field), getattr(expected, field)
        assert a.shape == b.shape and np.abs(a - b).max() <= 1e-5 * np.abs(b).max(), field


@pytest.mark.parametrize("together", [(1, 2, 3, 4), (4, 1), (3, 2), (3,), (2, 4, 3)])
def test_mixed_subjects_are_decoded_as_each_alone(brains, mixture, together):
    decoder, voxels, stimulus = mixture
    names = [f"p{n}" for n in together]
    found = decoder.predict_subjects({name: voxels[name] for name in names}, {name: stimulus[name] for name in names})
    assert list(found) == names
    for n, name in zip(together, names, strict=True):
        alone = Decoder(brains[n], f"subj{n:02d}", DECODE, 3).predict(voxels[name], stimulus[name])
        assert_alike(found[name], alone)
        assert_alike(decoder.predict(voxels[name], stimulus[name], name), alone)
        for other in set(KINDS) - {n}:  # nobody is read with another's fingerprint
            if VOXELS[other] == VOXELS[n]:
                wrong = Decoder(brains[other], f"subj{other:02d}", DECODE, 3).predict(voxels[name], stimulus[name])
                assert np.abs(wrong.retrieval_tokens - alone.retrieval_tokens).max() > 0.1


def test_more_trials_than_go_through_together(brains, mixture):
    decoder, _, _ = mixture
    rng = np.random.default_rng(1)
    voxels = {
        f"p{n}": rng.standard_normal((count, VOXELS[n])).astype(np.float32) for n, count in {1: 500, 2: 30, 4: 520}.items()
    }
    stimulus = {name: np.arange(len(betas)) // 40 for name, betas in voxels.items()}
    found = decoder.predict_subjects(voxels, stimulus)
    for name in voxels:
        n = int(name[1])
        assert_alike(found[name], Decoder(brains[n], f"subj{n:02d}", DECODE, 3).predict(voxels[name], stimulus[name]))


class Uses(TorchDispatchMode):
    """Counts the operations that read each of the given tensors' memory."""

    def __init__(self, tensors):
        super().__init__()
        self.names = {tensor.data_ptr(): name for name, tensor in tensors.items()}
        self.count = dict.fromkeys(tensors, 0)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten.addmm, torch.ops.aten.mm, torch.ops.aten.linear, torch.ops.aten.bmm):
            for argument in args:
                if isinstance(argument, torch.Tensor) and argument.data_ptr() in self.names:
                    self.count[self.names[argument.data_ptr()]] += 1
        return func(*args, **(kwargs or {}))


def test_shared_weights_are_held_and_used_once_for_all(base, mixture):
    decoder, voxels, stimulus = mixture
    shared = {
        name: p
        for name, p in base.named_parameters()
        if p.ndim == 2 and name.startswith(("blocks", "head", "retrieval", "lowlevel.linear"))
    }
    counts = []
    for names in (["p1"], ["p1", "p2", "p4"]):
        with Uses(shared) as uses:
            decoder.predict_subjects({n: voxels[n] for n in names}, {n: stimulus[n] for n in names})
        counts.append(uses.count)
    assert counts[0] == counts[1]
    assert set(counts[0].values()) == {1}


def test_the_base_stays_as_it_was(base, mixture):
    decoder, voxels, stimulus = mixture
    before = state(base)
    decoder.predict_subjects(voxels, stimulus)
    assert equal(before, state(base)) and base.fingerprint_subject is None and all(p.requires_grad for p in base.parameters())


def test_fingerprints_need_no_file(base, brains, mixture):
    _, voxels, stimulus = mixture
    decoder = Decoder(base, {"me": Fingerprint.of(brains[4])}, DECODE, 3)
    alone = Decoder(brains[4], "subj04", DECODE, 3).predict(voxels["p4"], stimulus["p4"])
    assert_alike(decoder.predict(voxels["p4"], stimulus["p4"]), alone)
    with pytest.raises(UserError, match="the network holds no fingerprint; expected"):
        Fingerprint.of(base)
    with pytest.raises(UserError, match="fingerprint of subj01: belongs to another base; expected"):
        Decoder(tuned(base, 2), {"me": Fingerprint.of(brains[1])}, DECODE, 3)


def test_bad_voxels_are_named(brains, mixture):
    decoder, voxels, stimulus = mixture
    good, shown = voxels["p1"], stimulus["p1"]

    def with_value(trial, voxel, value):
        betas = good.copy()
        betas[trial, voxel] = value
        return betas

    alone = Decoder(brains[1], "subj01", DECODE, 3)
    cases = [
        (good[:, 1:], shown, "voxels has shape (10, 19); expected (trials, 20)"),
        (good[0], shown, "voxels has shape (20,); expected (trials, 20)"),
        (good[:0], shown[:0], "voxels has shape (0, 20); expected (trials, 20)"),
        (good, shown[1:], "stimulus has shape (9,); expected (10,)"),
        (with_value(4, 13, np.nan), shown, "voxel 13 is nan in trial 4; expected finite betas"),
        (with_value(2, 0, -np.inf), shown, "voxel 0 is -inf in trial 2; expected finite betas"),
        (with_value(slice(None), 6, 0.5), shown, "voxel 6 is 0.5 in all 10 trials; expected betas that vary"),
    ]
    for betas, images, message in cases:
        for call, name in (
            (lambda b=betas, i=images: alone.predict(b, i), "subj01"),
            (lambda b=betas, i=images: decoder.predict_subjects(voxels | {"p1": b}, stimulus | {"p1": i}), "p1"),
        ):
            with pytest.raises(UserError) as caught:
                call()
            assert str(caught.value).startswith(f"{name}: {message}") and "\n" not in str(caught.value)
    for call in (
        lambda: decoder.predict(good, shown),
        lambda: decoder.predict(good, shown, "p9"),
        lambda: decoder.predict_subjects({"p9": good}, {"p9": shown}),
    ):
        with pytest.raises(UserError, match="subject: is .*; expected one of p1, p2, p3, p4"):
            call()
    with pytest.raises(UserError, match="subj05: the network has no ridge for it; expected one of subj07, subj01"):
        Decoder(brains[1], "subj05", DECODE, 3).predict(good, shown)
