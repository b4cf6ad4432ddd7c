"""The scoring networks come from local stand-ins of their servers, verified, and are then what evaluate finds."""

import functools
import hashlib
import http.server
import io
import threading

import pytest
import torch
from commands import refused
from hub import QuietServer, serving
from safetensors.torch import load_file

from mindtuner.claims import alone
from mindtuner.cli import main
from mindtuner.evaluation.scores.networks import find_networks
from mindtuner.published_weights import scoring_networks as scoring
from mindtuner.published_weights.scoring_networks import NetworkFile, NetworkFolder

CONFIG, MERGES = b'{"model_type": "clip"}', b"#version: 0.2\n"


def saved(tensors):
    buffer = io.BytesIO()
    torch.save(tensors, buffer)
    return buffer.getvalue()


WEIGHTS = {"text": torch.arange(400.0), "same": torch.arange(400.0)}
ALEXNET = saved({"features.0.bias": torch.zeros(64)})
DIGEST = hashlib.sha256(ALEXNET).hexdigest()[:8]


class Files(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server of plain files and a hub; the list of networks names them in the place of the real ones."""
    at = tmp_path / "server"
    at.mkdir()
    (at / "alexnet.pth").write_bytes(ALEXNET)
    (at / "swav.pth.tar").write_bytes(saved({"module.conv1.weight": torch.ones(2)}))
    files = QuietServer(("127.0.0.1", 0), functools.partial(Files, directory=at))
    threading.Thread(target=files.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    url = f"http://127.0.0.1:{files.server_port}"
    of_clip = {
        f"/some/clip/resolve/main/{name}": data
        for name, data in (("config.json", CONFIG), ("merges.txt", MERGES), ("pytorch_model.bin", saved(WEIGHTS)))
    }
    with serving(of_clip) as hub:
        monkeypatch.setattr(
            scoring,
            "NETWORKS",
            (
                NetworkFile(f"alexnet-{DIGEST}.pth", f"{url}/alexnet.pth", DIGEST, 1000, "free"),
                NetworkFile("swav.pth.tar", f"{url}/swav.pth.tar", "", 1000, "free"),
                NetworkFolder("clip", "some/clip", 1000, "free", ("config.json", "merges.txt")),
            ),
        )
        yield at, hub
    files.shutdown()
    files.server_close()


VERB = ("fetch", "networks")


def fetch(*words):
    return main([*VERB, *map(str, words)])


def test_what_comes_is_what_evaluate_finds_and_stays(server, tmp_path, capsys):
    at, hub = server
    out = tmp_path / "networks"
    assert fetch(out) == 0
    told = capsys.readouterr().out
    assert f"alexnet-{DIGEST}.pth" in told and "the hub, some/clip" in told and "(free)" in told
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {
        f"alexnet-{DIGEST}.pth",
        "swav.pth.tar",
        "clip/config.json",
        "clip/merges.txt",
        "clip/model.safetensors",
    }
    assert (out / f"alexnet-{DIGEST}.pth").read_bytes() == ALEXNET
    assert (out / "clip/config.json").read_bytes() == CONFIG and (out / "clip/merges.txt").read_bytes() == MERGES
    converted = load_file(out / "clip/model.safetensors")
    assert converted.keys() == WEIGHTS.keys() and all(torch.equal(converted[name], WEIGHTS[name]) for name in WEIGHTS)
    assert [network.name for network in find_networks(out)[0]] == ["alexnet", "swav_resnet50"]
    (at / "alexnet.pth").unlink()
    asked = len(hub.asked)
    assert fetch(out) == 0 and all(command == "HEAD" for command, _ in hub.asked[asked:])  # nothing travels twice


def test_safetensors_of_the_hub_are_taken_where_it_has_them(server, tmp_path):
    server[1].files["/some/clip/resolve/main/model.safetensors"] = b"weights" * 500
    assert fetch(tmp_path / "networks", "--only", "clip") == 0
    assert sorted(path.name for path in (tmp_path / "networks/clip").iterdir()) == [
        "config.json",
        "merges.txt",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    "name, content, parts",
    [
        ("alexnet.pth", ALEXNET[:-1] + b"x", ("another checksum", f"begins with {DIGEST}")),
        ("alexnet.pth", None, ("alexnet.pth: not to be had (File not found)",)),
        ("swav.pth.tar", saved({"a": torch.ones(9)})[:-400], ("is cut short",)),
        ("swav.pth.tar", b"<html>", ("expected the whole of http",)),
    ],
)
def test_a_wrong_or_missing_file_is_one_line_and_leaves_nothing(server, tmp_path, capsys, name, content, parts):
    (server[0] / name).unlink()
    if content is not None:
        (server[0] / name).write_bytes(content)
    out = tmp_path / "networks"
    refused(capsys, [*VERB, out, "--only", f"alexnet-{DIGEST}.pth,swav.pth.tar"], *parts)
    assert not [path for path in out.iterdir() if path.name.startswith((".", "swav" if "swav" in name else "alexnet"))]


def test_one_fetch_at_a_time_into_a_folder(server, tmp_path, capsys):
    out = tmp_path / "networks"
    with alone(out):
        refused(capsys, [*VERB, out], f"{out}: another process writes there")
    assert main([*map(str, VERB), str(out)]) == 0


def test_words_that_make_no_sense(server, tmp_path, capsys):
    refused(capsys, [*VERB, tmp_path / "networks", "--only", "vgg"], "only: is 'vgg'", "swav.pth.tar")
    refused(capsys, VERB, "OUT: not given")
    (tmp_path / "file").touch()
    refused(capsys, [*VERB, tmp_path / "file"], "is a file; expected a folder")
    assert fetch("--list") == 0 and "swav.pth.tar" in capsys.readouterr().out
    assert not (tmp_path / "networks").exists()


def test_the_list_has_what_the_scores_look_for():
    """The published names are those by which ``--networks`` knows a file, and the digests are in PyTorch's names."""
    from mindtuner.evaluation.scores.networks import FORMS
    from mindtuner.pipeline.captions_and_brain import CLIP_FOLDERS

    names = [network.name for network in scoring.NETWORKS]
    for form in FORMS.values():
        assert sum(name.startswith(form.begins) for name in names) == 1, form.label
    assert set(CLIP_FOLDERS.values()) <= set(names)
    for file in scoring.NETWORKS:
        if isinstance(file, NetworkFile) and file.digest:
            assert len(file.digest) == 8 and int(file.digest, 16) and file.url.endswith(f"-{file.digest}.pth")
