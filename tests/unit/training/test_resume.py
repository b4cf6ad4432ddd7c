"""Training that is killed, goes on, and ends as if nothing had happened; and the loop's other duties."""

import dataclasses
import io
import json
import os
import pickle
import signal
import sys
import types

import numpy as np
import pytest
import torch
from children import CHILDREN
from linear_world import PLAIN, SMALL, TESTED, same, weights, world

from mindtuner import runtime
from mindtuner.config import FitConfig, load_config
from mindtuner.errors import TrainingDiverged, UserError
from mindtuner.evaluation.results import load_log, log_to
from mindtuner.training import checkpoint as state
from mindtuner.training import loop, pretrain, remove_checkpoint, tensorboard_to, tune
from mindtuner.training.batches import refuse_constant_voxels
from mindtuner.training.validation import by_chance


@pytest.fixture(scope="module")
def small():
    dataset, targets = world(0, 3)
    return (
        dataset,
        targets,
        pretrain(
            dataset.without(subject=1),
            targets,
            dataclasses.replace(SMALL, pretrain=dataclasses.replace(PLAIN.tune, epochs=0.1)),
            seed=0,
        ),
    )


def train(small, what, folder, checkpoint=None):
    dataset, targets, base = small
    log = log_to(folder)
    if what == "pretrain":
        return pretrain(dataset.without(subject=1), targets, SMALL, 3, log, holdout=0.2, checkpoint=checkpoint)
    return tune(base, dataset.subject(1), targets, SMALL, 3, what, log, holdout=0.2, checkpoint=checkpoint)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def kill_at(event, count):
    """Arrange for this process to be killed at the ``count``-th ``event`` from now."""
    left = [count]

    def reached():
        left[0] -= 1
        return left[0] == 0

    def before(module, name, last_act=lambda *args: None):
        act = getattr(module, name)

        def acting(*args, **more):
            if reached():
                last_act(*args)
                die()
            return act(*args, **more)

        setattr(module, name, acting)

    if event == "step":
        before(loop, "compute_losses")
    elif event == "pivot step":
        before(sys.modules["mindtuner.training.pivot"], "image_to_text")
    elif event == "write":
        whole = torch.save

        def half(what, file):
            content = io.BytesIO()
            whole(what, content)
            file.write(content.getvalue()[: len(content.getvalue()) // 2])
            file.flush()

        before(torch, "save", half)
    elif event == "replace":
        before(os, "replace")
    elif event == "replaced":
        before(os, "replace", os.replace)
    elif event == "log line":
        from mindtuner.evaluation import results

        rounded = results.rounded

        def tear(entry, where="results.json"):
            if isinstance(entry, dict) and "stage" in entry and reached():
                with open(where, "a") as file:
                    file.write(json.dumps(entry)[:25])
                die()
            return rounded(entry, where)

        results.rounded = tear


def child(small, what, folder, checkpoint, kill):
    torch.set_num_threads(1)
    runtime.device = lambda: torch.device("cpu")
    if kill is not None:
        kill_at(*kill)
    network = train(small, what, folder, checkpoint)
    rest = {"torch": torch.random.get_rng_state()}
    torch.save(network.state_dict() | rest, folder / "result.pt")


def in_child(*args):
    process = CHILDREN.Process(target=child, args=args)
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def entries(folder):
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in load_log(folder)]


@pytest.fixture(scope="module")
def unbroken(small, tmp_path_factory):
    """Weights, random state and log of runs that nobody stops and that keep no checkpoint."""
    found = {}
    for what in ("pretrain", "mindtuner"):
        folder = tmp_path_factory.mktemp(what)
        assert in_child(small, what, folder, None, None) == 0
        found[what] = torch.load(folder / "result.pt", weights_only=True), entries(folder)
    return found


@pytest.mark.parametrize(
    "what, kills",
    [
        ("mindtuner", [("step", 1)]),
        ("mindtuner", [("step", 12), ("write", 1)]),  # within the first epoch; then while it writes the next checkpoint
        ("mindtuner", [("write", 1), ("replace", 3), ("step", 2)]),
        ("mindtuner", [("replaced", 3), ("log line", 1), ("log line", 2)]),  # between a checkpoint and its log entry
        ("mindtuner", [("replaced", 5)]),  # with all steps done
        ("pretrain", [("pivot step", 5), ("step", 2), ("write", 2), ("step", 9)]),
    ],
)
def test_a_killed_run_ends_like_an_unbroken_one(small, unbroken, tmp_path, what, kills):
    checkpoint = tmp_path / "state"
    for kill in kills:
        assert in_child(small, what, tmp_path, checkpoint, kill) == -signal.SIGKILL, f"{kill} was never reached"
    assert in_child(small, what, tmp_path, checkpoint, None) == 0
    expected, log = unbroken[what]
    assert same(torch.load(tmp_path / "result.pt", weights_only=True), expected)
    assert entries(tmp_path) == log
    remove_checkpoint(checkpoint)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log.jsonl", "result.pt"]


def test_a_finished_run_is_not_trained_again(small, tmp_path, monkeypatch):
    dataset, targets, base = small
    records = []

    def run():
        return tune(base, dataset.subject(1), targets, PLAIN, 0, log=records.append, checkpoint=tmp_path / "state")

    first = run()
    monkeypatch.setattr(loop, "compute_losses", None)
    assert same(weights(run()), weights(first))
    assert len(records) == 2 and records[0] == records[1]  # the log may be a new one, so it is told again


def test_a_checkpoint_of_another_run_is_refused(small, tmp_path):
    dataset, targets, base = small
    path, subject = tmp_path / "state", dataset.subject(1)

    def attempt(base=base, subject=subject, targets=targets, seed=0, method="mindtuner", **changed):
        config = dataclasses.replace(PLAIN, tune=dataclasses.replace(PLAIN.tune, **changed))
        return tune(base, subject, targets, config, seed, method, checkpoint=path)

    attempt()
    before = path.read_bytes()
    other = pretrain(
        dataset.without(subject=1),
        targets,
        dataclasses.replace(SMALL, pretrain=dataclasses.replace(PLAIN.tune, epochs=0.1)),
        seed=9,
    )
    louder = dataclasses.replace(subject, source=np.asarray(subject.source) * 2)
    cases = [
        (dict(lr=0.5), "lr is 0.01 there and 0.5 here"),
        (dict(seed=1), "seed is 0 there and 1 here"),
        (dict(method="ridge_only"), "stage is mindtuner there and ridge_only here"),
        (dict(base=other), "starting weights is"),
        (dict(subject=subject.sessions(1)), "trials of subj01 is"),
        (dict(subject=louder), "betas of subj01 is"),
        (dict(targets=dataclasses.replace(targets, latents=targets.latents + 1)), "targets is"),
    ]
    for changed, message in cases:
        with pytest.raises(UserError, match=f"state: belongs to another run .*({message})") as caught:
            attempt(**changed)
        assert "expected" in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_bytes() == before
    attempt(checkpoint_steps=1)  # how often it is written does not make it another run


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a checkpoint was unpickled",)


def test_damaged_and_foreign_checkpoints_are_the_users_error(small, tmp_path):
    dataset, targets, base = small
    path = tmp_path / "state"
    tune(base, dataset.subject(1), targets, PLAIN, 0, checkpoint=path)
    whole = path.read_bytes()
    foreign = io.BytesIO()
    torch.save({"epoch": 3}, foreign)
    for content in (whole[:-100], whole[:1000], b"", b"hello", pickle.dumps(Trap(), 2), foreign.getvalue()):
        path.write_bytes(content)
        with pytest.raises(
            UserError,
            match=r"state: (not a training checkpoint .*|cannot be read \(.*\)); expected .*mindtuner wrote, or no file",
        ) as caught:
            tune(base, dataset.subject(1), targets, PLAIN, 0, checkpoint=path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_numbers_that_are_not_finite_stop_the_run_and_spoil_no_checkpoint(small, tmp_path, monkeypatch, what):
    dataset, targets, base = small
    path, compute, left = tmp_path / "state", loop.compute_losses, [6, 2]  # the second time it goes on from step 4

    def broken(network, *rest):
        losses = compute(network, *rest)
        left[0] -= 1
        if left[0] == 0:
            left.pop(0)
            if what == "loss":
                losses["softcont"] = losses["softcont"] * float("nan")
            else:  # the value is 0, its derivative is not a number
                losses["clip"] = losses["clip"] + (network.skips[0].B.sum() * 0).sqrt()
        return losses

    monkeypatch.setattr(loop, "compute_losses", broken)
    config = dataclasses.replace(PLAIN, tune=dataclasses.replace(PLAIN.tune, checkpoint_steps=2))
    term = "loss term 'softcont'" if what == "loss" else "the gradient"
    for _ in range(2):
        with pytest.raises(
            TrainingDiverged, match=f"mindtuner: {term} is not finite at step 5; last good checkpoint: {path} at step 4;"
        ):
            tune(base, dataset.subject(1), targets, config, 0, checkpoint=path)
    kept = torch.load(path, weights_only=True)["parts"]
    assert kept["progress"]["step"] == 4 and all(w.isfinite().all() for w in kept["weights"].values())
    monkeypatch.setattr(loop, "compute_losses", compute)  # what broke it is mended: the run goes on
    assert same(
        weights(tune(base, dataset.subject(1), targets, config, 0, checkpoint=path)),
        weights(tune(base, dataset.subject(1), targets, config, 0)),
    )


def test_the_number_format_of_the_first_start_holds(small, tmp_path, monkeypatch):
    """What is fastest is measured, and may come out otherwise when a run goes on."""
    dataset, targets, base = small
    path, save, saves = tmp_path / "state", state.Checkpoint.save, []
    config = dataclasses.replace(PLAIN, tune=dataclasses.replace(PLAIN.tune, checkpoint_steps=4, dtype="auto"))

    def interrupted(self, now):
        save(self, now)
        saves.append(now.step)
        raise KeyboardInterrupt

    monkeypatch.setattr(runtime, "fast_dtype", lambda: torch.bfloat16)
    expected = weights(tune(base, dataset.subject(1), targets, config, 0))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(state.Checkpoint, "save", interrupted)
        tune(base, dataset.subject(1), targets, config, 0, checkpoint=path)
    monkeypatch.setattr(runtime, "fast_dtype", lambda: torch.float32)
    assert saves == [4]
    assert same(weights(tune(base, dataset.subject(1), targets, config, 0, checkpoint=path)), expected)
    assert not same(weights(tune(base, dataset.subject(1), targets, config, 0)), expected)


def changed(**fields):
    return dataclasses.replace(PLAIN, tune=dataclasses.replace(PLAIN.tune, **fields))


def watched_steps(monkeypatch, take=loop.take_step):
    """Gradients before, and weights after, every step of the optimiser."""
    gradients, after = [], []

    def watching(optimizer, scaler, parameters, *rest):
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters])
        norm = take(optimizer, scaler, parameters, *rest)
        after.append([p.detach().clone() for p in parameters])
        return norm

    monkeypatch.setattr(loop, "take_step", watching)
    return gradients, after


def test_accumulated_gradients_are_the_mean_of_the_batches(small, monkeypatch):
    dataset, targets, base = small
    found = {}
    for accumulate in (1, 2, 5):
        gradients, _ = watched_steps(monkeypatch)
        tune(base, dataset.subject(1), targets, changed(lr=0.0, mixco_share=1.0, accumulate=accumulate), 0)
        found[accumulate] = gradients
    assert [len(steps) for steps in found.values()] == [10, 5, 2]
    for accumulate in (2, 5):
        for step, joined in enumerate(found[accumulate]):
            apart = found[1][step * accumulate : (step + 1) * accumulate]
            for k, gradient in enumerate(joined):
                torch.testing.assert_close(gradient, sum(one[k] for one in apart) / accumulate, rtol=1e-4, atol=1e-6)


def test_the_network_ends_with_the_running_average(small, monkeypatch):
    dataset, targets, base = small
    _, after = watched_steps(monkeypatch)
    tuned = tune(base, dataset.subject(1), targets, changed(ema=0.7), 0)
    found = [p.detach() for p in tuned.parameters() if p.requires_grad]
    assert not all(torch.equal(p, last) for p, last in zip(found, after[-1], strict=True))
    average = [weight.double() for weight in after[0]]  # little of where training began lasts through the later steps
    for step, now in enumerate(after[1:], 1):
        keep = min(0.7, (1 + step) / (10 + step))
        average = [keep * old + (1 - keep) * new.double() for old, new in zip(average, now, strict=True)]
    for p, expected in zip(found, average, strict=True):
        torch.testing.assert_close(p.double(), expected, rtol=1e-4, atol=1e-5)


def test_early_stopping_keeps_the_best_epoch(small, tmp_path, monkeypatch):
    dataset, targets, base = small
    scores = iter([2.9, 2.5, 2.7, 2.5, 2.6, 2.1])  # lower is better
    monkeypatch.setattr(loop, "validate", lambda *_: {"ranks": next(scores)})
    _, after = watched_steps(monkeypatch)
    records = []

    def stopped_twice(record):
        if record not in records:
            records.append(record)
            if len(records) in (3, 4):
                raise KeyboardInterrupt

    def run():
        return tune(
            base,
            dataset.subject(1),
            targets,
            changed(epochs=6, patience=3),
            0,
            log=stopped_twice,
            holdout=0.2,
            checkpoint=tmp_path / "state",
        )

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run()
    tuned = run()
    assert [r["epoch"] for r in records] == [1, 2, 3, 4, 5]  # a tie is not better
    assert same(weights(run()), weights(tuned))  # done is done: no more epochs, whose scores there are not
    best = after[records[1]["step"] - 1]
    found = [p for p in tuned.parameters() if p.requires_grad]
    assert all(torch.equal(p, expected) for p, expected in zip(found, best, strict=True))
    assert not torch.equal(found[0], after[-1][0])


def test_validation_never_reads_a_test_trial(small):
    dataset, targets, base = small
    subject = dataset.subject(1)
    subject.source.seen.clear()
    records = []
    tune(base, subject, targets, changed(patience=1), 0, log=records.append, holdout=0.2)
    assert subject.source.seen <= set(subject.train.row.tolist())
    held, training = round(0.2 * (120 - TESTED)), len(targets) - int(subject.is_shared.sum())
    chance = (by_chance(held) + 2 * by_chance(training)) / 3
    assert records[0]["validation"]["chance"] == pytest.approx(chance)


def test_bfloat16_trains_much_like_float32(small):
    dataset, targets, base = small
    losses = {}
    for dtype in ("float32", "bfloat16"):
        records = []
        tune(base, dataset.subject(1), targets, changed(dtype=dtype), 0, log=records.append)
        losses[dtype] = records[-1]["losses"]
    assert losses["float32"] != losses["bfloat16"]
    for name, loss in losses["float32"].items():
        assert losses["bfloat16"][name] == pytest.approx(loss, rel=0.1, abs=0.02), name


def test_what_cannot_be_trained_is_refused(small, tmp_path, monkeypatch):
    dataset, targets, base = small
    monkeypatch.setattr(runtime, "device", lambda: torch.device("cpu"))
    flat = np.asarray(dataset.subject(1).source).copy()
    flat[:, 7] = 0.25
    subject = dataset.subject(1)
    cases = [
        (subject, changed(dtype="float16"), "dtype: float16 trains on a GPU only"),
        (subject, changed(patience=2), "patience: is 2, but no training image"),
        (dataclasses.replace(subject, source=flat), PLAIN, "subj01: voxel 7 is 0.25 in all 160 trials"),
    ]
    for brain, config, message in cases:
        with pytest.raises(UserError, match=message) as caught:
            tune(base, brain, targets, config, 0)
        assert "expected" in str(caught.value) and "\n" not in str(caught.value)
    demo = dataclasses.asdict(load_config("demo").tune)
    for field, value in {"dtype": "float8", "accumulate": 0, "ema": 1.0, "patience": -1, "checkpoint_steps": 0}.items():
        with pytest.raises(ValueError, match=f"{field} is .*; expected"):
            FitConfig(**{**demo, field: value})


def test_few_trials_may_agree_by_chance():
    refuse_constant_voxels([np.ones((7, 3))], "subj01")
    refuse_constant_voxels([np.ones((4, 3)), np.arange(12).reshape(4, 3)], "subj01")
    with pytest.raises(UserError, match="subj01: voxel 2 is 5 in all 12 trials"):
        block = np.array([[1.0, 2, 5]] * 3 + [[2.0, 3, 5]])
        refuse_constant_voxels([block, block, block], "subj01")


def test_half_precision_scales_losses_only_on_the_way():
    """Norms of gradients that are taken of scaled losses are those of the losses."""
    p = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
    losses = {"a": (p * p).sum(), "b": (p * 1e15).sum()}
    plain, scaled = loop.gradient_norms(losses, [p]), loop.gradient_norms(losses, [p], 2.0**60)
    assert plain["a"] == scaled["a"] == 10.0
    assert set(plain) == {"a", "b"} and set(scaled) == {"a"}  # the other one overflows at this scale


def test_tensorboard_is_written_only_where_it_is_asked_for_and_there(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="tensorboard: is not installed; expected it"):
        tensorboard_to(tmp_path)
    written = []

    class Writer:
        def __init__(self, folder, purge_step):
            written.append((folder, purge_step))

        def add_scalar(self, *what):
            written.append(what)

        def flush(self):
            pass

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", types.SimpleNamespace(SummaryWriter=Writer))
    log = tensorboard_to(tmp_path)
    log(
        {
            "stage": "tune",
            "epoch": 1,
            "step": 8,
            "lr": 0.1,
            "losses": {"clip": 2.0},
            "gradients": {},
            "validation": {"ranks": 0.5},
        }
    )
    log({"stage": "tune", "epoch": 2, "step": 16, "lr": 0.2, "losses": {"clip": 1.0}})
    assert written == [
        (str(tmp_path / "tune"), 8),
        ("losses/clip", 2.0, 8),
        ("validation/ranks", 0.5, 8),
        ("lr", 0.1, 8),
        ("losses/clip", 1.0, 16),
        ("lr", 0.2, 16),
    ]
