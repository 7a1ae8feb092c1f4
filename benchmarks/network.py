"""The network between a machine and its bucket: every request waits, and bytes take their time.

with network("http://127.0.0.1:8333", Network(delay_seconds=0.05)) as wire:
    ... wire.endpoint ...
    wire.requests()

A TCP proxy on loopback, in a process of its own. What a client sends first, or after the server has
spoken, is a new request: it is held back for the delay, and written down. The bytes of both directions
pay twice: to their connection, and to the line that all connections share.
"""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import anyio
import click
import msgspec
from anyio.abc import ByteReceiveStream, ByteSendStream, SocketStream

STOP_SECONDS = 10.0
SETTLING_SECONDS = 0.2
_CHUNK_BYTES = 64 << 10
_EXACT_SECONDS = 0.005
"""A sleep is not exact below this, so a line may get ahead of its rate by as much."""
_GONE = (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError)


@dataclass(frozen=True)
class Network:
    """What a request waits for, in seconds, and bytes a second on each connection and on all together."""

    delay_seconds: float = 0.05
    connection_rate: float = 100e6
    total_rate: float = 400e6


class Request(msgspec.Struct):
    """One request as it passed: when, by the monotonic clock, what it asked, and bytes up and down."""

    asked: float
    line: str
    answered: float = 0.0
    up: int = 0
    down: int = 0

    @property
    def method(self) -> str:
        """GET, PUT and so on; LIST for the listing of a bucket."""
        method, path, *_ = self.line.split(" ")
        return "LIST" if "list-type=" in path else method


class Wire:
    """A network that stands: where to connect, and what passed."""

    def __init__(self, endpoint: str, log: Path, pid: int) -> None:
        self.endpoint = endpoint
        self.pid = pid
        self._log = log

    def requests(self, since: float = 0.0) -> list[Request]:
        """Return what was answered, and asked since a moment of the monotonic clock, in order.

        What a connection carried last is known once it is closed.
        """
        time.sleep(SETTLING_SECONDS)
        lines = self._log.read_bytes().splitlines()
        read = (msgspec.json.decode(line, type=Request) for line in lines)
        return sorted((request for request in read if request.asked >= since), key=lambda r: r.asked)


def round_trips(requests: Sequence[Request]) -> int:
    """Return how many requests were waited for one after another: the longest chain."""
    trips, until = 0, 0.0
    for request in sorted(requests, key=lambda request: request.answered):
        if request.asked >= until:
            trips, until = trips + 1, request.answered
    return trips


@contextmanager
def network(endpoint: str, between: Network) -> Iterator[Wire]:
    """Put a network before the server at `endpoint`; use the endpoint of what is yielded instead."""
    settings = dataclasses.asdict(between).items()
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings]
    with TemporaryDirectory() as folder:
        log = Path(folder, "requests")
        command = [sys.executable, "-m", "benchmarks.network", endpoint, f"--log={log}", *options]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                yield Wire(process.stdout.readline().strip(), log, process.pid)
            finally:
                process.stdin.close()
                process.wait(STOP_SECONDS)


@click.command()
@click.argument("endpoint")
@click.option("--log", type=click.Path(path_type=Path), default=os.devnull, help="Write requests here.")
@click.option("--delay-seconds", default=Network.delay_seconds, show_default=True)
@click.option("--connection-rate", default=Network.connection_rate, show_default=True)
@click.option("--total-rate", default=Network.total_rate, show_default=True)
def main(endpoint: str, log: Path, delay_seconds: float, connection_rate: float, total_rate: float) -> None:
    """Put a network before the server at ENDPOINT until standard input closes. Rates are bytes a second."""
    with log.open("wb", buffering=0) as file:
        anyio.run(_serve, endpoint, file, Network(delay_seconds, connection_rate, total_rate))


async def _serve(endpoint: str, log: RawIOBase, between: Network) -> None:
    shared = _Line(between.total_rate)
    server = urlsplit(endpoint)

    async def converse(client: SocketStream) -> None:
        lines = _Line(between.connection_rate), shared
        async with client, await anyio.connect_tcp(str(server.hostname), server.port or 80) as upstream:
            conversation = _Conversation(between.delay_seconds, lines, log)
            async with anyio.create_task_group() as group:
                group.start_soon(conversation.ask, client, upstream)
                await conversation.answer(upstream, client)
                group.cancel_scope.cancel()

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    print(f"http://127.0.0.1:{listener.extra(anyio.abc.SocketAttribute.local_port)}", flush=True)
    async with listener, anyio.create_task_group() as group:
        group.start_soon(listener.serve, converse)
        await anyio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        group.cancel_scope.cancel()


class _Line:
    """Lets through so many bytes a second."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._free_at = 0.0

    def carry(self, size: int) -> float:
        """Return when these bytes have passed, and all that were there before them."""
        self._free_at = max(self._free_at, anyio.current_time()) + size / self._rate
        return self._free_at


class _Conversation:
    """One connection: requests one way, answers the other."""

    def __init__(self, delay_seconds: float, lines: tuple[_Line, ...], log: RawIOBase) -> None:
        self._delay_seconds = delay_seconds
        self._lines = lines
        self._log = log
        self._request: Request | None = None

    async def ask(self, client: ByteReceiveStream, server: SocketStream) -> None:
        async for data in _chunks(client):
            if self._request is None or self._request.down:
                self._write_down()
                line = data.partition(b"\r\n")[0].decode(errors="replace")
                self._request = Request(time.monotonic(), line)
                await anyio.sleep(self._delay_seconds)
            self._request.up += len(data)
            await self._pass_on(data, server)
        await server.send_eof()

    async def answer(self, server: ByteReceiveStream, client: ByteSendStream) -> None:
        try:
            async for data in _chunks(server):
                await self._pass_on(data, client)
                if self._request is not None:
                    self._request.down += len(data)
                    self._request.answered = time.monotonic()
        finally:
            self._write_down()

    def _write_down(self) -> None:
        if self._request is not None:
            self._log.write(msgspec.json.encode(self._request) + b"\n")
            self._request = None

    async def _pass_on(self, data: bytes, to: ByteSendStream) -> None:
        seconds = max(line.carry(len(data)) for line in self._lines) - anyio.current_time()
        if seconds > _EXACT_SECONDS:
            await anyio.sleep(seconds)
        try:
            await to.send(data)
        except _GONE:
            return


async def _chunks(stream: ByteReceiveStream) -> AsyncIterator[bytes]:
    while True:
        try:
            yield await stream.receive(_CHUNK_BYTES)
        except _GONE:
            return


if __name__ == "__main__":
    main()
