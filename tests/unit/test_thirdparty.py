"""Reading other people's files: what is read, what is refused, and that nothing is filled up in silence."""

import logging
import os
import re
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from mindtuner.errors import UserError
from mindtuner.thirdparty import check_fit, load_part, model_folder, one_line, package, quiet, read_state_dict

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.tensor([0.5, -1]), "n": torch.tensor(3)}


def refused(match: str, call, *arguments, **options) -> None:
    with pytest.raises(UserError, match=match) as caught:
        call(*arguments, **options)
    assert "\n" not in str(caught.value) and "expected" in str(caught.value)


def equal(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_both_formats_old_and_new_give_the_same_tensors(tmp_path):
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    torch.save(WEIGHTS, tmp_path / "w.pt")
    torch.save(WEIGHTS, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    torch.save({"epoch": 3, "model": WEIGHTS}, tmp_path / "w.ckpt")
    for file, field in (("w.safetensors", None), ("w.pt", None), ("old.bin", None), ("w.ckpt", "model")):
        assert equal(read_state_dict(tmp_path / file, "weights", field), WEIGHTS)
        assert equal(read_state_dict(str(tmp_path / file), "weights", field), WEIGHTS)


class Code:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_code_is_never_run(tmp_path):
    for old in (False, True):
        torch.save({**WEIGHTS, "hook": Code(tmp_path / "ran")}, tmp_path / "w.pt", _use_new_zipfile_serialization=not old)
        refused(
            r"w\.pt: holds Python code \(\w+\.mkdir\), which is never run; expected my weights",
            read_state_dict,
            tmp_path / "w.pt",
            "my weights",
        )
    assert not (tmp_path / "ran").exists()


def test_files_that_are_none_say_what_was_expected(tmp_path):
    refused("gone.pt: not found; expected my weights", read_state_dict, tmp_path / "gone.pt", "my weights")
    refused("is a folder; expected my weights", read_state_dict, tmp_path, "my weights")
    torch.save(WEIGHTS, tmp_path / "w.pt")
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    torch.save(WEIGHTS, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    for name in ("w.pt", "w.safetensors", "old.bin"):
        whole = (tmp_path / name).read_bytes()
        for length in (0, 1, 9, len(whole) // 2, len(whole) - 5):
            (tmp_path / name).write_bytes(whole[:length])
            refused(f"{re.escape(name)}: .*; expected my weights", read_state_dict, tmp_path / name, "my weights")
    for content, field, match in (
        ([1], None, "holds a list"),
        ({}, None, "no tensors by name"),
        ({1: torch.ones(1)}, None, "no tensors by name"),
        ({"a": 1}, None, "a is a int, no tensor"),
        ({}, "m", r"field m is missing \(it holds nothing\)"),
        ({"x": 1, "y": 2}, "m", r"field m is missing \(it holds x, y\)"),
        ({"m": [1]}, "m", "no tensors by name"),
    ):
        torch.save(content, tmp_path / "odd.pt")
        refused(f"odd.pt: .*{match}.*; expected my weights", read_state_dict, tmp_path / "odd.pt", "my weights", field)


def test_each_kind_of_misfit_is_named_and_all_are_counted():
    wanted = {**WEIGHTS, "b": torch.ones(4), "c": torch.ones(1), "d": torch.ones(2, 2)}
    found = {**WEIGHTS, "a.bias": torch.ones(3), "d": torch.ones(2, 2).int(), "x": torch.ones(1), "y": torch.ones(1)}
    refused(
        r"^w.pt: 6 tensors do not fit \(key b is missing, of shape \(4,\); key x is unknown; a.bias has shape \(3,\), "
        r"not \(2,\); d is of torch.int32\); expected mine$",
        check_fit,
        found,
        wanted,
        Path("w.pt"),
        "mine",
    )
    check_fit(WEIGHTS, {key: torch.empty_like(tensor, device="meta") for key, tensor in WEIGHTS.items()}, Path("w"), "mine")
    check_fit({"a": torch.ones(2).half()}, {"a": torch.ones(2)}, Path("w"), "mine")  # precision may differ


@given(st.text())
def test_one_line_is_one_short_line(text):
    line = one_line(text)
    assert 0 < len(line) <= 160 and line == " ".join(line.split())
    assert len(text) > 160 or line in (" ".join(text.split()), "str")


def test_of_an_empty_message_the_type_is_told():
    assert one_line(EOFError()) == "EOFError" and one_line(ValueError("a\n b")) == "a b"


def test_packages_and_folders_that_are_not_there(tmp_path):
    assert package("json").loads("1") == 1
    refused("package no_such_one: cannot be imported .* pip install no-such$", package, "no_such_one", "no-such")
    assert model_folder(tmp_path, []) == tmp_path
    (tmp_path / "file").touch()
    refused("file: is a file; expected a vae, or an id on the hub such as", model_folder, tmp_path / "file", [], "a vae")
    refused("no/such/folder: not found; expected a model's folder", model_folder, "no/such/folder", [])


def test_quiet_ends(caplog):
    with pytest.raises(KeyError), quiet():
        logging.getLogger("x").critical("unheard")
        raise KeyError
    logging.getLogger("x").warning("heard")
    assert [record.message for record in caplog.records] == ["heard"]


@pytest.fixture(scope="module")
def network() -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(block_out_channels=(4,), norm_num_groups=2, layers_per_block=1)


def test_a_model_is_whole_or_refused(network, tmp_path):
    network.save_pretrained(tmp_path)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    whole = load_file(file)
    read = load_part(AutoencoderKL, tmp_path, torch.float32, exact=True)
    assert equal(read.state_dict(), network.state_dict()) and not read.training
    assert not any(parameter.requires_grad for parameter in read.parameters())
    key = "encoder.conv_in.weight"
    save_file({name: tensor for name, tensor in whole.items() if name != key}, file)
    for exact in (False, True):
        refused(
            f"lacks 1 tensors such as {key}; expected a whole AutoencoderKL",
            load_part,
            AutoencoderKL,
            tmp_path,
            torch.float32,
            exact=exact,
        )
    save_file({**whole, "more": torch.ones(1)}, file)
    assert equal(load_part(AutoencoderKL, tmp_path, torch.float32).state_dict(), whole)
    refused("holds 1 unknown tensors such as more", load_part, AutoencoderKL, tmp_path, torch.float32, exact=True)
    save_file({**whole, key: torch.ones(4, 3, 1, 1)}, file)
    refused("not a whole AutoencoderKL", load_part, AutoencoderKL, tmp_path, torch.float32)
    (tmp_path / "config.json").unlink()
    refused("config.json: not found; expected the folder of", load_part, AutoencoderKL, tmp_path, torch.float32)
