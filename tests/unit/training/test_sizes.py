"""Counts and memory of a config: against the papers' numbers, hand calculation, and what torch's allocator really takes."""

import dataclasses

import numpy as np
import pytest
import torch
import yaml
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile

from mindtuner.cli import main
from mindtuner.config import FingerprintConfig, as_dict, load_config
from mindtuner.model import BrainNetwork
from mindtuner.training import sizes
from mindtuner.training.batches import Batch
from mindtuner.training.loop import compute_losses, loss_weight

VOXELS = {"subj02": 500, "subj03": 600}
DEMO = load_config("demo")
SMALL = dataclasses.replace(
    DEMO,
    model=dataclasses.replace(DEMO.model, hidden=256, blocks=2, prior_depth=1),
    fingerprint=FingerprintConfig(tune_projector=True),
    pretrain=dataclasses.replace(DEMO.pretrain, batch_per_subject=6, head_trials=8),
    tune=dataclasses.replace(DEMO.tune, batch_per_subject=9, head_trials=6),
)


def parts_of(config, n_voxels=15_724, voxels=VOXELS):
    return sizes.count_parts(sizes.build_base(config, voxels), sizes.build_tuned(config, voxels, "subj01", n_voxels))


def test_tuning_subject_1_at_paper_size_trains_71_377_120_numbers():
    paper = load_config("paper")
    found = {part.name: part.tuned for part in parts_of(paper)}
    skips = {f"skips.{i}, at {'x0' if i == 0 else f'block {i}'}": 158_560 for i in range(5)}
    assert found == {
        "ridges, 2 pretrained": 0,
        "ridge, new subject": 64_409_600,
        "blocks, 4": 524_288,
        "head": 3_440_640,
        "retrieval": 79_872,
        "prior": 0,
        "lowlevel": 0,
        "projector": 2_129_920,
        **skips,
    }
    assert sum(found.values()) == 71_377_120
    with_head = dataclasses.replace(paper, fingerprint=dataclasses.replace(paper.fingerprint, skip_head=True))
    found = {part.name: part.tuned for part in parts_of(with_head)}
    assert found["skips.5, at head"] == 3_533_664 and sum(found.values()) == 74_910_784
    full = sizes.build_tuned(paper, VOXELS, "subj01", 15_724, "full_finetune")
    assert sizes.count_trained(full) == 2_227_294_844 - 40  # 40 dead numbers of the published code, see docs/model.md


@pytest.mark.parametrize("change", [{}, {"backbone": "affine", "blocks": 0}])
def test_the_table_leaves_nothing_out(change):
    config = dataclasses.replace(
        SMALL,
        model=dataclasses.replace(SMALL.model, **change),
        fingerprint=FingerprintConfig(new_blocks=2, skip_head=True, rank=3),
    )
    parts = parts_of(config, 40)
    base, tuned = sizes.build_base(config, VOXELS), sizes.build_tuned(config, VOXELS, "subj01", 40)
    assert sum(part.base for part in parts) == sum(p.numel() for p in base.parameters())
    learned = {*tuned.trainable_parameters(), *tuned.ridges["subj01"].parameters()}  # a solved ridge does not train
    assert sum(part.tuned for part in parts) == sum(p.numel() for p in learned)
    assert len({part.name for part in parts}) == len(parts)
    assert any(part.name.startswith("blocks") for part in parts) == (not change)


def test_peak_memory_by_hand():
    module = torch.nn.Linear(10, 10, device="meta")
    with torch.no_grad(), sizes.PeakMemory(module) as memory:
        x = torch.empty(100, 10, device="meta")  # 4,000 bytes
        y = module(x)  # 4,000 more
        del x
        z = y.view(10, 100) + 1  # y stays, and 4,000 more; the view is nothing new
        assert memory.now == 8_000
        del y, z
        module.weight.add_(1).t()
        assert memory.now == 0
    assert memory.peak == 8_000


@pytest.mark.parametrize("phase", ["pretrain", "tune"])
def test_training_memory_is_what_the_allocator_takes(phase, monkeypatch):
    """Two real steps on the CPU, with every allocation written down by torch's profiler.

    A tuning step leaves samples without a brain out of the prior, as many as it draws; the estimate is of the largest step,
    which leaves none out.
    """
    monkeypatch.setattr("mindtuner.model.prior.NULL_PROBABILITY", 0.0)
    fit = getattr(SMALL, phase)
    voxels = VOXELS if phase == "pretrain" else {"subj01": 700}
    networks = []
    for place in ("meta", "cpu"):
        with torch.device(place):
            network = BrainNetwork(SMALL.model, VOXELS)
            if phase == "tune":
                network.add_fingerprint("subj01", 700, SMALL.fingerprint)
        networks.append(network)
    found, network = sizes.training_memory(networks[0], voxels, fit), networks[1]
    parameters = list(network.parameters())
    assert found.weights == sum(t.numel() * t.element_size() for t in (*parameters, *network.buffers()))
    trains = [p for p in parameters if p.requires_grad]
    assert found.gradients == 4 * sum(p.numel() for p in trains) and found.optimizer == 2 * found.gradients
    assert found.total == found.weights + 3 * found.gradients + found.activations

    n = fit.batch_per_subject * len(voxels)
    every, targets = np.arange(n), sizes._empty_targets(SMALL.model, n)
    with sdpa_kernel(SDPBackend.MATH), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as prof:
        for _ in range(2):
            batch = Batch({name: torch.zeros(fit.batch_per_subject, v) for name, v in voxels.items()}, every)
            losses = compute_losses(
                network, batch, targets, fit, None, every, every[: fit.head_trials], 0.005, torch.device("cpu"), torch.float32
            )  # not what this machine is fastest with
            network.zero_grad(set_to_none=True)
            torch.stack([loss_weight(fit, name) * loss for name, loss in losses.items()]).sum().backward()
    now = peak = 0
    for event in prof.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            peak = max(peak, now)
    assert found.gradients + found.activations == pytest.approx(peak, rel=0.05)


def test_memory_grows_with_the_batch_and_decoding_needs_no_gradients():
    more = dataclasses.replace(SMALL.tune, batch_per_subject=18, head_trials=12)
    a, b = (
        sizes.training_memory(sizes.build_tuned(SMALL, VOXELS, "subj01", 700), {"subj01": 700}, fit)
        for fit in (SMALL.tune, more)
    )
    assert a.weights == b.weights and 1.5 * a.activations < b.activations < 2.5 * a.activations
    decoding = sizes.inference_memory(sizes.build_tuned(SMALL, VOXELS, "subj01", 700), "subj01")
    assert decoding.gradients == decoding.optimizer == 0 and 0 < decoding.activations < a.activations


def test_flops_of_a_step_by_hand():
    """Two for each weight and trial forth; back, two for its gradient, and two for its input's but where that is betas."""
    only_clip = dataclasses.replace(
        SMALL.pretrain, prior_weight=0, lowlevel_weight=0, regression_weight=0, text_weight=0, clip_weight=1.0
    )
    network = sizes.build_base(SMALL, VOXELS)
    model, each = SMALL.model, only_clip.batch_per_subject
    n, tokens = 2 * each, model.tokens * model.width
    ridges = 4 * each * sum(VOXELS.values()) * model.hidden
    blocks = 6 * n * model.blocks * 2 * model.hidden**2
    head, retrieval = 6 * n * model.hidden * tokens, 6 * n * model.tokens * 3 * model.width**2
    contrast = 3 * 2 * n * n * tokens  # predictions by targets, their gradient, targets by targets
    assert sizes.step_flops(network, VOXELS, only_clip) == ridges + blocks + head + retrieval + contrast


def test_steps_are_those_that_training_makes():
    """588 of the demo's pretraining and 224 of its tuning stand in the logs of its runs: 1,350 and 450 training trials."""
    assert (sizes.count_steps(DEMO.pretrain, 1350), sizes.count_steps(DEMO.tune, 450)) == (588, 224)
    assert sizes.count_steps(dataclasses.replace(DEMO.tune, epochs=0.1, least_steps=5), 450) == 5


# ---- the verb


def test_info_prints_the_papers_numbers(capsys):
    assert main(["info", "paper"]) == 0
    out = capsys.readouterr().out
    for number in ("15,724 voxels", "71,377,120", "64,409,600", "2,227,294,804", "134,283,264", "(256, 1664)"):
        assert number in out
    total = next(line for line in out.splitlines() if line.startswith("total"))
    assert total.split() == ["total", "2,577,392,212", "71,377,120"]  # 7 ridges of NSD's 100,671 voxels
    moments = next(line for line in out.splitlines() if line.startswith("AdamW"))
    assert float(moments.split()[-2]) == pytest.approx(8 * 71_377_120 / 2**30, abs=0.006)
    steps, flops, hours = (
        next(line for line in out.splitlines() if line.startswith(word)) for word in ("steps", "GFLOP", "GPU-hours")
    )
    assert steps.split()[1:] == ["450,000", "10,200"]  # 150 epochs of 27,000 trials, 9 a step; of 675 trials, 10 a step
    one = float(flops.split()[-2].replace(",", "")) * 1e9
    assert float(hours.split()[-2]) == pytest.approx(450_000 * one / (0.4 * 989e12) / 3600, abs=0.001)


def test_info_of_other_voxels_and_subjects(capsys):
    assert main(["info", "quick", "--voxels", "100", "--subjects", "1"]) == 0
    out = capsys.readouterr().out
    hidden = load_config("quick").model.hidden
    assert f"{101 * hidden:,}" in out and "ridges, 1 pretrained" in out and "with 100 voxels" in out


@pytest.mark.parametrize(
    "argv, message",
    [
        (["none"], "config 'none': not found; expected one of demo, paper, paper_size, quick"),
        (["none.yaml"], "none.yaml: not found"),
        (["quick", "--voxels", "0"], "--voxels is 0; expected 1 to 100,000,000"),
        (["quick", "--subjects", "8"], "--subjects is 8; expected 1 to 7"),
        (["quick", "--subjects", "0"], "--subjects is 0; expected 1 to 7"),
    ],
)
def test_info_names_what_is_wrong(capsys, argv, message):
    assert main(["info", *argv]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_info_refuses_a_size_that_does_not_divide(capsys, tmp_path):
    raw = as_dict(load_config("paper"))
    raw["model"]["latent_side"] = 32
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(raw))
    assert main(["info", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"mindtuner: {path}: model.latent_side is 32; expected 28 or 56")


def test_what_a_gpu_holds_and_sends():
    """Against the textbook's costs of ring all-reduce, all-gather and reduce-scatter, in round numbers."""
    memory = sizes.Memory(batch=1, weights=800, gradients=400, optimizer=800, activations=7)
    assert sizes.spread(memory, 1, False) == sizes.Spread(1, 2000, 0)
    assert sizes.spread(memory, 8, False) == sizes.Spread(8, 2000, 700)
    assert sizes.spread(memory, 8, True) == sizes.Spread(8, 250, 1750)
