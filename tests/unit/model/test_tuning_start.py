"""Where tuning starts and what each path may touch: exact starts on both backbones, new blocks, merging, L_skip."""

import copy
import dataclasses
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from mindtuner.config import FingerprintConfig, ModelConfig
from mindtuner.errors import UserError
from mindtuner.model import BrainNetwork
from mindtuner.model.lora import LoRALinear, merge_lora
from mindtuner.training import load_network, save_network
from mindtuner.training.fingerprint import Fingerprint
from mindtuner.training.objectives import l_skip, soft_clip

RESIDUAL = ModelConfig(
    hidden=12,
    blocks=2,
    tokens=3,
    width=8,
    text_width=5,
    backbone_dropout=0.15,
    prior_depth=1,
    prior_heads=2,
    prior_head_dim=4,
    latent_channels=4,
    latent_side=8,
    lowlevel_channels=(8, 4),
    lowlevel_side=2,
    feature_positions=4,
    feature_width=6,
)
AFFINE = dataclasses.replace(RESIDUAL, backbone="affine", blocks=0)
ALL = FingerprintConfig(skip_head=True, new_blocks=2, tune_projector=True)
TOKENS = ("backbone_tokens", "retrieval_tokens")
OUTPUTS = (*TOKENS, "latents", "features")
both = pytest.mark.parametrize("model", [RESIDUAL, AFFINE], ids=["residual", "affine"])


def new_base(model, seed=0):
    torch.manual_seed(seed)
    return BrainNetwork(model, {"2": 9, "5": 11}).eval()


def new_tuned(model, config=ALL, seed=1, awake=False):
    """A base with a fingerprint of 7 voxels; ``awake`` moves every trainable number off its start."""
    network = new_base(model)
    torch.manual_seed(seed)
    network.add_fingerprint("1", 7, config)
    if awake:
        for parameter in network.trainable_parameters():
            parameter.data.add_(0.3 * torch.randn_like(parameter))
    return network


def outputs(network, voxels, subject="1", names=OUTPUTS):
    found = network(voxels, subject)
    return [getattr(found, name) for name in names]


# ---- the start


@both
@pytest.mark.parametrize(
    "config",
    [
        FingerprintConfig(),
        ALL,
        FingerprintConfig(lora=False, skip=False, new_blocks=1),
        FingerprintConfig(skip=False),
        FingerprintConfig(lora=False),
    ],
)
@pytest.mark.parametrize("training", [False, True])
def test_tuning_starts_at_the_base_to_the_bit(model, config, training):
    base, tuned = new_base(model), new_tuned(model, config)
    base.requires_grad_(False)  # torch.matmul picks another kernel, of other rounding, for weights that ask for gradient
    base.ridges["1"] = tuned.ridges["1"]
    voxels, results = torch.randn(4, 7), []
    # In training, new blocks draw dropout of their own, so that of the low-level module behind them comes out otherwise.
    names = TOKENS if training and config.new_blocks else OUTPUTS
    for network in (base, tuned):
        network.train(training)
        torch.manual_seed(3)
        results.append(outputs(network, voxels, names=names))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    tokens = torch.randn(2, 3, 8)
    assert torch.equal(base.projector(tokens), tuned.projector(tokens))


def test_new_blocks_shift_nothing_that_is_drawn_before_them():
    """The same seed gives the same ridge, LoRA and Skip-LoRA with and without them."""
    without = new_tuned(RESIDUAL, dataclasses.replace(ALL, new_blocks=0)).fingerprint_state()
    found = new_tuned(RESIDUAL, ALL).fingerprint_state()
    assert all(torch.equal(found[name], value) for name, value in without.items())
    assert {name.split(".")[0] for name in found.keys() - without.keys()} == {"new_blocks"}


@both
def test_new_blocks_stand_between_backbone_and_heads_and_train_whole(model):
    network = new_tuned(model, FingerprintConfig(lora=False, skip=False, new_blocks=2))
    names = {name for name in network.fingerprint_state() if name.startswith("new_blocks")}
    assert len(names) == 2 * 6 and not network.new_blocks.training
    optimiser = torch.optim.SGD(network.trainable_parameters(), lr=0.1)
    before = {name: network.get_parameter(name).detach().clone() for name in names}
    voxels = torch.randn(6, 7)
    for step in range(2):
        optimiser.zero_grad()
        sum(value.square().mean() for value in outputs(network, voxels)).backward()
        if step == 0:  # behind a zero weight nothing has a gradient yet
            alive = {name for name in names if network.get_parameter(name).grad.any()}
            assert alive == {f"new_blocks.{i}.mlp.3.{kind}" for i in (0, 1) for kind in ("weight", "bias")}
        optimiser.step()
    assert all(not torch.equal(network.get_parameter(name), value) for name, value in before.items())
    x = network.ridges["1"](voxels)
    for block in (*network.blocks, *network.new_blocks):
        x = x + block.mlp(block.norm(x))
    torch.testing.assert_close(outputs(network, voxels)[0].flatten(1), network.head(x))
    torch.testing.assert_close(outputs(network, voxels)[2], network.lowlevel(x)[0])


# ---- the affine backbone


def test_the_affine_backbone_is_affine_and_the_residual_one_is_not():
    for model, holds in ((AFFINE, True), (RESIDUAL, False)):
        network, (a, b) = new_base(model), torch.randn(2, 5, 9)
        tokens = [outputs(network, voxels, "2", TOKENS[:1])[0] for voxels in (a + b, torch.zeros(5, 9), a, b)]
        error = (tokens[0] + tokens[1] - tokens[2] - tokens[3]).abs().max() / tokens[0].abs().max()
        assert (error < 1e-5) == holds and (holds or error > 1e-2)
    ridge, head = new_base(AFFINE).ridges["2"], new_base(AFFINE).head.linear
    voxels = torch.randn(4, 9)
    expected = voxels @ (head.weight @ ridge.weight).T + head.weight @ ridge.bias + head.bias
    torch.testing.assert_close(outputs(new_base(AFFINE), voxels, "2")[0].flatten(1), expected)


def test_on_an_affine_base_lora_sits_on_head_and_projector_and_the_skip_enters_at_x0_and_the_head():
    network = new_tuned(AFFINE, FingerprintConfig(skip_head=True))
    adapted = {name for name, module in network.named_modules() if isinstance(module, LoRALinear)}
    assert adapted == {"head.linear", "retrieval.0.2", "retrieval.1.2", "retrieval.2.2"}
    pairs = network(torch.randn(2, 7), "1").skips
    assert [tuple(skip.shape) for _, skip in pairs] == [(2, 12), (2, 24)]
    assert len(new_tuned(AFFINE, FingerprintConfig()).skips) == 1


# ---- merging


def test_lora_leaves_the_blocks_and_skips_have_a_rank_of_their_own():
    config = FingerprintConfig(rank=4, alpha=8.0, lora_blocks=False, skip_blocks=0, skip_rank=2, skip_alpha=30.0)
    network = new_tuned(RESIDUAL, config)
    lora = {name: part for name, part in network.named_modules() if isinstance(part, LoRALinear)}
    assert {name.split(".")[0] for name in lora} == {"head", "retrieval"}
    assert {(part.scale, len(part.A)) for part in lora.values()} == {(2.0, 4)}
    assert [(part.scale, len(part.A)) for part in network.skips] == [(15.0, 2)]
    assert {len(part.A) for part in new_tuned(RESIDUAL, FingerprintConfig(rank=4)).skips} == {4}


@both
def test_merged_lora_is_the_same_function(model):
    tuned = new_tuned(model, dataclasses.replace(ALL, alpha=16.0), awake=True)
    merged = copy.deepcopy(tuned)
    merge_lora(merged)
    assert not any(isinstance(module, LoRALinear) for module in merged.modules())
    assert new_base(model).state_dict().keys() <= merged.state_dict().keys()  # the names of the base are back
    voxels, silent = torch.randn(16, 7), copy.deepcopy(tuned)
    for module in silent.modules():
        if isinstance(module, LoRALinear):
            module.B.data.zero_()
    networks = (tuned, merged, silent)
    for a, b, without in zip(*(outputs(network, voxels, names=TOKENS) for network in networks), strict=True):
        assert (a - b).norm() <= 1e-5 * a.norm() and (a - without).norm() > 1e-2 * a.norm()


# ---- L_skip


def gradients(network, loss):
    """Parameter name -> gradient, for those of all (frozen ones too) that the loss reaches."""
    network.requires_grad_(True)
    names, parameters = zip(*network.named_parameters(), strict=True)
    found = torch.autograd.grad(loss(), parameters, allow_unused=True)
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}


@both
def test_l_skip_is_zero_and_finite_at_the_start_and_reaches_the_skip_path_alone(model):
    network, voxels = new_tuned(model), torch.randn(5, 7)
    start = l_skip(network(voxels, "1").skips)
    assert start.item() == 0
    found = gradients(network, lambda: l_skip(network(voxels, "1").skips))
    skips = {name for name, _ in network.named_parameters() if name.startswith("skips.")}
    assert found.keys() == skips and all(g.isfinite().all() for g in found.values())
    for scale in (1e-6, 1e-3, 1.0):  # plain correlation explodes just off zero
        for skip in network.skips:
            torch.manual_seed(4)
            skip.B.data.copy_(scale * torch.randn_like(skip.B))
        loss = l_skip(network(voxels, "1").skips)
        found = gradients(network, lambda: l_skip(network(voxels, "1").skips))
        assert 0 < loss.item() < 1 and found.keys() == skips
        for name, g in found.items():
            assert g.isfinite().all() and g.norm() < 300 and g.any(), (scale, name)


@both
def test_l_skip_stays_finite_through_a_hundred_steps_of_training(model):
    network = new_tuned(model)
    network.train()
    optimiser = torch.optim.AdamW(network.trainable_parameters(), lr=1e-3)
    voxels, tokens, norms = torch.randn(64, 7), torch.randn(64, 3, 8), []
    skips = [p for skip in network.skips for p in skip.parameters()]
    for step in range(100):
        rows = torch.randint(64, (8,))
        out = network(voxels[rows], "1")
        loss = l_skip(out.skips)
        assert loss.isfinite() and 0 <= loss <= 1
        norms.append(torch.stack([g.norm() for g in torch.autograd.grad(loss, skips, retain_graph=True)]).norm())
        optimiser.zero_grad()
        total = 30 * network.prior.loss(out.backbone_tokens, tokens[rows]) + 1.5 * loss
        (total + soft_clip(out.retrieval_tokens, tokens[rows], 0.0075)).backward()
        assert all(p.grad is None or p.grad.isfinite().all() for p in network.parameters())
        optimiser.step()
    assert torch.stack(norms).isfinite().all() and max(norms) < 300
    assert norms[0] == 0 and min(norms[1:]) > 0
    assert all(skip.B.abs().min() > 0 for skip in network.skips)


# ---- on disk


@both
def test_every_part_of_a_fingerprint_survives(model, tmp_path):
    """A whole network on disk; and a fingerprint taken off, and put on the base again."""
    base, tuned, voxels = new_base(model), new_tuned(model, awake=True), torch.randn(3, 7)
    save_network(tmp_path / "tuned", tuned, {})
    fingerprint = Fingerprint.of(tuned)
    assert {name.split(".")[0] for name in fingerprint.tensors} >= {"ridges", "new_blocks", "skips", "projector"}
    for loaded in (load_network(tmp_path / "tuned"), fingerprint.on(base)):
        assert loaded.fingerprint_config == ALL and loaded.config == model
        assert all(torch.equal(a, b) for a, b in zip(outputs(loaded, voxels), outputs(tuned, voxels), strict=True))
        assert torch.equal(loaded.projector.matrix.weight, tuned.projector.matrix.weight)


def test_files_from_before_there_was_a_choice_of_backbone_are_residual(tmp_path):
    tuned, path = new_tuned(RESIDUAL, FingerprintConfig()), tmp_path / "old"
    save_network(path, tuned, {})
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["mindtuner"])
    del header["checksum"], header["model"]["backbone"], header["fingerprint"]["config"]["new_blocks"]
    del header["fingerprint"]["config"]["tune_projector"]
    save_file(load_file(path), path, metadata={"mindtuner": json.dumps(header)})
    loaded, voxels = load_network(path), torch.randn(3, 7)
    assert loaded.config == RESIDUAL
    assert all(torch.equal(a, b) for a, b in zip(outputs(loaded, voxels), outputs(tuned, voxels), strict=True))


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"backbone": "linear"}, "backbone is 'linear'; expected residual or affine"),
        ({"backbone": "affine"}, "blocks is 2; expected 0"),
    ],
)
def test_a_header_that_contradicts_itself_is_refused(tmp_path, wrong, message):
    path = tmp_path / "wrong.safetensors"
    save_network(path, new_base(RESIDUAL), {})
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["mindtuner"])
    del header["checksum"]  # damage would be told first
    header["model"].update(wrong)
    save_file(load_file(path), path, metadata={"mindtuner": json.dumps(header)})
    with pytest.raises(UserError, match=f"wrong.safetensors: .*{message}"):
        load_network(path)
