"""From the spool to the bucket: in packs, after a while, giving way to others; at the end at once."""

import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from s3cache import names
from s3cache.agent import uploader
from s3cache.agent.jobs import Jobs
from s3cache.agent.protocol import Hello
from s3cache.agent.segments import SegmentWriter
from s3cache.agent.uploader import Uploader
from s3cache.cache import Cache
from s3cache.counts import HighestCounts
from s3cache.errors import Forbidden, Unreachable
from s3cache.keyring import NO_KEYS
from s3cache.local import LocalEntries
from s3cache.machine import Machine
from s3cache.manifest import Result
from s3cache.spool import Put, Spool
from s3cache.stores.breaker import BreakerStore
from s3cache.tier import DiskTier
from tests.memory import MemoryStore
from tests.wrappers import FaultyStore, RecordingStore

pytestmark = pytest.mark.anyio

CONTENT = bytes(range(256)) * 700


class Agent:
    """The uploader of an agent, and its spool."""

    def __init__(self, folder: Path) -> None:
        self.memory = MemoryStore()
        self.faulty = FaultyStore(self.memory)
        self.store = RecordingStore(self.faulty)
        self.spool = Spool(folder / "spool", 1 << 30)
        self.jobs = Jobs(NO_KEYS)
        self.jobs.run(Hello("run", "job", None))
        objects = BreakerStore(self.store)
        self.tier = DiskTier(folder / "tier", 1 << 30)
        cache = Cache(objects, self.tier, Machine(), NO_KEYS)
        segments = SegmentWriter(cache, objects, self.tier, self.jobs, HighestCounts(folder / "counts"), {})
        self.uploader = Uploader(self.spool, cache, objects, self.jobs, segments, lambda: None)

    def put(self, *keys: str, namespace: str = "ns") -> None:
        """Spool results as a job does."""
        for key in keys:
            result = Result(namespace, key, {"binary": key.encode() + CONTENT})
            self.spool.add(Put(result, "job", "run"))
        self.uploader.wake()

    def stored(self) -> set[str]:
        """Return the keys in the bucket."""
        return {name.split("/")[2] for name in self.memory.objects if name.startswith("manifests/")}

    def packs(self) -> int:
        return sum(name.startswith("packs/") for name in self.memory.objects)

    async def until_stored(self, *keys: str) -> None:
        with anyio.fail_after(5):
            while not self.stored() >= set(keys):  # noqa: ASYNC110
                await anyio.sleep(0.005)


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Agent:
    # As long as chance may have it.
    monkeypatch.setattr("s3cache.agent.uploader.random.uniform", lambda least, most: most)
    monkeypatch.setattr(uploader, "CLAIM_SECONDS", 0.05)
    return Agent(tmp_path)


@asynccontextmanager
async def running(agent: Agent) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        group.start_soon(agent.uploader.run)
        yield
        group.cancel_scope.cancel()


async def test_the_first_result_is_stored_at_once(agent: Agent) -> None:
    async with running(agent):
        agent.put("a")
        await agent.until_stored("a")


async def test_those_that_follow_wait_for_each_other_and_share_a_pack(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploader, "HOLD_BACK_SECONDS", 10.0)
    async with running(agent):
        agent.put("first")
        await agent.until_stored("first")
        for key in "abc":
            agent.put(key)
            await anyio.sleep(0.02)
        assert agent.stored() == {"first"}
        await agent.uploader.flush()
        assert agent.stored() == {"first", "a", "b", "c"}
    assert agent.packs() == 2


async def test_a_flush_waits_for_nobody(agent: Agent) -> None:
    async with running(agent):
        agent.put("first")
        await agent.until_stored("first")
        agent.put("a", "b")
        began = time.monotonic()
        await agent.uploader.flush()
        assert time.monotonic() - began < uploader.HOLD_BACK_SECONDS / 5
    assert agent.stored() == {"first", "a", "b"}
    assert agent.uploader.pending == 0
    assert any(name.startswith("profiles/job/") for name in agent.memory.objects)


async def test_a_flush_that_ends_leaves_another_one_its_hurry(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda _, most: most)
    async with running(agent), anyio.create_task_group() as group:
        gate = agent.store.close_put_gate("packs/")
        agent.put("a")
        await anyio.sleep(0.1)
        agent.put("b")
        group.start_soon(agent.uploader.flush)
        group.start_soon(agent.uploader.flush, lambda: True)
        await anyio.sleep(0.1)
        gate.set()
        with anyio.fail_after(uploader.HOLD_BACK_SECONDS / 2):
            await agent.until_stored("a", "b")


async def test_large_results_go_into_packs_of_a_size(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploader, "BATCH_BYTES", 2 * len(CONTENT))
    agent.put(*"abcdefgh")
    async with running(agent):
        await agent.uploader.flush()
    assert agent.stored() == set("abcdefgh")
    assert agent.packs() == 4


async def test_it_gives_way_to_a_machine_that_stores_the_same_and_looks_again(agent: Agent) -> None:
    agent.memory.objects[names.claim_name("ns", "a")] = b""
    agent.put("a", "b")
    async with running(agent), anyio.create_task_group() as group:
        group.start_soon(agent.uploader.flush)
        await anyio.sleep(0.02)
        assert agent.stored() == set()
        del agent.memory.objects[names.claim_name("ns", "a")]
        await agent.until_stored("a", "b")


async def test_a_claim_of_a_machine_that_died_is_heeded_for_a_while_only(agent: Agent) -> None:
    agent.memory.objects[names.claim_name("ns", "a")] = b""
    agent.put("a", "b")
    async with running(agent):
        await agent.uploader.flush()
    assert agent.stored() == {"a", "b"}
    claims = [name for name in agent.store.asked("PUT") if name.startswith("claims/")]
    assert len(claims) == uploader.GIVE_WAY_TIMES


async def test_what_may_not_be_named_so_is_dropped_and_nothing_else(agent: Agent) -> None:
    agent.put("a")
    agent.put("b", namespace="../up")
    agent.put("c")
    async with running(agent):
        await agent.uploader.flush()
    assert agent.stored() == {"a", "c"}
    assert agent.uploader.pending == 0


async def test_what_cannot_be_stored_now_stays_in_the_spool(agent: Agent) -> None:
    agent.faulty.fail("create", Unreachable("why"))
    agent.put("a")
    async with running(agent):
        await agent.uploader.flush()
    assert agent.uploader.pending == 1
    assert agent.jobs.runs["run", "job"].take_warning() == "why"


async def test_what_the_bucket_does_not_take_is_on_this_machine_and_is_stored_later(agent: Agent) -> None:
    agent.faulty.fail("create", Unreachable("why"))
    agent.put("a")
    async with running(agent):
        await agent.uploader.flush()
        found = LocalEntries(agent.tier, (), NO_KEYS, unsent=True).find("ns", "a", 0)
        assert (found.members if found else None) == {"binary": b"a" + CONTENT}
        assert agent.stored() == set()
        await agent.uploader.flush()
    assert agent.stored() == {"a"}


async def test_what_is_refused_by_a_bucket_that_took_something_before_stays_in_the_spool(
    agent: Agent,
) -> None:
    async with running(agent):
        agent.put("a")
        await agent.uploader.flush()
        agent.faulty.fail("create", Forbidden("why"))
        agent.put("b")
        await agent.uploader.flush()
        assert agent.uploader.pending == 1
        await agent.uploader.flush()
    assert agent.stored() == {"a", "b"}


async def test_what_may_not_be_stored_is_dropped_and_the_job_is_told(agent: Agent) -> None:
    agent.faulty.fail("create", Forbidden("why"))
    agent.put("a")
    async with running(agent):
        await agent.uploader.flush()
    assert agent.uploader.pending == 0
    assert agent.jobs.runs["run", "job"].take_warning() == "why"
