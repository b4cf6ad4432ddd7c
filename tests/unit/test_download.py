"""A server that sends more than it announced."""

import itertools
import threading

import pytest
from hub import QuietHandler, QuietServer

from mindtuner.download import receive
from mindtuner.errors import UserError

ANNOUNCED = 198


class Endless(QuietHandler):
    """A body without an end, from any byte on."""

    def do_GET(self):
        self.send_response(206 if "Range" in self.headers else 200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for _ in itertools.count():
                self.wfile.write(b"1000\r\n" + bytes(0x1000) + b"\r\n")
                self.server.sent += 0x1000
        except OSError:
            self.close_connection = True  # the client went away


class Bar:
    def update(self, count):
        pass


@pytest.mark.parametrize("have", [0, 100])
def test_a_body_without_an_end_is_left_at_the_announced_size(have, tmp_path):
    server = QuietServer(("127.0.0.1", 0), Endless)
    server.sent = 0
    threading.Thread(target=server.serve_forever, daemon=True).start()
    part = tmp_path / "part"
    part.write_bytes(bytes(have))
    url = f"http://127.0.0.1:{server.server_port}/file"
    try:
        with pytest.raises(UserError, match=f"{url}: sends more than the {ANNOUNCED} bytes"):
            receive(url, part, ANNOUNCED, Bar(), headers={})
    finally:
        server.shutdown()
        server.server_close()
    assert list(tmp_path.iterdir()) == []
    assert server.sent < 64 * 2**20  # what lies in the buffers of the connection
