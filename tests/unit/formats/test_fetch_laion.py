"""Fetching LAION-fMRI from a bucket: a real server that speaks S3 (moto's) on this machine, and one that misbehaves."""

import contextlib
import hashlib
import io
import os
import re
import threading

import boto3
import pytest
from boto3.s3.transfer import TransferConfig
from commands import call, refused
from hub import QuietHandler, QuietServer
from laion_files import SESSIONS, betas_of, make_laion, mask_of, table_of, write_splits
from moto.server import ThreadedMotoServer

from mindtuner import download
from mindtuner.claims import alone
from mindtuner.errors import UserError
from mindtuner.formats import check, load
from mindtuner.formats.laion import bucket as module
from mindtuner.formats.laion import fetch
from mindtuner.formats.laion.bucket import Bucket, etag_of

NAME = "laion-fmri"
PART = 5 * 2**20  # S3's smallest part of an object that is sent in parts
TERMS = "https://laion-fmri.hebartlab.com/terms"
BIG = "derivatives/atlases/sub-01/rois/big.nii.gz"


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The files of a small LAION-fMRI, and others that the bucket holds beside them."""
    root = tmp_path_factory.mktemp("world") / "laion"
    make_laion(root)
    (root / "README").write_text("about\n")
    (root / BIG).write_bytes(os.urandom(2 * PART + 12345))  # sent in three parts
    for folder in ("ses-31/func", "ses-01/func/figures"):
        (root / "derivatives/glmsingle-tedana/sub-01" / folder).mkdir(parents=True)
    for path in (betas_of(root, 1, 31), table_of(root, 1, 31), betas_of(root, 1, 1).parent / "figures" / "carpet.png"):
        path.write_bytes(b"no business of a decoder")
    (betas_of(root, 1, 1).parent / "sub-01_ses-01_task-images_space-T1w_desc-GLMsingle_model.h5").write_bytes(
        b"the same betas"
    )
    return root


@pytest.fixture(scope="module")
def store(world):
    """A server with these files, sent by S3's own client, open to everybody but for the session that is held out."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    client = boto3.client(
        "s3", endpoint_url=url, aws_access_key_id="owner", aws_secret_access_key="secret", region_name="us-west-2"
    )
    client.create_bucket(Bucket=NAME, CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    for path in sorted(path for path in world.rglob("*") if path.is_file()):
        key = path.relative_to(world).as_posix()
        put(client, key, path.read_bytes(), closed="ses-31" in key)
    yield Store(url, client)
    server.stop()


class Store:
    def __init__(self, url, client):
        self.url, self.client, self.bucket = url, client, Bucket(url, NAME)


def put(client, key, data, closed=False):
    config = TransferConfig(multipart_threshold=PART, multipart_chunksize=PART, use_threads=False)
    client.upload_fileobj(io.BytesIO(data), NAME, key, {"ACL": "private" if closed else "public-read"}, Config=config)


@pytest.fixture(autouse=True)
def a_hub_login_that_nobody_must_see(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(download, "WAIT_S", 0.01)


def same_files(out, world, names):
    there = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert there == sorted(names)
    for name in names:
        assert (out / name).read_bytes() == (world / name).read_bytes(), name


def wanted(world, people=SESSIONS, stimuli=False):
    paths = [world / "README"]
    for person, sessions in people.items():
        glm = mask_of(world, person).parent
        paths += [path for path in glm.iterdir() if path.is_file()]
        paths += (world / f"derivatives/atlases/sub-{person:02d}/rois").iterdir()
        paths += [path for number in sessions for path in (betas_of(world, person, number), table_of(world, person, number))]
    paths += (world / "stimuli/images").iterdir() if stimuli else ()
    return [path.relative_to(world).as_posix() for path in paths]


# ---- what comes


def test_brain_data_of_everybody_come_whole_without_a_login(store, world, tmp_path, capsys):
    """Not the pictures, nor what is closed, nor what no reader looks at."""
    out = tmp_path / "out"
    assert call("fetch", "laion", out, "--yes", "--endpoint", store.url) == 0
    same_files(out, world, wanted(world))
    said = capsys.readouterr().out
    assert "CC0 1.0" in said and TERMS not in said and "31, 32, 33, 34 are held out" in said
    size = sum((world / name).stat().st_size for name in wanted(world))
    assert re.search(rf"total +{len(wanted(world))} +{download.in_words(size)} +{download.in_words(size)}", said)
    assert f"{out}: complete, all checksums right" in said
    errors = [item.file for item in check(out).items if item.severity == "error"]
    assert errors == [BIG]  # which is no region


def test_one_fetch_at_a_time_into_a_folder(store, world, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["fetch", "laion", out, "--yes", "--endpoint", store.url, "--subjects", "3"]
    with alone(out):
        refused(capsys, argv, f"{out}: another process writes there; expected one at a time")
    assert call(*argv) == 0
    same_files(out, world, wanted(world, {3: SESSIONS[3]}))


def test_from_fetch_to_a_dataset(store, world, tmp_path, capsys):
    out = tmp_path / "out"
    options = ["--endpoint", store.url, "--subjects", "3", "--stimuli", "--accept-stimulus-terms", "--yes"]
    assert call("fetch", "laion", out, *options) == 0
    same_files(out, world, wanted(world, {3: SESSIONS[3]}, stimuli=True))
    said = capsys.readouterr().out
    assert TERMS in said and "laion-fmri download --include-stimuli" in said
    write_splits(out / "splits")
    assert call("check", out) == 0
    assert call("convert", "laion", out, tmp_path / "data", "--split", "tau") == 0
    assert len(load(tmp_path / "data/tau").subject(3).train) > 2


def test_some_sessions_and_more_of_them_later(store, world, tmp_path):
    out = tmp_path / "out"
    fetch.fetch(fetch.plan_fetch(store.bucket, out, [3], [4]))
    same_files(out, world, wanted(world, {3: (4,)}))
    plan = fetch.plan_fetch(store.bucket, out, [3])
    table = table_of(out, 3, 1).relative_to(out).as_posix()
    to_come = [file.path for file in plan.files if not plan.bytes_here([file])]
    assert to_come == sorted([table, betas_of(out, 3, 1).relative_to(out).as_posix()])
    fetch.fetch(plan)
    same_files(out, world, wanted(world, {3: SESSIONS[3]}))
    assert plan.bytes_here(plan.files) == sum(file.size for file in plan.files)


def test_list_shows_sizes_and_fetches_nothing(store, tmp_path, capsys):
    assert call("fetch", "laion", tmp_path / "out", "--list", "--stimuli", "--endpoint", store.url) == 0
    said = capsys.readouterr().out
    assert TERMS in said and re.search(r"stimuli +14 ", said) and re.search(r"sub-03, session 4 +2 ", said)
    assert not (tmp_path / "out").exists()


# ---- consent


@pytest.mark.parametrize(
    "options, message",
    [
        (["--stimuli", "--yes"], "--accept-stimulus-terms: not given, and there is no terminal to ask on"),
        ([], "--yes: not given, and there is no terminal to ask on"),
        (["--accept-stimulus-terms", "--yes"], "--accept-stimulus-terms: is given without --stimuli"),
    ],
)
def test_without_a_terminal_nothing_comes_unless_it_is_said(tmp_path, capsys, options, message):
    refused(capsys, ["fetch", "laion", tmp_path / "out", "--endpoint", "http://127.0.0.1:9", *options], message)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    "typed, comes",
    [
        ("I AGREE\ny\n", True),
        ("y\ny\n", False),
        ("i agree\ny\n", False),
        ("I AGREE\n\n", False),
        ("I AGREE\n", False),
        ("", False),
    ],
)
def test_pictures_come_only_to_those_who_type_that_they_agree(store, world, tmp_path, capsys, monkeypatch, typed, comes):
    monkeypatch.setattr("sys.stdin", Terminal(typed))
    out = tmp_path / "out"
    argv = ["fetch", "laion", out, "--subjects", "3", "--sessions", "1", "--stimuli", "--endpoint", store.url]
    if not comes:
        refused(capsys, argv, "out: not fetched; expected")
        assert not out.exists()
        return
    assert call(*argv) == 0
    said = capsys.readouterr().out
    assert said.index(TERMS) < said.index('Type "I AGREE"') < said.index("Shall ")
    same_files(out, world, wanted(world, {3: (1,)}, stimuli=True))


# ---- when it breaks off


def test_a_fetch_that_was_stopped_goes_on_within_a_file(store, world, tmp_path, monkeypatch):
    """What has arrived of the large file stays, and only the rest is asked for."""
    out, ranges, real = tmp_path / "out", [], module.receive
    plan = fetch.plan_fetch(store.bucket, out, [1], [1])
    big = next(file for file in plan.files if file.path == BIG)

    def stops(url, part, size, bar, headers):
        if url.endswith("big.nii.gz"):
            part.write_bytes((world / BIG).read_bytes()[:PART])
            raise KeyboardInterrupt
        real(url, part, size, bar, headers)

    monkeypatch.setattr(module, "receive", stops)
    with pytest.raises(KeyboardInterrupt):
        fetch.fetch(plan)
    assert not (out / BIG).exists() and plan.part_path(big).stat().st_size == PART
    monkeypatch.setattr(module, "receive", real)
    session = download.get_session()
    stream = type(session).stream
    monkeypatch.setattr(
        type(session), "stream", lambda *a, **k: ranges.append((a[2], k["headers"].get("Range"))) or stream(*a, **k)
    )
    fetch.fetch(fetch.plan_fetch(store.bucket, out, [1], [1]))
    assert [asked for url, asked in ranges if url.endswith("big.nii.gz")] == [f"bytes={PART}-"]
    same_files(out, world, wanted(world, {1: (1,)}))


@pytest.mark.parametrize("size", [20, 2 * PART + 12345], ids=["whole", "in parts"])
def test_other_bytes_than_the_etag_says_are_removed_and_named(store, world, tmp_path, size):
    """Half of the file lies there from before, with one wrong byte."""
    plan = fetch.plan_fetch(store.bucket, tmp_path, [1], [1])
    file = next(file for file in plan.files if (file.path == BIG) == (size > PART) and file.size > 20)
    data = bytearray((world / file.path).read_bytes())
    data[7] ^= 1
    part = plan.part_path(file)
    part.parent.mkdir(parents=True)
    part.write_bytes(data[: len(data) // 2])
    wrong = f"arrived with ETag .*; expected {file.checksum} \\(it was removed"
    with pytest.raises(UserError, match=wrong):
        fetch.fetch(plan)
    assert not part.exists() and not (tmp_path / file.path).exists()
    fetch.fetch(plan)
    same_files(tmp_path, world, wanted(world, {1: (1,)}))


def test_an_object_that_was_replaced_meanwhile_is_not_joined_to_the_old_one(store, world, tmp_path):
    plan = fetch.plan_fetch(store.bucket, tmp_path, [3], [1])
    file = next(file for file in plan.files if file.path.endswith("V1.nii.gz"))
    data = (world / file.path).read_bytes()
    put(store.client, file.path, data[::-1])
    try:
        with pytest.raises(UserError, match="V1.nii.gz: HTTP 412, was replaced while it was fetched"):
            fetch.fetch(plan)
    finally:
        put(store.client, file.path, data)
    fetch.fetch(fetch.plan_fetch(store.bucket, tmp_path, [3], [1]))


def test_a_file_of_another_size_in_its_place_is_left_alone(store, tmp_path):
    mask = mask_of(tmp_path, 3)
    mask.parent.mkdir(parents=True)
    mask.write_bytes(b"mine")
    with pytest.raises(UserError, match=r"mask.nii.gz: has 4 bytes; expected \d+ as in the bucket \(remove it"):
        fetch.plan_fetch(store.bucket, tmp_path)
    assert mask.read_bytes() == b"mine"


def test_etags_are_s3s_own(store, world):
    """Against the ETags that the server made, of objects sent whole and in parts."""
    listed = {file.path: file for file in store.bucket.list("")}
    assert "-3" in listed[BIG].checksum and etag_of(world / BIG, PART) == listed[BIG].checksum
    assert etag_of(world / "README") == listed["README"].checksum == hashlib.md5(b"about\n").hexdigest()
    assert {name: file.size for name, file in listed.items()} == {
        path.relative_to(world).as_posix(): path.stat().st_size for path in world.rglob("*") if path.is_file()
    }


def test_a_list_goes_on_over_pages(store, monkeypatch):
    whole = list(store.bucket.list("derivatives/"))
    real = module.urlencode
    monkeypatch.setattr(module, "urlencode", lambda query: real(query | {"max-keys": "3"}))
    assert list(store.bucket.list("derivatives/")) == whole and len(whole) > 9
    assert store.bucket.folders("derivatives/glmsingle-tedana/") == ["sub-01", "sub-03"]


# ---- what is refused


@pytest.mark.parametrize(
    "options, message",
    [
        (["--subjects", "2"], "--subjects: 2; "),
        (["--subjects", "two"], "--subjects: is 'two'"),
        (["--sessions", "31"], "--sessions: 31; its authors hold it out"),
        (["--sessions", "9"], "--sessions: 9; sub-01 has 1, 2"),
        (["--bucket", "nobody-has-this"], "HTTP 404, no such bucket or object"),
        (["--bucket", "A/B"], "--bucket: is 'A/B'; expected the name of a bucket"),
        (["--endpoint", "ftp://x"], "--endpoint: is 'ftp://x'; expected an address such as https://"),
    ],
)
def test_what_cannot_be_had_is_one_line(store, tmp_path, capsys, options, message):
    refused(capsys, ["fetch", "laion", tmp_path / "out", "--yes", "--endpoint", store.url, *options], message)
    assert not (tmp_path / "out").exists()


def test_what_is_closed_stays_closed(store, tmp_path):
    closed = next(file for file in store.bucket.list("derivatives/") if "ses-31" in file.path)
    with pytest.raises(UserError, match="HTTP 403, not open to the public"):
        store.bucket.bring(closed, tmp_path / "x", tmp_path / "part", Bar())
    assert not (tmp_path / "x").exists()


def test_pictures_that_are_not_there_yet_are_said(store, world, tmp_path, monkeypatch):
    monkeypatch.setattr(Bucket, "list", lambda bucket, prefix: () if prefix == "stimuli/" else LIST(bucket, prefix))
    with pytest.raises(UserError, match="holds no picture yet; expected some .* laion-fmri download --include-stimuli"):
        fetch.plan_fetch(store.bucket, tmp_path, [3], stimuli=True)


LIST = Bucket.list


def test_a_full_disk_is_said_before_anything_comes(store, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    refused(capsys, ["fetch", "laion", tmp_path / "out", "--yes", "--endpoint", store.url], "GB free on its disk; expected")
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").touch()
    refused(capsys, ["fetch", "laion", tmp_path / "file", "--yes", "--endpoint", store.url], "is a file; expected a folder")


class Bar:
    def update(self, count):
        pass


class Odd(QuietHandler):
    """Answers every request for a list with what the test says, and remembers what was sent along."""

    def do_GET(self):
        self.server.headers.append(dict(self.headers))
        body = self.server.answer
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)


@pytest.fixture
def odd():
    server = QuietServer(("127.0.0.1", 0), Odd)
    server.headers, server.answer = [], b""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def listing(key="a", size="1", etag='"' + "0" * 32 + '"', before="", more=""):
    item = f"<Contents><Key>{key}</Key><Size>{size}</Size><ETag>{etag}</ETag></Contents>"
    namespace = "http://s3.amazonaws.com/doc/"
    return f'<?xml version="1.0"?>{before}<ListBucketResult xmlns="{namespace}">{item}{more}</ListBucketResult>'.encode()


@pytest.mark.parametrize(
    "answer, message",
    [
        (b"<html><body>Welcome</body></html>", r"the answer is no list of objects \(html\)"),
        (b"not XML", r"the answer is no list of objects \(syntax error"),
        (listing(before='<!DOCTYPE a [<!ENTITY b "c">]>'), "it declares a document type"),
        (listing(key="a/../../b"), "has a key 'a/../../b'; expected the path of a file"),
        (listing(key="/etc/passwd"), "has a key '/etc/passwd'"),
        (listing(key="a\\b"), "has a key"),
        (listing(size="-1"), "size '-1'"),
        (listing(etag="W/1"), "expected a number and an MD5"),
        (b" " * (16 * 2**20 + 1), "more than 16777216 bytes"),
        (listing(more="<IsTruncated>true</IsTruncated>"), "the list goes on without saying where"),
    ],
)
def test_what_is_no_list_of_objects_is_refused(odd, answer, message):
    odd.answer = answer
    with pytest.raises(UserError, match=message):
        list(Bucket(f"http://127.0.0.1:{odd.server_port}", NAME).list(""))


def test_the_login_of_a_hub_is_not_sent_to_a_bucket(odd):
    odd.answer = listing()
    assert [file.path for file in Bucket(f"http://127.0.0.1:{odd.server_port}", NAME).list("")] == ["a"]
    assert len(odd.headers) == 1 and "hf_secret" not in str(odd.headers) and "authorization" not in str(odd.headers).lower()


def test_no_network_is_said(tmp_path, capsys):
    refused(
        capsys,
        ["fetch", "laion", tmp_path, "--yes", "--endpoint", "http://127.0.0.1:9"],
        "no connection",
        "expected a network and a server that answers",
    )
