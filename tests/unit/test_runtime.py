"""How far a long work is, where nobody looks at a terminal; and which device computes."""

import re

import pytest
import torch

from mindtuner import runtime
from mindtuner.errors import UserError


def test_without_a_terminal_lines_say_how_far_it_is_and_what_is_left(monkeypatch, capsys):
    monkeypatch.setattr(runtime, "LINES_EVERY_S", 0)
    assert list(runtime.progress("abc", "pictures", 3, lines=True)) == ["a", "b", "c"]
    told = capsys.readouterr().err.splitlines()
    assert [re.sub(r"\d\d:\d\d", "TIME", line) for line in told[:2]] == [
        f"pictures: {k} of 3 in TIME, about TIME left" for k in (1, 2)
    ]
    assert all(re.match("pictures: 3 of 3", line) for line in told[2:])
    with runtime.progress((), "paint", 10, lines=True) as bar:
        bar.start_t -= 60  # so 4 take a minute, and 6 a minute and a half
        bar.update(4)
    assert capsys.readouterr().err.splitlines()[0] == "paint: 4 of 10 in 01:00, about 01:30 left"


def test_lines_are_few_and_short_works_silent(capsys):
    assert list(runtime.progress(range(1000), "pictures", 1000, lines=True)) == list(range(1000))
    assert list(runtime.progress(range(10), "steps", 10)) == list(range(10))
    assert capsys.readouterr().err == ""


# ---- devices


@pytest.fixture
def machine(monkeypatch):
    """Says what this machine has: GPUs of CUDA, and Apple's."""

    def has(cuda=0, mps=False, built=True):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_built", lambda: built)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    yield has
    runtime.use_device(None)


def test_the_device_is_cuda_or_the_cpu_until_somebody_chooses(machine):
    machine(mps=True)
    assert runtime.device() == torch.device("cpu")  # Apple's GPU is never chosen by itself
    machine(cuda=2, mps=True)
    assert runtime.device() == torch.device("cuda")
    for where in ("cuda", "cuda:0", "cuda:1", "mps", "cpu", torch.device("mps")):
        runtime.use_device(where)
        assert runtime.device() == torch.device(where)
    runtime.use_device(None)
    assert runtime.device() == torch.device("cuda")


@pytest.mark.parametrize(
    "has, where, message",
    [
        ({}, "cuda", "device: is cuda, but torch finds no CUDA here; expected cpu"),
        ({}, "cuda:1", "device: is cuda:1, but torch finds no CUDA here; expected cpu"),
        ({"cuda": 2}, "cuda:2", "device: is cuda:2, but the last GPU here is cuda:1; expected one of them"),
        ({"built": False}, "mps", "device: is mps, but this torch was built without MPS; expected cpu"),
        ({}, "mps", "device: is mps, but torch finds no Apple GPU here; expected cpu"),
        ({}, "abacus", "device: is 'abacus'; expected cuda, cuda:N, mps or cpu"),
        ({}, "meta", "device: is 'meta'; expected cuda, cuda:N, mps or cpu"),
        ({}, "", "device: is ''; expected cuda, cuda:N, mps or cpu"),
    ],
)
def test_a_device_that_is_not_here_is_refused_with_the_reason(machine, has, where, message):
    machine(**has)
    runtime.use_device("cpu")
    with pytest.raises(UserError) as error:
        runtime.use_device(where)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)
    assert runtime.device() == torch.device("cpu")  # as before


def test_apples_gpu_computes_in_float32_unless_told(machine, recwarn):
    machine(mps=True)
    runtime.use_device("mps")
    assert runtime.fast_dtype() is torch.float32  # not measured: there is no such device here
    with runtime.autocast():
        assert not torch.is_autocast_enabled("mps")
    with runtime.autocast(torch.float16):
        assert torch.is_autocast_enabled("mps") and torch.get_autocast_dtype("mps") is torch.float16
    assert not recwarn.list


def test_float64_never_goes_to_the_device(monkeypatch):
    class Apples:
        """What stands on Apple's GPU, as far as ``for_float64`` looks."""

        device, moved = torch.device("mps"), None

        def cpu(self):
            return "on the CPU"

    assert runtime.for_float64(Apples()) == "on the CPU"
    here = torch.ones(2)
    assert runtime.for_float64(here) is here
    sent = []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, where: sent.append((tensor.dtype, where)))
    for dtype in (torch.float64, torch.float32, torch.float16, torch.uint8):
        runtime.to_device(torch.ones(2, dtype=dtype))
    assert [dtype for dtype, _ in sent] == [torch.float32, torch.float32, torch.float16, torch.uint8]
