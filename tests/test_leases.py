"""Leases: one a day from a machine, only where nothing else says that a profile is in use."""

import time
from pathlib import Path

import pytest

from s3cache import profile
from s3cache.errors import Forbidden, Unreachable
from s3cache.leases import leave
from s3cache.names import Kind, kind_of
from s3cache.tier import DiskTier
from tests.memory import MemoryStore
from tests.wrappers import FaultyStore, RecordingStore

pytestmark = pytest.mark.anyio

PREFIX = "profiles/job/linux-x86_64/"
DAY_MILLISECONDS = 86_400_000
NOW = 1_700_000_000_000


def segment(days_ago: float) -> str:
    return profile.segment_name(PREFIX, NOW - int(days_ago * DAY_MILLISECONDS), b"")


class Machine:
    def __init__(self, folder: Path) -> None:
        self.memory = MemoryStore()
        self.faulty = FaultyStore(self.memory)
        self.store = RecordingStore(self.faulty)
        self._tier = DiskTier(folder, 1 << 20)

    async def leave(self, *segments: str) -> list[str]:
        """Leave a lease, and return the names of all that there are."""
        await leave(self.store, self._tier, PREFIX, segments)
        return list(self.memory.objects)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr("s3cache.leases.time.time", lambda: NOW / 1000)
    return Machine(tmp_path)


async def test_a_machine_leaves_one_a_day(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    (first,) = await machine.leave(segment(2))
    assert first == "leases/job/linux-x86_64/2023-11-14"
    assert kind_of(first) is Kind.LEASE
    await machine.leave(segment(2))
    assert machine.store.requests == [f"PUT {first}"]
    monkeypatch.setattr("s3cache.leases.time.time", lambda: NOW / 1000 + 86_400)
    assert await machine.leave(segment(2)) == [first, "leases/job/linux-x86_64/2023-11-15"]


@pytest.mark.parametrize(
    "segments", [[], [segment(0.9)], [segment(40), segment(0)]], ids=["none", "new", "both"]
)
async def test_a_profile_that_is_empty_or_has_a_new_segment_needs_none(
    machine: Machine, segments: list[str]
) -> None:
    assert await machine.leave(*segments) == []
    assert machine.store.requests == []


async def test_a_segment_from_the_future_says_nothing(machine: Machine) -> None:
    assert len(await machine.leave(segment(-400))) == 1


async def test_who_may_not_leave_one_asks_once_a_day(machine: Machine) -> None:
    machine.faulty.fail("create", Forbidden("no"))
    assert await machine.leave(segment(2)) == []
    assert await machine.leave(segment(2)) == []
    assert len(machine.store.requests) == 1


async def test_a_bucket_that_does_not_answer_is_asked_again(machine: Machine) -> None:
    machine.faulty.fail("create", Unreachable("no"))
    assert await machine.leave(segment(2)) == []
    assert len(await machine.leave(segment(2))) == 1


async def test_a_bucket_that_takes_too_long_is_left_alone(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3cache.leases.LEASE_SECONDS", 0.05)
    machine.store.close_put_gate("leases/")
    started = time.monotonic()
    assert await machine.leave(segment(2)) == []
    assert time.monotonic() - started < 2
