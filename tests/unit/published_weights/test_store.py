"""Released weights: fetched from a local server that breaks off, lies and refuses, from a folder, converted, checked."""

import dataclasses
import fnmatch
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
from hub import blob_id, serving, sha256
from huggingface_hub import constants
from paths import ROOT
from release import script

from mindtuner import download
from mindtuner.claims import alone
from mindtuner.cli import fetch_weights, main
from mindtuner.generators import git_captioner as captions
from mindtuner.generators import sdxl
from mindtuner.published_weights import store
from mindtuner.published_weights.manifest import MANIFEST, WeightFile, Weights

parity = script("parity/unclip")

BIG, CONFIG, SHORT = bytes(range(256)) * 200, b'{"tower": 1}', b"converter" * 300
COMMIT = "c0ffee" + "0" * 34


TOWER = Weights(
    "tower",
    "a tower",
    "no tokens",
    "someone/tower",
    "model",
    "main",
    "MIT",
    (
        WeightFile("tower/big.bin", "big.bin", 51_000, None, sha256(BIG)),
        WeightFile("tower/sub/config.json", "sub/config.json", len(CONFIG)),
    ),
)
SMALL = Weights(
    "short",
    "a converter",
    "no captions",
    "else/data",
    "dataset",
    COMMIT,
    "CC-BY-NC",
    (WeightFile("short.pth", "short.pth", len(SHORT), len(SHORT), sha256(SHORT)),),
)
BIG_AT, CONFIG_AT = "/someone/tower/resolve/main/big.bin", "/someone/tower/resolve/main/sub/config.json"


@pytest.fixture
def hub(monkeypatch):
    with serving(
        {
            "/someone/tower/resolve/main/big.bin": BIG,
            "/someone/tower/resolve/main/sub/config.json": CONFIG,
            f"/datasets/else/data/resolve/{COMMIT}/short.pth": SHORT,
        }
    ) as hub:
        monkeypatch.setattr(store, "MANIFEST", (TOWER, SMALL))
        yield hub


def fetch(out, *words):
    return main(["fetch", "weights", str(out), *map(str, words)])


def check(out, *words):
    return main(["check", "weights", str(out), *words])


def refused(capsys, code, *parts):
    assert code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("mindtuner: "), lines
    for part in parts:
        assert part in lines[0], lines[0]


def on_disk(out):
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


WHOLE = {"tower/big.bin": BIG, "tower/sub/config.json": CONFIG, "short.pth": SHORT}


def check_files(out, wanted=WHOLE):
    found = on_disk(out)
    record = json.loads(found.pop("weights.json"))["files"]
    assert found == wanted and {path: entry["size"] for path, entry in record.items()} == {
        path: len(data) for path, data in wanted.items()
    }
    assert not list(out.glob(".*"))


# ---- fetching


def test_one_fetch_at_a_time_into_a_folder(hub, tmp_path, capsys):
    with alone(tmp_path):
        refused(capsys, fetch(tmp_path), f"{tmp_path}: another process writes there")
    assert fetch(tmp_path) == 0


def test_all_files_come_and_source_size_and_licence_are_told_first(hub, tmp_path, capsys):
    assert fetch(tmp_path) == 0
    check_files(tmp_path)
    told = capsys.readouterr().out
    for words in (
        "someone/tower",
        "licence: MIT",
        "datasets/else/data at c0ffee000000",
        "licence: CC-BY-NC",
        "2.7 kB",
        "about 51.0 kB",
        "checksum as the hub states it",
        "3 files, about 53.7 kB",
        "complete",
    ):
        assert words in told, told
    # What the manifest knows whole is not asked for; what it does not know is the hub's word, here git's blob id.
    assert not [path for command, path in hub.asked if command == "HEAD" and path.endswith("short.pth")]
    record = json.loads((tmp_path / "weights.json").read_text())["files"]
    assert record["tower/sub/config.json"]["checksum"] == blob_id(CONFIG)
    assert record["short.pth"] == {
        "size": len(SHORT),
        "checksum": sha256(SHORT),
        "licence": "CC-BY-NC",
        "source": f"datasets/else/data@{COMMIT}:short.pth",
    }
    hub.asked.clear()
    assert fetch(tmp_path) == 0 and not hub.asked


def test_only_some(hub, tmp_path, capsys):
    assert fetch(tmp_path, "--only", "short") == 0
    check_files(tmp_path, {"short.pth": SHORT})
    assert fetch(tmp_path, "--only", "tower,short") == 0
    check_files(tmp_path)
    capsys.readouterr()
    refused(capsys, fetch(tmp_path, "--only", "short,sdxl"), "'sdxl'", "tower, short")


def test_a_connection_that_breaks_off_goes_on_where_it_was(hub, tmp_path):
    hub.drop = {BIG_AT: 3, CONFIG_AT: 1}
    assert fetch(tmp_path) == 0
    check_files(tmp_path)
    assert hub.sent[BIG_AT] == len(BIG)  # nothing twice


def test_a_fetch_that_ended_goes_on_where_it_was(hub, tmp_path, capsys, monkeypatch):
    def no_more(*_):
        raise KeyboardInterrupt

    hub.drop = {BIG_AT: 1}
    with monkeypatch.context() as patch:
        patch.setattr(download.time, "sleep", no_more)
        assert fetch(tmp_path) == 130
    assert check(tmp_path) == 0
    assert re.search(r"tower/big.bin +missing, about 25.4 kB to fetch \(begun\)", capsys.readouterr().out)
    assert fetch(tmp_path) == 0
    check_files(tmp_path)
    assert hub.sent[BIG_AT] == len(BIG)


@pytest.mark.parametrize("at, path", [(BIG_AT, "tower/big.bin"), (CONFIG_AT, "tower/sub/config.json")])
def test_a_wrong_byte_is_found_and_removed(hub, tmp_path, capsys, at, path):
    hub.wrong = {at}
    refused(capsys, fetch(tmp_path), path, "checksum", "removed")
    assert not (tmp_path / path).exists()
    hub.wrong = set()
    assert fetch(tmp_path) == 0
    check_files(tmp_path)


def test_a_hub_with_another_file_is_refused_before_it_travels(hub, tmp_path, capsys):
    hub.files[BIG_AT] = BIG[::-1]
    refused(capsys, fetch(tmp_path), sha256(BIG), sha256(BIG[::-1]), "hub states")
    assert not hub.sent


def test_a_hub_without_sizes_a_missing_file_and_no_hub(hub, tmp_path, capsys, monkeypatch):
    hub.states = False
    refused(capsys, fetch(tmp_path), "no size or checksum")
    hub.states = True
    del hub.files[CONFIG_AT]
    refused(capsys, fetch(tmp_path), "config.json", "HTTP 404")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(capsys, fetch(tmp_path), "HF_HUB_OFFLINE")


def test_a_full_disk_is_told_before_anything_travels(hub, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=len(BIG)))
    refused(capsys, fetch(tmp_path / "out"), "GB free", "still to come")
    assert not hub.sent and not (tmp_path / "out").exists()


def test_files_that_lie_there_are_verified_and_left_alone(hub, tmp_path, capsys):
    (tmp_path / "tower/sub").mkdir(parents=True)
    (tmp_path / "tower/big.bin").write_bytes(BIG)
    (tmp_path / "tower/sub/config.json").write_bytes(CONFIG)
    assert fetch(tmp_path) == 0
    check_files(tmp_path)
    assert BIG_AT not in hub.sent and CONFIG_AT not in hub.sent
    (tmp_path / "weights.json").unlink()
    for data, part in ((BIG[::-1], "checksum"), (BIG[:-5000], "46,200 bytes")):
        (tmp_path / "tower/big.bin").write_bytes(data)
        refused(capsys, fetch(tmp_path), "tower/big.bin", part, "remove it")
        assert (tmp_path / "tower/big.bin").read_bytes() == data


def test_damaged_records_and_folders_are_told(hub, tmp_path, capsys):
    (tmp_path / "weights.json").write_text('{"files": {"short.pth": 3}}')
    refused(capsys, fetch(tmp_path), "weights.json", "remove it")
    (tmp_path / "file").write_text("")
    refused(capsys, fetch(tmp_path / "file"), "is a file")
    refused(capsys, check(tmp_path / "nowhere"), "not found")
    refused(capsys, main(["fetch", "weights"]), "OUT", "./weights")
    refused(capsys, main(["check", "weights"]), "OUT", "./weights")
    assert not hub.sent


def test_a_repository_that_was_renamed_is_found(hub, tmp_path):
    store.fetch(tmp_path, [dataclasses.replace(TOWER, repo="old/tower")])
    check_files(tmp_path, {path: data for path, data in WHOLE.items() if path != "short.pth"})


# ---- from a folder


@pytest.fixture
def cluster(tmp_path) -> Path:
    """What a machine already has: a hub's cache, whose names are links, and files of the same names that are others."""
    root = tmp_path / "cluster"
    (root / "blobs").mkdir(parents=True), (root / "snapshots/c0ffee/sub").mkdir(parents=True), (root / "other").mkdir()
    (root / "blobs/1").write_bytes(BIG)
    (root / "snapshots/c0ffee/big.bin").symlink_to("../../blobs/1")
    (root / "snapshots/c0ffee/sub/config.json").write_bytes(CONFIG)
    (root / "other/config.json").write_bytes(CONFIG[::-1])
    (root / "other/short.pth").write_bytes(SHORT[::-1])
    return root


def test_what_is_there_is_linked_and_the_rest_comes_from_the_hub(hub, tmp_path, cluster, capsys):
    assert fetch(tmp_path / "out", "--from", cluster) == 0
    check_files(tmp_path / "out")
    assert set(hub.sent) == {f"/datasets/else/data/resolve/{COMMIT}/short.pth"}
    linked = tmp_path / "out/tower/big.bin"
    assert linked.samefile(cluster / "blobs/1") and not linked.is_symlink()
    told = capsys.readouterr().out
    assert "other/short.pth: not used" in told and "big.bin: linked from" in told


def test_another_disk_gets_a_copy(hub, tmp_path, cluster, monkeypatch):
    def refuse(*_):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert fetch(tmp_path / "out", "--from", cluster) == 0
    check_files(tmp_path / "out")
    assert not (tmp_path / "out/tower/big.bin").samefile(cluster / "blobs/1")


def test_without_a_network_known_files_still_come(tmp_path, cluster, hub, monkeypatch, capsys):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (cluster / "short.pth").write_bytes(SHORT)
    assert fetch(tmp_path / "out", "--from", cluster, "--only", "short") == 0
    check_files(tmp_path / "out", {"short.pth": SHORT})
    assert not hub.asked
    capsys.readouterr()
    refused(capsys, fetch(tmp_path / "out", "--from", tmp_path / "nowhere"), "--from", "nowhere")


def test_a_cluster_without_a_network_needs_its_hubs_cache_alone(released, tmp_path, monkeypatch, capsys):
    """All files, with those whose checksum no manifest has: the cache names what the hub stated."""
    import release

    release.as_hub_cache(released, tmp_path / "hub")
    monkeypatch.setattr(store, "MANIFEST", release.manifest(released))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    vae = tmp_path / "hub" / "models--lambdalabs--sd-image-variations-diffusers"
    [config] = vae.glob("snapshots/*/vae/config.json")
    whole = config.read_bytes()
    config.resolve().write_bytes(whole[::-1])
    refused(capsys, fetch(tmp_path / "out", "--from", tmp_path / "hub"), "config.json", "HF_HUB_OFFLINE")
    config.resolve().write_bytes(whole)
    assert fetch(tmp_path / "out", "--from", tmp_path / "hub") == 0 and check(tmp_path / "out", "--hashes") == 0
    assert "to fetch in all: about 0 B" in capsys.readouterr().out
    assert (tmp_path / "out" / "sd-image-variations/vae/config.json").read_bytes() == whole


# ---- what is there


def test_check_says_what_is_there_and_what_is_missing_costs(hub, tmp_path, capsys):
    assert fetch(tmp_path, "--only", "tower") == 0
    capsys.readouterr()
    assert check(tmp_path) == 0
    told = capsys.readouterr().out
    assert re.search(r"tower/big.bin +whole\n", told) and re.search(r"short.pth +missing, about 2.7 kB to fetch\n", told)
    assert f"mindtuner fetch weights {tmp_path} --only short); without: no captions" in told and "no tokens" not in told
    assert told.endswith("to fetch in all: about 2.7 kB\n")
    (tmp_path / "short.pth").write_bytes(SHORT)
    assert check(tmp_path) == 0
    assert "not yet looked at" in capsys.readouterr().out


def test_check_finds_cut_and_damaged_files(hub, tmp_path, capsys):
    assert fetch(tmp_path) == 0
    (tmp_path / "short.pth").write_bytes(SHORT[:100])
    capsys.readouterr()
    assert check(tmp_path) == 2
    told = capsys.readouterr()
    assert re.search(r"short.pth +CUT: 100 of 2,700 bytes", told.out) and "short.pth cut or wrong" in told.err
    (tmp_path / "short.pth").write_bytes(SHORT)
    (tmp_path / "tower/sub/config.json").write_bytes(CONFIG[::-1])
    assert check(tmp_path) == 0  # sizes are right
    assert check(tmp_path, "--hashes") == 2
    assert "tower/sub/config.json cut or wrong" in capsys.readouterr().err


# ---- conversion


def test_the_unclip_checkpoint_is_converted_once_and_then_not_needed(hub, tmp_path, capsys, monkeypatch):
    made = tmp_path / "unclip.ckpt"
    torch.save({"state_dict": parity.read_fixture(parity.FIXTURES / "attention_everywhere.safetensors")[0]}, made)
    data = made.read_bytes()
    hub.files["/someone/tower/resolve/main/unclip.ckpt"] = data
    unclip = Weights(
        "unclip",
        "a generator",
        "no pictures",
        "someone/tower",
        "model",
        "main",
        "none",
        (WeightFile("unclip.ckpt", "unclip.ckpt", len(data), len(data), sha256(data)),),
        ("unclip", 1000),
    )
    monkeypatch.setattr(store, "MANIFEST", (unclip,))
    out = tmp_path / "out"
    store.fetch(out, [unclip])
    assert check(out) == 0 and "not converted yet" in capsys.readouterr().out
    assert fetch(out) == 0 and store.is_converted(out, unclip)
    (out / "unclip.ckpt").unlink()
    hub.asked.clear()
    capsys.readouterr()
    assert fetch(out) == 0 and check(out) == 0 and not hub.asked
    assert "unclip.ckpt  not needed, converted" in capsys.readouterr().out
    whole = (out / "unclip/vae/diffusion_pytorch_model.safetensors").read_bytes()
    (out / "unclip/vae/diffusion_pytorch_model.safetensors").write_bytes(whole[:-8])
    assert not store.is_converted(out, unclip)
    refused(capsys, fetch(out), str(out / "unclip"), "is there already")


# ---- what ships


def test_the_manifest_is_well_formed():
    names, paths = [weights.name for weights in MANIFEST], [file.path for weights in MANIFEST for file in weights.files]
    assert len(set(names)) == len(names) and len(set(paths)) == len(paths) == 32
    for weights in MANIFEST:
        assert re.fullmatch(r"[\w.-]+/[\w.-]+", weights.repo) and weights.kind in ("model", "dataset")
        assert re.fullmatch("main|[0-9a-f]{40}", weights.revision) and weights.licence and weights.without
        for file in weights.files:
            assert not Path(file.path).is_absolute() and ".." not in Path(file.path).parts
            assert file.about > 0 and file.size in (None, file.about)
            assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)
            assert file.sha256 or file.about < 10**6, file.path  # nothing large without a checksum of its own


def test_the_manifest_holds_what_the_code_reads():
    files = {weights.name: [file.name for file in weights.files] for weights in MANIFEST}
    for name, patterns in (("sdxl", sdxl.FILES), ("git", captions.FILES)):
        for file in files[name]:
            assert any(fnmatch.fnmatchcase(file, pattern) for pattern in patterns), file
    for part in (*sdxl.PARTS, *sdxl.TOKENIZERS, "scheduler"):
        assert any(file.startswith(f"{part}/") for file in files["sdxl"])
    for part in sdxl.PARTS:
        assert {f"{part}/config.json"} < {file for file in files["sdxl"] if file.startswith(f"{part}/")}
    assert {"config.json", "vocab.txt", "model.safetensors", "tokenizer_config.json"} <= set(files["git"])


def test_the_list_shows_everything_without_network_or_folder(capsys):
    assert main(["fetch", "weights", "--list"]) == 0
    told = capsys.readouterr().out
    for weights in MANIFEST:
        assert weights.repo in told and weights.licence in told and all(file.path in told for file in weights.files)
    page = (ROOT / "docs" / "full-size.md").read_text()
    table = page.partition("| name | model | licence |")[2].partition("\n\n")[0]
    listed = [row.split(" | ") for row in table.splitlines()[2:]]
    assert [row[0] for row in listed] == [f"| `{weights.name}`" for weights in MANIFEST]
    for row, weights in zip(listed, MANIFEST, strict=True):
        assert weights.licence.startswith(row[-1].removesuffix(" |")), weights.name
    total = fetch_weights.listing(MANIFEST)[-1].partition(", ")[2]
    assert total in told and f"In all they are {total}" in page


def test_list_with_a_folder_says_what_is_still_to_come(hub, tmp_path, capsys):
    assert fetch(tmp_path / "out", "--list") == 0
    assert "about 53.7 kB" in capsys.readouterr().out.splitlines()[-1]
    assert not hub.asked and not (tmp_path / "out").exists()
