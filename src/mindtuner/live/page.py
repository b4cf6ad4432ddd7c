"""The page that shows a session as it goes on, to this machine alone."""

from __future__ import annotations

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from urllib.parse import urlsplit

import numpy as np

from mindtuner.data import Stimuli
from mindtuner.errors import UserError
from mindtuner.live.session import LiveSession
from mindtuner.report.contact_sheet import to_image

HOST = "127.0.0.1"  # loopback: what a person sees is nobody else's business
FILES = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css"), "/page.js": ("page.js", "text/javascript")}
POLICY = "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; base-uri 'none'"


class LivePage:
    """A server on loopback: the page at ``/``, its state at ``/state.json``, painted pictures and stimuli.

    Parameters
    ----------
    session : LiveSession
    stimuli : Stimuli
    title : str
        Of the page.
    port : int
        0 for a free one.

    Raises
    ------
    UserError
        Where the port is taken.
    """

    def __init__(self, session: LiveSession, stimuli: Stimuli, title: str, port: int = 0):
        self._session, self._stimuli, self._title = session, stimuli, title
        page = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                page.answer(self)

            def log_message(self, *_) -> None:
                """Says nothing: a page that looks twice a second would fill the screen."""

        try:
            self._server = ThreadingHTTPServer((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(f"port: {port} cannot be served ({error}); expected a free port, or 0 for any") from error
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.port}/"

    def close(self) -> None:
        """Stop serving."""
        self._server.shutdown()
        self._server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answer one request."""
        host = (request.headers.get("Host") or "").rpartition(":")[0]
        if host not in (HOST, "localhost"):  # a page elsewhere that has its name lead here
            return request.send_error(403)
        found = self._found(urlsplit(request.path).path)
        if found is None:
            return request.send_error(404)
        body, kind = found
        request.send_response(200)
        request.send_header("Content-Type", kind)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("Content-Security-Policy", POLICY)
        request.send_header("Cache-Control", "no-store")
        request.end_headers()
        try:
            request.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):  # the page was closed meanwhile
            pass

    def _found(self, path: str) -> tuple[bytes, str] | None:
        if path in FILES:
            name, kind = FILES[path]
            return (resources.files("mindtuner.live") / name).read_bytes(), f"{kind}; charset=utf-8"
        if path == "/state.json":
            return json.dumps({"title": self._title, **self._session.state()}).encode(), "application/json"
        place, _, number = path.removeprefix("/").partition("/")
        if not number.isdecimal() or len(number) > 9:
            return None
        if place == "stimulus" and self._stimuli.pictured and int(number) < len(self._stimuli):
            picture = np.round(self._stimuli.images(np.array([int(number)]))[0] * 255).astype(np.uint8)
            buffer = io.BytesIO()
            to_image(picture).save(buffer, "WEBP")
            return buffer.getvalue(), "image/webp"
        if place == "picture" and 1 <= int(number) <= len(self._session.trials):
            file = self._session.picture_of(self._session.trials[int(number) - 1])
            return (file.read_bytes(), "image/png") if file.exists() else None
        return None
