"""``mindtuner embed``: the caches of ``embed``, bad input in one line, and two processes under a launcher."""

import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pytest
from children import free_port
from stand_ins import Lengths

from mindtuner.cli import embed as verb
from mindtuner.cli import main
from mindtuner.files import write_json
from mindtuner.formats import load
from mindtuner.towers.compact import Autoencoder
from mindtuner.towers.embed import compact_towers, embed


@pytest.mark.slow
def test_the_verb_makes_the_caches_of_embed(simulated, image_encoder, untrained_generator, tmp_path, capsys, monkeypatch):
    text_encoder = Lengths()
    for name, encoder in (("CompactImageEncoder", image_encoder), ("CompactTextEncoder", text_encoder)):
        monkeypatch.setattr(f"mindtuner.pipeline.towers.{name}", lambda encoder=encoder: encoder)
    argv = ["embed", str(simulated), str(tmp_path / "cache"), "--generator", str(untrained_generator)]
    assert main([*argv, "--only", "tokens"]) == 0
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == [
        "pixels.bin",
        "pixels.json",
        "tokens.bin",
        "tokens.json",
    ]
    count = len(load(simulated).stimuli)
    said = capsys.readouterr().out
    assert f"{count} x 16 x 128" in said and "float32" in said and f"{count * 8192 / 1e3:.1f} kB" in said
    assert main(argv) == 0
    said = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[-2:] for line in said if line and line[0] == "tokens.bin"] == [["0", "B"]]  # no room needed any more
    assert [line[-2:] for line in said if line and line[0] == "text.bin"] == [[f"{count * 1536 / 1e3:.1f}", "kB"]]
    same_as = embed(load(simulated), tmp_path / "other", image_encoder, text_encoder, Autoencoder(untrained_generator))
    assert set(same_as) == set(verb._NAMES)
    for name in same_as:
        assert (tmp_path / "cache" / f"{name}.bin").read_bytes() == (tmp_path / "other" / f"{name}.bin").read_bytes()


def test_the_verb_refuses_bad_input_in_one_line(simulated, tmp_path, capsys, monkeypatch):
    def refused(*argv):
        assert main(["embed", *map(str, argv)]) == 2
        [line] = capsys.readouterr().err.splitlines()
        return line

    (tmp_path / "file").write_text("")
    assert "is a file; expected a folder" in refused(simulated, tmp_path / "file")
    assert str(tmp_path / "nothing") in refused(tmp_path / "nothing", tmp_path / "cache")
    assert "none.safetensors: not found" in refused(
        simulated, tmp_path / "cache", "--only", "latents", "--generator", tmp_path / "none.safetensors"
    )
    assert "sounds" in refused(simulated, tmp_path / "cache", "--only", "tokens", "sounds")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert "the disk has 1.0 kB free; expected at least" in refused(simulated, tmp_path / "cache", "--only", "pixels")
    assert not (tmp_path / "cache").exists()
    monkeypatch.undo()
    (tmp_path / "cache").mkdir()
    write_json(tmp_path / "cache" / "pixels.json", {"shape": [1, 3, 128, 128], "dtype": "uint8"})
    assert "pixels.json: identity is 'nothing'" in refused(simulated, tmp_path / "cache", "--only", "pixels")


@pytest.mark.slow
def test_the_verb_under_a_launcher(simulated, tmp_path):
    """Two processes of the real command line, told apart by RANK alone."""
    environment = os.environ | {
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "mindtuner", "embed", str(simulated), str(tmp_path / "two"), "--only", "pixels"]
    group = [
        subprocess.Popen(
            command,
            env=environment | {"RANK": rank, "LOCAL_RANK": rank},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        (out, errors), (quiet, _) = (process.communicate(timeout=300) for process in group)
    finally:
        for process in group:
            process.kill()  # of no effect on one that has ended
    assert [process.returncode for process in group] == [0, 0], errors
    assert "pixels.bin: whole" in out and quiet == ""
    compact_towers(load(simulated).stimuli, tmp_path / "one", None, None, None)[0].build(
        tmp_path / "one", load(simulated).stimuli
    )
    for name in ("pixels.bin", "pixels.json"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
