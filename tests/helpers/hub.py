"""A local stand-in for the Hugging Face hub, which breaks off, lies and refuses when it is told to."""

import contextlib
import functools
import hashlib
import http.server
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


class Handler(QuietHandler):
    def do_GET(self):
        hub = self.server
        path = self.path.removeprefix("/cdn")
        hub.asked.append((self.command, self.path))
        data = hub.files.get(path)
        if path.startswith("/old/"):
            return self.answer(307, {"Location": path.replace("/old/", "/someone/")}, b"")
        if data is None:
            return self.answer(404, {"X-Error-Code": "EntryNotFound"}, b"")
        if not self.path.startswith("/cdn") and len(data) > 1000:
            stated = {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))} if hub.states else {}
            return self.answer(302, {"Location": f"http://localhost:{hub.server_port}/cdn{path}", **stated}, b"")
        etag = blob_id(data)
        if path in hub.wrong:
            data = data[:-1] + bytes([data[-1] ^ 1])
        first = int(re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "bytes=0-"))[1])
        self.answer(206 if first else 200, {"ETag": f'"{etag}"'}, data[first:], path)

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
        patch.setattr(constants, "ENDPOINT", hub.url)  # what HF_ENDPOINT becomes when the library is imported
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(download, "WAIT_S", 0.001)
        patch.setenv("NO_PROXY", "127.0.0.1,localhost")
        yield hub
    hub.shutdown()
    hub.server_close()
