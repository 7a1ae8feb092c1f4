"""The network between a machine and its bucket: every request waits, and bytes take their time.

with network("http://127.0.0.1:8333", Network(delay_seconds=0.05)) as endpoint: ...

A TCP proxy on loopback, in a process of its own. What a client sends first, or after the server has
spoken, is a new request: it is held back for the delay. The bytes of both directions pay twice: to
their connection, and to the line that all connections share.
"""

import dataclasses
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import anyio
import click
from anyio.abc import ByteReceiveStream, ByteSendStream, SocketStream

STOP_SECONDS = 10.0
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


@contextmanager
def network(endpoint: str, between: Network) -> Iterator[str]:
    """Put a network before the server at `endpoint`; yield the endpoint to use instead."""
    settings = dataclasses.asdict(between).items()
    options = [f"--{name.replace('_', '-')}={value}" for name, value in settings]
    command = [sys.executable, "-m", "benchmarks.network", endpoint, *options]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(STOP_SECONDS)


@click.command()
@click.argument("endpoint")
@click.option("--delay-seconds", default=Network.delay_seconds, show_default=True)
@click.option("--connection-rate", default=Network.connection_rate, show_default=True)
@click.option("--total-rate", default=Network.total_rate, show_default=True)
def main(endpoint: str, delay_seconds: float, connection_rate: float, total_rate: float) -> None:
    """Put a network before the server at ENDPOINT until standard input closes. Rates are bytes a second."""
    anyio.run(_serve, endpoint, Network(delay_seconds, connection_rate, total_rate))


async def _serve(endpoint: str, between: Network) -> None:
    shared = _Line(between.total_rate)
    server = urlsplit(endpoint)

    async def converse(client: SocketStream) -> None:
        lines = _Line(between.connection_rate), shared
        async with client, await anyio.connect_tcp(str(server.hostname), server.port or 80) as upstream:
            conversation = _Conversation(between.delay_seconds, lines)
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

    def __init__(self, delay_seconds: float, lines: tuple[_Line, ...]) -> None:
        self._delay_seconds = delay_seconds
        self._lines = lines
        self._is_asking = False

    async def ask(self, client: ByteReceiveStream, server: SocketStream) -> None:
        async for data in _chunks(client):
            if not self._is_asking:
                self._is_asking = True
                await anyio.sleep(self._delay_seconds)
            await self._pass_on(data, server)
        await server.send_eof()

    async def answer(self, server: ByteReceiveStream, client: ByteSendStream) -> None:
        async for data in _chunks(server):
            self._is_asking = False
            await self._pass_on(data, client)

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
