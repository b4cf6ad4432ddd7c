"""The whole network: the paper's parameter counts, the fingerprint's exact start, what trains, what is saved."""

import copy
import dataclasses

import pytest
import torch
import torch.nn.functional as F
from networks import PAPER, TINY

from mindtuner.config import FingerprintConfig, load_config
from mindtuner.model import AdaptiveProjector, BrainNetwork
from mindtuner.model.backbone import ResidualBlock
from mindtuner.model.low_level import LowLevel

SUBJECT_1 = 15_724  # nsdgeneral voxels


@pytest.fixture
def base():
    torch.manual_seed(0)
    return BrainNetwork(TINY, {"2": 9, "5": 11}).eval()


def count(*modules, trainable=False):
    return sum(p.numel() for m in modules for p in m.parameters() if p.requires_grad or not trainable)


def tuned_paper(model=PAPER, **fingerprint):
    with torch.device("meta"):
        network = BrainNetwork(model, {"2": 14_278})
        network.add_fingerprint("1", SUBJECT_1, FingerprintConfig(tune_projector=True, **fingerprint))
    return network


def outputs_equal(a, b):
    names = ("backbone_tokens", "retrieval_tokens", "latents", "features")
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


def test_fingerprint_has_the_papers_parameter_counts():
    network = tuned_paper()
    assert count(network.ridges["1"], trainable=True) == 64_409_600
    assert count(network.blocks, trainable=True) == 524_288
    assert count(network.head, trainable=True) == 3_440_640
    assert count(network.retrieval, trainable=True) == 79_872
    assert count(network.skips[0], trainable=True) == 158_560
    assert count(*network.skips[1:], trainable=True) == 634_240
    assert count(network.projector, trainable=True) == 2_129_920
    assert count(network.prior, network.lowlevel, network.ridges["2"], trainable=True) == 0
    assert sum(p.numel() for p in network.trainable_parameters()) == 71_377_120

    with_head = tuned_paper(skip_head=True)
    assert count(with_head.skips[5]) == 3_533_664
    assert sum(p.numel() for p in with_head.trainable_parameters()) == 74_910_784

    # On an affine base what sits on the blocks falls away, and new blocks come whole.
    affine = dataclasses.replace(PAPER, backbone="affine", blocks=0)
    block = 2 * 4096 + 2 * (4096**2 + 4096)
    assert sum(p.numel() for p in tuned_paper(affine).trainable_parameters()) == 71_377_120 - 524_288 - 634_240
    assert sum(p.numel() for p in tuned_paper(affine, new_blocks=2).trainable_parameters()) == 70_218_592 + 2 * block


def test_full_network_has_mindeye2s_parameter_count():
    with torch.device("meta"):
        network = BrainNetwork(PAPER, {"1": SUBJECT_1})
    # MindEye2's 2,227,294,844 also counts, per block, a sequence MLP of length 1 (LayerNorm 2 + two Linears 4) and
    # 16 rotary frequencies; its projector to text does not exist.
    published = 2_227_294_844 - 4 * 6 - 16
    assert count(network) - count(network.projector) == published

    h, t, d, heads = 4096, 256, 1664, 32 * 52  # each part from the equations
    assert count(network.ridges) == SUBJECT_1 * h + h == 64_409_600
    assert count(network.blocks) == 4 * (2 * h + 2 * (h * h + h)) == 134_283_264
    assert count(network.head) == h * t * d + t * d
    assert count(network.retrieval) == 3 * (2 * d + d * d + d)
    attention = d + d * heads + 2 * d * 52 + 2 * 52 + heads * d + d
    time = (d * 2 * d + 2 * d) + (2 * d * 2 * d + 2 * d) + (2 * d * d + d)
    prior = 6 * (attention + d + 8 * d * d + 4 * d * d) + 32 * 32 + d + d * d + time + 3 * t * d
    assert count(network.prior) == prior
    features = 64 * 512 + 2 * 512 + 512 * 512 + 2 * 512 + 512 * 512 + 512
    assert count(network.lowlevel.linear, network.lowlevel.norm) == h * 64 * 49 + 64 * 49 + 2 * 64
    assert count(network.lowlevel.features) == features


def test_paper_size_runs_on_the_meta_device():
    with torch.device("meta"):
        out = tuned_paper(skip_head=True)(torch.empty(2, SUBJECT_1), "1")
    assert out.backbone_tokens.shape == out.retrieval_tokens.shape == (2, 256, 1664)
    assert out.latents.shape == (2, 4, 28, 28) and out.features.shape == (2, 49, 512)
    assert [tuple(s.shape) for _, s in out.skips] == [(2, 4096)] * 5 + [(2, 425_984)]


@pytest.mark.parametrize("config", [TINY, load_config("demo").model], ids=["tiny", "demo"])
def test_shapes(config):
    network = BrainNetwork(config, {"1": 20})
    out = network(torch.randn(3, 20), "1")
    assert out.backbone_tokens.shape == out.retrieval_tokens.shape == (3, config.tokens, config.width)
    assert out.latents.shape == (3, config.latent_channels, config.latent_side, config.latent_side)
    assert out.features.shape == (3, config.feature_positions, config.feature_width)
    assert out.skips == []
    assert network.projector(out.retrieval_tokens).shape == (3, config.text_width)


@pytest.mark.parametrize("skip_head", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_before_the_first_step_the_tuned_network_is_the_base_with_the_new_ridge(base, skip_head, training):
    tuned = copy.deepcopy(base)
    tuned.add_fingerprint("1", 7, FingerprintConfig(skip_head=skip_head))
    base.requires_grad_(False)  # torch.matmul picks another kernel, of other rounding, for weights that ask for gradient
    base.ridges["1"] = tuned.ridges["1"]
    voxels, results = torch.randn(4, 7), []
    for network in (base, tuned):
        network.train(training)
        torch.manual_seed(3)  # the same dropout in both: it stays on in the frozen backbone
        results.append(network(voxels, "1"))
    assert outputs_equal(*results)
    assert len(results[1].skips) == 3 + skip_head and results[0].skips == []
    if training:
        assert not outputs_equal(tuned(voxels, "1"), results[1])  # dropout is on


def test_skip_outputs_enter_the_stream_at_their_places(base):
    base.add_fingerprint("1", 7, FingerprintConfig(skip_head=True, lora=False))
    for skip in base.skips:
        skip.B.data.normal_()
    voxels = torch.randn(4, 7)
    out = base(voxels, "1")
    x = base.ridges["1"](voxels)
    streams = [x]
    for skip, block in zip(base.skips, base.blocks):
        x = block(x + skip(voxels))
        streams.append(x)
    x = x + base.skips[2](voxels)
    flat = base.head(x)
    streams.append(flat)
    torch.testing.assert_close(out.backbone_tokens.flatten(1), flat + base.skips[3](voxels))
    torch.testing.assert_close(out.latents, base.lowlevel(x)[0])
    for (stream, skip_output), expected, skip in zip(out.skips, streams, base.skips, strict=True):
        torch.testing.assert_close(stream, expected)
        torch.testing.assert_close(skip_output, skip(voxels))


def test_a_training_step_moves_the_fingerprint_and_nothing_else(base):
    base.add_fingerprint("1", 7, FingerprintConfig(skip_head=True))
    before = {name: p.detach().clone() for name, p in base.named_parameters()}
    optimiser = torch.optim.SGD(base.trainable_parameters(), lr=0.1)
    voxels, target = torch.randn(6, 7), torch.randn(6, 3, 8)
    base.train()
    for _ in range(2):  # two steps: the factors behind the zero ones move from the second on
        optimiser.zero_grad()
        out = base(voxels, "1")
        (F.mse_loss(out.retrieval_tokens, target) + base.prior.loss(out.backbone_tokens, target)).backward()
        optimiser.step()
    moved = {name for name, p in base.named_parameters() if not torch.equal(p, before[name])}
    assert moved == set(base.fingerprint_state())
    assert {"ridges.1.weight", "ridges.1.bias", "skips.0.A", "skips.3.B", "head.linear.A"} <= moved
    assert not base.projector.matrix.weight.requires_grad


@pytest.mark.parametrize(
    "config,entries",
    [
        (FingerprintConfig(lora=False, skip=False), 2),
        (FingerprintConfig(lora=False), 2 + 6),
        (FingerprintConfig(skip=False), 2 + 2 * (4 + 1 + 3)),
    ],
)
def test_the_config_decides_what_is_added(base, config, entries):
    base.add_fingerprint("1", 7, config)
    assert len(base.fingerprint_state()) == len(base.trainable_parameters()) == entries


def test_fingerprint_round_trip(base):
    def fresh(seed):
        network = copy.deepcopy(base)
        torch.manual_seed(seed)
        network.add_fingerprint("1", 7, FingerprintConfig(tune_projector=True))
        return network

    assert all(torch.equal(a, b) for a, b in zip(fresh(1).parameters(), fresh(1).parameters()))
    tuned, other, voxels = fresh(1), fresh(2), torch.randn(4, 7)
    for parameter in tuned.trainable_parameters():
        parameter.data.normal_()
    assert not outputs_equal(tuned(voxels, "1"), other(voxels, "1"))
    state = {name: tensor.clone() for name, tensor in tuned.fingerprint_state().items()}
    assert "projector.matrix.weight" in state and "ridges.2.weight" not in state
    other.load_fingerprint(state)
    assert outputs_equal(tuned(voxels, "1"), other(voxels, "1"))
    tokens = torch.randn(2, 3, 8)
    assert torch.equal(tuned.projector(tokens), other.projector(tokens))


def test_a_foreign_fingerprint_is_refused_and_changes_nothing(base):
    base.add_fingerprint("1", 7, FingerprintConfig())
    state = {name: tensor + 1 for name, tensor in base.fingerprint_state().items()}
    before = copy.deepcopy(base.fingerprint_state())
    missing = {name: tensor for name, tensor in state.items() if name != "ridges.1.bias"}
    with pytest.raises(ValueError, match="ridges.1.bias"):
        base.load_fingerprint(missing)
    with pytest.raises(ValueError, match=r"ridges.1.weight has shape \(12, 8\); expected \(12, 7\)"):
        base.load_fingerprint(state | {"ridges.1.weight": torch.zeros(12, 8)})
    assert all(torch.equal(before[name], tensor) for name, tensor in base.fingerprint_state().items())


def test_wrong_subjects_and_voxel_counts_are_refused(base):
    with pytest.raises(ValueError, match="'7' has no ridge; expected one of 2, 5"):
        base(torch.randn(1, 9), "7")
    with pytest.raises(ValueError, match="8 voxels; expected 9"):
        base(torch.randn(1, 8), "2")
    with pytest.raises(ValueError, match="'2' has a ridge already"):
        base.add_fingerprint("2", 9, FingerprintConfig())
    base.requires_grad_(True).add_fingerprint("1", 7, FingerprintConfig())
    with pytest.raises(ValueError, match="holds the fingerprint of '1'"):
        base.add_fingerprint("3", 7, FingerprintConfig())
    with pytest.raises(ValueError, match="the fingerprint is that of '1'"):
        base(torch.randn(1, 9), "2")


def test_joined_embeddings_decode_like_each_subject_alone(base):
    a, b = torch.randn(2, 9), torch.randn(3, 11)
    joined = base.decode_hidden(torch.cat([base.embed(a, "2"), base.embed(b, "5")]))
    torch.testing.assert_close(joined.retrieval_tokens[:2], base(a, "2").retrieval_tokens)
    torch.testing.assert_close(joined.retrieval_tokens[2:], base(b, "5").retrieval_tokens)


def test_every_block_is_alive(base):
    base.train()
    out = base(torch.randn(8, 9), "2")
    out.backbone_tokens.square().mean().backward()
    for block in base.blocks:
        assert all(p.grad.any() for p in block.parameters())
    base.eval()
    x = torch.randn(5, 12)
    for block in base.blocks:  # non-linear: the deviation from an affine map is no rounding error
        middle = (block(x[:1]) + block(x[1:2])) / 2
        assert (block((x[:1] + x[1:2]) / 2) - middle).abs().max() > 1e-3


def test_residual_block_follows_its_equation():
    torch.manual_seed(0)
    block, x = ResidualBlock(6, 0.15).eval(), torch.randn(3, 6)
    normed = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    inner = normed @ block.mlp[0].weight.T + block.mlp[0].bias
    inner = 0.5 * inner * (1 + torch.erf(inner / 2**0.5))
    torch.testing.assert_close(block(x), x + inner @ block.mlp[3].weight.T + block.mlp[3].bias)


def test_adaptive_projector_is_a_normalised_matrix_on_the_mean_token():
    projector, tokens = AdaptiveProjector(8, 5), torch.randn(4, 3, 8)
    mapped = tokens.sum(dim=1) @ projector.matrix.weight.T
    expected = mapped / mapped.square().sum(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close(projector(tokens), expected)
    assert count(projector) == 40


@pytest.mark.parametrize(
    "sizes,field",
    [
        ({"latent_side": 10}, "latent_side"),
        ({"latent_side": 2}, "latent_side"),
        ({"latent_side": 16}, "latent_side"),
        ({"lowlevel_channels": ()}, "lowlevel_channels"),
        ({"lowlevel_channels": (7, 4)}, "lowlevel_channels"),
        ({"feature_positions": 5}, "feature_positions"),
    ],
)
def test_low_level_sizes_that_do_not_fit_are_refused(sizes, field):
    with pytest.raises(ValueError, match=f"{field} is .*expected"):
        LowLevel(dataclasses.replace(TINY, **sizes))


def test_low_level_trains_whole_and_keeps_the_map_in_row_major_order():
    torch.manual_seed(0)
    low = LowLevel(TINY)
    latents, features = low(torch.randn(4, 12))
    (latents.square().mean() + features.square().mean()).backward()
    # attention's key bias moves all scores of a query alike, which softmax does not see
    silent = [n for n, p in low.named_parameters() if not p.grad.any() and not n.endswith("to_k.bias")]
    assert silent == []
    low.eval()
    seen = []
    low.features.register_forward_hook(lambda module, args, out: seen.append(out))
    _, features = low(torch.randn(1, 12))
    torch.testing.assert_close(features[0, 1], seen[0][0, :, 0, 1])
    torch.testing.assert_close(features[0, 2], seen[0][0, :, 1, 0])
