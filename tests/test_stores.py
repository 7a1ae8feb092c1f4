"""The conformance suite on every store, and what each wrapper adds."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from s3cache.bucket import Bucket
from s3cache.errors import Forbidden, ObjectAbsent, Unreachable
from s3cache.stores.base import ObjectStore
from s3cache.stores.breaker import BreakerStore
from s3cache.stores.read_only import ReadOnlyStore
from tests.memory import MemoryStore
from tests.servers import Server
from tests.store_conformance import OBJECTS, ReadConformance, StoreConformance
from tests.wrappers import FaultyStore, LatencyStore, RecordingStore


class TestMemoryStore(StoreConformance):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return MemoryStore()


class TestBucketOnMoto(StoreConformance):
    @pytest.fixture(scope="class")
    async def bucket(self, moto_server: Server) -> AsyncIterator[Bucket]:
        async with _bucket_on(moto_server) as bucket:
            yield bucket

    @pytest.fixture
    async def store(self, bucket: Bucket) -> ObjectStore:
        return await _emptied(bucket)


class TestBucketOnSeaweedFS(StoreConformance):
    @pytest.fixture(scope="class")
    async def bucket(self, seaweedfs_server: Server) -> AsyncIterator[Bucket]:
        async with _bucket_on(seaweedfs_server) as bucket:
            yield bucket

    @pytest.fixture
    async def store(self, bucket: Bucket) -> ObjectStore:
        return await _emptied(bucket)


class TestBreakerStore(StoreConformance):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return BreakerStore(MemoryStore())


class TestLatencyStore(StoreConformance):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return LatencyStore(MemoryStore(), 0.0005)

    async def test_it_takes_its_time(self) -> None:
        slow = LatencyStore(MemoryStore(), 0.02)
        started = anyio.current_time()
        await slow.create("name", b"")
        await slow.get("name")
        assert anyio.current_time() - started >= 0.04


class TestFaultyStore(StoreConformance):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return FaultyStore(MemoryStore())

    async def test_it_fails_once_and_has_no_effect(self) -> None:
        faulty = FaultyStore(MemoryStore())
        faulty.fail("create", Unreachable("no"))
        with pytest.raises(Unreachable):
            await faulty.create("name", b"1")
        assert await faulty.create("name", b"2")

    async def test_it_loses_the_reply_of_what_it_did(self) -> None:
        faulty = FaultyStore(MemoryStore())
        faulty.fail("create", Unreachable("no"), reply_lost=True)
        with pytest.raises(Unreachable):
            await faulty.create("name", b"1")
        assert await faulty.get("name") == b"1"


class TestRecordingStore(StoreConformance):
    @pytest.fixture
    def store(self) -> ObjectStore:
        return RecordingStore(MemoryStore())


class TestReadOnlyStore(ReadConformance):
    @pytest.fixture
    async def filled(self) -> ObjectStore:
        memory = MemoryStore()
        for name, data in OBJECTS.items():
            await memory.create(name, data)
        return ReadOnlyStore(memory, "S3CACHE_MODE is read-only")

    async def test_every_write_is_forbidden_and_has_no_effect(self, filled: ObjectStore) -> None:
        with pytest.raises(Forbidden, match="read-only"):
            await filled.create("new", b"")
        with pytest.raises(Forbidden, match="read-only"):
            await filled.delete("packs/00/0000")
        assert await filled.get("packs/00/0000") == b""
        with pytest.raises(ObjectAbsent):
            await filled.get("new")


# A client takes a third of a second to make, so a class shares one.
@asynccontextmanager
async def _bucket_on(server: Server) -> AsyncIterator[Bucket]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment().items():
            patch.setenv(name, value)
        server.make_bucket("conformance")
        async with Bucket("s3://conformance/prefix") as bucket:
            yield bucket


async def _emptied(bucket: Bucket) -> Bucket:
    for name in [listed.name async for listed in bucket.list("")]:
        await bucket.delete(name)
    return bucket
