"""Each kind of file in the place of each other, cut files, and what a machine can lack: one line says which file or package
it is, and how to get it."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from commands import refused
from release import CLIP

from mindtuner.cli import main
from mindtuner.config import load_config
from mindtuner.errors import UserError
from mindtuner.generators.compact import CompactGenerator
from mindtuner.generators.git_captioner import GitCaptioner
from mindtuner.generators.sdxl import SdxlRefiner
from mindtuner.generators.unclip import UnclipGenerator
from mindtuner.interop.mindeye2 import convert_mindeye2
from mindtuner.interop.unclip import convert_unclip
from mindtuner.published_weights.manifest import MANIFEST
from mindtuner.towers.convnext_maps import ConvNextMaps, PlainConvNextMaps
from mindtuner.towers.openclip import OpenClipImageEncoder, OpenClipTextEncoder
from mindtuner.towers.sd_vae import StableAutoencoder
from mindtuner.training import load_fingerprint, load_network

pytestmark = pytest.mark.slow

DECODE = load_config("quick").decode
KINDS = {  # what a user may have: a file or folder, from the fixtures ``models`` and ``lab``
    "open_clip weights": lambda m, x: m.clip_weights,
    "open_clip folder": lambda m, x: m.clip_weights.parent,
    "convnext": lambda m, x: m.convnext,
    "unclip checkpoint": lambda m, x: m.checkpoint,
    "unclip folder": lambda m, x: m.unclip,
    "unclip's unet": lambda m, x: m.unclip / "unet" / "diffusion_pytorch_model.safetensors",
    "unclip's autoencoder": lambda m, x: m.unclip / "vae",
    "sd folder": lambda m, x: m.vae,
    "sd autoencoder": lambda m, x: m.vae / "vae",
    "its weights": lambda m, x: m.vae / "vae" / "diffusion_pytorch_model.bin",
    "sdxl": lambda m, x: m.sdxl,
    "sdxl's unet": lambda m, x: m.sdxl / "unet",
    "sdxl's index": lambda m, x: m.sdxl / "model_index.json",
    "git": lambda m, x: m.git,
    "git's weights": lambda m, x: m.git / "model.safetensors",
    "converter": lambda m, x: m.converter,
    "base run": lambda m, x: x.base,
    "base": lambda m, x: x.base / "base.safetensors",
    "fingerprint": lambda m, x: x.tuned / "fingerprint.safetensors",
    "cache": lambda m, x: x.cache,
    "token cache": lambda m, x: x.cache / "tokens.bin",
    "its seal": lambda m, x: x.cache / "tokens.json",
    "config": lambda m, x: x.config,
    "dataset": lambda m, x: x.data,
}
PLACES = {  # what reads it there, the kinds that belong there, and its name among the released
    "--clip-weights": (lambda path, m, x, out: OpenClipImageEncoder(CLIP, path), ("open_clip weights",), None),
    "--clip-weights, texts": (lambda path, m, x, out: OpenClipTextEncoder(CLIP, path), ("open_clip weights",), None),
    "--clip": (lambda path, m, x, out: OpenClipImageEncoder(f"local-dir:{path}"), (), None),
    "--vae": (lambda path, m, x, out: StableAutoencoder(path), ("sd folder", "sd autoencoder"), "vae"),
    "--convnext": (lambda path, m, x, out: ConvNextMaps(path), ("convnext",), "convnext"),
    "--convnext-weights": (lambda path, m, x, out: PlainConvNextMaps("test_convnext", path), (), None),
    "convert unclip": (lambda path, m, x, out: convert_unclip(path, out), ("unclip checkpoint",), "unclip"),
    "convert mindeye2": (lambda path, m, x, out: convert_mindeye2(path, out), (), None),
    "--unclip": (lambda path, m, x, out: UnclipGenerator(DECODE, 0, path, "clip"), ("unclip folder",), "unclip"),
    "--sdxl": (lambda path, m, x, out: SdxlRefiner(path, DECODE, 0), ("sdxl",), "sdxl"),
    "--captions": (lambda path, m, x, out: GitCaptioner(path, m.converter), ("git",), "git"),
    "--converter": (lambda path, m, x, out: GitCaptioner(m.git, path), ("converter",), "converter"),
    "--generator": (lambda path, m, x, out: CompactGenerator(DECODE, 0, Path(path)), (), None),
    "BASE": (lambda path, m, x, out: load_network(path), ("base",), None),
    "FINGERPRINT": (
        lambda path, m, x, out: load_fingerprint(path, load_network(x.base / "base.safetensors")),
        ("fingerprint",),
        None,
    ),
}


def one_clear_line(place, path, models, lab, out):
    """The place refuses ``path``: names it, says what was expected, and how to get the released file where there is one."""
    read, _, name = PLACES[place]
    with pytest.raises(UserError) as caught:
        read(str(path), models, lab, out / "out.safetensors")
    line = str(caught.value)
    assert "\n" not in line and str(path) in line and "expected" in line and len(line) < 900, line
    assert name is None or f"mindtuner fetch weights gets the released one, {name})" in line, line
    assert not list(out.iterdir())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", PLACES)
def test_each_kind_in_the_place_of_each_other(place, kind, models, lab, tmp_path):
    path = KINDS[kind](models, lab)
    if kind in PLACES[place][1]:
        PLACES[place][0](str(path), models, lab, tmp_path / "out.safetensors")  # else a refusal would show nothing
    else:
        one_clear_line(place, path, models, lab, tmp_path)


@pytest.mark.parametrize("place", PLACES)
def test_nothing_there_and_no_file_at_all(place, models, lab, tmp_path):
    (tmp_path / "empty folder").mkdir()
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "text.txt").write_text("a text\nof two lines\n")
    (tmp_path / "out").mkdir()
    for name in ("missing", "a/missing/one", "empty folder", "empty", "text.txt"):
        one_clear_line(place, tmp_path / name, models, lab, tmp_path / "out")


@pytest.mark.parametrize("place", [place for place, (_, kinds, _) in PLACES.items() if kinds])
def test_cut_files(place, models, lab, tmp_path):
    """Each file of a kind that belongs there, cut to its half. (A list of merges that is cut between two lines is a shorter
    list: there only the checksum tells.)"""
    (tmp_path / "out").mkdir()
    for kind in PLACES[place][1]:
        there = KINDS[kind](models, lab)
        copy = tmp_path / kind / there.name
        (shutil.copytree if there.is_dir() else copy_file)(there, copy)
        files = sorted(path for path in copy.rglob("*") if path.is_file()) if copy.is_dir() else [copy]
        for file in files:
            if file.name in (
                "merges.txt",
                "vocab.txt",
                "special_tokens_map.json",
                "generation_config.json",
                "preprocessor_config.json",
            ):
                continue  # not read where the rest is there, or see above
            whole = file.read_bytes()
            file.write_bytes(whole[: len(whole) // 2])
            with pytest.raises(UserError) as caught:
                PLACES[place][0](str(copy), models, lab, tmp_path / "out" / "out.safetensors")
            line = str(caught.value)
            assert "\n" not in line and str(copy) in line and "expected" in line, line
            file.write_bytes(whole)
        assert not list((tmp_path / "out").iterdir())


def copy_file(there, copy):
    copy.parent.mkdir(parents=True)
    shutil.copy(there, copy)


def test_what_the_lines_name_can_be_fetched():
    assert {name for _, _, name in PLACES.values() if name} | {"openclip"} == {weights.name for weights in MANIFEST}


# ---- by the command line


@pytest.fixture(scope="module")
def embed(lab, models):
    def words(*others):
        return ["embed", lab.data, lab.root / "none", *lab.paper, *others]

    return words


@pytest.fixture(scope="module")
def decode(lab, models):
    """decode as a user types it; of an option that is given twice, the last one counts."""

    def words(*others):
        return [
            "decode",
            lab.tuned,
            lab.data,
            lab.root / "none",
            "--pictures",
            1,
            "--generator",
            "sdxl",
            "--unclip",
            models.unclip,
            "--sdxl",
            models.sdxl,
            "--vae",
            models.vae,
            *models.clip,
            "--captions",
            models.git,
            "--converter",
            models.converter,
            "--side",
            16,
            *others,
        ]

    return words


def test_the_command_line_says_the_same(embed, decode, lab, models, tmp_path, capsys):
    got = "mindtuner fetch weights gets the released one, "
    for words, parts in (
        (embed("--clip-weights", models.converter), (models.converter, "expected the weights of")),
        (embed("--clip-weights", models.checkpoint), (models.checkpoint, "do not fit")),
        (embed("--clip", "ViT-bigG-14", "--clip-weights", models.converter), (models.converter, got + "openclip")),
        (embed("--clip", models.sdxl), (models.sdxl, "open_clip_config.json")),
        (embed("--vae", models.sdxl), (models.sdxl, "scaling_factor", got + "vae")),
        (embed("--convnext", models.clip_weights), (models.clip_weights, got + "convnext")),
        (embed("--convnext", models.vae), (models.vae, got + "convnext")),
        (decode("--unclip", models.checkpoint), (models.checkpoint, "is a file", "mindtuner convert unclip", got + "unclip")),
        (decode("--unclip", models.sdxl), (models.sdxl, "mindtuner.json: not found", got + "unclip")),
        (decode("--sdxl", models.unclip), (models.unclip, "model_index.json", got + "sdxl")),
        (decode("--sdxl", models.checkpoint), (models.checkpoint, "is a file", got + "sdxl")),
        (decode("--vae", models.unclip), (models.unclip, "scaling_factor", got + "vae")),
        (decode("--clip-weights", models.convnext), (models.convnext, "expected the weights of")),
        (decode("--captions", models.sdxl), (models.sdxl, "config.json", got + "git")),
        (decode("--converter", models.convnext), (models.convnext, got + "converter")),
        (decode("--base", lab.tuned / "fingerprint.safetensors"), ("fingerprint.safetensors",)),
        (["decode", lab.base / "base.safetensors", *decode()[2:]], ("base.safetensors: is a base",)),
        (["convert", "unclip", models.unclip, tmp_path / "out"], (models.unclip, "is a folder", got + "unclip")),
        (["convert", "mindeye2", models.checkpoint, tmp_path / "out.safetensors"], (models.checkpoint, "model_state_dict")),
        (["fetch", "weights", tmp_path / "out", "--from", models.checkpoint], (models.checkpoint, "--from")),
        (["fetch", "weights", models.checkpoint], (models.checkpoint, "is a file")),
        (["check", "weights", models.checkpoint], (models.checkpoint, "is a file")),
    ):
        refused(capsys, words, *map(str, parts), "expected")
    assert not (lab.root / "none").exists() and not list(tmp_path.iterdir())


def test_a_missing_package_or_gpu_is_told(embed, decode, models, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    refused(capsys, decode("--device", "cuda"), "--device: is cuda, but torch finds no CUDA here; expected cpu")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    for words in (embed(), decode()):
        refused(capsys, words, "package open_clip: cannot be imported", "pip install open_clip_torch")


def test_a_full_gpu_is_one_line(monkeypatch, tmp_path, capsys):
    from mindtuner.cli import embed

    def full(options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has\nother lines")

    monkeypatch.setattr(embed, "run", full)
    refused(capsys, ["embed", tmp_path, tmp_path], "the GPU's memory is full (CUDA out of memory)", "--offload")
    monkeypatch.setattr(embed, "run", lambda options: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        main(["embed", str(tmp_path), str(tmp_path)])
