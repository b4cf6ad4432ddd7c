"""Threads that follow the load: against counts that are made up, and a machine that is really busy."""

import subprocess
import sys
import time

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mindtuner import runtime, threads


@given(st.floats(0, 256), st.integers(1, 128))
def test_more_free_cores_are_never_fewer_threads_and_one_is_left_always(free, most):
    count = threads.threads_for(free, most)
    assert 1 <= count <= most
    assert threads.threads_for(free + 0.5, most) >= count
    assert count <= max(1, free + 0.3 + 1e-9)  # a thread wants most of a core for itself


@pytest.fixture
def machine(monkeypatch):
    """Four cores whose counts the test sets, on a clock of its own."""
    monkeypatch.setattr(threads, "_following", [])
    for name in threads.PINNED:
        monkeypatch.delenv(name, raising=False)
    now = {"at": 100.0, "busy": 0.0, "own": 0.0}
    monkeypatch.setattr(threads.Load, "now", classmethod(lambda cls, cores: cls(**now)))
    monkeypatch.setattr(threads.time, "monotonic", lambda: now["at"])
    monkeypatch.setattr(threads.psutil.Process, "cpu_affinity", lambda self: [0, 1, 2, 3])
    chosen = [4]
    monkeypatch.setattr(torch, "get_num_threads", lambda: chosen[-1])
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(threads, "threadpool_limits", lambda count, api: pools.append((count, api)))
    pools: list[tuple] = []

    def passes(seconds, own, others):
        now["at"] += seconds
        now["busy"] += seconds * (own + others)
        now["own"] += seconds * own
        worked = list(runtime.progress([1, 2], "work"))
        assert not pools or pools[-1] == (chosen[-1], "blas")  # NumPy has as many
        return worked and chosen[-1]

    return passes


def test_threads_go_down_when_others_come_and_up_again_when_they_leave(machine):
    threads.follow_load()
    assert machine(1, own=1, others=0.1) == 4
    assert machine(10, own=2, others=2) == 2
    assert machine(10, own=0.5, others=3.9) == 1
    assert machine(10, own=1, others=0) == 4


def test_between_two_counts_nothing_is_counted(machine):
    threads.follow_load()
    assert machine(1, own=1, others=0) == 4
    assert machine(threads.EVERY_S / 2, own=0, others=4) == 4
    assert machine(threads.EVERY_S, own=0, others=4) == 1


def test_who_has_said_how_many_threads_keeps_them(machine, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    threads.follow_load()
    assert machine(10, own=0, others=4) == 4


def test_a_library_that_nobody_asked_leaves_torch_alone(machine):
    assert machine(10, own=0, others=4) == 4


def test_a_busy_process_is_seen():
    cores = list(psutil.Process().cpu_affinity()) if hasattr(psutil.Process, "cpu_affinity") else range(psutil.cpu_count())
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            time.sleep(0.3)
            first = threads.Load.now(cores)
            time.sleep(1.0)  # this process does nothing, so all that is busy is other work
            free = first.free_until(threads.Load.now(cores), len(cores))
        finally:
            process.kill()
    assert free < len(cores) - 0.6


def test_that_others_take_a_share_is_said_once(machine, caplog):
    threads._say.cache_clear()
    threads.follow_load()
    with caplog.at_level("INFO", "mindtuner"):
        machine(1, own=1, others=0.1)
        assert "threads" not in caplog.text
        for others in (3, 0, 3):
            machine(10, own=1, others=others)
    assert caplog.text.count("threads: fewer than 4, as other jobs are running") == 1
