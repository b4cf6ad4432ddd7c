"""Pretraining and tuning on a small world where every brain is a linear function of the image's tokens."""

import copy
import dataclasses
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from linear_world import CONFIG, FIT, MODEL, QUICK, SHORT, TESTED, D, N, T, same, top1, weights, world

from mindtuner.config import (
    FingerprintConfig,
)
from mindtuner.decoding.decoder import Decoder
from mindtuner.errors import TrainingDiverged, UserError
from mindtuner.model import BrainNetwork
from mindtuner.model.prior import DiffusionPrior
from mindtuner.training import (
    METHODS,
    Targets,
    load_fingerprint,
    load_network,
    loop,
    pretrain,
    read_card,
    save_fingerprint,
    save_network,
    tune,
)
from mindtuner.training.batches import Batch, Feed, batches, make_feeds, split_holdout, steps_per_epoch
from mindtuner.training.fingerprint import share_weights
from mindtuner.training.optimiser import frozen_in, one_cycle, parameter_groups


@pytest.fixture(scope="module")
def trained():
    dataset, targets = world()
    records = []
    base = pretrain(dataset.without(subject=1), targets, CONFIG, seed=0, log=records.append, holdout=0.1)
    return dataset, targets, base, records


@pytest.fixture(scope="module")
def quick():
    dataset, targets = world(1, 3)
    return dataset, targets, pretrain(dataset.without(subject=1), targets, QUICK, seed=0)


def test_a_new_subject_is_read_far_above_chance_and_permuted_brains_are_not(trained):
    dataset, targets, base, _ = trained
    subject = dataset.subject(1).sessions(1)
    before = weights(base)
    records = []
    tuned = tune(base, subject, targets, CONFIG, 0, "mindtuner", records.append)
    shuffled = tune(base, subject, targets, CONFIG, 0, "shuffled_brain")
    assert same(before, weights(base))
    chance = 1 / TESTED
    assert top1(tuned, subject, targets)[0] > 12 * chance
    assert top1(shuffled, subject, targets)[0] < 5 * chance
    assert records[2]["losses"]["clip"] < 0.9 * records[0]["losses"]["clip"]
    assert records[-1]["gradients"]["skip"] > 0 and records[0]["losses"]["skip"] < 0.3


def test_the_log_tells_losses_rates_gradients_and_validation(trained):
    records = [r for r in trained[3] if r["stage"] == "pretrain"]
    assert [r["epoch"] for r in records] == list(range(1, 13))
    first, last = records[0], records[-1]
    assert last["losses"]["prior"] < 0.8 * first["losses"]["prior"]
    assert last["losses"]["lowlevel"] < 0.9 * first["losses"]["lowlevel"]
    assert {"prior", "clip", "lowlevel", "softcont", "regression"} == first["gradients"].keys() == first["losses"].keys()
    assert not records[1]["gradients"]
    assert last["validation"]["ranks"] < 0.7 * last["validation"]["chance"]
    pivot = [r["losses"]["pivot"] for r in trained[3] if r["stage"] == "pivot"]
    assert len(pivot) == 20 and pivot[-1] < 0.5 * pivot[0]


def test_the_pivot_carries_image_tokens_to_text(trained):
    _, targets, base, _ = trained
    with torch.no_grad():
        projected = base.projector(targets.rows("tokens", np.arange(TESTED)))
    right = (projected @ targets.rows("text", np.arange(TESTED)).T).argmax(1) == torch.arange(TESTED)
    assert right.float().mean() > 10 / TESTED


@pytest.mark.parametrize("method", [method for method in METHODS if method != "ridge"])  # see test_token_ridge.py
def test_what_each_method_trains(quick, method):
    dataset, targets, base = quick
    before = weights(base)
    subject = dataset.subject(1).sessions(1)
    subject.source.seen.clear()
    tuned = tune(base, subject, targets, QUICK, 3, method)
    assert same(before, weights(base))
    assert subject.source.seen <= set(subject.train.row.tolist()), "a test trial was read"
    after = {name.replace(".linear.weight", ".weight"): v for name, v in tuned.state_dict().items()}
    kept = {name for name, v in before.items() if name in after and torch.equal(v, after[name])}
    assert {name for name in before if name.startswith("projector")} <= kept
    assert "ridges.subj01.weight" in after
    shared = {name for name in before if name.startswith(("blocks", "head", "retrieval", "prior"))}
    if method in ("full_finetune", "from_scratch"):
        assert "head.linear.weight" not in kept and not any(
            n.startswith("blocks.0") and n in kept and n.endswith("weight") and before[n].ndim == 2 for n in shared
        )
    else:
        unchanged = {n for n in shared if n in after}
        assert unchanged and unchanged <= kept
        if method != "ridge_only":
            grown = {n: v for n, v in tuned.fingerprint_state().items() if n.endswith(".B")}
            assert grown and all(v.abs().sum() > 0 for v in grown.values())


def test_parts_without_a_loss_stay_as_they_are(quick):
    """A log looks at each loss's gradient: the low-level module's has none where nothing before it trains."""
    dataset, targets, base = quick
    fit = dataclasses.replace(SHORT, prior_weight=0.0, clip_weight=0.0)
    network = pretrain(dataset.without(subject=1), targets, dataclasses.replace(QUICK, pretrain=fit), 0)
    trains = {name.split(".")[0] for name, p in network.named_parameters() if p.requires_grad}
    assert trains == {"ridges", "blocks", "head", "lowlevel"}
    alone = dataclasses.replace(SHORT, start="closed_form", train_ridge=False)
    config = dataclasses.replace(QUICK, tune=alone, fingerprint=FingerprintConfig(skip=False, lora_blocks=False))
    records = []
    tune(base, dataset.subject(1), targets, config, 0, log=records.append)
    assert {"lowlevel", "softcont"} <= records[0]["losses"].keys() and "lowlevel" not in records[0]["gradients"]
    none = dict.fromkeys(("prior_weight", "clip_weight", "lowlevel_weight", "regression_weight"), 0.0)
    config = dataclasses.replace(QUICK, tune=dataclasses.replace(SHORT, **none), fingerprint=FingerprintConfig(skip=False))
    with pytest.raises(UserError, match="loss weights: are 0 for all that the network has; expected one above 0"):
        tune(base, dataset.subject(1), targets, config, 0)


def test_frozen_weights_are_held_in_half_as_autocast_sees_them_and_come_back(quick):
    dataset, _, base = quick
    torch.manual_seed(0)
    network = share_weights(base)
    network.add_fingerprint("subj01", dataset.subject(1).n_voxels, QUICK.fingerprint)
    before, voxels = weights(network), torch.from_numpy(dataset.subject(1).betas(np.arange(6)))

    def step():
        with torch.autocast("cpu", torch.bfloat16):
            found = network(voxels, "subj01")
            clean = network.prior(torch.ones(6, T, D), torch.arange(6), found.backbone_tokens)
        loss = sum(x.float().square().sum() for x in (clean, found.retrieval_tokens, found.latents, found.features))
        return loss.detach(), *torch.autograd.grad(loss, network.trainable_parameters(), allow_unused=True)

    expected = step()
    with pytest.raises(ZeroDivisionError), frozen_in(torch.bfloat16, network):
        frozen = [network.head.linear.linear, network.prior.transformer.project, network.lowlevel.decoder.conv_in]
        assert {layer.weight.dtype for layer in frozen} == {torch.bfloat16}
        assert {p.dtype for p in (*network.trainable_parameters(), *network.ridges.parameters())} == {torch.float32}
        assert all(a is b if a is None or b is None else torch.equal(a, b) for a, b in zip(step(), expected, strict=True))
        1 / 0
    assert same(before, weights(network))
    assert network.head.linear.linear.weight.data_ptr() == base.head.linear.weight.data_ptr()
    with frozen_in(torch.float32, network):
        assert same(before, weights(network))


def test_tuning_in_half_precision_leaves_the_base_as_it_was_and_shares_it(quick):
    dataset, targets, base = quick
    before = weights(base)
    config = dataclasses.replace(QUICK, tune=dataclasses.replace(SHORT, dtype="bfloat16"))
    tuned = tune(base, dataset.subject(1), targets, config, 0)
    assert same(before, weights(base))
    kept = tuned.prior.transformer.project.weight
    assert kept.dtype == torch.float32 and kept.data_ptr() == base.prior.transformer.project.weight.data_ptr()
    assert tuned.projector.matrix.weight.data_ptr() != base.projector.matrix.weight.data_ptr()


@pytest.mark.parametrize("lora, skip, head", [(True, False, False), (False, True, True)])
def test_parts_of_the_fingerprint_can_be_left_out(quick, lora, skip, head):
    dataset, targets, base = quick
    config = dataclasses.replace(QUICK, fingerprint=FingerprintConfig(lora, skip, head, rank=2, alpha=2.0))
    names = tune(base, dataset.subject(1), targets, config, 0).fingerprint_state().keys()
    assert any("skips" in n for n in names) == skip
    assert any(n.startswith(("blocks", "head", "retrieval")) for n in names) == lora


def test_new_blocks_and_the_projector_train_where_the_config_says_so(quick, tmp_path):
    dataset, targets, base = quick
    config = dataclasses.replace(QUICK, fingerprint=FingerprintConfig(rank=2, new_blocks=1, tune_projector=True))
    records = []
    tuned = tune(base, dataset.subject(1), targets, config, 0, log=records.append)
    state = tuned.fingerprint_state()
    assert state["new_blocks.0.mlp.3.weight"].any() and state["new_blocks.0.mlp.0.weight"].any()
    assert not torch.equal(state["projector.matrix.weight"], base.projector.matrix.weight)
    assert [record["stage"] for record in records] == ["pivot", "mindtuner"]
    save_fingerprint(tmp_path / "print", tuned, dataset.subject(1), config)
    voxels = torch.from_numpy(dataset.subject(1).betas(np.arange(5)))
    again = load_fingerprint(tmp_path / "print", base)
    assert torch.equal(outputs(again, voxels, "subj01"), outputs(tuned, voxels, "subj01"))
    assert torch.equal(again.projector.matrix.weight, state["projector.matrix.weight"])


def test_the_affine_backbone_trains_and_tunes(quick):
    dataset, targets, _ = quick
    config = dataclasses.replace(QUICK, model=dataclasses.replace(MODEL, backbone="affine", blocks=0))
    base = pretrain(dataset.without(subject=1), targets, config, seed=0)
    names = tune(base, dataset.subject(1), targets, config, 0).fingerprint_state().keys()
    assert {name.split(".")[0] for name in names} == {"ridges", "head", "retrieval", "skips", "centre"}


@pytest.mark.parametrize("without", [("lowlevel",), ("prior",), ("lowlevel", "prior")])
def test_a_base_without_prior_or_low_level_module_tunes_and_decodes(trained, without):
    dataset, targets, base, _ = trained
    seen = dataset.subject(2)
    bare = BrainNetwork(MODEL, {name: ridge.in_features for name, ridge in base.ridges.items()}, without)
    absent = {*without, "expectation"}
    bare.load_state_dict({name: tensor for name, tensor in base.state_dict().items() if name.split(".")[0] not in absent})
    whole, part = (
        Decoder(network, "subj02", CONFIG.decode, 0).predict(seen.betas(seen.test.row), seen.test.stimulus)
        for network in (base, bare)
    )
    assert (whole.retrieval_tokens == part.retrieval_tokens).all() and (whole.text == part.text).all()
    assert (part.latents is None) == ("lowlevel" in without)
    records = []
    for method in METHODS:
        config = CONFIG if method == "mindtuner" else QUICK
        network = tune(
            bare, dataset.subject(1), targets, config, 0, method, records.append, holdout=0.1, prior=DiffusionPrior(MODEL)
        )
        assert network.without == (("lowlevel", "prior", "retrieval") if method == "ridge" else without)
        if method == "mindtuner":
            assert min(top1(network, dataset.subject(1), targets)) > 10 / TESTED
    absent = {"lowlevel": {"lowlevel", "softcont"}, "prior": {"prior"}}
    for record in records:
        assert not set(record["losses"]) & set.union(*(absent[part] for part in without))
        assert ("lowlevel" in record["validation"]) == ("lowlevel" not in without)
    if "prior" in without:
        with pytest.raises(UserError, match="network: has no prior; expected one that has"):
            Decoder(bare, "subj02", CONFIG.decode, 0).image_tokens(part.backbone_tokens, part.images)


def test_the_same_seed_gives_the_same_weights(quick):
    dataset, targets, base = quick
    again = pretrain(dataset.without(subject=1), targets, QUICK, seed=0)
    other = pretrain(dataset.without(subject=1), targets, QUICK, seed=1)
    assert same(weights(base), weights(again)) and not same(weights(base), weights(other))
    first, second, third = (weights(tune(base, dataset.subject(1), targets, QUICK, s)) for s in (5, 5, 6))
    assert same(first, second) and not same(first, third)


def test_pretraining_reads_training_trials_only_and_every_subject_equally(quick, monkeypatch):
    dataset, targets = world(2, 3)
    monkeypatch.setattr("mindtuner.training.batches.IN_MEMORY_BYTES", 0)
    pretrain(dataset, targets, QUICK, seed=0)
    for subject in dataset.subjects.values():
        assert subject.source.seen and subject.source.seen <= set(subject.train.row.tolist())
    feeds = make_feeds(
        {f"subj{n:02d}": s for n, s in dataset.subjects.items()},
        {f"subj{n:02d}": s.train for n, s in dataset.subjects.items()},
        0,
    )
    for batch in batches(feeds, 7, 5):
        assert [v.shape for v in batch.voxels.values()] == [(7, 21), (7, 22), (7, 23)]
        assert (batch.stimulus >= TESTED).all() and batch.stimulus.shape == (21,)


def test_betas_in_memory_and_on_disk_make_the_same_batches():
    dataset, _ = world(3, 1)
    subject = dataset.subject(1)
    held, read = (Feed(subject, subject.train, 4, in_memory) for in_memory in (True, False))
    for feed in (held, read):
        feed.permute_brains(9)
    for _ in range(12):
        (a, ids), (b, other) = held.draw(30), read.draw(30)
        assert torch.equal(a, b) and np.array_equal(ids, other)


def test_what_is_read_ahead_is_still_to_come():
    """A state taken between two batches goes on with the batch after, though its trials have been read already."""
    dataset, targets = world(3, 2)
    subjects = {f"subj{n:02d}": subject for n, subject in dataset.subjects.items()}

    def feeds():
        return make_feeds(subjects, {name: subject.train for name, subject in subjects.items()}, 4)

    plain = feeds()
    expected = [[feed.draw(50) for feed in plain] for _ in range(12)]
    for stop in (0, 1, 7, 11):
        first, then = feeds(), feeds()
        for batch, _ in zip(batches(first, 50, 12, targets, ("tokens", "text")), range(stop), strict=False):
            assert torch.equal(batch.targets["text"], targets.rows("text", batch.stimulus))
            states = [feed.state_dict() for feed in first]
        for feed, state in zip(then, states if stop else [feed.state_dict() for feed in feeds()], strict=True):
            feed.load_state_dict(state)
        for batch, wanted in zip(batches(then, 50, 12 - stop, targets, ("tokens",)), expected[stop:], strict=True):
            assert all(torch.equal(a, b) for a, (b, _) in zip(batch.voxels.values(), wanted, strict=True))
            assert np.array_equal(batch.stimulus, np.concatenate([ids for _, ids in wanted]))
            assert torch.equal(batch.targets["tokens"], targets.rows("tokens", batch.stimulus))


def test_the_next_batch_is_read_while_one_is_used_and_its_error_comes_with_it(monkeypatch):
    dataset, _ = world(3, 1)
    [feed] = make_feeds({"subj01": dataset.subject(1)}, {"subj01": dataset.subject(1).train}, 0)
    read, reading = feed.read, []
    both = threading.Event()

    def noted(picked):
        reading.append(threading.current_thread())
        if len(reading) == 2:
            both.set()
        if len(reading) == 3:
            raise UserError("third")
        return read(picked)

    monkeypatch.setattr(feed, "read", noted)
    source = batches([feed], 5, 4)
    next(source)
    assert both.wait(10) and threading.main_thread() not in reading  # nobody has asked for the second batch yet
    next(source)
    with pytest.raises(UserError, match="third"):
        next(source)


def test_an_epoch_shows_every_trial_once():
    dataset, _ = world(4, 1)
    subject = dataset.subject(1)
    feed = Feed(subject, subject.train, 0, True)
    assert steps_per_epoch([feed], 16) == len(subject.train) // 16
    drawn = np.concatenate([feed.draw(16)[1] for _ in range(len(subject.train) // 16)])
    assert np.array_equal(np.sort(drawn), np.sort(subject.train.stimulus))


def test_permuted_brains_keep_the_trials_and_break_the_pairs():
    dataset, _ = world(5, 1)
    subject = dataset.subject(1)
    feed = Feed(subject, subject.train, 0, True)
    feed.permute_brains(1)
    true = subject.betas(subject.train.row)
    assert np.array_equal(np.sort(feed.betas, axis=0), np.sort(true, axis=0))
    assert (feed.betas == true).all(1).mean() < 0.1
    assert np.array_equal(feed.trials.stimulus, subject.train.stimulus)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 2**31))
def test_partners_stay_within_the_subject_and_mix_its_voxels(sizes, seed):
    m = sizes[0]
    original = {f"s{i}": torch.arange(float(m * 2)).reshape(m, 2) + 1000 * i for i in range(len(sizes))}
    batch = Batch(dict(original), np.zeros(m * len(sizes), int))
    mixing = loop.Mixing(batch, np.random.default_rng(seed), torch.device("cpu"))
    assert (mixing.partner // m == torch.arange(m * len(sizes)) // m).all()
    everything = torch.cat(list(original.values()))
    expected = mixing.lam[:, None] * everything + (1 - mixing.lam[:, None]) * everything[mixing.partner]
    torch.testing.assert_close(torch.cat(list(batch.voxels.values())), expected)
    torch.testing.assert_close(torch.cat(list(batch.voxels.values()))[mixing.whole], everything[mixing.whole])
    assert len(mixing.whole) >= (m - m // 2) * len(sizes)


def test_prior_and_low_level_learn_from_trials_that_are_not_mixed(quick):
    """Their losses must not change when the targets of every other trial do."""
    dataset, targets, base = quick
    feeds = make_feeds(
        {f"subj{n:02d}": dataset.subject(n) for n in (2, 3)}, {f"subj{n:02d}": dataset.subject(n).train for n in (2, 3)}, 0
    )
    [batch] = batches(feeds, 8, 1)
    batch.stimulus = np.arange(TESTED, TESTED + 16)  # no image twice, so that each target can change alone
    mixing = loop.Mixing(batch, np.random.default_rng(0), torch.device("cpu"))
    heads = mixing.whole[:5]
    others = np.setdiff1d(batch.stimulus, batch.stimulus[heads])
    changed = Targets(*(getattr(targets, field.name).copy() for field in dataclasses.fields(targets)))
    for field in dataclasses.fields(changed):
        getattr(changed, field.name)[others] *= -1
    base.eval()  # no dropout: only the prior's noise is random, and it is seeded
    found = []
    for these in (targets, changed):
        torch.manual_seed(0)
        found.append(
            loop.compute_losses(
                base, batch, these, CONFIG.pretrain, mixing, mixing.whole, heads, 0.004, torch.device("cpu"), torch.float32
            )
        )
    assert all(found[0][name] == found[1][name] for name in ("prior", "lowlevel", "softcont"))
    assert found[0]["clip"] != found[1]["clip"]
    # The low-level output stands beside the right targets.
    with torch.no_grad():
        whole = loop.forward(base, batch.voxels, {}, True, torch.device("cpu")).latents[heads]
        backbone = loop.forward(base, batch.voxels, {}, True, torch.device("cpu")).backbone_tokens[mixing.whole]
    expected = (whole - targets.rows("latents", batch.stimulus[heads])).abs().mean()
    torch.testing.assert_close(found[0]["lowlevel"].detach(), expected)
    # The regression sees every unmixed trial, each beside its own image's tokens.
    expected = (backbone - targets.rows("tokens", batch.stimulus[mixing.whole])).square().mean()
    torch.testing.assert_close(found[0]["regression"].detach(), expected)


def test_held_out_images_are_apart_and_the_same_for_everybody():
    dataset, _ = world(6, 2)
    trials = {f"subj{n:02d}": s.train for n, s in dataset.subjects.items()}
    fit, held = split_holdout(trials, 0.1, 3)
    inside = [set(t.stimulus.tolist()) for t in held.values()]
    assert inside[0] == inside[1] and len(inside[0]) == round(0.1 * (N - TESTED)) and min(inside[0]) >= TESTED
    assert not inside[0] & set(fit["subj01"].stimulus.tolist())
    assert len(fit["subj01"]) + len(held["subj01"]) == len(trials["subj01"])
    whole, none = split_holdout(trials, 0.0, 3)
    assert len(whole["subj01"]) == len(trials["subj01"]) and len(none["subj01"]) == 0


@pytest.mark.parametrize("steps, warmup", [(100, 0.1), (57, 0.3), (2000, 0.01)])
def test_one_cycle_is_torchs(steps, warmup):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.02, total_steps=steps, pct_start=warmup, final_div_factor=1000, cycle_momentum=False
    )
    for step in range(steps):
        assert one_cycle(step, steps, 0.02, warmup) == pytest.approx(schedule.get_last_lr()[0], rel=1e-6)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("warmup", [0.0, 0.05, 0.5, 1.0])
def test_one_cycle_of_very_few_steps(steps, warmup):
    assert all(0 < one_cycle(step, steps, 0.02, warmup) <= 0.02 for step in range(steps))


def test_biases_and_gains_are_never_decayed():
    network = BrainNetwork(MODEL, {"subj01": 10})
    config = dataclasses.replace(FIT, ridge_weight_decay=0.3, weight_decay=0.2)
    decay = {id(p): g["weight_decay"] for g in parameter_groups(network, config) for p in g["params"]}
    assert len(decay) == len(list(network.parameters()))
    for module in network.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if isinstance(module, (torch.nn.LayerNorm, torch.nn.GroupNorm)) or name == "bias":
                assert decay[id(parameter)] == 0
    assert decay[id(network.ridges["subj01"].weight)] == 0.3
    assert decay[id(network.projector.matrix.weight)] == 0.2


def test_a_loss_that_is_not_finite_stops_training_by_name(quick):
    dataset, targets, base = quick
    latents = targets.latents.copy()
    latents[TESTED:] = np.nan
    with pytest.raises(TrainingDiverged, match="mindtuner: loss term 'lowlevel' is not finite at step 0"):
        tune(base, dataset.subject(1), dataclasses.replace(targets, latents=latents), QUICK, 0)


def test_bad_input_is_named(quick):
    dataset, targets, base = quick
    subject = dataset.subject(1)
    few = Targets(*(getattr(targets, field.name)[:50] for field in dataclasses.fields(targets)))
    cases = [
        (lambda: tune(base, subject, targets, QUICK, 0, "magic"), "method: 'magic' is unknown"),
        (lambda: tune(base, dataset.subject(2), targets, QUICK, 0), "base: knows subj02 already"),
        (lambda: tune(base, subject, targets, QUICK, 0, holdout=1.5), "holdout: is 1.5"),
        (
            lambda: tune(base, subject, dataclasses.replace(targets, text=targets.text[:, :3]), QUICK, 0),
            "targets: text has shape",
        ),
        (lambda: tune(base, subject, few, QUICK, 0), "but targets hold 50 stimuli"),
        (
            lambda: tune(base, dataclasses.replace(subject, trials=subject.test), targets, QUICK, 0),
            "subj01: trials hold no training trial",
        ),
        (lambda: pretrain(dataclasses.replace(dataset, subjects={}), targets, QUICK, 0), "dataset: holds no subject"),
    ]
    for call, message in cases:
        with pytest.raises(UserError) as caught:
            call()
        text = str(caught.value)
        assert message in text and "expected" in text and "\n" not in text


def test_a_leak_is_refused(quick):
    dataset, targets, base = quick
    subject = dataset.subject(1)
    leaky = dataclasses.replace(subject.trials, is_test=np.zeros(len(subject.trials), bool))
    with pytest.raises(UserError, match="shows a shared test image in training"):
        tune(base, dataclasses.replace(subject, trials=leaky), targets, QUICK, 0)


def outputs(network, voxels, name):
    network.eval()
    with torch.no_grad():
        return network(voxels, name).retrieval_tokens


def test_networks_and_fingerprints_survive_the_disk(quick, tmp_path):
    dataset, targets, base = quick
    voxels = torch.from_numpy(dataset.subject(1).betas(np.arange(5)))
    tuned = tune(base, dataset.subject(1), targets, QUICK, 0)
    save_network(tmp_path / "base.safetensors", base, {"seed": 0})
    save_network(tmp_path / "tuned.safetensors", tuned, {"seed": 0})
    save_fingerprint(tmp_path / "print.safetensors", tuned, dataset.subject(1), QUICK, {"note": "é"})
    random = torch.random.get_rng_state()
    again = load_network(tmp_path / "base.safetensors")
    assert same(weights(base), weights(again))
    for loaded in (load_network(tmp_path / "tuned.safetensors"), load_fingerprint(tmp_path / "print.safetensors", again)):
        assert torch.equal(outputs(loaded, voxels, "subj01"), outputs(tuned, voxels, "subj01"))
    assert torch.equal(random, torch.random.get_rng_state())
    assert read_card(tmp_path / "print.safetensors")["note"] == "é"
    assert {p.stem for p in tmp_path.iterdir()} == {"base", "print", "tuned"}  # and no half-written one
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("print", "tuned")]
    assert sizes[0] < 0.5 * sizes[1]
    changed = tune(base, dataset.subject(1), targets, QUICK, 0, "full_finetune")
    save_fingerprint(tmp_path / "full", changed, dataset.subject(1), QUICK)
    with pytest.raises(UserError, match="belongs to another base"):
        load_fingerprint(tmp_path / "full", base)


def test_damaged_files_are_the_users_error(quick, tmp_path):
    dataset, _, base = quick
    whole = tmp_path / "base.safetensors"
    save_network(whole, base, {})
    for name, content in {
        "cut": whole.read_bytes()[:-100],
        "short": whole.read_bytes()[:40],
        "empty": b"",
        "text": b"not weights at all, but long enough",
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: cannot be read"):
            load_network(tmp_path / name)
    with pytest.raises(UserError, match="absent: not found"):
        load_network(tmp_path / "absent")
    with pytest.raises(UserError, match="kind is 'network'; expected 'fingerprint'"):
        load_fingerprint(whole, base)
    with pytest.raises(UserError, match="holds no fingerprint"):
        save_fingerprint(tmp_path / "none", base, dataset.subject(1), QUICK)
    torch.save({}, tmp_path / "pickle")
    with pytest.raises(UserError):
        load_network(tmp_path / "pickle")


def test_a_flipped_bit_anywhere_in_a_file_is_refused(quick, tmp_path):
    """Of weights, of their names and shapes, and of what the header says; but for the word before the checksum."""
    _, _, base = quick
    path = tmp_path / "base.safetensors"
    save_network(path, base, {"seed": 3})
    data, rng = path.read_bytes(), np.random.default_rng(0)
    length = 8 + int.from_bytes(data[:8], "little")
    assert read_card(path) == {"seed": 3}
    word = range(data.index(b"checksum"), data.index(b"checksum") + 8)
    for at in [*rng.integers(8, length, 30).tolist(), *rng.integers(length, len(data), 10).tolist()]:
        if at in word:
            continue
        flipped = bytearray(data)
        flipped[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(bytes(flipped))
        with pytest.raises(UserError, match="base.safetensors: "):
            load_network(path)
    path.write_bytes(data)
    load_network(path)


def test_weights_that_are_no_numbers_are_refused(quick, tmp_path):
    _, _, base = quick
    spoiled = copy.deepcopy(base)
    with torch.no_grad():
        next(spoiled.parameters()).view(-1)[5] = float("nan")
    save_network(tmp_path / "a.safetensors", spoiled, {})
    with pytest.raises(UserError, match="a.safetensors: .* holds a number that is not finite"):
        load_network(tmp_path / "a.safetensors")


def test_few_trials_are_gone_through_more_often_and_few_steps_are_said(quick, caplog):
    dataset, targets, base = quick
    subject, said = dataset.subject(1).sessions(1), {}
    for least in (0, 9, 60):
        records = []
        fit = dataclasses.replace(SHORT, epochs=0.2, least_steps=least)
        tune(base, subject, targets, dataclasses.replace(QUICK, tune=fit), 0, "mindtuner", records.append)
        said[records[-1]["step"]], _ = caplog.text, caplog.clear()
    trials = len(subject.train)
    per_epoch = round(trials / SHORT.batch_per_subject)
    usual = max(1, round(0.2 * per_epoch))
    assert list(said) == [usual, 9, 60]
    assert f"mindtuner: {usual} step" in said[usual] and f"of {trials} trials at most; expected 50 or more" in said[usual]
    assert "mindtuner: 9 steps of training" in said[9] and not said[60]
