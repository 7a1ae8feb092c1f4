"""What a job looks up: what it is told when the bucket is late."""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from s3cache.agent import jobs
from s3cache.agent.jobs import Jobs, Run
from s3cache.agent.look_ups import LookUps
from s3cache.agent.protocol import Hello, Lookup
from s3cache.cache import Cache
from s3cache.errors import CredentialsAbsent, ObjectAbsent, StoreError
from s3cache.keyring import NO_KEYS
from s3cache.machine import Machine
from s3cache.tier import DiskTier
from tests.memory import MemoryStore

pytestmark = pytest.mark.anyio


class LateStore(MemoryStore):
    """A store that answers when it is told to, by an error."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer = anyio.Event()
        self.error: StoreError = ObjectAbsent("not there")
        self.asked = anyio.Event()

    async def get(self, name: str, part: range | None = None) -> bytes:
        self.asked.set()
        await self.may_answer.wait()
        raise self.error


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(jobs, "PROFILE_SECONDS", 0.0)
    return Jobs(NO_KEYS).run(Hello("run", "job", None))


@pytest.fixture
def store() -> LateStore:
    return LateStore()


@pytest.fixture
def cache(store: LateStore, tmp_path: Path) -> Cache:
    return Cache(store, DiskTier(tmp_path, 1 << 20), Machine(), NO_KEYS)


@asynccontextmanager
async def before_it_answers(store: LateStore, cache: Cache) -> AsyncIterator[LookUps]:
    """Look up while the store does not answer; afterwards it does."""
    has_credentials = anyio.Event()
    has_credentials.set()
    async with anyio.create_task_group() as group:
        yield LookUps("s3://bucket", cache, has_credentials, group)
        store.may_answer.set()


async def look_up(look_ups: LookUps, run: Run) -> None:
    deadline = time.monotonic() + 0.01
    assert await look_ups.answer(run, Lookup("fx-graph", "key", 0, None, deadline)) == "unavailable"


def warnings(run: Run) -> list[str]:
    said: list[str] = json.loads(run.write_report())["warnings"]
    return said


async def test_what_keeps_the_bucket_is_said_rather_than_that_it_was_late(
    store: LateStore, run: Run, cache: Cache
) -> None:
    store.error = CredentialsAbsent("there are none")
    async with before_it_answers(store, cache) as look_ups:
        await look_up(look_ups, run)
        assert run.take_warning() is None
    assert run.take_warning() == "there are none"
    assert warnings(run) == ["there are none"]


async def test_a_result_that_comes_late_is_said_at_the_end(
    store: LateStore, run: Run, cache: Cache
) -> None:
    async with before_it_answers(store, cache) as look_ups:
        await look_up(look_ups, run)
    assert run.take_warning() is None
    (said,) = warnings(run)
    assert "s3://bucket: a result did not come in time" in said
    assert run.take_warning() == said


async def test_a_second_result_that_is_late_is_said_at_once(
    store: LateStore, run: Run, cache: Cache
) -> None:
    async with before_it_answers(store, cache) as look_ups:
        await look_up(look_ups, run)
        await look_up(look_ups, run)
        assert "did not come in time" in (run.take_warning() or "")


async def test_credentials_that_come_late_are_said_and_the_result_comes_with_them(
    store: LateStore, run: Run, cache: Cache
) -> None:
    has_credentials = anyio.Event()
    store.may_answer.set()
    async with anyio.create_task_group() as group:
        look_ups = LookUps("s3://bucket", cache, has_credentials, group)
        await look_up(look_ups, run)
        (said,) = warnings(run)
        assert "credentials did not come in time; if none come, set AWS_PROFILE" in said
        has_credentials.set()
        assert (
            await look_ups.answer(run, Lookup("fx-graph", "key", 0, None, time.monotonic() + 60.0))
            == "absent"
        )


async def test_a_look_up_waits_for_the_profile_however_late_the_credentials_were(
    store: LateStore, run: Run, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "PROFILE_SECONDS", 60.0)
    run.started -= 100.0
    has_credentials = anyio.Event()
    async with anyio.create_task_group() as group:
        await look_up(LookUps("s3://bucket", cache, has_credentials, group), run)
        has_credentials.set()
        await anyio.sleep(0.2)
        assert not store.asked.is_set()
        run.prefetch.read.set()
        with anyio.fail_after(60.0):
            await store.asked.wait()
        store.may_answer.set()
