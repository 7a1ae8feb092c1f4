"""What people do today to bring compiler results to a fresh machine, to measure beside s3cache.

for rival in rivals(server, wire.endpoint, "bucket"):
    rival.store(items)
    seconds = rival.fetch(folder)
"""

import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, TypeVar

import aioboto3
import anyio
import boto3
import zstandard
from aiobotocore.config import AioConfig
from obstore.store import S3Store

from benchmarks.archives import pack, unpack
from benchmarks.datasets import LEVEL, Item, write_files
from tests.servers import Server

AT_ONCE = 64

T = TypeVar("T")


class Rival(ABC):
    """One way: stored straight on the server, fetched through the endpoint of a network before it."""

    def __init__(self, name: str, server: Server, endpoint: str, bucket: str) -> None:
        self.name = name
        self.stored_bytes = 0
        self._server = server
        self._endpoint = endpoint
        self._bucket = bucket

    @abstractmethod
    def store(self, items: Sequence[Item]) -> None:
        """Put what a fresh machine needs into the bucket; not timed."""

    @abstractmethod
    def fetch(self, folder: Path) -> float:
        """Bring every file to `<folder>/<key>/<member>`; seconds, once there is an S3 client."""


class TarRival(Rival):
    """One tar.zst of everything: boto3 downloads it, GNU tar unpacks it."""

    def __init__(self, server: Server, endpoint: str, bucket: str) -> None:
        super().__init__("tar.zst", server, endpoint, bucket)

    def store(self, items: Sequence[Item]) -> None:
        with TemporaryDirectory() as scratch:
            archive, files = Path(scratch, "archive"), Path(scratch, "files")
            write_files(items, files)
            pack(files, archive)
            self.stored_bytes = archive.stat().st_size
            client = boto3.client("s3", **_access(self._server, self._server.endpoint))
            client.upload_file(str(archive), self._bucket, self.name)

    def fetch(self, folder: Path) -> float:
        folder.mkdir()
        archive = folder.with_name(f"{folder.name}.tar.zst")
        client = boto3.client("s3", **_access(self._server, self._endpoint))
        began = time.perf_counter()
        client.download_file(self._bucket, self.name, str(archive))
        unpack(archive, folder)
        seconds = time.perf_counter() - began
        archive.unlink()
        return seconds


class LooseRival(Rival):
    """One compressed object a file, 64 at once; `client` is aioboto3 or obstore.

    The names are known to it: it never lists.
    """

    def __init__(self, client: str, server: Server, endpoint: str, bucket: str) -> None:
        super().__init__(f"loose objects, {client}", server, endpoint, bucket)
        self._client = CLIENTS[client]
        self._names: list[str] = []

    def store(self, items: Sequence[Item]) -> None:
        files = {f"{item.key}/{name}": data for item in items for name, data in item.members.items()}
        self._names = list(files)
        self.stored_bytes = anyio.run(self._store, files)

    def fetch(self, folder: Path) -> float:
        return anyio.run(self._fetch, folder)

    async def _store(self, files: dict[str, bytes]) -> int:
        compressor = zstandard.ZstdCompressor(LEVEL)
        sizes: list[int] = []
        async with self._client(self._server, self._server.endpoint, self._bucket) as client:

            async def put(name: str) -> None:
                data = compressor.compress(files[name])
                await client.put(name, data)
                sizes.append(len(data))

            await _each(self._names, put)
        return sum(sizes)

    async def _fetch(self, folder: Path) -> float:
        decompressor = zstandard.ZstdDecompressor()
        async with self._client(self._server, self._endpoint, self._bucket) as client:
            began = time.perf_counter()
            # Small files: to decompress and write them in a thread would take longer.
            for key in {name.partition("/")[0] for name in self._names}:
                (folder / key).mkdir(parents=True)

            async def get(name: str) -> None:
                content = decompressor.decompress(await client.get(name))
                (folder / name).write_bytes(content)

            await _each(self._names, get)
            return time.perf_counter() - began


def rivals(server: Server, endpoint: str, bucket: str) -> list[Rival]:
    """Return all ways; a bucket holds one data set at a time."""
    loose = (LooseRival(client, server, endpoint, bucket) for client in CLIENTS)
    return [TarRival(server, endpoint, bucket), *loose]


class _Client(Protocol):
    async def get(self, name: str) -> bytes: ...
    async def put(self, name: str, data: bytes) -> None: ...


class _Aioboto3:
    def __init__(self, client: Any, bucket: str) -> None:
        self._client = client
        self._bucket = bucket

    async def get(self, name: str) -> bytes:
        response = await self._client.get_object(Bucket=self._bucket, Key=name)
        data: bytes = await response["Body"].read()
        return data

    async def put(self, name: str, data: bytes) -> None:
        await self._client.put_object(Bucket=self._bucket, Key=name, Body=data)


class _Obstore:
    def __init__(self, store: S3Store) -> None:
        self._store = store

    async def get(self, name: str) -> bytes:
        response = await self._store.get_async(name)
        return bytes(await response.bytes_async())

    async def put(self, name: str, data: bytes) -> None:
        await self._store.put_async(name, data)


@asynccontextmanager
async def _aioboto3(server: Server, endpoint: str, bucket: str) -> AsyncIterator[_Client]:
    config = AioConfig(max_pool_connections=AT_ONCE)
    async with aioboto3.Session().client("s3", config=config, **_access(server, endpoint)) as client:
        yield _Aioboto3(client, bucket)


@asynccontextmanager
async def _obstore(server: Server, endpoint: str, bucket: str) -> AsyncIterator[_Client]:
    yield _Obstore(
        S3Store(
            bucket,
            # By this name it goes before the variable AWS_ENDPOINT_URL_S3.
            aws_endpoint_url_s3=endpoint,
            region=server.region,
            access_key_id=server.access_key,
            secret_access_key=server.secret_key,
            virtual_hosted_style_request=False,
            client_options={"allow_http": True},
        )
    )


CLIENTS: dict[str, Callable[[Server, str, str], AbstractAsyncContextManager[_Client]]] = {
    "aioboto3": _aioboto3,
    "obstore": _obstore,
}


def _access(server: Server, endpoint: str) -> dict[str, str]:
    return {
        "endpoint_url": endpoint,
        "region_name": server.region,
        "aws_access_key_id": server.access_key,
        "aws_secret_access_key": server.secret_key,
    }


async def _each(values: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    waiting = iter(values)

    async def worker() -> None:
        for value in waiting:
            await work(value)

    async with anyio.create_task_group() as group:
        for _ in range(AT_ONCE):
            group.start_soon(worker)
