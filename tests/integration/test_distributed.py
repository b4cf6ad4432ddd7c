"""Training by several processes: the curve of one, killed and gone on with another number, whole and in shards."""

import dataclasses
import os
import signal

import numpy as np
import pytest
import torch
from children import CHILDREN, free_port
from linear_world import PLAIN, SMALL, world

from mindtuner.cli import main
from mindtuner.errors import UserError
from mindtuner.model import BrainNetwork
from mindtuner.processes import Processes, processes
from mindtuner.training import distributed, pretrain, tune

pytestmark = pytest.mark.slow

FIT = dataclasses.replace(PLAIN.tune, epochs=2, batch_per_subject=5, head_trials=7, ema=0.9, checkpoint_steps=7)
CONFIG = dataclasses.replace(SMALL, pretrain=FIT, tune=FIT, pivot=dataclasses.replace(SMALL.pivot, epochs=1))
ADAPTERS = dataclasses.replace(  # on a ridge that stays, cross-fitted, towards words
    CONFIG,
    tune=dataclasses.replace(
        FIT, start="closed_form", train_ridge=False, cross_fitted=0.5, text_weight=1.0, lowlevel_weight=0
    ),
)


def child(rank, count, port, shards, what, small, folder, kill):
    os.environ.update(
        RANK=str(rank),
        WORLD_SIZE=str(count),
        LOCAL_RANK=str(rank),
        LOCAL_WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        ACCELERATE_USE_FSDP=str(shards),
    )
    torch.cuda.is_available = lambda: False
    torch.set_num_threads(1)
    processes.cache_clear()
    in_float64()
    from mindtuner.training import loop

    compute, curve = loop.compute_losses, []

    def noted(*args, **more):
        if rank == count - 1 and kill is not None and len(curve) == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        curve.append(0)
        return compute(*args, **more)

    loop.compute_losses = noted
    dataset, targets, base = small
    base = base.double()
    losses = []
    checkpoint = folder / "state"
    mean = loop.mean_losses
    loop.mean_losses = lambda found: losses.extend(found) or mean(found)
    try:
        if what == "pretrain":
            network = pretrain(dataset.without(subject=1), targets, CONFIG, 3, lambda r: None, checkpoint=checkpoint)
        else:
            config, method = (ADAPTERS, "mindtuner") if what == "adapters" else (CONFIG, what)
            network = tune(base, dataset.subject(1), targets, config, 3, method, lambda r: None, checkpoint=checkpoint)
    except UserError as error:
        (folder / f"error {rank}").write_text(str(error))
        os._exit(2)
    if rank == 0:
        torch.save({"losses": losses, "weights": network.state_dict()}, folder / f"result {count}.pt")


def in_float64():
    """From here on this process trains in double precision: weights, betas, targets and what is rounded on the way."""
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double
    read, forward, embed = torch.from_numpy, BrainNetwork.forward, BrainNetwork.embed
    torch.from_numpy = lambda array: read(array.astype(np.float64) if array.dtype == np.float32 else array)
    BrainNetwork.forward = lambda self, voxels, *more, **named: forward(self, voxels.double(), *more, **named)
    BrainNetwork.embed = lambda self, voxels, subject: embed(self, voxels.double(), subject)


def launch(count, what, small, folder, shards=False, kill=None):
    port = free_port()
    group = [
        CHILDREN.Process(target=child, args=(rank, count, port, shards, what, small, folder, kill)) for rank in range(count)
    ]
    for process in group:
        process.start()
    for process in group:
        process.join(100)
        if process.is_alive():
            process.kill()
    path = folder / f"result {count}.pt"
    return [p.exitcode for p in group], torch.load(path, weights_only=True) if path.exists() else None


@pytest.fixture(scope="module")
def small():
    dataset, targets = world(0, 3)
    return (
        dataset,
        targets,
        pretrain(
            dataset.without(subject=1),
            targets,
            dataclasses.replace(CONFIG, pretrain=dataclasses.replace(FIT, epochs=0.1)),
            seed=0,
        ),
    )


@pytest.fixture(scope="module")
def alone(small, tmp_path_factory):
    found = {}
    for what in ("pretrain", "mindtuner", "adapters"):
        codes, found[what] = launch(1, what, small, tmp_path_factory.mktemp(what))
        assert codes == [0]
    return found


def same_curve(found, wanted, first=0):
    """To 1e-9 over 20 steps, in float64: training amplifies rounding, and in float32 by how much depends on the machine."""
    assert len(found["losses"]) >= 20
    for one, other in zip(found["losses"][:20], wanted["losses"][first : first + 20], strict=True):
        assert one.keys() == other.keys()
        np.testing.assert_allclose([v.item() for v in one.values()], [v.item() for v in other.values()], atol=1e-9, rtol=0)


@pytest.mark.parametrize("what", ["pretrain", "mindtuner", "adapters"])
@pytest.mark.parametrize("shards", [False, True])
def test_two_processes_have_the_curve_of_one(small, alone, tmp_path, what, shards):
    codes, found = launch(2, what, small, tmp_path, shards)
    assert codes == [0, 0]
    same_curve(found, alone[what])


@pytest.mark.parametrize("shards", [False, True])
def test_killed_and_gone_on_alone(small, alone, tmp_path, shards):
    codes, _ = launch(2, "mindtuner", small, tmp_path, shards, kill=20)
    assert codes == [2, -signal.SIGKILL]
    assert "another process of this launch has ended early" in (tmp_path / "error 0").read_text()
    codes, found = launch(1, "mindtuner", small, tmp_path)  # from step 7, the epoch's losses so far among its own
    assert codes == [0]
    same_curve(found, alone["mindtuner"])


@pytest.mark.parametrize("shards", [False, True])
def test_killed_alone_and_gone_on_by_two(small, alone, tmp_path, shards):
    codes, _ = launch(1, "mindtuner", small, tmp_path, kill=20)
    assert codes == [-signal.SIGKILL]
    codes, found = launch(2, "mindtuner", small, tmp_path, shards)
    assert codes == [0, 0]
    same_curve(found, alone["mindtuner"])


def test_a_process_without_a_trial_of_a_subject_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "processes", lambda: Processes(0, 6))
    distributed.check_batch_size(6)
    with pytest.raises(UserError, match="batch_per_subject: is 5; expected at least one trial for each of the 6 processes"):
        distributed.check_batch_size(5)


def test_verbs_for_one_process_are_refused_to_several(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["report", str(tmp_path)]) == 2
    assert "report: runs in one process; expected embed, pretrain or tune under a launcher" in capsys.readouterr().err
