"""A local stand-in for the Hugging Face hub: it takes what is pushed, and breaks off, lies and refuses when told to."""

import base64
import contextlib
import functools
import hashlib
import http.server
import json
import re
import threading

import pytest
from huggingface_hub import constants

from mindtuner import download


@functools.cache
def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@functools.cache
def blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        pass  # a client that went away


class QuietHandler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self.do_GET()


class Hub(QuietServer):
    """A hub: large files (LFS) by redirect with size and SHA-256 in the headers, small ones with git's blob id."""

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files = files  # path -> content
        self.drop, self.wrong, self.states = {}, set(), True  # path -> how often it breaks off; paths with a wrong byte
        self.asked, self.sent = [], {}
        self.commits, self.stored = {}, {}  # of repositories that were pushed: id -> last commit; large files by checksum
        self.private, self.readonly = set(), False  # ids that nobody may read; whether nothing may be pushed

    def commit(self, repo, added):
        """The repository's files, with these changed, as its next commit; which is also its main branch."""
        before = f"/{repo}/resolve/{self.commits.get(repo)}/"
        files = {path.removeprefix(before): data for path, data in self.files.items() if path.startswith(before)} | added
        named = [repo, self.commits.get(repo), *sorted((name, sha256(data)) for name, data in files.items())]
        self.commits[repo] = hashlib.sha1(json.dumps(named).encode()).hexdigest()
        for revision in ("main", self.commits[repo]):
            self.files |= {f"/{repo}/resolve/{revision}/{name}": data for name, data in files.items()}
        return self.commits[repo]


class Handler(QuietHandler):
    def do_GET(self):
        hub = self.server
        path = self.path.removeprefix("/cdn")
        hub.asked.append((self.command, self.path))
        data = hub.files.get(path)
        if path.startswith("/old/"):
            return self.answer(307, {"Location": path.replace("/old/", "/someone/")}, b"")
        repo = "/".join(path.split("/")[1:3])
        if repo in hub.private:
            return self.answer(401, {}, b"")
        asked = re.search("/resolve/([0-9a-f]{40})/", path)
        commit = {"X-Repo-Commit": asked[1] if asked else hub.commits[repo]} if repo in hub.commits else {}
        if data is None:
            there = any(name.startswith(f"/{repo}/") for name in hub.files)
            return self.answer(404, {"X-Error-Code": "EntryNotFound" if there else "RepoNotFound", **commit}, b"")
        if not self.path.startswith("/cdn") and len(data) > 1000:
            stated = {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))} if hub.states else {}
            there = {"Location": f"http://localhost:{hub.server_port}/cdn{path}"}
            return self.answer(302, {**there, **stated, **commit}, b"")
        etag = blob_id(data)
        if path in hub.wrong:
            data = data[:-1] + bytes([data[-1] ^ 1])
        first = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        self.answer(206 if first else 200, {"ETag": f'"{etag}"', **commit}, data[first:], path)

    def do_POST(self):
        hub = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        hub.asked.append((self.command, self.path))
        if self.path == "/api/validate-yaml":
            return self.reply({"warnings": [], "errors": []})
        if hub.readonly:
            return self.answer(403, {}, b"")
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            known = repo in hub.commits
            if not known:
                hub.commit(repo, {".gitattributes": b"*.safetensors filter=lfs"})
            return self.reply({"url": f"{hub.url}/{repo}"}, 409 if known else 200)
        if self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            upload = lambda oid: {"actions": {"upload": {"href": f"{hub.url}/lfs/{oid}"}}}
            return self.reply({"transfer": "basic", "objects": [{**one, **upload(one["oid"])} for one in objects]})
        repo, verb = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path).groups()
        if verb == "preupload":
            mode = lambda name: "lfs" if name.endswith(".safetensors") else "regular"
            files = [one["path"] for one in json.loads(body)["files"]]
            return self.reply({"files": [{"path": name, "uploadMode": mode(name), "shouldIgnore": False} for name in files]})
        added = {}
        for entry in map(json.loads, body.splitlines()):
            value = entry["value"]
            if entry["key"] == "file":
                added[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                added[value["path"]] = hub.stored[value["oid"]]
        commit = hub.commit(repo, added)
        self.reply({"commitUrl": f"{hub.url}/{repo}/commit/{commit}", "commitOid": commit})

    def do_PUT(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        assert sha256(data) == self.path.removeprefix("/lfs/")
        self.server.stored[sha256(data)] = data
        self.answer(200, {}, b"")

    def reply(self, value, status=200):
        self.answer(status, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def answer(self, status, headers, body, path=None):
        hub = self.server
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if hub.drop.get(path, 0):
            hub.drop[path] -= 1
            body, self.close_connection = body[: len(body) // 2], True
        self.wfile.write(body)
        if path:
            hub.sent[path] = hub.sent.get(path, 0) + len(body)


@contextlib.contextmanager
def serving(files):
    """A hub with these files, which the package asks in the place of the real one."""
    hub = Hub(files)
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(constants, "ENDPOINT", hub.url)  # what HF_ENDPOINT becomes when the library is imported
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(download, "WAIT_S", 0.001)
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        yield hub
    hub.shutdown()
    hub.server_close()
