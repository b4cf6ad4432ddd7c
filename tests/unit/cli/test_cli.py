"""The command line: bad input is exit code 2 and one line, Ctrl-C is 130, and nothing is left that looks whole."""

import errno
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from commands import refused
from PIL import Image
from safetensors.torch import save_file

import mindtuner
from mindtuner import cli
from mindtuner.cli import main, options
from mindtuner.errors import UserError
from mindtuner.formats import load
from mindtuner.formats.nsd_release import write as writer
from mindtuner.simulation import simulate as simulation

TINY = [
    "--subjects",
    "1",
    "--sessions",
    "2",
    "--trials-per-session",
    "48",
    "--shared-images",
    "8",
    "--repeats",
    "2",
    "--voxel-scale",
    ".01",
]


def pair(folder, name, opaque=False, words="a thing"):
    """A captioned picture: a cut-out, or a whole image without transparency."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(list(name.encode())).integers(0, 255, (40, 40, 4)).astype(np.uint8)
    pixels[..., 3] = 255
    if not opaque:
        pixels[:4, :, 3] = 0
    Image.fromarray(pixels, "RGBA").save(folder / f"{name}.png")
    (folder / f"{name}.txt").write_text(words)


# ---- asking


def test_version_and_help(capsys):
    for argv, word in (
        (["--version"], mindtuner.__version__),
        (["--help"], "Begin with: mindtuner demo"),
        (["simulate", "--help"], "--trials-per-session"),
        (["demo", "--help"], "--quick"),
        (["train-generator", "--help"], "--words-steps"),
        (["report", "--help"], "RUN"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(argv)
        assert stop.value.code == 0 and word in capsys.readouterr().out


def test_without_a_verb_the_help_is_shown(capsys):
    assert main([]) == 0 and "Begin with: mindtuner demo" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv",
    [
        ["paint"],
        ["simulate"],
        ["simulate", "x", "--colour", "red"],
        ["simulate", "x", "--seed", "one"],
        ["simulate", "x", "--subjects", "2.5"],
        ["demo", "--cutouts", "a", "--stimuli", "b"],
    ],
)
def test_words_that_mean_nothing_exit_with_2(argv, capsys):
    refused(capsys, argv, "(see mindtuner ", "--help)")


@pytest.mark.parametrize("word", ["two\nlines", "a\0b", "\udcff", ""])
def test_words_that_no_line_can_hold_are_refused(word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused(capsys, ["check", word], f"argument {word!r}")
    refused(capsys, ["simulate", word, *TINY], f"argument {word!r}")
    assert list(tmp_path.iterdir()) == []


# ---- simulate


def test_simulate_writes_what_load_reads(tmp_path, capsys, few_cutouts):
    assert main(["simulate", str(tmp_path / "out"), *TINY, "--seed", "5"]) == 0
    assert "1 simulated subjects, 2 sessions" in capsys.readouterr().out
    dataset = load(tmp_path / "out")
    assert dataset.card["simulate"]["seed"] == 5 and list(dataset.subjects) == [1]
    refused(capsys, ["simulate", tmp_path / "out", *TINY], "holds another run", "--force")
    assert main(["simulate", str(tmp_path / "out"), *TINY, "--seed", "6", "--force"]) == 0
    assert load(tmp_path / "out").card["simulate"]["seed"] == 6


@pytest.mark.parametrize(
    "option, value",
    [
        ("--subjects", 9),
        ("--noise", "nan"),
        ("--fingerprint", -1),
        ("--voxel-scale", 0),
        ("--seed", 20_240_412),
        ("--shared-images", 48),
    ],
)
def test_a_knob_out_of_range_names_itself(tmp_path, capsys, option, value):
    refused(
        capsys,
        ["simulate", tmp_path / "out", *TINY, option, value],
        f"{option.removeprefix('--').replace('-', '_')} ",
        "expected",
    )
    assert not (tmp_path / "out").exists()


def test_a_bad_folder_of_cutouts_leaves_no_output_folder(tmp_path, capsys):
    out = tmp_path / "out"
    pair(tmp_path / "opaque", "a", opaque=True)
    pair(tmp_path / "broken", "a")
    (tmp_path / "broken" / "a.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    for verb in (["simulate", out, *TINY], ["demo", "--quick", "--out", out]):
        refused(capsys, [*verb, "--cutouts", tmp_path / "none"], "none: not a folder")
        refused(capsys, [*verb, "--cutouts", tmp_path / "empty"], "empty: no usable cut-out")
        refused(capsys, [*verb, "--cutouts", tmp_path / "opaque"], "opaque: no usable cut-out")
        refused(capsys, [*verb, "--cutouts", tmp_path / "broken"], "a.png: cannot be read")
        assert not out.exists()


def test_a_bad_folder_of_images_leaves_no_output_folder(tmp_path, capsys):
    """TINY needs 8 shared images and 40 of the subject's own."""
    out, images = tmp_path / "out", tmp_path / "images"
    for k in range(47):
        pair(images, str(k), opaque=True)
    verb = ["simulate", out, *TINY, "--stimuli", images]
    refused(capsys, verb, "holds 47 different images", "expected at least 48")
    refused(capsys, ["demo", "--quick", "--out", out, "--stimuli", images], "holds 47 different images")
    pair(images, "last", opaque=True, words="\n")
    refused(capsys, verb, "last.txt: holds no caption")
    pair(images, "last", opaque=True)
    (images / "last.png").write_bytes(b"no picture")
    refused(capsys, verb, "last.png: cannot be read")
    assert not out.exists()


def test_force_refuses_a_folder_with_foreign_files(tmp_path, capsys):
    for name in ("notes.txt", "config.yaml", "results.json"):
        (tmp_path / name).write_text("mine")
    refused(capsys, ["simulate", tmp_path, *TINY], "holds another run")
    refused(capsys, ["simulate", tmp_path, *TINY, "--force"], "config.yaml", "--force will not delete")
    assert len(list(tmp_path.iterdir())) == 3


def test_an_output_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    refused(capsys, ["simulate", tmp_path / "file", *TINY, "--force"], "is a file; expected a folder")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_full_disk_is_one_line_and_nothing_whole(tmp_path, capsys, monkeypatch, few_cutouts):
    """The disk refuses at each file in turn, as it does when it fills up."""
    real = os.replace
    for allowed in (0, 2, 4, 8):
        done = []

        def replace(source, target, done=done, allowed=allowed):
            if len(done) >= allowed:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            done.append(target)
            real(source, target)

        out = tmp_path / str(allowed)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            refused(capsys, ["simulate", out, *TINY], "cannot be written", "No space left")
        with pytest.raises(UserError):
            load(out)
        assert not list(out.rglob("*.part"))


# ---- demo


def test_demo_refuses_before_it_writes(tmp_path, capsys, untrained_generator):
    out = tmp_path / "out"
    refused(capsys, ["demo", "--out", out, "--fingerprint", "-1"], "fingerprint is -1.0; expected 0.0 to")
    refused(capsys, ["demo", "--out", out, "--seed", "-1"], "seed is -1")
    foreign = tmp_path / "foreign.safetensors"
    refused(capsys, ["demo", "--out", out, "--generator", foreign], "foreign.safetensors: not found")
    save_file({"x": torch.zeros(1)}, foreign)
    refused(capsys, ["demo", "--out", out, "--generator", foreign], "holds no autoencoder.*")
    assert not out.exists()
    out.mkdir()
    (out / "results.json").write_text("{}")
    refused(capsys, ["demo", "--out", out, "--generator", untrained_generator], "holds another run")
    (out / "thesis.tex").write_text("mine")
    refused(capsys, ["demo", "--out", out, "--generator", untrained_generator, "--force"], "holds results.json but no list")
    assert (out / "thesis.tex").read_text() == "mine"


# ---- report and train-generator


def test_report_of_a_folder_without_a_run(tmp_path, capsys):
    refused(capsys, ["report", tmp_path], "holds no results.json")
    refused(capsys, ["report", tmp_path / "none"], "not found; expected the folder of a run")


@pytest.mark.parametrize(
    "option, value", [("--scenes", 299), ("--painter-steps", -1), ("--words-steps", -1), ("--autoencoder-steps", -1)]
)
def test_train_generator_names_what_is_out_of_range(tmp_path, capsys, option, value):
    refused(capsys, ["train-generator", tmp_path / "g.safetensors", option, value], option, "expected at least")
    assert not list(tmp_path.iterdir())


def test_train_generator_wants_a_weights_file_and_a_work_folder(tmp_path, capsys):
    refused(capsys, ["train-generator", tmp_path / "weights"], "expected a file name that ends in .safetensors")
    assert not list(tmp_path.iterdir())  # its work folder would have taken the file's name
    (tmp_path / "g").write_text("a file")
    refused(capsys, ["train-generator", tmp_path / "g.safetensors"], "cannot be written")
    out = tmp_path / "h.safetensors"
    refused(capsys, ["train-generator", out, "--cutouts", tmp_path / "none"], "none: not a folder")
    assert not (tmp_path / "h").exists()  # else the right folder would be refused next time


# ---- Ctrl-C


def test_ctrl_c_while_the_command_is_read_is_130(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "parse", interrupted)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err.split() == ["mindtuner:", "stopped"]


@pytest.mark.parametrize("verb", ["demo", "simulate", "report", "train-generator"])
def test_ctrl_c_is_130(verb, monkeypatch, capsys):
    import importlib

    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(importlib.import_module(f"mindtuner.cli.{verb.replace('-', '_')}"), "run", stop)
    assert main([verb] + ([] if verb == "demo" else ["x"])) == 130
    assert capsys.readouterr().err.split() == ["mindtuner:", "stopped"]


@pytest.mark.parametrize("step", ["write_shared", "write_captions", "write_behaviour", "write_masks"])
def test_ctrl_c_between_any_two_files_leaves_no_dataset(step, tmp_path, monkeypatch, few_cutouts):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(writer, step, stop)
    assert main(["simulate", str(tmp_path / "out"), *TINY]) == 130
    with pytest.raises(UserError):
        load(tmp_path / "out")
    assert not list(tmp_path.rglob("*.part"))


@pytest.mark.slow
def test_a_real_ctrl_c_leaves_no_dataset(tmp_path):
    out = tmp_path / "out"
    argv = [
        sys.executable,
        "-m",
        "mindtuner",
        "simulate",
        str(out),
        "--subjects",
        "2",
        "--sessions",
        "2",
        "--trials-per-session",
        "750",
        "--shared-images",
        "100",
        "--voxel-scale",
        ".01",
    ]
    process = subprocess.Popen(
        argv,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        deadline = time.monotonic() + 120
        while not list(out.glob(".coco_images*.part")):  # it is in the middle of the images
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and error.split() == ["mindtuner:", "stopped"]
    with pytest.raises(UserError):
        load(out)
    assert not list(out.rglob("*.part"))


def test_a_bug_is_no_bad_input(monkeypatch, tmp_path):
    """What is not the user's fault is not dressed up as such."""

    def bug(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(simulation, "simulate", bug)
    with pytest.raises(ZeroDivisionError):
        main(["simulate", str(tmp_path / "out"), *TINY])


def test_a_closed_pipe_is_no_error():
    """``mindtuner ... | head``: a reader that left early."""
    code = (
        "import sys; from mindtuner.cli import main, simulate\n"
        "def run(options):\n"
        "    for _ in range(100000): print('x' * 100)\n"
        "simulate.run = run\n"
        "sys.exit(main(['simulate', 'x']))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 0 and process.stderr.read() == b""
    process.stderr.close()


def test_the_stopwatch_says_each_stage_and_the_total(capsys):
    watch = options.stopwatch()
    with watch.stage("one"):
        time.sleep(0.02)
    with watch.stage("two"):
        pass
    total = watch.total()
    assert list(total) == ["one", "two", "total"] and total["one"] >= 0.02
    assert total["total"] >= total["one"] + total["two"]
    out = capsys.readouterr().out
    assert "one" in out and "two" in out
