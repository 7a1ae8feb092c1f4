"""The cache: what it asks of the bucket, what it stores there, and what it makes of damage."""

import random
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from s3cache import ledger, manifest, names, profile
from s3cache.cache import Cache
from s3cache.digest import digest_of
from s3cache.errors import (
    Corrupt,
    DiskFull,
    Forbidden,
    InvalidName,
    ObjectAbsent,
    SlotsExhausted,
    Unreachable,
)
from s3cache.ledger import Ledger
from s3cache.machine import Machine
from s3cache.manifest import Entry
from s3cache.profile import Reference, Segment
from s3cache.stores.memory import MemoryStore
from s3cache.tier import DiskTier
from tests.wrappers import FaultyStore, RecordingStore

pytestmark = pytest.mark.anyio

SMALL = {"a.json": b"{}", "b.bin": b"\0" * 100}
OTHER = {"a.json": b"[]", "b.bin": b"\1" * 100}
LARGE = {"a.so": random.Random(1).randbytes(100_000), "b.so": random.Random(2).randbytes(10_000)}
LARGE_OTHER = {"a.so": random.Random(3).randbytes(100_000)}
SLOTS = [names.manifest_name("ns", "key", slot) for slot in range(4)]
BLOBS = [names.blob_name(digest_of(content)) for content in LARGE.values()]


class Bucket:
    """A bucket in memory that remembers its requests and fails on demand, and fresh machines."""

    def __init__(self, folder: Path) -> None:
        self.memory = MemoryStore()
        self.faulty = FaultyStore(self.memory)
        self.store = RecordingStore(self.faulty)
        self._folder = folder
        self._machines = 0

    @property
    def objects(self) -> dict[str, bytes]:
        return self.memory.objects

    def new_machine(self, limit: int = 64 << 20, **facts: str) -> Cache:
        """Return the cache of a machine that has nothing yet."""
        self._machines += 1
        machine = Machine()
        for name, value in facts.items():
            machine.learn(name, lambda value=value: value)  # type: ignore[misc]
        self.store.requests.clear()
        return Cache(self.store, DiskTier(self._folder / str(self._machines), limit), machine)

    def tier_of_last_machine(self) -> DiskTier:
        return DiskTier(self._folder / str(self._machines), 64 << 20)


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket(tmp_path / "machines")


@pytest.fixture
def counts() -> Ledger:
    """The ledger that a test's requests are charged to, once it calls `ledger.charge`."""
    return Ledger()


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
    with pytest.raises(InvalidName):
        await cache.put("../ns", "key", SMALL)
    with pytest.raises(InvalidName):
        await cache.put("ns", "key", {"../up": b""})
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
    await cache.fill("ns", "key", 0)
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


async def test_a_blob_that_several_keys_share_is_fetched_once(bucket: Bucket) -> None:
    writer = bucket.new_machine()
    for key in "one", "two":
        await writer.put("ns", key, LARGE)
    reader = bucket.new_machine()
    await reader.get("ns", "one")
    assert found(await reader.get("ns", "two")) == LARGE
    assert sorted(name for name in bucket.store.asked("GET") if name in BLOBS) == sorted(BLOBS)


async def test_many_who_get_at_once_share_each_request(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    cache = bucket.new_machine()
    got: list[dict[str, bytes]] = []

    async def get() -> None:
        got.append(found(await cache.get("ns", "key")))

    gate = bucket.store.close_gate()
    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(get)
        await anyio.wait_all_tasks_blocked()
        gate.set()
    assert got == [LARGE] * 20
    assert sorted(bucket.store.requests) == sorted(f"GET {name}" for name in [SLOTS[0], *BLOBS])


async def test_many_who_miss_at_once_share_the_request(bucket: Bucket) -> None:
    cache = bucket.new_machine()
    gate = bucket.store.close_gate()
    got: list[Entry | None] = []

    async def get() -> None:
        got.append(await cache.get("ns", "key"))

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(get)
        await anyio.wait_all_tasks_blocked()
        gate.set()
    assert got == [None] * 20
    assert bucket.store.requests == [f"GET {SLOTS[0]}"]


async def test_a_leader_that_is_cancelled_leaves_the_request_to_a_follower(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", SMALL)
    cache = bucket.new_machine()
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
        assert bucket.store.requests == [f"GET {SLOTS[0]}"]
        leader.cancel()
        await anyio.wait_all_tasks_blocked()
        assert bucket.store.requests == [f"GET {SLOTS[0]}"] * 2
        gate.set()
    assert got == [SMALL] * 3


async def test_an_error_reaches_all_who_wait_and_is_not_remembered(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", SMALL)
    cache = bucket.new_machine()
    bucket.faulty.fail("get", Unreachable("why"))
    gate = bucket.store.close_gate()
    errors: list[str] = []

    async def get() -> None:
        try:
            await cache.get("ns", "key")
        except Unreachable as error:
            errors.append(str(error))

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(get)
        await anyio.wait_all_tasks_blocked()
        gate.set()
    assert errors == ["why"] * 5
    assert found(await cache.get("ns", "key")) == SMALL


async def test_a_bucket_that_cannot_be_asked_is_no_miss(bucket: Bucket) -> None:
    cache = bucket.new_machine()
    for method, call in ("get", cache.get("ns", "key")), ("create", cache.put("ns", "key", SMALL)):
        bucket.faulty.fail(method, Forbidden("why"))
        with pytest.raises(Forbidden, match="why"):
            await call


# What it stores.


async def test_blobs_are_stored_before_the_manifest(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    puts = bucket.store.asked("PUT")
    assert sorted(puts[:-1]) == sorted(BLOBS)
    assert puts[-1] == SLOTS[0]


async def test_no_manifest_is_stored_when_a_blob_is_not(bucket: Bucket) -> None:
    bucket.faulty.fail("create", Unreachable("why"))
    with pytest.raises(Unreachable):
        await bucket.new_machine().put("ns", "key", LARGE)
    assert not [name for name in bucket.objects if name.startswith("manifests/")]
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


@pytest.mark.parametrize(("first", "second"), [(SMALL, OTHER), (LARGE, LARGE_OTHER), (LARGE, SMALL)])
async def test_of_two_results_for_one_variant_the_first_stays(
    bucket: Bucket, first: dict[str, bytes], second: dict[str, bytes]
) -> None:
    assert await bucket.new_machine().put("ns", "key", first) == 0
    before = dict(bucket.objects)
    assert await bucket.new_machine().put("ns", "key", second) == 0
    assert bucket.objects == before
    assert found(await bucket.new_machine().get("ns", "key")) == first


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


async def test_a_lost_reply_of_a_blob_is_found_out_by_putting_again(bucket: Bucket) -> None:
    cache = bucket.new_machine()
    bucket.faulty.fail("create", Unreachable("why"), reply_lost=True)
    with pytest.raises(Unreachable):
        await cache.put("ns", "key", LARGE)
    assert await cache.put("ns", "key", LARGE) == 0
    assert found(await bucket.new_machine().get("ns", "key")) == LARGE


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
async def test_a_damaged_blob_is_a_miss_until_it_is_put_again(bucket: Bucket, damage: Damage) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    bucket.objects[BLOBS[0]] = damage(bucket.objects[BLOBS[0]])
    cache = bucket.new_machine()
    assert await cache.get("ns", "key") is None
    await cache.put("ns", "key", LARGE)
    assert found(await cache.get("ns", "key")) == LARGE
    assert found(await bucket.new_machine().get("ns", "key")) == LARGE


async def test_all_damaged_blobs_are_replaced_at_once(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    for name in BLOBS:
        bucket.objects[name] = b"damaged"
    cache = bucket.new_machine()
    assert await cache.get("ns", "key") is None
    await cache.put("ns", "key", LARGE)
    assert found(await bucket.new_machine().get("ns", "key")) == LARGE


async def test_a_blob_that_somebody_has_replaced_is_left_alone(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    right = bucket.objects[BLOBS[0]]
    bucket.objects[BLOBS[0]] = b"damaged"
    cache = bucket.new_machine()
    assert await cache.get("ns", "key") is None
    bucket.objects[BLOBS[0]] = right
    await cache.put("ns", "key", LARGE)
    assert bucket.store.asked("DELETE") == []


async def test_a_damaged_blob_is_replaced_once(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    bucket.objects[BLOBS[0]] = b"damaged"
    cache = bucket.new_machine()
    await cache.get("ns", "key")
    for key in "key", "other", "another":
        await cache.put("ns", key, LARGE)
    assert bucket.store.asked("DELETE") == [BLOBS[0]]


async def test_a_blob_of_another_content_is_a_miss(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    bucket.objects[BLOBS[0]] = bucket.objects[BLOBS[1]]
    assert await bucket.new_machine().get("ns", "key") is None


async def test_an_absent_blob_is_a_miss_until_it_is_put_again(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    del bucket.objects[BLOBS[1]]
    cache = bucket.new_machine()
    assert await cache.get("ns", "key") is None
    await cache.put("ns", "key", LARGE)
    assert found(await bucket.new_machine().get("ns", "key")) == LARGE


async def test_a_variant_with_a_damaged_blob_does_not_hide_the_next(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE, variant="a")
    await bucket.new_machine().put("ns", "key", LARGE_OTHER, variant="b")
    bucket.objects[BLOBS[0]] = b"damaged"
    assert await variants(bucket.new_machine()) == [(1, LARGE_OTHER)]


async def test_a_manifest_of_another_key_is_not_served(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "other", SMALL)
    bucket.objects[SLOTS[0]] = bucket.objects["manifests/ns/other/0"]
    cache = bucket.new_machine()
    assert await cache.get("ns", "key") is None
    assert await cache.put("ns", "key", OTHER) == 1
    assert found(await bucket.new_machine().get("ns", "key")) == OTHER


async def test_a_manifest_may_not_state_a_size_that_is_a_bomb(bucket: Bucket) -> None:
    built, _ = manifest.build("ns", "key", LARGE)
    for member in built.members:
        bucket.objects[names.blob_name(member.digest)] = (
            b"\x28\xb5\x2f\xfd\xe0" + (1 << 40).to_bytes(8, "little") + b"\x01\0\0"
        )
    bombs = [manifest.Member(member.name, member.digest, 1 << 50) for member in built.members]
    bucket.objects[SLOTS[0]] = manifest.encode(manifest.Manifest("ns", "key", bombs))
    assert await bucket.new_machine().get("ns", "key") is None


async def test_damage_in_the_bucket_does_not_matter_to_who_has_it_on_disk(bucket: Bucket) -> None:
    cache = bucket.new_machine()
    await cache.put("ns", "key", LARGE)
    for name in bucket.objects:
        bucket.objects[name] = b"damaged"
    assert found(await cache.get("ns", "key")) == LARGE


# Damage on disk.


async def test_damage_on_disk_is_repaired_from_the_bucket(bucket: Bucket, tmp_path: Path) -> None:
    cache = bucket.new_machine()
    await cache.put("ns", "key", LARGE)
    for path in (tmp_path / "machines").rglob("objects/**/*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert found(await cache.get("ns", "key")) == LARGE
    bucket.store.requests.clear()
    assert found(await cache.get("ns", "key")) == LARGE
    assert bucket.store.requests == []


async def test_a_tier_that_takes_nothing_is_read_through(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    cache = bucket.new_machine(limit=10)
    assert found(await cache.get("ns", "key")) == LARGE
    assert isinstance(cache.tier_failure, DiskFull)
    with pytest.raises(DiskFull):
        await cache.fill("ns", "key", 0)


# Prefetch.


async def test_fill_brings_all_of_a_slot_to_the_disk(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    cache = bucket.new_machine()
    await cache.fill("ns", "key", 0)
    assert bucket.tier_of_last_machine().names() == sorted([SLOTS[0], *BLOBS])
    bucket.store.requests.clear()
    await cache.fill("ns", "key", 0)
    assert found(await cache.get("ns", "key")) == LARGE
    assert bucket.store.requests == []


async def test_fill_says_what_is_absent_or_damaged(bucket: Bucket) -> None:
    cache = bucket.new_machine()
    with pytest.raises(ObjectAbsent):
        await cache.fill("ns", "key", 0)
    await bucket.new_machine().put("ns", "key", LARGE)
    del bucket.objects[BLOBS[0]]
    with pytest.raises(Corrupt):
        await cache.fill("ns", "key", 0)


async def test_a_manifest_that_a_segment_carries_is_not_asked_for(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", SMALL)
    reference = Reference("ns", "key", 0, bucket.objects[SLOTS[0]])
    cache = bucket.new_machine()
    await cache.adopt(reference)
    assert found(await cache.get("ns", "key")) == SMALL
    assert bucket.store.requests == []


async def test_a_segment_may_not_carry_the_manifest_of_another_key(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "other", SMALL)
    cache = bucket.new_machine()
    with pytest.raises(Corrupt):
        await cache.adopt(Reference("ns", "key", 0, bucket.objects["manifests/ns/other/0"]))
    with pytest.raises(Corrupt):
        await cache.adopt(Reference("ns", "key", 0, b"damaged"))
    assert bucket.tier_of_last_machine().names() == []


async def test_a_segment_is_read_once(bucket: Bucket) -> None:
    name = profile.new_segment_name("job", "linux-x86_64")
    bucket.objects[name] = profile.encode(Segment([Reference("ns", "key", 0)]))
    cache = bucket.new_machine()
    for _ in range(2):
        assert (await cache.segment(name)).references == [Reference("ns", "key", 0)]
    assert bucket.store.requests == [f"GET {name}"]


@damages
async def test_a_damaged_segment_is_corrupt_and_not_kept(bucket: Bucket, damage: Damage) -> None:
    name = profile.new_segment_name("job", "linux-x86_64")
    bucket.objects[name] = damage(profile.encode(Segment([Reference("ns", "key", 0)])))
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


async def test_a_put_of_what_is_there_counts_nothing(bucket: Bucket, counts: Ledger) -> None:
    await bucket.new_machine().put("ns", "key", LARGE)
    ledger.charge(counts)
    await bucket.new_machine().put("ns", "key", LARGE)
    assert (counts.namespaces["ns"].bytes_up, counts.namespaces["ns"].puts) == (0, 0)


async def test_it_remembers_what_came_from_the_bucket(bucket: Bucket) -> None:
    await bucket.new_machine().put("ns", "key", SMALL)
    cache = bucket.new_machine()
    await cache.get("ns", "key")
    assert list(cache.downloaded) == SLOTS[:1]
