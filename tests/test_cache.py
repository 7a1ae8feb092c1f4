"""The cache: what it asks of the bucket, what it stores there, and what it makes of damage."""

import random
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from s3cache import catalog, ledger, manifest, names, pack, profile
from s3cache.cache import Cache
from s3cache.catalog import Catalog, Reference
from s3cache.digest import raw_digest_of
from s3cache.errors import (
    Claimed,
    Corrupt,
    DiskFull,
    Forbidden,
    InvalidName,
    ObjectAbsent,
    SlotsExhausted,
    StoreError,
    Unreachable,
    Unreadable,
)
from s3cache.keyring import NO_KEYS
from s3cache.ledger import Ledger
from s3cache.machine import Machine
from s3cache.manifest import Entry, Manifest, Member, Place, Result
from s3cache.pack import Pack, PackFrame
from s3cache.profile import Segment
from s3cache.stores.retries import AT_FIRST, SHARE
from s3cache.tier import DiskTier
from tests.wrappers import WatchedBucket

pytestmark = pytest.mark.anyio

SMALL = {"a.json": b"{}", "b.bin": b"\0" * 100}
OTHER = {"a.json": b"[]", "b.bin": b"\1" * 100}
LARGE = {"a.json": random.Random(1).randbytes(100_000), "b.bin": random.Random(2).randbytes(10_000)}
LARGE_OTHER = {"a.json": random.Random(3).randbytes(100_000)}
SLOTS = [names.manifest_name("ns", "key", slot) for slot in range(4)]
LARGE_PACK = pack.build([Result("ns", "key", LARGE)], {})
PACK = names.pack_name(LARGE_PACK.digest)
FRAME = names.frame_name(LARGE_PACK.digest, 0)
FRAME_REQUEST = f"GET {PACK} 0-{len(LARGE_PACK.data)}"
ON_DEMAND = frozenset({"b.bin"})


Call = Callable[[], Coroutine[Any, Any, object]]


class Bucket(WatchedBucket):
    """A bucket, and fresh machines."""

    def new_machine(self, limit: int = 64 << 20, **facts: str) -> Cache:
        """Return the cache of a machine that has nothing yet."""
        machine = Machine()
        for name, value in facts.items():
            machine.learn(name, lambda value=value: value)  # type: ignore[misc]
        return Cache(self.store, self.new_tier(limit), machine, NO_KEYS)

    def tier_of_last_machine(self) -> DiskTier:
        return DiskTier(self._folder / str(self._machines), 64 << 20)


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket(tmp_path / "machines")


@pytest.fixture(autouse=True)
def _one_salt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let packs have names that a test can tell beforehand."""
    monkeypatch.setattr("s3cache.cache._new_salt", lambda: b"")


@pytest.fixture
def counts() -> Ledger:
    """The ledger that a test's requests are charged to, once it calls `ledger.charge`."""
    return Ledger()


def request_of(place: Place) -> str:
    return f"GET {names.pack_name(place.pack)} {place.offset}-{place.offset + place.length}"


def request_of_run(frames: list[PackFrame]) -> str:
    first, last = frames[0].place, frames[-1].place
    return f"GET {names.pack_name(first.pack)} {first.offset}-{last.offset + last.length}"


def large(number: int) -> dict[str, bytes]:
    """Return members that do not lie in a manifest."""
    return {"a.json": random.Random(1000 + number).randbytes(10_000)}


async def put_neighbours(bucket: Bucket) -> Pack:
    """Put one result in each of four namespaces, and so four frames in one pack, and return that."""
    results = [Result(f"ns{number}", "key", large(number)) for number in range(4)]
    await bucket.new_machine().put_all(results)
    return pack.build(results, {})


async def in_the_background(gate: anyio.Event, *calls: Call) -> None:
    """Start calls one after the other, each once the last one waits; then open the gate."""
    async with anyio.create_task_group() as group:
        for call in calls:
            group.start_soon(call)
            await anyio.wait_all_tasks_blocked()
        gate.set()


def found(entry: Entry | None) -> dict[str, bytes]:
    assert entry is not None
    return entry.members


async def variants(cache: Cache, namespace: str = "ns") -> list[tuple[int, dict[str, bytes]]]:
    return [(entry.slot, entry.members) async for entry in cache.variants(namespace, "key")]


# What comes back.


@pytest.mark.parametrize("members", [{}, {"a": b""}, SMALL, LARGE], ids=["none", "empty", "small", "large"])
async def test_another_machine_gets_what_one_has_put(bucket: Bucket, members: dict[str, bytes]) -> None:
    slot = await bucket.new_machine().put("ns", "key", members, variant="v", requires={})
    entry = await bucket.new_machine().get("ns", "key")
    assert entry == Entry("ns", "key", slot, "v", {}, members)


async def test_what_was_put_or_got_once_is_got_without_the_bucket(bucket: Bucket) -> None:
    writer = bucket.new_machine()
    await writer.put("ns", "key", LARGE)
    bucket.store.requests.clear()
    assert found(await writer.get("ns", "key")) == LARGE
    assert bucket.store.requests == []
    reader = bucket.new_machine()
    await reader.get("ns", "key")
    bucket.store.requests.clear()
    assert found(await reader.get("ns", "key")) == LARGE
    assert bucket.store.requests == []


async def test_keys_and_namespaces_are_apart(bucket: Bucket) -> None:
    cache = bucket.new_machine()
    await cache.put("ns", "key", SMALL)
    await cache.put("ns", "other", OTHER)
    await cache.put("ns2", "key", OTHER)
    assert found(await cache.get("ns", "key")) == SMALL
    assert await cache.get("ns2", "other") is None


@pytest.mark.parametrize("key", ["", "..", "../../up", "a/b", "ключ", "k" * 10_000, "a\0b", "\n"])
async def test_any_text_is_a_key(bucket: Bucket, key: str) -> None:
    await bucket.new_machine().put("ns", key, SMALL)
    assert found(await bucket.new_machine().get("ns", key)) == SMALL


async def test_a_name_that_may_not_be_is_refused(bucket: Bucket) -> None:
    cache = bucket.new_machine()
    for members in SMALL, LARGE:
        with pytest.raises(InvalidName):
            await cache.put("../ns", "key", members)
        with pytest.raises(InvalidName):
            await cache.put("ns", "key", {"../up": members[min(members)]})
    with pytest.raises(InvalidName):
        await cache.get("../ns", "key")
    assert bucket.store.requests == []


async def test_only_what_the_machine_meets_is_got(bucket: Bucket) -> None:
    writer = bucket.new_machine(isa="avx512")
    await writer.put("ns", "key", SMALL, requires={"isa": "avx512"})
    assert await bucket.new_machine(isa="avx2").get("ns", "key") is None
    assert await bucket.new_machine().get("ns", "key") is None
    assert found(await bucket.new_machine(isa="avx512").get("ns", "key")) == SMALL


async def test_each_machine_gets_its_variant(bucket: Bucket) -> None:
    for isa, members in ("avx512", SMALL), ("avx2", OTHER):
        await bucket.new_machine().put("ns", "key", members, requires={"isa": isa})
    assert await variants(bucket.new_machine(isa="avx512")) == [(0, SMALL)]
    assert await variants(bucket.new_machine(isa="avx2")) == [(1, OTHER)]


async def test_members_of_a_result_that_is_of_no_use_here_are_not_fetched(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE, requires={"isa": "avx512"})
    cache = bucket.new_machine(isa="avx2")
    await cache.fill(await cache.manifest("ns", "key", 0), 0)
    assert await cache.get("ns", "key") is None
    assert bucket.store.asked("GET") == SLOTS[:2]


async def test_variants_come_in_the_order_of_their_slots(bucket: Bucket) -> None:
    cache = bucket.new_machine()
    for name, members in {"a": SMALL, "b": OTHER, "c": LARGE}.items():
        await cache.put("ns", "key", members, variant=name)
    assert await variants(bucket.new_machine()) == [(0, SMALL), (1, OTHER), (2, LARGE)]
    assert found(await bucket.new_machine().get("ns", "key")) == SMALL


async def test_every_distinct_value_of_what_is_united_is_kept(bucket: Bucket) -> None:
    slots = [await bucket.new_machine().put("dynamo-pgo", "key", m) for m in (SMALL, OTHER, SMALL)]
    assert slots == [0, 1, 0]
    assert await variants(bucket.new_machine(), "dynamo-pgo") == [(0, SMALL), (1, OTHER)]


async def test_members_on_demand_come_to_who_names_them(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE, on_demand=ON_DEMAND)
    cache = bucket.new_machine()
    assert found(await cache.get("ns", "key")) == {"a.json": LARGE["a.json"]}
    assert found(await cache.get("ns", "key", ["b.bin"])) == {"b.bin": LARGE["b.bin"]}
    assert found(await cache.get("ns", "key", ["b.bin", "a.json", "absent"])) == LARGE
    assert [entry.members async for entry in cache.variants("ns", "key", ["b.bin"])] == [
        {"b.bin": LARGE["b.bin"]}
    ]


async def test_small_members_on_demand_come_to_who_names_them(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", SMALL, on_demand=["b.bin"])
    cache = bucket.new_machine()
    assert found(await cache.get("ns", "key")) == {"a.json": SMALL["a.json"]}
    assert found(await cache.get("ns", "key", SMALL)) == SMALL


# What it asks of the bucket.


async def test_an_absent_key_is_exactly_one_get(bucket: Bucket) -> None:
    assert await bucket.new_machine().get("ns", "absent") is None
    assert bucket.store.requests == ["GET manifests/ns/absent/0"]


async def test_a_small_result_is_one_get(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", SMALL)
    await bucket.new_machine().get("ns", "key")
    assert bucket.store.requests == ["GET manifests/ns/key/0"]


async def test_putting_a_small_result_is_one_put(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", SMALL)
    assert bucket.store.requests == ["PUT manifests/ns/key/0"]


async def test_a_large_result_is_looked_for_before_it_is_put(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    assert bucket.store.requests == [f"GET {SLOTS[0]}", f"PUT {PACK}", f"PUT {SLOTS[0]}"]


async def test_a_large_result_that_is_there_is_not_sent_again(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    assert await bucket.new_machine().put("ns", "key", LARGE) == 0
    assert bucket.store.requests == [f"GET {SLOTS[0]}"]


async def test_a_large_result_is_a_get_of_its_manifest_and_one_of_its_frame(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    await bucket.new_machine().get("ns", "key")
    assert bucket.store.requests == [f"GET {SLOTS[0]}", FRAME_REQUEST]


async def test_frames_of_members_on_demand_are_fetched_only_when_they_are_named(bucket: Bucket) -> None:
    writer = bucket.new_machine()
    await writer.put("ns", "key", LARGE, on_demand=ON_DEMAND)
    first, second = (await writer.manifest("ns", "key", 0)).frames
    assert bucket.tier_of_last_machine().names() == [SLOTS[0], first.name]
    cache = bucket.new_machine()
    await cache.get("ns", "key")
    assert bucket.store.requests == [f"GET {SLOTS[0]}", request_of(first)]
    await cache.get("ns", "key", ["b.bin"])
    assert bucket.store.requests[2:] == [request_of(second)]
    another = bucket.new_machine()
    await another.get("ns", "key", ["b.bin"])
    assert bucket.store.requests == [f"GET {SLOTS[0]}", request_of(second)]


async def test_a_frame_that_several_manifests_share_is_fetched_once(bucket: Bucket) -> None:
    keys = {f"key-{number}": large(number) for number in range(3)}
    await bucket.new_machine().put_all([Result("ns", key, members) for key, members in keys.items()])
    reader = bucket.new_machine()
    for key, members in keys.items():
        assert found(await reader.get("ns", key)) == members
    assert len(bucket.store.asked("GET")) == 3 + 1


async def test_a_frame_that_several_manifests_share_is_fetched_once_by_all_at_once(bucket: Bucket) -> None:
    keys = {f"key-{number}": large(number) for number in range(3)}
    await bucket.new_machine().put_all([Result("ns", key, members) for key, members in keys.items()])
    cache = bucket.new_machine()
    for key in keys:
        await cache.manifest("ns", key, 0)
    bucket.store.requests.clear()
    got: dict[str, dict[str, bytes]] = {}

    async def get(key: str) -> None:
        got[key] = found(await cache.get("ns", key))

    gate = bucket.store.close_gate()
    await in_the_background(gate, *(partial(get, key) for key in keys))
    assert got == keys
    assert len(bucket.store.requests) == 1


async def test_many_who_get_at_once_share_each_request(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE, on_demand=ON_DEMAND)
    cache = bucket.new_machine()
    got: list[dict[str, bytes]] = []

    async def get() -> None:
        got.append(found(await cache.get("ns", "key", LARGE)))

    gate = bucket.store.close_gate()
    await in_the_background(gate, *[get] * 20)
    assert got == [LARGE] * 20
    places = (await cache.manifest("ns", "key", 0)).frames
    assert len(places) == 2
    assert sorted(bucket.store.requests) == sorted([f"GET {SLOTS[0]}", *map(request_of, places)])


async def test_many_who_miss_at_once_share_the_request(bucket: Bucket) -> None:
    cache = bucket.new_machine()
    gate = bucket.store.close_gate()
    got: list[Entry | None] = []

    async def get() -> None:
        got.append(await cache.get("ns", "key"))

    await in_the_background(gate, *[get] * 20)
    assert got == [None] * 20
    assert bucket.store.requests == [f"GET {SLOTS[0]}"]


WAITED_FOR = {"manifest": f"GET {SLOTS[0]}", "frame": FRAME_REQUEST}


async def machine_that_lacks(bucket: Bucket, waited_for: str) -> Cache:
    """Return the cache of a machine whose next look-up asks for just that."""
    await bucket.new_machine().put("ns", "key", LARGE)
    cache = bucket.new_machine()
    await cache.get("ns", "key")
    tier = bucket.tier_of_last_machine()
    tier.remove({"manifest": SLOTS[0], "frame": FRAME}[waited_for])
    bucket.store.requests.clear()
    return cache


@pytest.mark.parametrize("waited_for", WAITED_FOR)
async def test_a_leader_that_is_cancelled_leaves_the_request_to_a_follower(
    bucket: Bucket, waited_for: str
) -> None:
    cache = await machine_that_lacks(bucket, waited_for)
    gate = bucket.store.close_gate()
    got: list[dict[str, bytes]] = []
    leader = anyio.CancelScope()

    async def lead() -> None:
        with leader:
            await cache.get("ns", "key")

    async def follow() -> None:
        got.append(found(await cache.get("ns", "key")))

    async with anyio.create_task_group() as group:
        group.start_soon(lead)
        await anyio.wait_all_tasks_blocked()
        for _ in range(3):
            group.start_soon(follow)
        await anyio.wait_all_tasks_blocked()
        assert bucket.store.requests == [WAITED_FOR[waited_for]]
        leader.cancel()
        await anyio.wait_all_tasks_blocked()
        assert bucket.store.requests == [WAITED_FOR[waited_for]] * 2
        gate.set()
    assert got == [LARGE] * 3


@pytest.mark.parametrize("waited_for", WAITED_FOR)
async def test_an_error_reaches_all_who_wait_and_is_not_remembered(bucket: Bucket, waited_for: str) -> None:
    cache = await machine_that_lacks(bucket, waited_for)
    bucket.faulty.fail("get", Unreachable("why"))
    errors: list[str] = []

    async def get() -> None:
        try:
            await cache.get("ns", "key")
        except Unreachable as error:
            errors.append(str(error))

    gate = bucket.store.close_gate()
    await in_the_background(gate, *[get] * 5)
    assert errors == ["why"] * 5
    assert bucket.store.requests == [WAITED_FOR[waited_for]]
    assert found(await cache.get("ns", "key")) == LARGE


async def test_a_bucket_that_cannot_be_asked_is_no_miss(bucket: Bucket) -> None:
    cache = bucket.new_machine()
    for method, call in ("get", cache.get("ns", "key")), ("create", cache.put("ns", "key", SMALL)):
        bucket.faulty.fail(method, Forbidden("why"))
        with pytest.raises(Forbidden, match="why"):
            await call


# What it stores.


async def test_the_pack_is_stored_before_the_manifest(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    assert bucket.store.asked("PUT") == [PACK, SLOTS[0]]
    assert bucket.objects[PACK] == LARGE_PACK.data


async def test_no_manifest_is_stored_when_the_pack_is_not(bucket: Bucket) -> None:
    bucket.faulty.fail("create", Unreachable("why"))
    with pytest.raises(Unreachable):
        await bucket.new_machine().put("ns", "key", LARGE)
    assert bucket.objects == {}
    assert await bucket.new_machine().put("ns", "key", LARGE) == 0
    assert found(await bucket.new_machine().get("ns", "key")) == LARGE


async def test_nothing_is_overwritten_or_deleted(bucket: Bucket) -> None:
    stored: dict[str, bytes] = {}
    for members in SMALL, OTHER, LARGE, LARGE_OTHER:
        for variant in "a", "b":
            await bucket.new_machine().put("ns", "key", members, variant=variant)
            assert stored.items() <= bucket.objects.items()
            assert bucket.store.asked("DELETE") == []
            stored = dict(bucket.objects)


@pytest.mark.parametrize(
    ("first", "second"), [(SMALL, OTHER), (LARGE, LARGE_OTHER), (LARGE, dict.fromkeys(LARGE, b""))]
)
async def test_of_two_results_for_one_variant_the_first_stays(
    bucket: Bucket, first: dict[str, bytes], second: dict[str, bytes]
) -> None:
    assert await bucket.new_machine().put("ns", "key", first) == 0
    before = dict(bucket.objects)
    assert await bucket.new_machine().put("ns", "key", second) == 0
    assert bucket.objects == before
    assert found(await bucket.new_machine().get("ns", "key")) == first


async def test_a_result_with_a_member_that_the_first_lacks_goes_into_the_next_slot(bucket: Bucket) -> None:
    part = dict(list(LARGE.items())[:1])
    assert await bucket.new_machine().put("ns", "key", part) == 0
    assert await bucket.new_machine().put("ns", "key", LARGE) == 1
    assert await bucket.new_machine().put("ns", "key", part) == 0


async def test_another_variant_goes_into_the_next_slot(bucket: Bucket) -> None:
    assert await bucket.new_machine().put("ns", "key", SMALL, variant="a") == 0
    assert await bucket.new_machine().put("ns", "key", LARGE, variant="b") == 1
    assert await bucket.new_machine().put("ns", "key", SMALL, variant="a", requires={"isa": "x"}) == 2
    assert await bucket.new_machine().put("ns", "key", OTHER, variant="b") == 1


async def test_machines_that_put_at_once_find_a_slot_each(bucket: Bucket) -> None:
    slots: dict[str, int] = {}

    async def put(cache: Cache, variant: str) -> None:
        slots[variant] = await cache.put("ns", "key", {"a": variant.encode()}, variant=variant)

    async with anyio.create_task_group() as group:
        for number in range(8):
            group.start_soon(put, bucket.new_machine(), f"variant-{number}")
    assert sorted(slots.values()) == list(range(8))
    assert dict(await variants(bucket.new_machine())) == {
        slot: {"a": variant.encode()} for variant, slot in slots.items()
    }


async def test_a_key_has_so_many_variants_and_no_more(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "MAX_SLOTS", 3)
    for number in range(3):
        await bucket.new_machine().put("ns", "key", SMALL, variant=str(number))
    with pytest.raises(SlotsExhausted):
        await bucket.new_machine().put("ns", "key", SMALL, variant="3")
    assert await bucket.new_machine().put("ns", "key", SMALL, variant="2") == 2


async def test_a_lost_reply_is_found_out_by_putting_again(bucket: Bucket) -> None:
    cache = bucket.new_machine()
    bucket.faulty.fail("create", Unreachable("why"), reply_lost=True)
    with pytest.raises(Unreachable):
        await cache.put("ns", "key", SMALL)
    assert await cache.put("ns", "key", SMALL) == 0
    assert list(bucket.objects) == SLOTS[:1]


async def test_a_lost_reply_of_a_pack_is_found_out_by_putting_again(bucket: Bucket) -> None:
    cache = bucket.new_machine()
    bucket.faulty.fail("create", Unreachable("why"), reply_lost=True)
    with pytest.raises(Unreachable):
        await cache.put("ns", "key", LARGE)
    assert await cache.put("ns", "key", LARGE) == 0
    assert list(bucket.objects) == [PACK, SLOTS[0]]
    assert bucket.store.asked("DELETE") == []
    assert found(await bucket.new_machine().get("ns", "key")) == LARGE


async def test_a_bucket_that_says_what_is_not_true_gets_no_manifest_that_leads_nowhere(
    bucket: Bucket,
) -> None:
    for members in (SMALL, LARGE):
        for _ in range(2):
            bucket.faulty.deny()
        with pytest.raises(StoreError, match="does not have it"):
            await bucket.new_machine().put("ns", "key", members)
        assert bucket.objects == {}


@pytest.mark.parametrize("members", [SMALL, LARGE], ids=["small", "large"])
async def test_a_slot_that_was_taken_and_is_free_again_is_used(
    bucket: Bucket, members: dict[str, bytes]
) -> None:
    bucket.faulty.deny()
    assert await bucket.new_machine().put("ns", "key", members) == 0
    assert found(await bucket.new_machine().get("ns", "key")) == members


async def test_no_slot_stays_empty_when_the_bucket_lost_what_is_damaged_on_disk(
    bucket: Bucket, tmp_path: Path
) -> None:
    cache = bucket.new_machine()
    await cache.put("ns", "key", SMALL)
    damage_all_files(tmp_path)
    bucket.objects.clear()
    assert await cache.put("ns", "key", SMALL) == 0
    assert found(await bucket.new_machine().get("ns", "key")) == SMALL


# Many at once.


@pytest.mark.parametrize("members", [SMALL, LARGE], ids=["small", "large"])
async def test_what_was_removed_from_the_bucket_is_put_again_by_who_has_it_on_disk(
    bucket: Bucket, members: dict[str, bytes]
) -> None:
    cache = bucket.new_machine()
    await cache.put("ns", "key", members)
    bucket.objects.clear()
    assert await cache.put("ns", "key", members) == 0
    assert found(await bucket.new_machine().get("ns", "key")) == members


async def test_a_manifest_on_disk_whose_pack_was_removed_is_asked_for_again(bucket: Bucket) -> None:
    """The result was removed, and stored anew by another machine."""
    await bucket.new_machine().put("ns", "key", LARGE)
    reader = bucket.new_machine()
    await reader.manifest("ns", "key", 0)
    bucket.objects.clear()
    await bucket.new_machine().put("ns", "key", LARGE_OTHER)
    assert await reader.get("ns", "key") is None
    assert found(await reader.get("ns", "key")) == LARGE_OTHER


async def test_a_slot_whose_result_was_removed_is_skipped_quietly(
    bucket: Bucket, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.objects[SLOTS[0]] = manifest.TOMBSTONE
    assert await bucket.new_machine().get("ns", "key") is None
    assert await bucket.new_machine().put("ns", "key", SMALL) == 1
    assert found(await bucket.new_machine().get("ns", "key")) == SMALL
    assert caplog.records == []


async def test_large_results_go_into_one_pack(bucket: Bucket) -> None:
    keys = {f"key-{number}": large(number) for number in range(3)}
    results = [Result("ns", key, members) for key, members in keys.items()]
    assert await bucket.new_machine().put_all(results) == [0, 0, 0]
    manifests = [names.manifest_name("ns", key, 0) for key in keys]
    packed = names.pack_name(pack.build(results, {}).digest)
    assert sorted(bucket.store.requests[:3]) == [f"GET {name}" for name in manifests]
    assert bucket.store.requests[3] == f"PUT {packed}"
    assert sorted(bucket.store.requests[4:]) == [f"PUT {name}" for name in manifests]
    for key, members in keys.items():
        assert found(await bucket.new_machine().get("ns", key)) == members


async def test_only_what_is_missing_goes_into_the_pack(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "there", large(0))
    missing = [Result("ns", f"missing-{number}", large(number)) for number in (1, 2)]
    there = Result("ns", "there", large(0))
    assert await bucket.new_machine().put_all([missing[0], there, missing[1]]) == [0, 0, 0]
    assert bucket.store.asked("PUT")[0] == names.pack_name(pack.build(missing, {}).digest)
    assert sorted(bucket.store.asked("PUT")[1:]) == [
        names.manifest_name("ns", result.key, 0) for result in missing
    ]
    for result in there, *missing:
        assert found(await bucket.new_machine().get("ns", result.key)) == result.members


async def test_nothing_is_put_when_nothing_is_missing(bucket: Bucket) -> None:
    results = [Result("ns", f"key-{number}", large(number)) for number in range(3)]
    await bucket.new_machine().put_all(results)
    assert await bucket.new_machine().put_all(results) == [0, 0, 0]
    assert sorted(bucket.store.requests) == [f"GET manifests/ns/key-{number}/0" for number in range(3)]
    assert await bucket.new_machine().put_all([]) == []
    assert bucket.store.requests == []


async def test_small_results_are_neither_looked_for_nor_packed(bucket: Bucket) -> None:
    keys = {f"key-{number}": {"a": bytes([number])} for number in range(50)}
    slots = await bucket.new_machine().put_all([Result("ns", key, keys[key]) for key in keys])
    assert slots == [0] * 50
    assert sorted(bucket.store.requests) == sorted(f"PUT manifests/ns/{key}/0" for key in keys)


async def test_small_and_large_results_come_back_in_their_order(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "b", OTHER, variant="first")
    results = [
        Result("ns", "a", SMALL),
        Result("ns", "a", LARGE, variant="large"),
        Result("ns", "b", SMALL, variant="second"),
        Result("ns", "c", LARGE, variant="first"),
        Result("ns", "b", LARGE_OTHER, variant="first"),
    ]
    slots = await bucket.new_machine().put_all(results)
    assert sorted(slots[:2], key=str) == [0, 1]
    assert slots[2:] == [1, 0, 0]
    expected = {(result.key, slot): result.members for result, slot in zip(results, slots, strict=True)}
    expected["b", 0] = OTHER
    cache = bucket.new_machine()
    got = {(key, entry.slot): entry.members for key in "abc" async for entry in cache.variants("ns", key)}
    assert got == expected


async def test_of_two_results_for_one_variant_in_one_call_one_stays(bucket: Bucket) -> None:
    results = [Result("ns", "key", members) for members in (LARGE, LARGE_OTHER, SMALL)]
    assert await bucket.new_machine().put_all(results) == [0, 0, 0]
    assert [name for name in bucket.objects if name.startswith("manifests/")] == SLOTS[:1]
    ((_, stored),) = await variants(bucket.new_machine())
    assert stored in (LARGE, LARGE_OTHER, SMALL)


async def test_variants_of_one_key_in_one_call_find_a_slot_each(bucket: Bucket) -> None:
    members = {name: large(number) for number, name in enumerate("abcd")}
    results = [Result("ns", "key", members[name], variant=name) for name in members]
    slots = await bucket.new_machine().put_all(results)
    assert set(slots) == {0, 1, 2, 3}
    assert dict(await variants(bucket.new_machine())) == dict(zip(slots, members.values(), strict=True))


async def test_a_key_with_too_many_variants_does_not_keep_the_others_back(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "MAX_SLOTS", 1)
    await bucket.new_machine().put("ns", "full", SMALL, variant="a")
    results = [
        Result("ns", "full", SMALL, variant="b"),
        Result("ns", "full", LARGE, variant="c"),
        Result("ns", "key", LARGE),
    ]
    assert await bucket.new_machine().put_all(results) == [None, None, 0]
    assert bucket.store.asked("PUT")[0] == PACK
    assert found(await bucket.new_machine().get("ns", "key")) == LARGE


@pytest.mark.parametrize("size", [10, 10_000], ids=["small", "large"])
async def test_what_was_stored_before_an_error_is_found_by_putting_again(bucket: Bucket, size: int) -> None:
    cache = bucket.new_machine()
    results = [Result("ns", f"key-{n}", {"a": random.Random(n).randbytes(size)}) for n in range(3)]
    bucket.faulty.fail("create", Unreachable("why"), reply_lost=True)
    with pytest.raises(Unreachable):
        await cache.put_all(results)
    assert await cache.put_all(results) == [0, 0, 0]
    assert len(bucket.objects) == 3 + (size > manifest.INLINE_BYTES)
    for result in results:
        assert found(await bucket.new_machine().get("ns", result.key)) == result.members


# Damage in the bucket.

Damage = Callable[[bytes], bytes]
DAMAGES: list[Damage] = [
    lambda data: b"",
    lambda data: data[: len(data) // 2],
    lambda data: data[:-1],
    lambda data: b"<html>503</html>",
    lambda data: bytes([data[0] ^ 0xFF]) + data[1:],
]
damages = pytest.mark.parametrize("damage", DAMAGES, ids=["empty", "half", "cut", "html", "flipped"])


@damages
async def test_a_damaged_manifest_is_skipped_by_readers_and_writers(bucket: Bucket, damage: Damage) -> None:
    await bucket.new_machine().put("ns", "key", SMALL, variant="a")
    await bucket.new_machine().put("ns", "key", OTHER, variant="b")
    bucket.objects[SLOTS[0]] = damage(bucket.objects[SLOTS[0]])
    assert await variants(bucket.new_machine()) == [(1, OTHER)]
    assert bucket.tier_of_last_machine().names() == SLOTS[1:2]
    assert await bucket.new_machine().put("ns", "key", SMALL, variant="a") == 2
    assert await variants(bucket.new_machine()) == [(1, OTHER), (2, SMALL)]


@pytest.mark.parametrize("members", [SMALL, LARGE], ids=["small", "large"])
@damages
async def test_a_damaged_only_manifest_is_a_miss_until_it_is_put_again(
    bucket: Bucket, damage: Damage, members: dict[str, bytes]
) -> None:
    await bucket.new_machine().put("ns", "key", members)
    bucket.objects[SLOTS[0]] = damage(bucket.objects[SLOTS[0]])
    cache = bucket.new_machine()
    assert await cache.get("ns", "key") is None
    assert await cache.put("ns", "key", members) == 1
    assert await cache.put("ns", "key", members) == 1
    assert found(await bucket.new_machine().get("ns", "key")) == members


@damages
async def test_a_damaged_pack_is_a_miss_until_it_is_put_again(bucket: Bucket, damage: Damage) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    bucket.objects[PACK] = damage(bucket.objects[PACK])
    cache = bucket.new_machine()
    assert await cache.get("ns", "key") is None
    assert bucket.tier_of_last_machine().names() == SLOTS[:1]
    assert await cache.put("ns", "key", LARGE) == 1
    assert found(await cache.get("ns", "key")) == LARGE
    assert bucket.objects[PACK] == LARGE_PACK.data
    assert found(await bucket.new_machine().get("ns", "key")) == LARGE


@damages
async def test_what_lay_in_a_damaged_pack_with_others_is_put_again_elsewhere(
    bucket: Bucket, damage: Damage
) -> None:
    results = [Result("ns", f"key-{number}", large(number)) for number in range(2)]
    await bucket.new_machine().put_all(results)
    name = names.pack_name(pack.build(results, {}).digest)
    bucket.objects[name] = damage(bucket.objects[name])
    cache = bucket.new_machine()
    assert await cache.get("ns", "key-0") is None
    assert await cache.put("ns", "key-0", large(0)) == 1
    assert found(await bucket.new_machine().get("ns", "key-0")) == large(0)
    assert await bucket.new_machine().get("ns", "key-1") is None


async def test_the_part_of_a_pack_that_a_dead_writer_left_is_replaced(bucket: Bucket) -> None:
    bucket.objects[PACK] = LARGE_PACK.data[:1000]
    assert await bucket.new_machine().put("ns", "key", LARGE) == 0
    assert bucket.store.requests == [
        f"GET {SLOTS[0]}",
        f"PUT {PACK}",
        f"GET {PACK}",
        f"DELETE {PACK}",
        f"PUT {PACK}",
        f"PUT {SLOTS[0]}",
    ]
    assert found(await bucket.new_machine().get("ns", "key")) == LARGE


async def test_a_pack_that_another_writer_has_just_deleted_is_put(bucket: Bucket) -> None:
    bucket.objects[PACK] = b"part"
    bucket.faulty.fail("get", ObjectAbsent(SLOTS[0]))
    bucket.faulty.fail("get", ObjectAbsent(PACK))
    assert await bucket.new_machine().put("ns", "key", LARGE) == 0
    assert found(await bucket.new_machine().get("ns", "key")) == LARGE


async def test_a_pack_that_somebody_has_replaced_is_left_alone(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    bucket.objects[PACK] = b"damaged"
    cache = bucket.new_machine()
    assert await cache.get("ns", "key") is None
    bucket.objects[PACK] = LARGE_PACK.data
    await cache.put("ns", "key", LARGE)
    assert f"PUT {PACK}" in bucket.store.requests
    assert bucket.store.asked("DELETE") == []


async def test_a_damaged_pack_is_replaced_once(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    bucket.objects[PACK] = b"damaged"
    cache = bucket.new_machine()
    await cache.get("ns", "key")
    for key in "key", "other", "another":
        await cache.put("ns", key, LARGE)
    assert bucket.store.asked("DELETE") == [PACK]


async def test_a_pack_of_another_content_is_a_miss(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    bucket.objects[PACK] = pack.build([Result("ns", "key", LARGE_OTHER)], {}).data
    cache = bucket.new_machine()
    assert await cache.get("ns", "key") is None
    with pytest.raises(Corrupt):
        await cache.fill(LARGE_PACK.manifests[0], 0)
    assert bucket.tier_of_last_machine().names() == SLOTS[:1]


async def test_an_absent_pack_is_a_miss_until_it_is_put_again(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    del bucket.objects[PACK]
    cache = bucket.new_machine()
    assert await cache.get("ns", "key") is None
    assert await cache.put("ns", "key", LARGE) == 1
    assert found(await bucket.new_machine().get("ns", "key")) == LARGE


@pytest.mark.parametrize("members", [SMALL, LARGE], ids=["small", "large"])
async def test_a_member_of_another_digest_is_a_miss_until_it_is_put_again(
    bucket: Bucket, members: dict[str, bytes]
) -> None:
    writer = bucket.new_machine()
    await writer.put("ns", "key", members)
    there = await writer.manifest("ns", "key", 0)
    wrong = [Member(m.name, bytes(32), m.size, False, m.inline, m.frame, m.start) for m in there.members]
    bucket.objects[SLOTS[0]] = manifest.encode(Manifest("ns", "key", wrong, there.frames), NO_KEYS)
    cache = bucket.new_machine()
    # That what a prefetch has brought is right says nothing of the manifest.
    await cache.fetch(LARGE_PACK.frames if members is LARGE else [])
    assert await cache.get("ns", "key") is None
    assert await cache.put("ns", "key", members) == 1
    assert found(await bucket.new_machine().get("ns", "key")) == members


async def test_a_variant_with_a_damaged_pack_does_not_hide_the_next(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE, variant="a")
    await bucket.new_machine().put("ns", "key", LARGE_OTHER, variant="b")
    bucket.objects[PACK] = b"damaged"
    assert await variants(bucket.new_machine()) == [(1, LARGE_OTHER)]


async def test_a_manifest_of_another_key_is_not_served(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "other", SMALL)
    bucket.objects[SLOTS[0]] = bucket.objects["manifests/ns/other/0"]
    cache = bucket.new_machine()
    assert await cache.get("ns", "key") is None
    assert await cache.put("ns", "key", OTHER) == 1
    assert found(await bucket.new_machine().get("ns", "key")) == OTHER


@pytest.mark.parametrize("size", [1 << 20, 1 << 30, 1 << 50])
async def test_a_manifest_may_not_state_a_size_that_is_a_bomb(bucket: Bucket, size: int) -> None:
    bomb = b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\0\0"
    place = Place(raw_digest_of(bomb), 0, len(bomb), size)
    bucket.objects[names.pack_name(place.pack)] = bomb
    built = Manifest("ns", "key", [Member("a", bytes(32), size)], [place])
    bucket.objects[SLOTS[0]] = manifest.encode(built, NO_KEYS)
    assert await bucket.new_machine().get("ns", "key") is None


async def test_a_frame_that_grows_to_more_than_its_manifest_says_is_not_kept(bucket: Bucket) -> None:
    bucket.objects[PACK] = LARGE_PACK.data
    (there,) = LARGE_PACK.manifests
    (place,) = there.frames
    small = msgspec.structs.replace(there, frames=[msgspec.structs.replace(place, size=place.size - 1)])
    with pytest.raises(Corrupt):
        await bucket.new_machine().fill(small, 0)
    assert bucket.tier_of_last_machine().names() == []


async def test_damage_in_the_bucket_does_not_matter_to_who_has_it_on_disk(bucket: Bucket) -> None:
    cache = bucket.new_machine()
    await cache.put("ns", "key", LARGE)
    for name in bucket.objects:
        bucket.objects[name] = b"damaged"
    assert found(await cache.get("ns", "key")) == LARGE


# Damage on disk.


def damage_all_files(folder: Path) -> None:
    for path in (folder / "machines").rglob("objects/**/*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1] + b"?")


async def test_damage_on_disk_is_repaired_from_the_bucket(bucket: Bucket, tmp_path: Path) -> None:
    cache = bucket.new_machine()
    await cache.put("ns", "key", LARGE)
    damage_all_files(tmp_path)
    assert found(await cache.get("ns", "key")) == LARGE
    assert bucket.store.requests[3:] == [f"GET {SLOTS[0]}", FRAME_REQUEST]
    bucket.store.requests.clear()
    assert found(await cache.get("ns", "key")) == LARGE
    assert bucket.store.requests == []


async def test_a_tier_that_takes_nothing_is_read_through(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    cache = bucket.new_machine(limit=10)
    assert found(await cache.get("ns", "key")) == LARGE
    assert isinstance(cache.tier_failure, DiskFull)
    with pytest.raises(DiskFull):
        await cache.fill(LARGE_PACK.manifests[0], 0)


# Prefetch.


async def test_fill_brings_the_frames_of_a_manifest_to_the_disk(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    cache = bucket.new_machine()
    there = await cache.manifest("ns", "key", 0)
    await cache.fill(there, 0)
    assert bucket.tier_of_last_machine().names() == [SLOTS[0], FRAME]
    bucket.store.requests.clear()
    await cache.fill(there, 0)
    assert found(await cache.get("ns", "key")) == LARGE
    assert bucket.store.requests == []


async def test_fill_brings_what_is_on_demand_only_when_it_is_named(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE, on_demand=ON_DEMAND)
    cache = bucket.new_machine()
    there = await cache.manifest("ns", "key", 0)
    first, second = there.frames
    await cache.fill(there, 0)
    assert bucket.tier_of_last_machine().names() == [SLOTS[0], first.name]
    await cache.fill(there, 0, ["b.bin"])
    assert set(bucket.tier_of_last_machine().names()) == {SLOTS[0], first.name, second.name}


async def test_fill_says_that_a_pack_is_damaged_or_absent(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    bucket.objects[PACK] = b"damaged"
    with pytest.raises(Corrupt):
        await bucket.new_machine().fill(LARGE_PACK.manifests[0], 0)
    del bucket.objects[PACK]
    with pytest.raises(Corrupt):
        await bucket.new_machine().fill(LARGE_PACK.manifests[0], 0)


async def test_frames_that_follow_each_other_are_one_request(bucket: Bucket) -> None:
    built = await put_neighbours(bucket)
    cache = bucket.new_machine()
    await cache.fetch(built.frames)
    assert bucket.store.requests == [request_of_run(built.frames)]
    assert set(bucket.tier_of_last_machine().names()) == {packed.place.name for packed in built.frames}
    bucket.store.requests.clear()
    await cache.fetch(built.frames)
    assert bucket.store.requests == []
    for number in range(4):
        assert found(await cache.get(f"ns{number}", "key")) == large(number)
    assert bucket.store.requests == [f"GET manifests/ns{number}/key/0" for number in range(4)]


async def test_frames_that_are_there_are_left_out(bucket: Bucket) -> None:
    first, second, third, fourth = (await put_neighbours(bucket)).frames
    cache = bucket.new_machine()
    await cache.fetch([second])
    bucket.store.requests.clear()
    await cache.fetch([first, second, third, fourth])
    assert bucket.store.requests == [request_of_run([first]), request_of_run([third, fourth])]


async def test_frames_that_are_on_their_way_are_left_out(bucket: Bucket) -> None:
    built = await put_neighbours(bucket)
    first, second, third, fourth = built.frames
    cache = bucket.new_machine()
    gate = bucket.store.close_gate()
    await in_the_background(
        gate,
        lambda: cache.fill(built.manifests[1], 0),
        lambda: cache.fetch([third]),
        lambda: cache.fetch(built.frames),
    )
    assert bucket.store.requests == [request_of_run([packed]) for packed in (second, third, first, fourth)]


async def test_who_looks_up_meanwhile_waits_for_the_prefetch(bucket: Bucket) -> None:
    built = await put_neighbours(bucket)
    cache = bucket.new_machine()
    got: dict[int, dict[str, bytes]] = {}

    async def get(number: int) -> None:
        got[number] = (await cache.entry(built.manifests[number], 0)).members

    gate = bucket.store.close_gate()
    await in_the_background(gate, lambda: cache.fetch(built.frames), lambda: get(2), lambda: get(3))
    assert got == {2: large(2), 3: large(3)}
    assert bucket.store.requests == [request_of_run(built.frames)]


async def test_who_waits_for_a_prefetch_that_is_cancelled_goes_on_alone(bucket: Bucket) -> None:
    built = await put_neighbours(bucket)
    cache = bucket.new_machine()
    deadline = anyio.CancelScope()
    got: list[dict[str, bytes]] = []
    gate = bucket.store.close_gate()

    async def fetch() -> None:
        with deadline:
            await cache.fetch(built.frames)

    async def get(number: int) -> None:
        got.append((await cache.entry(built.manifests[number], 0)).members)

    async with anyio.create_task_group() as group:
        group.start_soon(fetch)
        await anyio.wait_all_tasks_blocked()
        for number in 1, 1, 3:
            group.start_soon(get, number)
        await anyio.wait_all_tasks_blocked()
        assert bucket.store.requests == [request_of_run(built.frames)]
        deadline.cancel()
        await anyio.wait_all_tasks_blocked()
        gate.set()
    assert deadline.cancelled_caught
    assert sorted(got, key=str) == sorted([large(1), large(1), large(3)], key=str)
    assert sorted(bucket.store.requests[1:]) == sorted(
        request_of_run([built.frames[number]]) for number in (1, 3)
    )
    await cache.fetch(built.frames)
    assert bucket.store.requests[3:] == [request_of_run([built.frames[number]]) for number in (0, 2)]


async def test_an_error_of_a_prefetch_reaches_who_waits_and_is_not_remembered(bucket: Bucket) -> None:
    built = await put_neighbours(bucket)
    cache = bucket.new_machine()
    errors: list[str] = []

    async def expect(call: Call) -> None:
        with pytest.raises(Unreachable) as raised:
            await call()
        errors.append(str(raised.value))

    bucket.faulty.fail("get", Unreachable("why"))
    gate = bucket.store.close_gate()
    await in_the_background(
        gate,
        lambda: expect(lambda: cache.fetch(built.frames)),
        lambda: expect(lambda: cache.entry(built.manifests[1], 0)),
    )
    assert errors == ["why"] * 2
    assert (await cache.entry(built.manifests[1], 0)).members == large(1)
    await cache.fetch(built.frames)


async def test_a_frame_of_another_digest_is_corrupt_and_its_neighbours_are_not(bucket: Bucket) -> None:
    built = await put_neighbours(bucket)
    name, place = names.pack_name(built.digest), built.frames[1].place
    data = bytearray(bucket.objects[name])
    data[place.offset + place.length // 2] ^= 1
    bucket.objects[name] = bytes(data)
    cache = bucket.new_machine()
    got: list[dict[str, bytes]] = []

    async def fetch() -> None:
        with pytest.raises(Corrupt):
            await cache.fetch(built.frames)

    async def get() -> None:
        with pytest.raises(Corrupt):
            await cache.entry(built.manifests[1], 0)
        got.append((await cache.entry(built.manifests[2], 0)).members)

    gate = bucket.store.close_gate()
    await in_the_background(gate, fetch, get)
    assert got == [large(2)]
    assert bucket.store.requests == [request_of_run(built.frames)]
    assert set(bucket.tier_of_last_machine().names()) == {
        packed.place.name for packed in built.frames if packed.place != place
    }


async def test_a_pack_that_is_cut_off_gives_the_frames_that_it_has(bucket: Bucket) -> None:
    built = await put_neighbours(bucket)
    bucket.objects[names.pack_name(built.digest)] = built.data[:-1]
    with pytest.raises(Corrupt):
        await bucket.new_machine().fetch(built.frames)
    assert set(bucket.tier_of_last_machine().names()) == {packed.place.name for packed in built.frames[:-1]}


async def test_a_pack_that_is_gone_is_absent(bucket: Bucket) -> None:
    with pytest.raises(ObjectAbsent):
        await bucket.new_machine().fetch(LARGE_PACK.frames)


PROFILE = "profiles/job/linux-x86_64/"


def segment_of(built: Pack) -> Segment:
    references = [Reference(0, there) for there in built.manifests]
    return Segment(built.frames, catalog.build(references, NO_KEYS), profile=PROFILE)


async def test_a_segment_is_read_once_and_its_catalog_laid_down(bucket: Bucket) -> None:
    data = profile.encode(segment_of(LARGE_PACK), NO_KEYS)
    name = profile.new_segment_name(PROFILE, data)
    bucket.objects[name] = data
    cache = bucket.new_machine()
    for _ in range(2):
        assert await cache.segment(name) == segment_of(LARGE_PACK)
    assert bucket.store.requests == [f"GET {name}"]
    held = bucket.tier_of_last_machine().read(names.catalog_name(name))
    assert held is not None
    assert Catalog(held, NO_KEYS).find(SLOTS[0]) == Reference(0, LARGE_PACK.manifests[0])


@damages
async def test_a_damaged_segment_is_corrupt_and_not_kept(bucket: Bucket, damage: Damage) -> None:
    data = profile.encode(segment_of(LARGE_PACK), NO_KEYS)
    name = profile.new_segment_name(PROFILE, data)
    bucket.objects[name] = damage(data)
    with pytest.raises(Corrupt):
        await bucket.new_machine().segment(name)
    assert bucket.tier_of_last_machine().names() == []


# What it counts.


async def test_bytes_are_counted_as_they_travel(bucket: Bucket, counts: Ledger) -> None:
    ledger.charge(counts)
    await bucket.new_machine().put("ns", "key", LARGE)
    stored = sum(map(len, bucket.objects.values()))
    assert (counts.namespaces["ns"].bytes_up, counts.namespaces["ns"].puts) == (stored, 1)
    await bucket.new_machine().get("ns", "key")
    assert counts.namespaces["ns"].bytes_down == stored


async def test_the_bytes_of_a_pack_are_counted_where_they_belong(bucket: Bucket, counts: Ledger) -> None:
    ledger.charge(counts)
    built = await put_neighbours(bucket)
    lengths = [packed.place.length for packed in built.frames]
    manifests = [len(bucket.objects[f"manifests/ns{number}/key/0"]) for number in range(4)]
    up = [counts.namespaces[f"ns{number}"].bytes_up for number in range(4)]
    assert up == [length + size for length, size in zip(lengths, manifests, strict=True)]
    await bucket.new_machine().fetch(built.frames)
    assert [counts.namespaces[f"ns{number}"].bytes_down for number in range(4)] == lengths


async def test_what_is_damaged_is_counted(bucket: Bucket, counts: Ledger, tmp_path: Path) -> None:
    built = await put_neighbours(bucket)
    cache = bucket.new_machine()
    await cache.fetch(built.frames[:1])
    name = names.pack_name(built.digest)
    bucket.objects[name] = bytes(len(built.data))
    damage_all_files(tmp_path)
    ledger.charge(counts)
    for call in (
        cache.fetch(built.frames[1:3]),
        cache.entry(built.manifests[3], 0),
        cache.entry(built.manifests[0], 0),
    ):
        with pytest.raises(Corrupt):
            await call
    assert counts.quarantined == 1
    # What a look-up needs is fetched twice: it may have been damaged on its way.
    assert counts.faults == {"corrupt": 2 + 2 + 2}


async def test_what_was_damaged_on_its_way_is_right_the_second_time(bucket: Bucket, counts: Ledger) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    cache = bucket.new_machine()
    ledger.charge(counts)
    for name in (SLOTS[0], PACK):
        bucket.faulty.damage(name)
    assert found(await cache.get("ns", "key")) == LARGE
    assert counts.faults == {"corrupt": 2}
    assert await cache.put("ns", "key", LARGE) == 0


async def test_only_a_share_of_what_is_damaged_is_fetched_again(bucket: Bucket) -> None:
    cache = bucket.new_machine()
    for number in range(100):
        bucket.objects[names.manifest_name("ns", f"key {number}", 0)] = b"damaged"
    for number in range(100):
        assert await cache.get("ns", f"key {number}") is None
    asked = bucket.store.asked("GET")
    # Each look-up goes on to the next slot.
    assert AT_FIRST < len(asked) - len(set(asked)) <= AT_FIRST + SHARE * len(set(asked))


async def test_a_put_of_what_is_there_counts_nothing(bucket: Bucket, counts: Ledger) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    ledger.charge(counts)
    await bucket.new_machine().put("ns", "key", LARGE)
    assert (counts.namespaces["ns"].bytes_up, counts.namespaces["ns"].puts) == (0, 0)


async def test_a_pack_that_is_there_is_not_counted_again(bucket: Bucket, counts: Ledger) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    ledger.charge(counts)
    await bucket.new_machine().put("ns", "other", LARGE)
    stored = len(bucket.objects["manifests/ns/other/0"])
    assert (counts.namespaces["ns"].bytes_up, counts.namespaces["ns"].puts) == (stored, 1)


async def test_it_remembers_what_came_from_the_bucket(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    cache = bucket.new_machine()
    await cache.get("ns", "key")
    assert list(cache.downloaded) == [SLOTS[0], FRAME]
    prefetched = bucket.new_machine()
    await prefetched.fetch(LARGE_PACK.frames)
    await prefetched.get("ns", "key")
    assert list(prefetched.downloaded) == [FRAME, SLOTS[0]]


async def test_it_remembers_what_it_created(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", SMALL)
    cache = bucket.new_machine()
    await cache.put("ns", "key", OTHER)
    assert cache.created == set()
    await cache.put("ns", "key", OTHER, variant="other")
    assert cache.created == {SLOTS[1]}


# Who stores what many have made.

CLAIMED = {f"key-{number}": random.Random(number).randbytes(40_000) for number in range(8)}
CLAIM = names.claim_name("ns", "key-0")


def made(keys: Sequence[str] = tuple(CLAIMED)) -> list[Result]:
    """Return results that every machine of a fleet has made."""
    return [Result("ns", key, {"binary": CLAIMED[key]}) for key in keys]


async def test_what_is_claimed_is_left_to_who_has_claimed_it(bucket: Bucket) -> None:
    cache = bucket.new_machine()
    bucket.objects[CLAIM] = b""
    with pytest.raises(Claimed):
        await cache.put_all(made(), heed_claims=True)
    assert bucket.objects == {CLAIM: b""}


async def test_a_claim_that_is_not_given_out_is_another_s(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = bucket.new_machine()
    bucket.objects[CLAIM] = b""
    get = cache._objects.get

    async def refuse(name: str, part: range | None = None) -> bytes:
        if name == CLAIM:
            raise Unreadable("encrypted")
        return await get(name, part)

    monkeypatch.setattr(cache._objects, "get", refuse)
    with pytest.raises(Claimed):
        await cache.put_all(made(), heed_claims=True)


async def test_a_claim_binds_nobody(bucket: Bucket) -> None:
    cache = bucket.new_machine()
    bucket.objects[CLAIM] = b""
    assert await cache.put_all(made()) == [0] * len(CLAIMED)


async def test_a_claim_is_there_while_results_are_stored_and_not_any_more_afterwards(
    bucket: Bucket,
) -> None:
    await bucket.new_machine().put_all(made(), heed_claims=True)
    stored = bucket.store.asked("PUT")
    assert (stored.index(CLAIM), bucket.store.asked("DELETE")) == (0, [CLAIM])
    assert CLAIM not in bucket.objects


async def test_a_claim_is_withdrawn_when_nothing_could_be_stored(bucket: Bucket) -> None:
    cache = bucket.new_machine()

    async def refuse(results: Sequence[Result]) -> Pack:
        raise Unreachable("why")

    cache.pack = refuse  # type: ignore[method-assign]
    with pytest.raises(Unreachable):
        await cache.put_all(made(), heed_claims=True)
    assert bucket.objects == {}


async def test_a_claim_that_may_not_be_deleted_does_no_harm(bucket: Bucket) -> None:
    bucket.faulty.fail("delete", Forbidden("why"))
    await bucket.new_machine().put_all(made(), heed_claims=True)
    assert await bucket.new_machine().put_all(made(), heed_claims=True) == [0] * len(CLAIMED)


async def test_a_claim_whose_reply_was_lost_is_one_s_own(bucket: Bucket) -> None:
    bucket.faulty.repeat()
    assert await bucket.new_machine().put_all(made(), heed_claims=True) == [0] * len(CLAIMED)
    assert CLAIM not in bucket.objects


async def test_a_claim_that_may_have_been_written_is_withdrawn(bucket: Bucket) -> None:
    bucket.faulty.fail("create", Unreachable("why"), reply_lost=True)
    with pytest.raises(Unreachable):
        await bucket.new_machine().put_all(made(), heed_claims=True)
    assert bucket.objects == {}


async def test_little_is_stored_without_a_claim(bucket: Bucket) -> None:
    cache = bucket.new_machine()
    bucket.objects[CLAIM] = b""
    assert await cache.put_all(made(["key-0"]), heed_claims=True) == [0]


async def test_of_two_machines_one_stores_and_the_other_finds(bucket: Bucket) -> None:
    one, other = bucket.new_machine(), bucket.new_machine()
    outcomes: dict[Cache, str] = {}

    async def store(cache: Cache) -> None:
        try:
            await cache.put_all(made(), heed_claims=True)
            outcomes[cache] = "stored"
        except Claimed:
            outcomes[cache] = "gave way"
            gate.set()

    gate = bucket.store.close_put_gate("packs/")
    with anyio.fail_after(10.0):
        async with anyio.create_task_group() as group:
            for cache in (one, other):
                group.start_soon(store, cache)
    assert sorted(outcomes.values()) == ["gave way", "stored"]
    assert len([name for name in bucket.objects if name.startswith("packs/")]) == 1
    late = one if outcomes[one] == "gave way" else other
    bucket.store.requests.clear()
    assert await late.put_all(made(), heed_claims=True) == [0] * len(CLAIMED)
    assert bucket.store.asked("PUT") == []
