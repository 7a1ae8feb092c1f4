"""Clean-up: what nobody uses goes, what somebody uses stays, beside writers, whenever it ends."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from pathlib import Path

import pytest

from s3cache import catalog, collection, condemned, manifest, names, profile
from s3cache.cache import Cache
from s3cache.catalog import Reference
from s3cache.collection import Collected, Terms
from s3cache.errors import Corrupt, ObjectAbsent, Unreachable
from s3cache.keyring import NO_KEYS
from s3cache.leases import leave
from s3cache.machine import Machine
from s3cache.manifest import MAX_SLOTS, Result
from s3cache.profile import Segment
from s3cache.stores.base import Listed, ObjectStore
from s3cache.stores.wrapper import WrapperStore
from s3cache.tier import DiskTier
from tests.memory import MemoryStore

pytestmark = pytest.mark.anyio

DAY = 86_400.0
TERMS = Terms(unused_seconds=30 * DAY, grace_seconds=DAY)
PLATFORM = "linux-x86_64"
JOB = names.profile_prefix("job", PLATFORM)


def content(name: str) -> dict[str, bytes]:
    """Return members that do not lie in a manifest, one of them on demand."""
    return {
        "binary": random.Random(name).randbytes(5000),
        "text": random.Random(name + "t").randbytes(5000),
    }


class Bucket:
    """A bucket with a clock, and fresh machines."""

    def __init__(self, folder: Path) -> None:
        self.now = 1e9
        self.memory = MemoryStore(lambda: self.now)
        self._folder = folder
        self._numbers = count()

    @property
    def objects(self) -> dict[str, bytes]:
        return self.memory.objects

    def new_tier(self) -> DiskTier:
        return DiskTier(self._folder / str(next(self._numbers)), 1 << 30)

    def new_machine(self, store: ObjectStore | None = None) -> Cache:
        return Cache(store or self.memory, self.new_tier(), Machine(), NO_KEYS)

    def names(self, prefix: str) -> set[str]:
        return {name for name in self.objects if name.startswith(prefix)}

    async def put(self, *keys: str, variant: str = "", store: ObjectStore | None = None) -> None:
        """Store results, on a fresh machine."""
        results = [
            Result("ns", key, content(key + variant), variant, on_demand=frozenset({"text"}))
            for key in keys
        ]
        assert None not in await self.new_machine(store).put_all(results)

    async def use(self, *keys: str, prefix: str = JOB, replaces: tuple[str, ...] = ()) -> str:
        """Write a segment that names what is in the first slots of keys, and return its name."""
        found = [manifest.decode(self.objects[slot(key)], NO_KEYS) for key in keys]
        return await self.write([Reference(0, each) for each in found], prefix, replaces)

    async def write(
        self, references: list[Reference], prefix: str = JOB, replaces: tuple[str, ...] = ()
    ) -> str:
        data = profile.encode(
            Segment(
                frames=[],
                catalog=catalog.build(references, NO_KEYS),
                replaces=list(replaces),
                written=self.now,
                profile=prefix,
            ),
            NO_KEYS,
        )
        name = profile.segment_name(prefix, int(self.now * 1000) + len(self.objects), data)
        await self.memory.create(name, data)
        return name

    async def collect(
        self, terms: Terms = TERMS, *, delete: bool = True, store: ObjectStore | None = None
    ) -> Collected:
        return await collection.collect(store or self.memory, terms, delete=delete, clock=lambda: self.now)

    async def collect_daily(self, days: int, store: ObjectStore | None = None) -> None:
        """Let days pass, with a clean-up on each, after which every manifest must resolve."""
        for _ in range(days):
            self.now += DAY
            await self.collect(store=store)
            await self.check()

    async def check(self) -> None:
        """Assert that every manifest resolves, and that no slot is empty below another one."""
        reader = self.new_machine()
        keys: dict[str, set[int]] = {}
        for name in self.names("manifests/"):
            _, _, key, number = name.split("/")
            keys.setdefault(key, set()).add(int(number))
            if self.objects[name]:
                found = manifest.decode(self.objects[name], NO_KEYS)
                await reader.entry(found, int(number), [member.name for member in found.members])
        for key, numbers in keys.items():
            assert numbers == set(range(len(numbers))), key

    async def get(self, key: str) -> set[str]:
        """Return the variants of a key that a fresh machine finds."""
        return {entry.variant async for entry in self.new_machine().variants("ns", key)}


def slot(key: str, number: int = 0) -> str:
    return names.manifest_name("ns", key, number)


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket(tmp_path)


# What is used, and what is not


async def test_what_no_profile_used_is_condemned_and_a_day_later_it_is_gone(bucket: Bucket) -> None:
    await bucket.put("old", "older")
    await bucket.put("small")
    await bucket.use("old", "older")
    bucket.objects[names.prelude_name(JOB)] = b"prelude"
    bucket.now += 31 * DAY
    before = dict(bucket.objects)
    first = await bucket.collect()
    assert {total.kind: total.objects for total in first.condemned} == {
        "packs": 2,
        "manifests": 3,
        "profiles": 1,
        "preludes": 1,
    }
    assert first.going == []
    assert before.items() <= bucket.objects.items()
    bucket.now += DAY - 1
    second = await bucket.collect()
    assert (second.condemned, second.waiting, second.going) == ([], first.condemned, [])
    assert before.items() <= bucket.objects.items()
    bucket.now += 2
    assert {total.kind: total.objects for total in (await bucket.collect()).going} == {
        "packs": 2,
        "manifests": 3,
        "profiles": 1,
        "preludes": 1,
        "condemned": 1,
    }
    assert bucket.objects == {}


async def test_what_a_profile_in_use_names_stays_for_ever(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bucket.put("key")
    segment = await bucket.use("key")
    bucket.now += 20 * DAY
    before = dict(bucket.objects)
    monkeypatch.setattr("s3cache.leases.time.time", lambda: bucket.now)
    for _ in range(10):
        await leave(bucket.memory, bucket.new_tier(), JOB, [segment])
        await bucket.collect_daily(20)
    assert before.items() <= bucket.objects.items()


async def test_a_segment_is_a_use_too(bucket: Bucket) -> None:
    await bucket.put("old", "new")
    await bucket.use("old")
    bucket.now += 29 * DAY
    await bucket.use("new")
    await bucket.collect_daily(20)
    assert await bucket.get("old") == await bucket.get("new") == {""}


async def test_what_left_a_profile_goes(bucket: Bucket) -> None:
    await bucket.put("stays", "leaves")
    old = await bucket.use("stays", "leaves")
    bucket.now += 40 * DAY
    await bucket.use("stays", replaces=(old,))
    # As an agent does that comes by.
    await bucket.memory.delete(old)
    await bucket.collect_daily(3)
    assert await bucket.get("leaves") == set()
    assert await bucket.get("stays") == {""}


async def test_what_a_stranger_s_segment_claims_to_stand_for_stays(bucket: Bucket) -> None:
    await bucket.put("key")
    segment = await bucket.use("key")
    bucket.now += 40 * DAY
    await bucket.write([], replaces=(segment,))
    await bucket.collect_daily(3)
    assert segment in bucket.objects
    assert await bucket.get("key") == {""}


async def test_what_many_segments_say_of_an_unused_profile_is_counted_once(bucket: Bucket) -> None:
    await bucket.put("key", "other")
    old = await bucket.use("key")
    bucket.now += 1
    await bucket.use("key", "other", replaces=(old,))
    bucket.now += 31 * DAY
    (unused,) = (await bucket.collect(delete=False)).unused
    assert unused.entries == 2


async def test_what_a_segment_says_of_where_a_result_lies_now_stays(bucket: Bucket) -> None:
    """Packed anew, a result lies in another pack than its manifest says: both are in use."""
    await bucket.put("key")
    packed = await bucket.new_machine().pack([Result("ns", "key", content("key"))])
    old = manifest.decode(bucket.objects[slot("key")], NO_KEYS)
    bucket.now += 40 * DAY
    await bucket.write([Reference(0, packed.manifests[0])])
    await bucket.collect_daily(5)
    assert {names.pack_name(packed.digest), names.pack_name(old.frames[0].pack)} <= bucket.objects.keys()


async def test_what_is_young_stays_though_nobody_used_it_yet(bucket: Bucket) -> None:
    await bucket.put("library")
    await bucket.new_machine().pack([Result("ns", "being-stored", content("being-stored"))])
    before = dict(bucket.objects)
    await bucket.collect_daily(29)
    assert before.items() <= bucket.objects.items()
    await bucket.collect_daily(4)
    assert bucket.names("packs/") == bucket.names("manifests/") == set()


async def test_an_old_pack_of_a_young_manifest_stays(bucket: Bucket) -> None:
    made = await bucket.new_machine().pack([Result("ns", "key", content("key"))])
    bucket.now += 40 * DAY
    await bucket.collect()
    await bucket.memory.create(slot("key"), manifest.encode(made.manifests[0], NO_KEYS))
    await bucket.collect_daily(20)
    assert await bucket.get("key") == {""}


async def test_a_profile_is_kept_by_name(bucket: Bucket) -> None:
    await bucket.put("key")
    await bucket.use("key")
    bucket.now += 365 * DAY
    terms = Terms(TERMS.unused_seconds, TERMS.grace_seconds, keep=["job"])
    for _ in range(3):
        collected = await bucket.collect(terms)
        assert (collected.unused, collected.condemned) == ([], [])
        bucket.now += 2 * DAY
    assert await bucket.get("key") == {""}


async def test_a_job_that_was_to_be_kept_and_has_no_profile_is_said(bucket: Bucket) -> None:
    await bucket.put("key")
    await bucket.use("key")
    collected = await bucket.collect(Terms(30 * DAY, DAY, keep=["job", "jbo"]), delete=False)
    assert collected.absent == ["jbo"]


async def test_profiles_that_only_read_only_machines_may_use_are_listed(bucket: Bucket) -> None:
    await bucket.put("key")
    await bucket.use("key")
    bucket.now += 31 * DAY
    (unused,) = (await bucket.collect(delete=False)).unused
    assert (unused.job, unused.platform, unused.last_used, unused.entries) == ("job", PLATFORM, 1e9, 1)


async def test_what_is_used_again_while_it_is_condemned_stays(bucket: Bucket) -> None:
    await bucket.put("key")
    bucket.now += 31 * DAY
    await bucket.collect()
    bucket.now += DAY / 2
    await bucket.use("key", prefix=names.profile_prefix("another", PLATFORM))
    assert (await bucket.collect()).waiting == []
    await bucket.collect_daily(20)
    assert await bucket.get("key") == {""}


async def test_what_was_used_again_is_condemned_anew_before_it_goes(bucket: Bucket) -> None:
    await bucket.put("key")
    bucket.now += 31 * DAY
    await bucket.collect()
    bucket.now += DAY / 2
    await bucket.use("key")
    bucket.now += DAY
    await bucket.collect()
    bucket.now += 30 * DAY
    await bucket.collect()
    assert await bucket.get("key") == {""}
    bucket.now += DAY + 1
    await bucket.collect()
    assert await bucket.get("key") == set()


async def test_claims_and_leases_that_are_old_go(bucket: Bucket) -> None:
    old, older = names.claim_name("ns", "key"), names.lease_name(JOB, bucket.now)
    await bucket.memory.create(old, b"")
    await bucket.memory.create(older, b"")
    await bucket.collect_daily(2)
    assert bucket.names("") == {older}
    await bucket.collect_daily(30)
    assert bucket.names("") == set()


async def test_what_is_not_of_our_making_is_left_alone(bucket: Bucket) -> None:
    foreign = dict.fromkeys(["README", "packs/short", "manifests/ns/key/a", "profiles/job/note"], b"x")
    for name, data in foreign.items():
        await bucket.memory.create(name, data)
    for _ in range(40):
        bucket.now += DAY
        await bucket.collect()
    assert bucket.objects == foreign


async def test_a_dry_run_changes_nothing(bucket: Bucket) -> None:
    await bucket.put("key")
    bucket.now += 31 * DAY
    before = dict(bucket.objects)
    assert {total.kind for total in (await bucket.collect(delete=False)).condemned} == {
        "packs",
        "manifests",
    }
    assert bucket.objects == before
    await bucket.collect()
    bucket.now += 2 * DAY
    before = dict(bucket.objects)
    assert {total.kind for total in (await bucket.collect(delete=False)).going} == {
        "packs",
        "manifests",
        "condemned",
    }
    assert bucket.objects == before


async def test_nothing_goes_while_it_is_not_known_what_a_profile_uses(bucket: Bucket) -> None:
    await bucket.put("key")
    segment = await bucket.use("key")
    bucket.objects[segment] = b"damaged"
    before = dict(bucket.objects)
    with pytest.raises(Corrupt, match="verify --repair"):
        await bucket.collect()
    assert bucket.objects == before


class Damaging(WrapperStore):
    """Damages the first answer to a GET of each object whose name begins so."""

    def __init__(self, inner: ObjectStore, prefix: str) -> None:
        super().__init__(inner)
        self._prefix = prefix
        self.damaged: set[str] = set()

    async def get(self, name: str, part: range | None = None) -> bytes:
        data = await super().get(name, part)
        if not name.startswith(self._prefix) or name in self.damaged:
            return data
        self.damaged.add(name)
        return data[:-1]


async def test_a_manifest_that_arrives_damaged_is_read_once_more(bucket: Bucket) -> None:
    """Its pack is due, since what the profile names lies elsewhere by now."""
    await bucket.put("key")
    packed = await bucket.new_machine().pack([Result("ns", "key", content("key"))])
    bucket.now += 40 * DAY
    await bucket.collect()
    bucket.now += 2 * DAY
    await bucket.write([Reference(0, packed.manifests[0])])
    store = Damaging(bucket.memory, "manifests/")
    await bucket.collect(store=store)
    assert store.damaged == {slot("key")}
    await bucket.check()


async def test_a_segment_that_arrives_damaged_is_read_once_more(bucket: Bucket) -> None:
    await bucket.put("key")
    segment = await bucket.use("key")
    store = Damaging(bucket.memory, "profiles/")
    await bucket.collect(store=store)
    assert store.damaged == {segment}


async def test_a_machine_whose_clock_is_wrong_deletes_nothing_early(bucket: Bucket) -> None:
    await bucket.put("key")
    await collection.collect(bucket.memory, TERMS, delete=True, clock=lambda: bucket.now + 1000 * DAY)
    assert await bucket.get("key") == {""}
    assert bucket.names("condemned/") == set()


# Slots


async def test_a_slot_below_one_that_stays_leaves_a_tombstone(bucket: Bucket) -> None:
    for variant in "ab":
        await bucket.put("key", variant=variant)
    bucket.now += 40 * DAY
    await bucket.put("key", variant="c")
    await bucket.collect_daily(3)
    assert [bucket.objects[slot("key", number)] == b"" for number in range(3)] == [True, True, False]
    assert await bucket.get("key") == {"c"}


async def test_slots_above_the_last_that_stays_go_and_tombstones_with_them(bucket: Bucket) -> None:
    for variant in "abc":
        await bucket.put("key", variant=variant)
    bucket.objects[slot("key", 1)] = b""
    third = manifest.decode(bucket.objects[slot("key", 2)], NO_KEYS)
    bucket.now += 40 * DAY
    await bucket.write([Reference(0, manifest.decode(bucket.objects[slot("key")], NO_KEYS))])
    await bucket.collect_daily(3)
    assert bucket.names("manifests/") == {slot("key")}
    assert names.pack_name(third.frames[0].pack) not in bucket.objects


async def test_writers_step_over_a_tombstone(bucket: Bucket) -> None:
    bucket.objects[slot("key")] = manifest.TOMBSTONE
    await bucket.put("key")
    assert bucket.names("manifests/") == {slot("key"), slot("key", 1)}
    assert await bucket.get("key") == {""}


async def test_an_empty_slot_below_another_is_filled(bucket: Bucket) -> None:
    """A clean-up that died in the middle, or somebody by hand, has left it."""
    for variant in "ab":
        await bucket.put("key", variant=variant)
    del bucket.objects[slot("key")]
    await bucket.collect()
    assert bucket.objects[slot("key")] == manifest.TOMBSTONE
    assert await bucket.get("key") == {"b"}


async def test_junk_in_a_high_slot_leaves_its_key_alone(bucket: Bucket) -> None:
    await bucket.put("key")
    await bucket.memory.create(slot("key", MAX_SLOTS - 1), b"junk")
    await bucket.collect()
    assert bucket.names("manifests/") == {slot("key"), slot("key", MAX_SLOTS - 1)}
    await bucket.put("key", variant="b")
    assert await bucket.get("key") == {"", "b"}


async def test_tombstones_below_nothing_but_junk_go(bucket: Bucket) -> None:
    for number in range(MAX_SLOTS - 1):
        await bucket.memory.create(slot("key", number), manifest.TOMBSTONE)
    await bucket.memory.create(slot("key", MAX_SLOTS - 1), b"junk")
    await bucket.collect()
    assert bucket.names("manifests/") == {slot("key", MAX_SLOTS - 1)}
    await bucket.put("key")
    assert await bucket.get("key") == {""}


async def test_a_slot_that_no_reader_looks_into_is_none(bucket: Bucket) -> None:
    await bucket.put("other", "key")
    await bucket.memory.create(slot("key", MAX_SLOTS), bucket.objects[slot("key")])
    await bucket.memory.create(slot("other", 99), b"junk")
    before = dict(bucket.objects)
    for _ in range(3):
        await bucket.collect()
        bucket.now += DAY
    assert bucket.objects == before


async def test_what_was_collected_is_stored_anew_by_a_machine_that_has_it_on_disk(bucket: Bucket) -> None:
    cache = bucket.new_machine()
    await cache.put("ns", "key", content("key"))
    await cache.put("ns", "small", {"a": b"small"})
    bucket.objects.clear()
    await cache.put("ns", "key", content("key"))
    await cache.put("ns", "small", {"a": b"small"})
    await bucket.check()
    assert await bucket.get("key") == await bucket.get("small") == {""}


# Beside writers, and ending in the middle


class Interrupted(WrapperStore):
    """Calls `before` each request but for the first so many, or fails with it."""

    def __init__(self, inner: ObjectStore, before: Callable[[int], Awaitable[None]]) -> None:
        super().__init__(inner)
        self._before = before
        self.requests = 0

    async def _count(self) -> None:
        self.requests += 1
        await self._before(self.requests)

    async def get(self, name: str, part: range | None = None) -> bytes:
        await self._count()
        return await super().get(name, part)

    async def create(self, name: str, data: bytes) -> bool:
        await self._count()
        return await super().create(name, data)

    async def list(self, prefix: str) -> AsyncIterator[Listed]:
        await self._count()
        async for listed in super().list(prefix):
            yield listed

    async def delete(self, name: str) -> None:
        await self._count()
        await super().delete(name)


async def fill_with_old(bucket: Bucket) -> None:
    """Store what is condemned, beside what stays."""
    for variant in "ab":
        await bucket.put("old", "mixed", variant=variant)
    bucket.now += 40 * DAY
    await bucket.put("mixed", variant="c")
    await bucket.put("used")
    await bucket.use("used")
    await bucket.collect()
    bucket.now += DAY + 1


async def requests_of(bucket: Bucket) -> int:
    """Return how many requests the clean-up makes that deletes what `fill_with_old` condemned."""

    async def nothing(_: int) -> None:
        pass

    counted = Interrupted(bucket.memory, nothing)
    await bucket.collect(store=counted)
    return counted.requests


async def test_a_writer_that_stores_again_what_goes_may_do_so_at_any_moment(tmp_path: Path) -> None:
    first = Bucket(tmp_path / "first")
    await fill_with_old(first)
    for moment in range(1, await requests_of(first) + 1):
        bucket = Bucket(tmp_path / str(moment))
        await fill_with_old(bucket)

        async def write(number: int, bucket: Bucket = bucket, moment: int = moment) -> None:
            if number == moment:
                await bucket.put("old", "mixed", variant="a")

        await bucket.collect(store=Interrupted(bucket.memory, write))
        await bucket.check()
        assert await bucket.get("mixed") >= {"c"}
        await bucket.put("old", "mixed", variant="a")
        assert "a" in await bucket.get("old")
        assert "a" in await bucket.get("mixed")
        await bucket.collect_daily(3)
        assert "a" in await bucket.get("old")


async def test_another_variant_may_be_stored_at_any_moment(tmp_path: Path) -> None:
    first = Bucket(tmp_path / "first")
    await fill_with_old(first)
    hidden = 0
    moments = await requests_of(first)
    for moment in range(1, moments + 1):
        bucket = Bucket(tmp_path / str(moment))
        await fill_with_old(bucket)

        async def write(number: int, bucket: Bucket = bucket, moment: int = moment) -> None:
            if number == moment:
                await bucket.put("old", "mixed", variant="new")

        await bucket.collect(store=Interrupted(bucket.memory, write))
        hidden += "new" not in await bucket.get("old") or "new" not in await bucket.get("mixed")
        await bucket.collect()
        await bucket.check()
        assert "new" in await bucket.get("old")
        assert "new" in await bucket.get("mixed")
    # Between the look above a slot that goes and its end.
    assert hidden <= 2


async def test_a_writer_may_be_as_slow_as_the_grace_is_long(bucket: Bucket) -> None:
    """The pack of a writer is stored, then a clean-up runs before each of its next requests."""
    await fill_with_old(bucket)

    async def clean(_: int) -> None:
        bucket.now += DAY / 4
        await bucket.collect()

    await bucket.put("old", "mixed", variant="a", store=Interrupted(bucket.memory, clean))
    await bucket.check()
    assert await bucket.get("old") == {"a"}


async def test_two_who_store_the_same_never_share_a_pack(bucket: Bucket) -> None:
    result = Result("ns", "key", content("key"))
    one, other = await bucket.new_machine().pack([result]), await bucket.new_machine().pack([result])
    assert one.digest != other.digest


async def test_a_writer_that_tries_again_makes_another_pack(bucket: Bucket) -> None:
    cache = bucket.new_machine()
    result = Result("ns", "key", content("key"))
    assert (await cache.pack([result])).digest != (await cache.pack([result])).digest


async def test_it_may_end_at_any_moment_and_the_next_one_goes_on(tmp_path: Path) -> None:
    first = Bucket(tmp_path / "first")
    await fill_with_old(first)
    for moment in range(1, await requests_of(first) + 1):
        bucket = Bucket(tmp_path / str(moment))
        await fill_with_old(bucket)

        async def die(number: int, moment: int = moment) -> None:
            if number >= moment:
                raise Unreachable("killed")

        with pytest.raises(Unreachable):
            await bucket.collect(store=Interrupted(bucket.memory, die))
        for name in bucket.names("manifests/"):
            if bucket.objects[name]:
                found = manifest.decode(bucket.objects[name], NO_KEYS)
                await bucket.new_machine().entry(found, 0)
        # The highest slot goes first.
        assert slot("old") in bucket.objects or slot("old", 1) not in bucket.objects
        await bucket.collect_daily(3)
        assert bucket.names("manifests/") == {slot("used"), *(slot("mixed", number) for number in range(3))}
        assert len(bucket.names("packs/")) == 2
        assert await bucket.get("mixed") == {"c"}


async def test_a_profile_that_is_compacted_meanwhile_is_read_again(bucket: Bucket) -> None:
    await bucket.put("key")
    bucket.now += 40 * DAY
    old = await bucket.use("key")
    has_replaced = False

    async def compact(_: int) -> None:
        nonlocal has_replaced
        if old in reads and not has_replaced:
            has_replaced = True
            await bucket.use("key", replaces=(old,))
            del bucket.objects[old]

    reads: list[str] = []

    class Compacted(Interrupted):
        async def get(self, name: str, part: range | None = None) -> bytes:
            reads.append(name)
            return await super().get(name, part)

    assert (await bucket.collect(store=Compacted(bucket.memory, compact))).condemned == []
    assert has_replaced


async def test_a_pack_stays_as_long_as_a_manifest_that_is_not_used_either(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list that names the manifest is lost, the one that names the pack is not."""
    monkeypatch.setattr("s3cache.condemned.NAMES", 1)
    await bucket.put("key")
    bucket.now += 31 * DAY
    await bucket.collect()
    for name in bucket.names("condemned/"):
        if condemned.decode(name, bucket.objects[name]) == [slot("key")]:
            del bucket.objects[name]
    await bucket.collect_daily(1)
    assert await bucket.get("key") == {""}
    await bucket.collect_daily(4)
    assert bucket.objects == {}


async def test_a_list_that_is_damaged_condemns_nothing(bucket: Bucket) -> None:
    await bucket.put("key")
    bucket.now += 31 * DAY
    data = condemned.encode(bucket.names("manifests/"))
    name = condemned.name_of(data, bucket.now)
    await bucket.memory.create(name, data[:-1])
    bucket.now += 2 * DAY
    await bucket.collect()
    assert await bucket.get("key") == {""}
    with pytest.raises(ObjectAbsent):
        await bucket.memory.get(name)
