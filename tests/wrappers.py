"""Stores around other stores: what a test looks through, waits at, or breaks."""

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import anyio

from s3cache.errors import StoreError
from s3cache.stores.base import Listed, ObjectStore
from s3cache.stores.wrapper import WrapperStore
from s3cache.tier import DiskTier
from tests.memory import MemoryStore

T = TypeVar("T")


class LatencyStore(WrapperStore):
    """Answers after so many seconds."""

    def __init__(self, inner: ObjectStore, seconds: float) -> None:
        super().__init__(inner)
        self._seconds = seconds

    async def get(self, name: str, part: range | None = None) -> bytes:
        await anyio.sleep(self._seconds)
        return await super().get(name, part)

    async def create(self, name: str, data: bytes) -> bool:
        await anyio.sleep(self._seconds)
        return await super().create(name, data)

    async def list(self, prefix: str) -> AsyncIterator[Listed]:
        await anyio.sleep(self._seconds)
        async for listed in super().list(prefix):
            yield listed

    async def delete(self, name: str) -> None:
        await anyio.sleep(self._seconds)
        await super().delete(name)


class FaultyStore(WrapperStore):
    """Fails, or lies, when it was told to."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self._faults: dict[str, deque[tuple[StoreError, bool]]] = {}
        self._damaged: set[str] = set()
        self._denials = 0
        self._repetitions = 0

    def fail(self, method: str, error: StoreError, *, reply_lost: bool = False) -> None:
        """Let one call of a method raise `error`; with `reply_lost`, what it asked for is done."""
        self._faults.setdefault(method, deque()).append((error, reply_lost))

    def damage(self, name: str) -> None:
        """Let the next content of an object be damaged on its way."""
        self._damaged.add(name)

    def deny(self) -> None:
        """Say of the next object that is to be created that there is one, and do not create it."""
        self._denials += 1

    def repeat(self) -> None:
        """Create the next object twice, as who does not get the reply to the first time."""
        self._repetitions += 1

    def forgive(self) -> None:
        """Fail no more."""
        self._faults.clear()

    async def get(self, name: str, part: range | None = None) -> bytes:
        content = await self._call("get", lambda: self.inner.get(name, part))
        if name in self._damaged:
            self._damaged.remove(name)
            return content[:-1] + bytes([content[-1] ^ 1])
        return content

    async def create(self, name: str, data: bytes) -> bool:
        if self._denials:
            self._denials -= 1
            return False
        if self._repetitions:
            self._repetitions -= 1
            await self.inner.create(name, data)
        return await self._call("create", lambda: self.inner.create(name, data))

    async def list(self, prefix: str) -> AsyncIterator[Listed]:
        async def collect() -> list[Listed]:
            return [listed async for listed in self.inner.list(prefix)]

        for listed in await self._call("list", collect):
            yield listed

    async def delete(self, name: str) -> None:
        await self._call("delete", lambda: self.inner.delete(name))

    async def _call(self, method: str, request: Callable[[], Awaitable[T]]) -> T:
        if not self._faults.get(method):
            return await request()
        error, reply_lost = self._faults[method].popleft()
        if reply_lost:
            await request()
        raise error


class RecordingStore(WrapperStore):
    """Remembers what it was asked for, and holds GETs or PUTs back while their gate is closed."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.requests: list[str] = []
        self._gate = anyio.Event()
        self._gate.set()
        self._put_gate = self._gate
        self._held_prefix = ""

    def close_gate(self) -> anyio.Event:
        """Hold every GET from now on; setting the event lets them through."""
        self._gate = anyio.Event()
        return self._gate

    def close_put_gate(self, prefix: str) -> anyio.Event:
        """Hold every PUT of names that begin so from now on; setting the event lets them through."""
        self._put_gate, self._held_prefix = anyio.Event(), prefix
        return self._put_gate

    def asked(self, kind: str) -> list[str]:
        """Return the names of the requests of a kind: GET, PUT, LIST or DELETE."""
        return [request.split()[1] for request in self.requests if request.startswith(f"{kind} ")]

    async def get(self, name: str, part: range | None = None) -> bytes:
        self.requests.append(f"GET {name}" if part is None else f"GET {name} {part.start}-{part.stop}")
        await self._gate.wait()
        return await super().get(name, part)

    async def create(self, name: str, data: bytes) -> bool:
        self.requests.append(f"PUT {name}")
        if name.startswith(self._held_prefix):
            await self._put_gate.wait()
        return await super().create(name, data)

    def list(self, prefix: str) -> AsyncIterator[Listed]:
        self.requests.append(f"LIST {prefix}")
        return super().list(prefix)

    async def delete(self, name: str) -> None:
        self.requests.append(f"DELETE {name}")
        await super().delete(name)


class WatchedBucket:
    """A bucket in memory that remembers its requests and fails on demand."""

    def __init__(self, folder: Path) -> None:
        self.memory = MemoryStore()
        self.faulty = FaultyStore(self.memory)
        self.store = RecordingStore(self.faulty)
        self._folder = folder
        self._machines = 0

    @property
    def objects(self) -> dict[str, bytes]:
        return self.memory.objects

    def new_tier(self, limit: int) -> DiskTier:
        """Return the disk of a machine that has nothing yet; requests are counted anew."""
        self._machines += 1
        self.store.requests.clear()
        return DiskTier(self._folder / str(self._machines), limit)
