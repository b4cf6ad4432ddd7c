"""Subjects compared: closed forms of overlap and CKA, planted similarities that are found again, adapters that are lent."""

import dataclasses
from itertools import combinations

import numpy as np
import pytest
import torch
from networks import TINY, V, network_with
from scipy.stats import ortho_group

from mindtuner.config import FingerprintConfig
from mindtuner.model import BrainNetwork
from mindtuner.model.lora import LoRALinear
from mindtuner.simulation.brains import simulate_brain
from mindtuner.simulation.calibration import random_scenes, repeats_of
from mindtuner.simulation.early import early_features
from mindtuner.simulation.semantic import semantic_features
from mindtuner.studies.similarity import _adapters, cka, crossed, hidden, overlap

SUBJECTS, RANK = ("near", "far", "other"), 2
COSINES = {"near": 0.95, "far": 0.6, "other": 0.0}  # with "first", of every direction that its adapters write into


def tuned(name, voxels, seed):
    """A network on the one base, with adapters that were never trained."""
    torch.manual_seed(0)
    network = BrainNetwork(dataclasses.replace(TINY, hidden=24, width=12), {"9": 7}).eval()
    torch.manual_seed(seed)
    network.add_fingerprint(name, voxels, FingerprintConfig(rank=RANK, alpha=2.0))
    return network.eval()


@pytest.fixture(scope="module")
def planted():
    """ "first", and subjects whose updates write into directions at known angles to its own; all with other voxels."""
    rng, networks = np.random.default_rng(0), {"first": tuned("first", V, 10)}
    networks |= {name: tuned(name, V + 3 * k, 20 + k) for k, name in enumerate(SUBJECTS, 1)}
    for parts in zip(*(_adapters(network) for network in networks.values()), strict=True):
        width = len(parts[0][1].B)
        basis = ortho_group.rvs(width, random_state=rng)
        for (_, part), name in zip(parts, networks, strict=True):
            c = COSINES.get(name, 1.0)
            written = c * basis[:, :RANK] + np.sqrt(1 - c**2) * basis[:, RANK : 2 * RANK]
            mixing = rng.standard_normal((RANK, RANK))  # no space changes by it
            part.B.data = torch.from_numpy(written @ mixing).float()
    return networks


def test_planted_angles_are_found_whatever_the_voxels(planted):
    for name, cosine in COSINES.items():
        found, chance = overlap(planted["first"], planted[name])
        assert found == pytest.approx(cosine**2, abs=1e-5)
        assert found == pytest.approx(overlap(planted[name], planted["first"])[0], abs=1e-9)
        widths = [len(part.B) for _, part in _adapters(planted["first"])]
        assert chance == pytest.approx(np.mean([RANK / width for width in widths]))
    assert overlap(planted["first"], planted["first"])[0] == pytest.approx(1)


def test_random_directions_overlap_by_chance():
    found = []
    for seed in range(12):
        a, b = tuned("a", 20, 2 * seed), tuned("b", 25, 2 * seed + 1)
        for network in (a, b):
            for _, part in _adapters(network):
                part.B.data.normal_()
        found.append(overlap(a, b))
    assert np.mean([o for o, _ in found]) == pytest.approx(found[0][1], abs=0.03)


def test_cka_of_known_features():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((300, 20))
    assert cka(x, 3 * x @ ortho_group.rvs(20, random_state=0) + 5) == pytest.approx(1)
    assert abs(cka(x, rng.standard_normal((300, 500)))) < 0.02  # more features than images
    for share in (0.2, 0.5, 0.8):  # y = sqrt(s) x + sqrt(1 - s) noise: of isotropic features CKA is that of covariances
        y = np.sqrt(share) * x + np.sqrt(1 - share) * rng.standard_normal(x.shape)
        assert cka(x, y) == pytest.approx(share, abs=0.06)
    with pytest.raises(ValueError, match="the same for all images"):
        cka(x, np.ones((300, 3)))
    with pytest.raises(ValueError, match="of 300 and 299 images"):
        cka(x, x[1:])


def test_a_planted_similarity_of_what_adapters_add_is_found():
    """Subjects in other voxels see the same images alike; two of them share adapters, one has others."""
    rng = np.random.default_rng(3)
    seen, images = rng.standard_normal((40, 24)).astype(np.float32), np.repeat(np.arange(20), 2)
    networks, brains = {}, {}
    for k, (name, lender) in enumerate((("a", None), ("b", "a"), ("c", None))):
        networks[name] = tuned(name, 24 + 6 * k, 40 + k)
        reading = np.linalg.qr(rng.standard_normal((24 + 6 * k, 24)))[0].astype(np.float32)
        brains[name] = seen @ reading.T
        ridge = networks[name].ridges[name]
        ridge.weight.data, ridge.bias.data = torch.from_numpy(reading.T.copy()), torch.zeros(24)
        for (_, part), (_, other) in zip(_adapters(networks[name]), _adapters(networks[lender or name]), strict=True):
            if lender is None:
                part.B.data.normal_(0, 0.03)  # small beside the ridge, as after tuning
                if not isinstance(part, LoRALinear):
                    part.A.data = torch.randn(RANK, 24) @ torch.from_numpy(reading.T.copy())
            else:
                part.B.data = other.B.data.clone()
                part.A.data = (
                    other.A.data
                    if isinstance(part, LoRALinear)
                    else torch.from_numpy(
                        np.linalg.lstsq(brains[name], brains["a"] @ other.A.data.numpy().T, rcond=None)[0].T
                    ).float()
                )
    found = {name: hidden(networks[name], brains[name], images) for name in networks}
    assert np.array_equal(found["a"][0], np.arange(20)) and found["a"][1].shape == (20, 24)
    whole, added = ({n: cka(found["a"][k], found[n][k]) for n in ("b", "c")} for k in (1, 2))
    assert added["b"] == pytest.approx(1, abs=1e-4) and whole["b"] == pytest.approx(1, abs=1e-4)
    assert added["c"] < 0.8 < whole["c"] < 1  # unlike in what is added alone


@pytest.mark.parametrize("seed", [1, 2])
def test_families_of_simulated_subjects_are_told_by_their_betas(seed):
    images, labels = random_scenes(400, seed)
    features = early_features(images), semantic_features(labels)
    betas = []
    for number, group in enumerate((0, 1, 0, 1), 1):
        brain = simulate_brain(number, 800, *features, phi=2.0, seed=seed, group=group)
        betas.append(repeats_of(brain, seed=number)[:300].mean(1))
    alike = {pair: cka(betas[pair[0]], betas[pair[1]]) for pair in combinations(range(4), 2)}
    assert min(alike.pop((0, 2)), alike.pop((1, 3))) > max(alike.values())


def test_what_adapters_add_is_the_whole_less_the_base_with_the_ridge():
    rng = np.random.default_rng(4)
    network, voxels = network_with(), rng.standard_normal((6, V)).astype(np.float32)
    torch.manual_seed(0)
    bare = BrainNetwork(TINY, {"2": 9, "1": V}).eval()
    with torch.no_grad():
        shared = {name.replace(".linear.", "."): value for name, value in network.state_dict().items()}
        bare.load_state_dict({name: shared[name] for name in bare.state_dict() if name in shared}, strict=False)
        x = bare.embed(torch.from_numpy(voxels), "1")
        for block in bare.blocks:
            x = block(x)
    before = network(torch.from_numpy(voxels), "1").backbone_tokens
    _, whole, added = hidden(network, voxels, np.arange(6))
    np.testing.assert_allclose(whole - added, x.numpy(), atol=1e-5)
    assert np.abs(added).max() > 0.01
    assert torch.equal(before, network(torch.from_numpy(voxels), "1").backbone_tokens)  # left as it was


def test_lent_adapters_are_those_of_the_lender_and_skips_are_silent(planted):
    a, b = planted["first"], planted["near"]
    mixed = crossed(a, b)
    rng = np.random.default_rng(5)
    x = torch.from_numpy(rng.standard_normal((4, V))).float()
    features = a.embed(x, "first")
    expected = b.decode_hidden(features, [torch.zeros(4, len(skip.B)) for skip in b.skips]).retrieval_tokens
    assert torch.allclose(mixed(x, "first").retrieval_tokens, expected, atol=1e-5)
    own = crossed(a, a)(x, "first").retrieval_tokens
    assert not torch.allclose(own, expected, atol=1e-3) and not torch.allclose(own, a(x, "first").retrieval_tokens, atol=1e-3)


def test_what_does_not_belong_together_is_refused(planted):
    with pytest.raises(ValueError, match="different bases"):
        other = tuned("x", V, 5)
        other.head.linear.linear.weight.data += 1
        crossed(planted["first"], other)
    with pytest.raises(ValueError, match="expected LoRA or Skip-LoRA on a base"):
        torch.manual_seed(0)
        overlap(planted["first"], BrainNetwork(TINY, {"1": 5}))
    with pytest.raises(ValueError, match="is silent"):
        overlap(planted["first"], tuned("x", V, 5))
    with pytest.raises(ValueError, match="voxels: 3 trials; expected 2"):
        hidden(planted["first"], np.zeros((3, V), np.float32), np.arange(2))
