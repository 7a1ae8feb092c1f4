"""Servers that are no S3, or more than one: what a bucket may look like on a bad day."""

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

UPSTREAM_SECONDS = 60.0
REFUSING = "http://127.0.0.1:1"
"""An endpoint on which nobody listens."""


@contextmanager
def silent() -> Iterator[str]:
    """Accept connections and never answer."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def failing(status: int, code: str) -> Iterator[str]:
    """Answer every request with an error of S3."""

    class Handler(_Handler):
        def answer(self, body: bytes) -> None:
            text = (
                '<?xml version="1.0" encoding="UTF-8"?>'
                f"<Error><Code>{code}</Code><Message>{code}</Message><Region>eu-west-1</Region></Error>"
            )
            self.reply(status, {"Content-Type": "application/xml"}, text.encode())

    with _serving(Handler) as endpoint:
        yield endpoint


class Counted:
    """What went through a counting proxy, and where it listens."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.requests: list[tuple[str, str]] = []

    def paths(self, method: str, part: str = "") -> list[str]:
        """Return the paths asked for by `method` that have `part` in them, in the order they came."""
        return [path for done, path in self.requests if done == method and part in path]


@contextmanager
def counting(upstream: str, pack_seconds: float = 0.0, stalled: int = 0) -> Iterator[Counted]:
    """Write requests down and pass them on to a real server, those for packs late, the first few never."""
    target = urlsplit(upstream).netloc

    class Handler(_Handler):
        def answer(self, body: bytes) -> None:
            part = self.headers.get("Range", "")
            counted.requests.append((self.command, f"{self.path} {part}".rstrip()))
            if len(counted.requests) <= stalled:
                self.rfile.read(1)
                return
            if "/packs/" in self.path:
                time.sleep(pack_seconds)
            connection = http.client.HTTPConnection(target, timeout=UPSTREAM_SECONDS)
            try:
                # As they came, Host too: they are signed.
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    connection.putheader(name, value)
                connection.endheaders(body)
                response = connection.getresponse()
                kept = {n: v for n, v in response.getheaders() if n.lower() not in _OF_ONE_HOP}
                self.reply(response.status, kept, response.read())
            finally:
                connection.close()

    counted = Counted("")
    with _serving(Handler) as endpoint:
        counted.endpoint = endpoint
        yield counted


_OF_ONE_HOP = ("connection", "content-length", "transfer-encoding")


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = UPSTREAM_SECONDS

    def answer(self, body: bytes) -> None:
        raise NotImplementedError

    def reply(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _answer(self) -> None:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = _answer  # noqa: N815

    def handle_expect_100(self) -> bool:
        return True

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        # A client that is gone is no error here.
        pass


@contextmanager
def _serving(handler: type[_Handler]) -> Iterator[str]:
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()
