"""What goes wrong between a machine and its bucket: at random, by kind, and switched while jobs run.

with faulty("http://127.0.0.1:8333", folder) as front:
    os.environ["AWS_ENDPOINT_URL_S3"] = front.endpoint
    front.inject("stall", rate=0.1)
    front.heal()

The front is an HTTP server in a process of its own, before a real S3 server. `UnreliableStore` does the
same to a store, as far as a store can.
"""

import http.client
import os
import random
import select
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TypeVar
from urllib.parse import urlsplit

import anyio
import msgspec

from s3cache.errors import (
    Busy,
    Forbidden,
    ObjectAbsent,
    ServerFailed,
    StoreError,
    TimedOut,
    Truncated,
    Unreachable,
)
from s3cache.stores.base import Listed, ObjectStore
from s3cache.stores.wrapper import WrapperStore

T = TypeVar("T")

DELAY_SECONDS = 0.5
"""Ten times what a bucket usually takes."""
STALL_SECONDS = 60.0
UPSTREAM_SECONDS = 20.0
STOP_SECONDS = 10.0
REFUSALS = {
    "500": (500, "InternalError"),
    "503": (503, "SlowDown"),
    "403": (403, "AccessDenied"),
    "412": (412, "PreconditionFailed"),
    "409": (409, "ConditionalRequestConflict"),
    "expired": (400, "ExpiredToken"),
    "skewed": (403, "RequestTimeTooSkewed"),
}
KINDS = (
    "delay", "stall", "reset", "truncate", "flip", "500", "503", "403", "412", "409", "lost", "stale",
    "foreign", "trickle",
)  # fmt: skip
"""What may happen to any request at any moment."""


class Fault(msgspec.Struct, frozen=True):
    """What happens to which share of the requests; to those of all methods when `only` is empty."""

    kind: str = ""
    rate: float = 1.0
    seed: int = 0
    only: tuple[str, ...] = ()


class Chance:
    """Decides, request by request, what goes wrong; any thread may ask."""

    def __init__(self, fault: Fault) -> None:
        self._fault = fault
        self._random = random.Random(fault.seed)
        self._lock = threading.Lock()

    def kind(self, method: str) -> str:
        """Return what is to happen to a request: GET, PUT, LIST or DELETE; "" for nothing."""
        if self._fault.only and method not in self._fault.only:
            return ""
        with self._lock:
            return self._fault.kind if self._random.random() < self._fault.rate else ""

    def flip(self, data: bytes) -> bytes:
        """Return `data` with one bit changed."""
        with self._lock:
            bit = self._random.randrange(8 * len(data))
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        return bytes(flipped)


class UnreliableStore(WrapperStore):
    """Does to requests for `inner` what `fault` says."""

    def __init__(self, inner: ObjectStore, fault: Fault) -> None:
        super().__init__(inner)
        self._chance = Chance(fault)
        self._seen: deque[bytes] = deque(maxlen=8)

    async def get(self, name: str, part: range | None = None) -> bytes:
        kind, content = await self._ask("GET", lambda: self.inner.get(name, part))
        self._seen.append(content)
        if kind == "stale":
            raise ObjectAbsent(f"{name} is not there yet")
        if kind == "foreign":
            return self._seen[0]
        return self._chance.flip(content) if kind == "flip" and content else content

    async def create(self, name: str, data: bytes) -> bool:
        kind = self._chance.kind("PUT")
        if kind == "412":
            return False
        if kind == "lost":
            await self.inner.create(name, data)
            return await self.inner.create(name, data)
        _fail(kind)
        return await self.inner.create(name, data)

    async def list(self, prefix: str) -> AsyncIterator[Listed]:
        async def collect() -> list[Listed]:
            return [name async for name in self.inner.list(prefix)]

        kind, names = await self._ask("LIST", collect)
        for name in [] if kind in ("stale", "foreign") else names:
            yield name

    async def delete(self, name: str) -> None:
        await self._ask("DELETE", lambda: self.inner.delete(name))

    async def _ask(self, method: str, request: Callable[[], Awaitable[T]]) -> tuple[str, T]:
        kind = self._chance.kind(method)
        if kind == "delay":
            await anyio.sleep(0.001)
        _fail(kind)
        return kind, await request()


_ERRORS: dict[str, type[StoreError]] = {
    "stall": TimedOut,
    "trickle": TimedOut,
    "reset": Unreachable,
    "truncate": Truncated,
    "500": ServerFailed,
    "503": Busy,
    "403": Forbidden,
    "409": StoreError,
}


def _fail(kind: str) -> None:
    if kind in _ERRORS:
        raise _ERRORS[kind](f"{kind}, as the test will have it")


class Front:
    """A front that stands: where to connect, what goes wrong there, and what went wrong."""

    def __init__(self, endpoint: str, folder: Path) -> None:
        self.endpoint = endpoint
        self._fault = folder / "fault"
        self._log = folder / "log"

    def inject(self, kind: str, rate: float = 1.0, seed: int = 0, only: Collection[str] = ()) -> None:
        """Let this go wrong from now on, and nothing else."""
        _write(self._fault, Fault(kind, rate, seed, tuple(only)))

    def heal(self) -> None:
        """Let nothing go wrong from now on."""
        _write(self._fault, Fault())

    def requests(self) -> Counter[str]:
        """Return how many requests came of each method, and how many of all met a fault, as "faults"."""
        counts: Counter[str] = Counter()
        for line in self._log.read_text().splitlines():
            method, _, kind = line.partition(" ")
            counts[method] += 1
            counts["faults"] += bool(kind)
        return counts


@contextmanager
def faulty(endpoint: str, folder: Path) -> Iterator[Front]:
    """Put a front before the server at `endpoint`; it keeps what it has to say in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _write(folder / "fault", Fault())
    command = [sys.executable, "-m", "tests.faults", endpoint, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield Front(process.stdout.readline().strip(), folder)
        finally:
            process.stdin.close()
            process.wait(STOP_SECONDS)


def _write(path: Path, fault: Fault) -> None:
    unfinished = path.with_suffix(".new")
    unfinished.write_bytes(msgspec.json.encode(fault))
    unfinished.rename(path)


class _Answer(msgspec.Struct):
    """An answer of the server."""

    status: int
    headers: dict[str, str]
    body: bytes


class _Handler(BaseHTTPRequestHandler):
    """Passes a request on, and lets happen to it and to its answer what is to happen."""

    protocol_version = "HTTP/1.1"
    timeout = UPSTREAM_SECONDS
    server: "_Server"

    def do_GET(self) -> None:
        if self.headers.get("Expect", "").lower() == "100-continue":
            self.send_response_only(100)
            self.end_headers()
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        method = "LIST" if "list-type=" in self.path else self.command
        kind = self.server.chance().kind(method)
        self.server.note(f"{method} {kind}")
        if kind in REFUSALS:
            status, code = REFUSALS[kind]
            text = f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()
            self._send(_Answer(status, {"Content-Type": "application/xml"}, text))
        elif kind == "stall":
            # Until the client gives up.
            select.select([self.connection], [], [], STALL_SECONDS)
            self._reset()
        elif kind == "reset":
            self._reset()
        else:
            if kind == "delay":
                time.sleep(DELAY_SECONDS)
            self._spoil(kind, method, self._pass_on(body))

    do_PUT = do_HEAD = do_DELETE = do_POST = do_GET  # noqa: N815

    def _spoil(self, kind: str, method: str, answer: _Answer) -> None:
        older = self.server.remember(method, self.path, answer)
        if kind == "lost":
            self._reset()
        elif kind == "flip" and answer.body:
            self._send(msgspec.structs.replace(answer, body=self.server.chance().flip(answer.body)))
        elif kind == "foreign" and method == "GET" and answer.body:
            self._send(msgspec.structs.replace(answer, body=older or b"of another object"))
        elif kind == "stale" and method == "LIST":
            self._send(self.server.first_list(self.path, answer))
        elif kind == "stale" and method == "GET":
            self._send(_Answer(404, {}, b"<Error><Code>NoSuchKey</Code></Error>"))
        elif kind == "truncate":
            data = self._bytes(answer)
            self._write(data[: len(data) - max(len(answer.body), 2) // 2])
            self._reset()
        elif kind == "trickle":
            data = self._bytes(answer)
            for number in range(len(data)):
                self._write(data[number : number + 1])
                time.sleep(1)
        else:
            self._send(answer)

    def _pass_on(self, body: bytes) -> _Answer:
        connection = http.client.HTTPConnection(self.server.upstream, timeout=UPSTREAM_SECONDS)
        try:
            # As they came, Host too: they are signed.
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            kept = {n: v for n, v in response.getheaders() if n.lower() not in _OF_ONE_HOP}
            return _Answer(response.status, kept, response.read())
        finally:
            connection.close()

    def _bytes(self, answer: _Answer) -> bytes:
        length = "" if answer.status == 204 else f"Content-Length: {len(answer.body)}\r\n"
        lines = "".join(f"{name}: {value}\r\n" for name, value in answer.headers.items())
        return f"HTTP/1.1 {answer.status} Status\r\n{lines}{length}\r\n".encode() + answer.body

    def _send(self, answer: _Answer) -> None:
        self._write(self._bytes(answer))

    def _write(self, data: bytes) -> None:
        self.wfile.write(data)

    def _reset(self) -> None:
        # A connection that is closed with what lingers in it thrown away is reset.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        os.close(self.connection.detach())

    def log_message(self, format: str, *args: object) -> None:
        pass


_OF_ONE_HOP = ("connection", "content-length", "transfer-encoding", "keep-alive")


class _Server(ThreadingHTTPServer):
    request_queue_size = 128
    daemon_threads = True
    block_on_close = False

    def __init__(self, upstream: str, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = urlsplit(upstream).netloc
        self._control = folder / "fault"
        self._log = (folder / "log").open("w", buffering=1)
        self._lock = threading.Lock()
        self._known: tuple[int, Chance] = (0, Chance(Fault()))
        self._bodies: deque[tuple[str, bytes]] = deque(maxlen=16)
        self._lists: dict[str, _Answer] = {}

    def chance(self) -> Chance:
        """Return what decides, as the control file has it now."""
        with self._lock:
            written = self._control.stat().st_mtime_ns
            if written != self._known[0]:
                self._known = written, Chance(msgspec.json.decode(self._control.read_bytes(), type=Fault))
            return self._known[1]

    def note(self, line: str) -> None:
        """Write a request down."""
        with self._lock:
            self._log.write(line.rstrip() + "\n")

    def remember(self, method: str, path: str, answer: _Answer) -> bytes | None:
        """Keep the body of an object; return that of another one."""
        if method != "GET" or answer.status not in (200, 206):
            return None
        with self._lock:
            other = next((body for of, body in self._bodies if of != path), None)
            self._bodies.append((path, answer.body))
            return other

    def first_list(self, path: str, answer: _Answer) -> _Answer:
        """Return the first answer that there was to a LIST."""
        with self._lock:
            return self._lists.setdefault(path, answer)

    def handle_error(self, request: object, client_address: object) -> None:
        # A client that is gone is no error here.
        pass


def main() -> None:
    """Stand before the server of the first argument until standard input closes."""
    with _Server(sys.argv[1], Path(sys.argv[2])) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        with suppress(KeyboardInterrupt):
            sys.stdin.read()
        server.shutdown()


if __name__ == "__main__":
    main()
