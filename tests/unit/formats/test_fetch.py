"""Fetching the NSD release from a hub: a local server stands in for it, drops connections, lies, and refuses."""

import functools
import json
import os
import re
import shutil
import signal
import socket
import struct
import threading
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub
import numpy as np
import pytest
from hub import QuietHandler, QuietServer, blob_id, sha256
from huggingface_hub import constants

from mindtuner import download
from mindtuner.claims import alone
from mindtuner.cli import main
from mindtuner.errors import UserError
from mindtuner.formats import load
from mindtuner.formats.nsd_release import fetch

REPO, COMMIT = "someone/brains", "c0ffee" + "0" * 34
IMAGES, BETAS = "coco_images_224_float16.hdf5", "betas_all_subj01_fp32_renorm.hdf5"
TRAIN, TEST = "wds/subj01/train/0.tar", "wds/subj01/new_test/0.tar"
SMALL = 10_000  # above it, a file is in LFS
TERMS = (
    "https://cvnlab.slite.page/p/dC~rBTjqjb/How-to-get-the-data",
    "https://naturalscenesdataset.org",
    "NSD Data Access Agreement",
)


class Hub(QuietServer):
    """A hub with one dataset repository at one commit: the list of its files, and the files, large ones by redirect."""

    def __init__(self, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.commit = dict(files), COMMIT
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.status, self.error_code, self.page = None, None, None  # what the list of files answers instead
        self.drop = {}  # path -> how many times its connection breaks
        self.how = "close"
        self.keep = 0.5  # share of what was asked for that arrives before it breaks
        self.wrong = set()  # paths with one wrong byte
        self.ranges = True
        self.stalled, self.go_on = threading.Event(), threading.Event()
        self.started, self.sent = [], {}  # [(path, first byte)], path -> bytes sent

    def describe(self) -> dict:
        siblings = []
        for path, data in self.files.items():
            entry = {"rfilename": path, "size": len(data), "blobId": blob_id(data)}
            if len(data) > SMALL:
                entry["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 130}
            siblings.append(entry)
        return {
            "id": REPO,
            "sha": self.commit,
            "private": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": siblings,
        }


class Handler(QuietHandler):
    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        if path.startswith("/api/datasets/"):
            return self.answer_list(path)
        kind, name = re.fullmatch(rf"/(datasets/{REPO}/resolve/(?:{COMMIT}|main)|cdn)/(.+)", path).groups()
        data, hub = self.server.files[name], self.server
        if kind == "cdn" or len(data) <= SMALL:
            return self.send_file(name, data)
        self.send_response(302)
        self.send_header("Location", f"{hub.url}/cdn/{name}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Etag", f'"{sha256(data)}"')
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("Content-Length", "0")
        self.end_headers()

    def answer_list(self, path):
        hub = self.server
        body = hub.page or json.dumps(hub.describe()).encode()
        status = hub.status or (200 if re.fullmatch(rf"/api/datasets/{REPO}/revision/(main|{COMMIT})", path) else 404)
        self.send_response(status)
        if hub.error_code:
            self.send_header("X-Error-Code", hub.error_code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_file(self, name, data):
        hub = self.server
        first = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1]) if hub.ranges else 0
        partial = hub.ranges and "Range" in self.headers
        if name in hub.wrong:
            data = data[:-7] + bytes([data[-7] ^ 1]) + data[-6:]
        self.send_response(206 if partial else 200)
        if partial:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - first))
        self.send_header("ETag", f'"{blob_id(data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "HEAD":
            return
        hub.started.append((name, first))
        body = data[first:]
        breaks = hub.drop.get(name, 0) > 0
        if breaks:
            hub.drop[name] -= 1
            body = body[: int(len(body) * hub.keep)]
        self.wfile.write(body)
        hub.sent[name] = hub.sent.get(name, 0) + len(body)
        if breaks:
            self.break_off()

    def break_off(self):
        self.close_connection = True
        if self.server.how == "stall":
            self.server.stalled.set()
            self.server.go_on.wait(20)
        elif self.server.how == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


@pytest.fixture(scope="session")
def published(simulated) -> dict[str, bytes]:
    """The files of a simulated release, and two that no reader of ours needs."""
    files = {path.relative_to(simulated).as_posix(): path.read_bytes() for path in simulated.rglob("*") if path.is_file()}
    assert {"dataset.json", IMAGES, BETAS, TRAIN, "wds/subj02/train/1.tar", TEST} <= set(files)
    return files | {"train_logs/last.pth": b"x" * 20_000, "README.md": b"hello", "wds/subj01/test/0.tar": b"old" * 5000}


@pytest.fixture
def hub(published, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(download, "WAIT_S", 0.001)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    hub = Hub(published | {IMAGES: published[IMAGES][:400_000]})  # no image is looked at: the less travels, the faster
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield hub
    hub.go_on.set()
    hub.shutdown()
    hub.server_close()


@pytest.fixture
def whole_hub(hub, published):
    """A hub whose release can be read, images and all."""
    hub.files[IMAGES] = published[IMAGES]
    return hub


def run(hub, out, *words, yes=True):
    return main(["fetch", str(out), "--endpoint", hub.url, "--repo", REPO, *(["--yes"] if yes else []), *words])


def refused(capsys, code, *parts):
    assert code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("mindtuner: "), lines
    for part in parts:
        assert part in lines[0], lines[0]


def wanted(hub, subjects=(1, 2)):
    """Names of the files that these subjects need, all sessions, in the fetched folder."""
    of_subject = re.compile(r"betas_all_subj0(\d)|wds/subj0(\d)/(?:train|new_test|test)/")
    shared = {
        "shared1000.npy",
        "brain_region_masks.hdf5",
        "COCO_73k_subj_indices.hdf5",
        "COCO_73k_annots_curated.npy",
        IMAGES,
    }
    return shared | {name for name in hub.files if (m := of_subject.match(name)) and int(m[1] or m[2]) in subjects}


def on_disk(out):
    return {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}


def check_files(hub, out, names):
    assert on_disk(out) == names | {"dataset.json"}
    for name in names:
        assert (out / name).read_bytes() == hub.files[name], name


# ---- what arrives


def test_the_server_speaks_as_the_library_expects(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    for name in (BETAS, "shared1000.npy"):
        path = huggingface_hub.hf_hub_download(REPO, name, repo_type="dataset", local_dir=tmp_path, endpoint=hub.url)
        assert Path(path).read_bytes() == hub.files[name]


def test_a_fetched_release_is_the_original(whole_hub, tmp_path, simulated, capsys):
    assert run(whole_hub, tmp_path / "out") == 0
    told = capsys.readouterr().out
    check_files(whole_hub, tmp_path / "out", wanted(whole_hub))
    assert not list((tmp_path / "out").glob(".*"))
    for words in (*TERMS, IMAGES, COMMIT, "total", "complete"):
        assert words in told
    ours, original = load(tmp_path / "out"), load(simulated)
    assert ours.card == original.card | {"source": {"repo": REPO, "revision": COMMIT}}
    assert ours.stimuli.hash == original.stimuli.hash and ours.stimuli.captions == original.stimuli.captions
    for number, subject in original.subjects.items():
        np.testing.assert_array_equal(ours.subject(number).betas([5, 0]), subject.betas([5, 0]))
        np.testing.assert_array_equal(ours.subject(number).trials.stimulus, subject.trials.stimulus)
        assert ours.subject(number).rois.keys() == subject.rois.keys()


def test_a_release_without_card_is_real_and_scored_by_its_publisher(whole_hub, tmp_path):
    del whole_hub.files["dataset.json"]
    assert run(whole_hub, tmp_path, "--subjects", "2") == 0
    card = json.loads((tmp_path / "dataset.json").read_text())
    assert card == {"simulated": False, "zscore": "publisher", "source": {"repo": REPO, "revision": COMMIT}}
    assert list(load(tmp_path).subjects) == [2]


def test_only_what_was_asked_for_travels_and_more_can_join_it(whole_hub, tmp_path, capsys):
    assert run(whole_hub, tmp_path, "--subjects", "1", "--sessions", "2") == 0
    asked = wanted(whole_hub, {1}) - {TRAIN}
    assert set(whole_hub.sent) == asked | {"dataset.json"} and "wds/subj01/train/1.tar" in asked
    check_files(whole_hub, tmp_path, asked)
    assert json.loads((tmp_path / "dataset.json").read_text())["sessions"] == {"1": [2]}
    assert "subject 1: training trials of session 2 only" in capsys.readouterr().out
    whole_hub.sent.clear()
    assert run(whole_hub, tmp_path) == 0
    assert set(whole_hub.sent) == wanted(whole_hub) - asked | {"dataset.json"}
    check_files(whole_hub, tmp_path, wanted(whole_hub))
    assert "sessions" not in load(tmp_path).card and list(load(tmp_path).subjects) == [1, 2]


def test_a_subject_with_some_sessions_has_the_same_trials(whole_hub, tmp_path, simulated):
    assert run(whole_hub, tmp_path, "--subjects", "1", "--sessions", "2") == 0
    ours, whole = load(tmp_path).subject(1).trials, load(simulated).subject(1).trials
    here = whole.is_test | (whole.session == 2)
    for name in ("row", "stimulus", "session", "repeat", "is_test"):  # repeats count the missing session's trials too
        np.testing.assert_array_equal(getattr(ours, name), getattr(whole, name)[here])


def test_fetching_less_again_takes_nothing_back(whole_hub, tmp_path):
    assert run(whole_hub, tmp_path, "--subjects", "1") == 0
    assert run(whole_hub, tmp_path, "--subjects", "1", "--sessions", "1") == 0
    assert "sessions" not in load(tmp_path, [1]).card


def test_the_endpoint_of_the_environment_counts(hub, tmp_path, monkeypatch):
    # What HF_ENDPOINT becomes when the library is imported.
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    assert main(["fetch", str(tmp_path), "--repo", REPO, "--revision", COMMIT, "--list"]) == 0
    assert main(["fetch", str(tmp_path), "--repo", REPO, "--subjects", "2", "--yes"]) == 0
    check_files(hub, tmp_path, wanted(hub, {2}))


# ---- connections that break


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_dropped_connection_goes_on_where_it_was(hub, tmp_path, how):
    hub.how, hub.drop = how, {IMAGES: 4, BETAS: 2, TRAIN: 1, "shared1000.npy": 1}
    assert run(hub, tmp_path, "--subjects", "1") == 0
    check_files(hub, tmp_path, wanted(hub, {1}))
    starts = [first for name, first in hub.started if name == IMAGES]
    assert len(starts) == 5 and starts == sorted(starts) and starts[0] == 0 < starts[-1]
    if how == "close":  # nothing is lost on the way, so nothing travels twice
        assert hub.sent == {name: len(hub.files[name]) for name in wanted(hub, {1}) | {"dataset.json"}}


def test_a_killed_fetch_goes_on_where_it_was(hub, tmp_path):
    hub.how, hub.drop = "stall", {IMAGES: 1}
    child = os.fork()
    if child == 0:
        try:
            run(hub, tmp_path, "--subjects", "1")
        finally:
            os._exit(1)
    assert hub.stalled.wait(20)
    half, deadline = hub.sent[IMAGES], time.monotonic() + 10
    part = tmp_path / f".fetch-{COMMIT}.part" / sha256(hub.files[IMAGES])
    while part.stat().st_size < half and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    hub.go_on.set()
    assert part.stat().st_size == half and not (tmp_path / "dataset.json").exists()
    with pytest.raises(UserError, match="no subject"):
        load(tmp_path)
    arrived = {name: len(hub.files[name]) for name in on_disk(tmp_path) if not name.startswith((".fetch", ".mindtuner-lock"))}
    hub.sent.clear()
    assert run(hub, tmp_path, "--subjects", "1") == 0
    check_files(hub, tmp_path, wanted(hub, {1}))
    rest = {name: len(hub.files[name]) for name in wanted(hub, {1}) - set(arrived)}
    assert arrived and hub.sent == rest | {IMAGES: len(hub.files[IMAGES]) - half}


def test_one_fetch_at_a_time_into_a_folder(hub, tmp_path, capsys):
    with alone(tmp_path):
        refused(capsys, run(hub, tmp_path, "--subjects", "2"), f"{tmp_path}: another process writes there")
    assert run(hub, tmp_path, "--subjects", "2") == 0


def test_a_hub_that_stays_silent_ends_in_one_line_and_nothing_is_lost(hub, tmp_path, capsys):
    hub.keep, hub.drop = 0, {IMAGES: 99}
    refused(capsys, run(hub, tmp_path, "--subjects", "1"), IMAGES, "tried 6 times", "goes on from here")
    assert len([name for name, _ in hub.started if name == IMAGES]) == 6
    hub.keep, hub.drop = 0.25, {IMAGES: 1}
    assert run(hub, tmp_path, "--subjects", "1") == 0
    check_files(hub, tmp_path, wanted(hub, {1}))


def test_a_server_without_ranges_begins_a_file_again(hub, tmp_path):
    hub.ranges, hub.drop = False, {BETAS: 1}
    assert run(hub, tmp_path, "--subjects", "1") == 0
    check_files(hub, tmp_path, wanted(hub, {1}))
    assert hub.sent[BETAS] > len(hub.files[BETAS])


# ---- bytes that are not what they should be


@pytest.mark.parametrize("name", [BETAS, TEST, "shared1000.npy", "dataset.json"])
def test_a_wrong_byte_is_found_named_and_removed(hub, tmp_path, capsys, name):
    hub.wrong = {name}
    refused(capsys, run(hub, tmp_path, "--subjects", "1"), name, "checksum", "removed")
    assert not (tmp_path / name).exists() and not (tmp_path / "dataset.json").exists()
    assert not [
        path
        for path in on_disk(tmp_path)
        if path.startswith(".fetch") and path.count("/") == 1 and not path.endswith("dataset.json")
    ]
    hub.wrong = set()
    assert run(hub, tmp_path, "--subjects", "1") == 0
    check_files(hub, tmp_path, wanted(hub, {1}))


def test_the_checksums_are_those_of_git_and_lfs(hub):
    # `printf 'hello' | git hash-object --stdin`, and `printf 'hello' | sha256sum`
    assert blob_id(b"hello") == "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"
    release = fetch.read_release(REPO, endpoint=hub.url)
    assert release.files["README.md"].checksum == "b6fc4c620b67d95f953a5c1c1230aaab5db5a1b0"
    assert release.files[BETAS].checksum == sha256(hub.files[BETAS])
    assert (release.subjects, release.sessions(1), release.sessions(3)) == ([1, 2], [1, 2], [])


def test_a_file_damaged_in_place_is_named_and_left_alone(hub, tmp_path, capsys):
    assert run(hub, tmp_path, "--subjects", "1") == 0
    data = bytearray(hub.files[BETAS])
    data[-1] ^= 1
    (tmp_path / BETAS).write_bytes(data)
    refused(capsys, run(hub, tmp_path, "--subjects", "1"), BETAS, "not what the release holds", "remove it")
    assert (tmp_path / BETAS).read_bytes() == data
    (tmp_path / BETAS).write_bytes(data[:-1])
    refused(capsys, run(hub, tmp_path, "--subjects", "1"), BETAS, "bytes", "remove it")
    (tmp_path / BETAS).unlink()
    assert run(hub, tmp_path, "--subjects", "1") == 0
    check_files(hub, tmp_path, wanted(hub, {1}))


# ---- hubs that refuse


@pytest.mark.parametrize(
    "status, code, parts",
    [
        (401, "RepoNotFound", ("not open to you", "401", "HF_TOKEN")),
        (403, "GatedRepo", ("not open to you", "403")),
        (403, None, ("not open to you", "403")),
        (404, "RepoNotFound", ("no such repository", "404")),
        (404, "RevisionNotFound", ("no such revision",)),
        (418, None, ("418",)),
        (500, None, ("HTTP 500", "tried 3 times")),
    ],
)
def test_a_hub_that_refuses_is_one_line(hub, tmp_path, capsys, status, code, parts):
    hub.status, hub.error_code = status, code
    refused(capsys, run(hub, tmp_path / "out"), REPO, *parts)
    assert not (tmp_path / "out").exists()


def test_no_network_is_one_line(hub, tmp_path, capsys, monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: connections are refused
        hub.url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        refused(capsys, run(hub, tmp_path), "no connection", "expected a network")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(capsys, run(hub, tmp_path), "HF_HUB_OFFLINE")


@pytest.mark.parametrize("page", [b"<html>welcome</html>", b"{}", b"[1]", b'{"id": "x/y", "siblings": []}'])
def test_what_is_no_hub_is_told(hub, tmp_path, capsys, page):
    hub.page = page
    refused(capsys, run(hub, tmp_path), REPO, "expected")


def test_a_commit_that_is_a_path_is_refused(hub, tmp_path, capsys):
    hub.commit = "../" * 13 + "x"
    refused(capsys, run(hub, tmp_path / "out"), "40 hexadecimal digits")


def test_a_hub_without_checksums_is_refused(hub, tmp_path, capsys):
    description = hub.describe()
    for entry in description["siblings"]:
        entry.pop("lfs", None), entry.pop("blobId")
    hub.page = json.dumps(description).encode()
    refused(capsys, run(hub, tmp_path), "no size or checksum of")


# ---- what is asked


@pytest.mark.parametrize(
    "words, parts",
    [
        (["--subjects", "3"], ("subjects: 3", "has 1, 2")),
        (["--sessions", "1-3"], ("sessions: 3", "has 1, 2")),
        (["--subjects", "one"], ("--subjects", "'one'")),
        (["--sessions", "0"], ("--sessions", "from 1 on")),
        (["--sessions", "3-2"], ("--sessions", "'3-2'")),
        (["--subjects", ""], ("--subjects", "''")),
        (["--sessions", "1-99999999999"], ("--sessions",)),
        (["--endpoint", "hub.org"], ("endpoint: is", "https://")),
        (["--repo", "brains"], ("repo: is", "OWNER/NAME")),
        (["--repo", "a/../b"], ("repo: is", "OWNER/NAME")),
    ],
)
def test_bad_words_are_one_line(hub, tmp_path, capsys, words, parts):
    refused(capsys, run(hub, tmp_path / "out", *words), *parts)
    assert not (tmp_path / "out").exists() and not hub.started


@pytest.mark.parametrize("missing", ["shared1000.npy", IMAGES, TEST])
def test_a_release_that_lacks_a_file_is_refused_before_anything_travels(hub, tmp_path, capsys, missing):
    del hub.files[missing]
    refused(capsys, run(hub, tmp_path / "out"), f"has no {missing}")
    assert not hub.started


def test_the_list_shows_and_fetches_nothing(hub, tmp_path, capsys):
    assert run(hub, tmp_path / "out", "--list", "--subjects", "1", yes=False) == 0
    told = capsys.readouterr().out
    size = sum(len(hub.files[name]) for name in wanted(hub, {1}) | {"dataset.json"})
    assert re.search(rf"total +{len(wanted(hub, {1})) + 1} +{size / 1e6:.1f} MB +{size / 1e6:.1f} MB\n", told), told
    assert all(words in told for words in TERMS) and "subj02" not in told and "train_logs" not in told
    assert not hub.started and not (tmp_path / "out").exists()


def test_without_a_terminal_consent_must_be_given_in_words(hub, tmp_path, capsys):
    refused(capsys, run(hub, tmp_path / "out", yes=False), "--yes", "agreed to NSD's terms", TERMS[0])
    assert not hub.started and not (tmp_path / "out").exists()


@pytest.mark.parametrize("answer, agreed", [("y", True), ("yes", True), ("", False), ("n", False), (None, False)])
def test_the_question_names_the_terms_and_only_yes_is_yes(hub, tmp_path, capsys, monkeypatch, answer, agreed):
    def reply(question):
        assert "agreed to NSD's terms" in question and str(tmp_path / "out") in question and "MB" in question
        if answer is None:
            raise EOFError
        return answer

    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("builtins.input", reply)
    code = run(hub, tmp_path / "out", "--subjects", "2", yes=False)
    if agreed:
        assert code == 0 and (tmp_path / "out/dataset.json").exists()
    else:
        refused(capsys, code, "not fetched")
        assert not hub.started and not (tmp_path / "out").exists()


def test_a_full_disk_is_told_before_anything_travels(hub, tmp_path, capsys, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    refused(capsys, run(hub, tmp_path / "new" / "out"), "0.00 GB free", "expected 0.0")
    assert not hub.started and not (tmp_path / "new").exists()


def test_folders_of_other_datasets_are_left_alone(hub, tmp_path, capsys, simulated):
    shutil.copy(simulated / "dataset.json", tmp_path)
    refused(capsys, run(hub, tmp_path), "describes another dataset", COMMIT)
    (tmp_path / "dataset.json").unlink()
    (tmp_path / f".fetch-{'a' * 40}.part").mkdir()
    refused(capsys, run(hub, tmp_path), "half-fetched", f"(revision='{'a' * 40}')")
    (tmp_path / "file").write_text("")
    refused(capsys, run(hub, tmp_path / "file"), "is a file")
    assert not hub.started and on_disk(tmp_path) == {"file"}


def test_a_folder_that_cannot_be_written_is_told(hub, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(os, "replace", functools.partial(_fail, 28, "No space left on device"))
    refused(capsys, run(hub, tmp_path), "No space left on device")


def _fail(number, text, *paths):
    raise OSError(number, text)
