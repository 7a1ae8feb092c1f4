"""Prefetch: what is asked of the bucket, how much at one time, and what is left out."""

import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import anyio
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3cache import catalog, names, pack, prefetch, prelude, profile
from s3cache.cache import Cache
from s3cache.catalog import Reference
from s3cache.digest import DIGEST_BYTES
from s3cache.errors import Busy, Forbidden, StoreError, Unreachable
from s3cache.keyring import NO_KEYS
from s3cache.local import LocalEntries
from s3cache.machine import Machine
from s3cache.manifest import Place, Result
from s3cache.pack import Pack, PackFrame
from s3cache.prefetch import Progress, bring, open_profile, ranges, read_profile, worth_fetching
from s3cache.prelude import Prelude
from s3cache.profile import Segment
from s3cache.stores.base import ObjectStore
from s3cache.stores.wrapper import WrapperStore
from s3cache.tier import DiskTier
from tests.wrappers import WatchedBucket

pytestmark = pytest.mark.anyio

PREFIX = "profiles/job/linux-x86_64/"
ROOM = 1 << 30


class Bucket(WatchedBucket):
    """A bucket, what may lie there, and fresh machines."""

    def new_machine(self, store: ObjectStore | None = None) -> tuple[Cache, DiskTier]:
        """Return the cache and the disk of a machine that has nothing yet."""
        tier = self.new_tier(256 << 20)
        return Cache(store or self.store, tier, Machine(), NO_KEYS), tier

    def add_pack(self, seed: int, frames: int = 1) -> Pack:
        """Add a pack of so many frames, each of its own namespace."""
        results = [
            Result(f"ns{number}", f"{seed}", {"a.cubin": random.Random(f"{seed} {number}").randbytes(1000)})
            for number in range(frames)
        ]
        made = pack.build(results, {})
        self.objects[names.pack_name(made.digest)] = made.data
        return made

    def add_segment(self, number: int, *packs: Pack, replaces: Iterable[str] = ()) -> str:
        """Add a segment that names all of some packs; return its name."""
        manifests = [built for made in packs for built in made.manifests]
        segment = Segment(
            [packed for made in packs for packed in made.frames],
            catalog.build([Reference(0, built) for built in manifests], NO_KEYS),
            list(replaces),
            profile=PREFIX,
        )
        data = profile.encode(segment, NO_KEYS)
        name = profile.segment_name(PREFIX, number, data)
        self.objects[name] = data
        return name

    def add_prelude(self, *segments: str, damage: Callable[[bytes], bytes] = bytes) -> str:
        """Add a prelude of all frames of segments, each damaged; return its name."""
        frames = {
            packed.place.name: self.objects[names.pack_name(packed.place.pack)][
                packed.place.offset : packed.place.offset + packed.place.length
            ]
            for name in segments
            for packed in profile.decode(name, self.objects[name], NO_KEYS).frames
        }
        self.objects[names.prelude_name(PREFIX)] = prelude.encode(
            Prelude(
                {name: self.objects[name] for name in segments},
                {name: damage(content) for name, content in frames.items()},
            )
        )
        return names.prelude_name(PREFIX)

    def damage_pack(self, made: Pack, damage: Callable[[bytes], bytes]) -> None:
        """Change what lies in the bucket in the place of a pack."""
        name = names.pack_name(made.digest)
        self.objects[name] = damage(self.objects[name])


@pytest.fixture
def bucket(tmp_path: Path) -> Bucket:
    return Bucket(tmp_path)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what the bucket was too busy for wait longer than any test."""
    monkeypatch.setattr(prefetch, "_PAUSE_SECONDS", 1000.0)
    monkeypatch.setattr(prefetch, "_LONGEST_PAUSE_SECONDS", 1000.0)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what the bucket was too busy for wait next to nothing."""
    monkeypatch.setattr(prefetch, "_PAUSE_SECONDS", 0.0001)
    monkeypatch.setattr(prefetch, "_LONGEST_PAUSE_SECONDS", 0.001)


def packed(
    offset: int = 0,
    length: int = 100,
    pack_digest: bytes = b"p" * DIGEST_BYTES,
    namespace: str = "ns",
    **requires: str,
) -> PackFrame:
    """Return a frame that lies in no bucket."""
    return PackFrame(Place(pack_digest, offset, length, length), b"d" * DIGEST_BYTES, namespace, requires)


def in_tier(tier: DiskTier, *packs: Pack) -> list[list[bool]]:
    """Return which frames of packs are in a tier, with the right bytes."""
    return [
        [
            tier.read(of.place.name) == made.data[of.place.offset : of.place.offset + of.place.length]
            for of in made.frames
        ]
        for made in packs
    ]


# Round trips.


async def test_a_start_is_a_list_then_all_segments_then_all_ranges(bucket: Bucket) -> None:
    packs = [bucket.add_pack(number, frames=3) for number in range(4)]
    segments = [bucket.add_segment(number, *packs[number : number + 2]) for number in range(0, 4, 2)]
    cache, tier = bucket.new_machine()
    read: dict[str, Segment] = {}

    async def read_all() -> None:
        read.update(await read_profile(cache, bucket.store, PREFIX))

    gate = bucket.store.close_gate()
    async with anyio.create_task_group() as group:
        group.start_soon(read_all)
        await anyio.wait_all_tasks_blocked()
        assert sorted(bucket.store.requests) == [*(f"GET {name}" for name in segments), f"LIST {PREFIX}"]
        gate.set()
    frames = worth_fetching(read.values(), Machine(), (), ROOM)
    bucket.store.requests.clear()
    gate = bucket.store.close_gate()
    async with anyio.create_task_group() as group:
        group.start_soon(bring, cache, frames, Progress())
        await anyio.wait_all_tasks_blocked()
        whole = [f"GET {names.pack_name(made.digest)} 0-{len(made.data)}" for made in packs]
        assert sorted(bucket.store.requests) == sorted(whole)
        gate.set()
    assert in_tier(tier, *packs) == [[True] * 3] * 4
    assert len(bucket.store.requests) == 4


async def test_a_start_on_a_machine_that_has_all_is_one_list(bucket: Bucket) -> None:
    made = bucket.add_pack(1, frames=3)
    bucket.add_segment(1, made)
    cache, tier = bucket.new_machine()
    for _ in range(2):
        bucket.store.requests.clear()
        segments = await read_profile(cache, bucket.store, PREFIX)
        await bring(cache, worth_fetching(segments.values(), Machine(), (), ROOM), Progress())
    assert bucket.store.requests == [f"LIST {PREFIX}"]
    assert in_tier(tier, made) == [[True] * 3]


async def test_what_the_profile_names_is_found_on_the_disk(bucket: Bucket) -> None:
    made = bucket.add_pack(1, frames=3)
    bucket.add_segment(1, made)
    cache, tier = bucket.new_machine()
    segments = await read_profile(cache, bucket.store, PREFIX)
    await bring(cache, worth_fetching(segments.values(), Machine(), (), ROOM), Progress())
    found = LocalEntries(tier, names.catalog_prefixes("job", "linux-x86_64"), NO_KEYS)
    for number, built in enumerate(made.manifests):
        assert found.manifest(f"ns{number}", "1", 0) == built
        entry = found.entry(built, 0)
        assert entry is not None
        assert entry.members == {"a.cubin": random.Random(f"1 {number}").randbytes(1000)}


async def test_of_a_profile_that_is_too_large_the_newest_is_read(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    older, newer, newest = (bucket.add_segment(number, bucket.add_pack(number)) for number in range(3))
    sizes = [len(bucket.objects[name]) for name in (newest, newer)]
    monkeypatch.setattr("s3cache.prefetch.PROFILE_BYTES", sum(sizes))
    cache, _ = bucket.new_machine()
    assert sorted(await read_profile(cache, bucket.store, PREFIX)) == [newer, newest]
    assert f"GET {older}" not in bucket.store.requests


# The prelude.


async def open_and_bring(bucket: Bucket, cache: Cache) -> dict[str, Segment]:
    segments, _, held = await open_profile(cache, bucket.store, PREFIX)
    copies = held.frames if held else None
    await bring(cache, worth_fetching(segments.values(), Machine(), (), ROOM), Progress(), copies)
    return segments


async def test_the_prelude_and_the_list_are_one_round_trip_and_all_that_is_needed(bucket: Bucket) -> None:
    made = bucket.add_pack(1, frames=3)
    segment = bucket.add_segment(1, made)
    bucket.add_prelude(segment)
    cache, tier = bucket.new_machine()
    gate = bucket.store.close_gate()
    async with anyio.create_task_group() as group:
        group.start_soon(open_and_bring, bucket, cache)
        await anyio.wait_all_tasks_blocked()
        assert len(bucket.store.requests) == 2
        gate.set()
    assert len(bucket.store.requests) == 2
    assert in_tier(tier, made) == [[True] * 3]


async def test_what_came_since_the_prelude_is_fetched_beside_it(bucket: Bucket) -> None:
    old, new = bucket.add_pack(1, frames=3), bucket.add_pack(2, frames=3)
    bucket.add_prelude(bucket.add_segment(1, old))
    segment = bucket.add_segment(2, new)
    cache, tier = bucket.new_machine()
    assert len(await open_and_bring(bucket, cache)) == 2
    assert bucket.store.asked("GET")[1:] == [segment, names.pack_name(new.digest)]
    assert in_tier(tier, old, new) == [[True] * 3] * 2


async def test_a_segment_that_is_in_the_prelude_alone_is_no_part_of_the_profile(bucket: Bucket) -> None:
    segment = bucket.add_segment(1, bucket.add_pack(1))
    bucket.add_prelude(segment)
    del bucket.objects[segment]
    cache, _ = bucket.new_machine()
    assert await open_and_bring(bucket, cache) == {}


async def test_frames_of_a_prelude_that_do_not_match_are_fetched_from_their_pack(bucket: Bucket) -> None:
    made = bucket.add_pack(1, frames=3)
    bucket.add_prelude(bucket.add_segment(1, made), damage=lambda content: content[:-1] + b"!")
    cache, tier = bucket.new_machine()
    await open_and_bring(bucket, cache)
    assert in_tier(tier, made) == [[True] * 3]


@pytest.mark.parametrize("damage", [b"", b"damaged", bytes(5 << 20)], ids=["empty", "short", "too long"])
async def test_a_start_does_without_a_prelude_that_cannot_be_used(bucket: Bucket, damage: bytes) -> None:
    made = bucket.add_pack(1, frames=3)
    name = bucket.add_prelude(bucket.add_segment(1, made))
    bucket.objects[name] = damage
    cache, tier = bucket.new_machine()
    await open_and_bring(bucket, cache)
    assert in_tier(tier, made) == [[True] * 3]


@pytest.mark.parametrize(
    "error", [Unreachable("no"), Forbidden("no"), Busy("no")], ids=lambda e: type(e).__name__
)
async def test_a_start_does_without_a_prelude_that_cannot_be_read(
    bucket: Bucket, error: StoreError
) -> None:
    made = bucket.add_pack(1, frames=3)
    bucket.add_prelude(bucket.add_segment(1, made))
    cache, tier = bucket.new_machine()
    bucket.faulty.fail("get", error)
    await open_and_bring(bucket, cache)
    assert in_tier(tier, made) == [[True] * 3]


async def test_a_bucket_that_cannot_be_listed_is_an_error_whatever_the_prelude_has(bucket: Bucket) -> None:
    bucket.add_prelude(bucket.add_segment(1, bucket.add_pack(1)))
    cache, _ = bucket.new_machine()
    bucket.faulty.fail("list", Unreachable("no"))
    with pytest.raises(Unreachable):
        await open_profile(cache, bucket.store, PREFIX)


# The profile.


async def test_all_segments_are_read(bucket: Bucket) -> None:
    packs = {number: bucket.add_pack(number) for number in (3, 1, 2)}
    segments = {bucket.add_segment(number, made): made for number, made in packs.items()}
    cache, _ = bucket.new_machine()
    found = await read_profile(cache, bucket.store, PREFIX)
    assert {name: segment.frames for name, segment in found.items()} == {
        name: made.frames for name, made in segments.items()
    }


async def test_a_segment_that_others_replace_is_not_used(bucket: Bucket) -> None:
    packs = [bucket.add_pack(number) for number in range(3)]
    old = [bucket.add_segment(number, packs[number]) for number in range(2)]
    new = bucket.add_segment(2, packs[2], replaces=old)
    cache, _ = bucket.new_machine()
    found = await read_profile(cache, bucket.store, PREFIX)
    assert {*found} == {*old, new}
    assert worth_fetching(profile.live(found).values(), Machine(), (), ROOM) == packs[2].frames


async def test_a_profile_of_no_segments_is_empty(bucket: Bucket) -> None:
    cache, _ = bucket.new_machine()
    assert await read_profile(cache, bucket.store, PREFIX) == {}
    assert bucket.store.requests == [f"LIST {PREFIX}"]


async def test_a_segment_that_cannot_be_used_is_skipped(bucket: Bucket) -> None:
    segments = [bucket.add_segment(number, bucket.add_pack(number)) for number in range(4)]
    bucket.objects[segments[0]] = b"damaged"
    bucket.objects[segments[2]] = bucket.objects[segments[2]][:-1]
    cache, _ = bucket.new_machine()
    assert {*await read_profile(cache, bucket.store, PREFIX)} == {segments[1], segments[3]}


@pytest.mark.parametrize("error", [Unreachable("no"), Forbidden("no")], ids=lambda e: type(e).__name__)
async def test_a_segment_that_cannot_be_read_is_skipped(bucket: Bucket, error: StoreError) -> None:
    for number in range(3):
        bucket.add_segment(number, bucket.add_pack(number))
    cache, _ = bucket.new_machine()
    bucket.faulty.fail("get", error)
    assert len(await read_profile(cache, bucket.store, PREFIX)) == 2


@pytest.mark.parametrize("request_kind", ["list", "get"])
async def test_a_bucket_that_asks_for_fewer_requests_is_asked_again(
    bucket: Bucket, request_kind: str
) -> None:
    for number in range(3):
        bucket.add_segment(number, bucket.add_pack(number))
    cache, _ = bucket.new_machine()
    bucket.faulty.fail(request_kind, Busy("no"))
    assert len(await read_profile(cache, bucket.store, PREFIX)) == 3


async def test_a_bucket_that_cannot_be_listed_is_an_error(bucket: Bucket) -> None:
    cache, _ = bucket.new_machine()
    bucket.faulty.fail("list", Unreachable("no"))
    with pytest.raises(Unreachable):
        await read_profile(cache, bucket.store, PREFIX)


async def test_what_else_lies_among_the_segments_is_not_read(bucket: Bucket) -> None:
    bucket.objects[f"{PREFIX}README"] = b"no segment"
    cache, _ = bucket.new_machine()
    assert await read_profile(cache, bucket.store, PREFIX) == {}
    assert bucket.store.asked("GET") == []


async def test_of_a_long_profile_the_newest_segments_are_read(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "SEGMENTS", 2)
    segments = [bucket.add_segment(number, bucket.add_pack(1)) for number in range(4)]
    cache, _ = bucket.new_machine()
    assert {*await read_profile(cache, bucket.store, PREFIX)} == {*segments[2:]}
    assert sorted(bucket.store.asked("GET")) == segments[2:]


# What is worth fetching.


def worth(*frames: PackFrame, exclude: Iterable[str] = (), room: int = ROOM) -> list[PackFrame]:
    machine = Machine()
    machine.learn("isa", lambda: "avx2")
    return worth_fetching([Segment([*frames], b"")], machine, frozenset(exclude), room)


def test_excluded_namespaces_are_not_fetched() -> None:
    one, other = packed(0, namespace="fx-graph"), packed(100, namespace="triton")
    assert worth(one, other, exclude=["triton"]) == [one]


def test_what_this_machine_does_not_meet_is_not_fetched() -> None:
    met, unmet = packed(0, isa="avx2"), packed(100, isa="avx512")
    assert worth(met, unmet) == [met]


def test_a_requirement_that_nothing_is_known_of_yet_may_be_met() -> None:
    unknown, unmet = packed(0, device="gpu"), packed(100, device="gpu", isa="avx512")
    assert worth(unknown, unmet) == [unknown]


def test_frames_come_in_the_order_of_the_segments_each_once() -> None:
    one, two, three = (packed(offset) for offset in (200, 0, 100))
    segments = [Segment([one, two, one], b""), Segment([two, three], b"")]
    assert worth_fetching(segments, Machine(), (), ROOM) == [one, two, three]


def test_frames_at_one_offset_of_different_packs_are_different() -> None:
    frames = [packed(0, pack_digest=bytes([number]) * DIGEST_BYTES) for number in range(3)]
    assert worth(*frames) == frames


def test_frames_are_fetched_for_as_long_as_there_is_room() -> None:
    frames = [packed(number * 100) for number in range(4)]
    assert worth(*frames, room=400) == frames
    assert worth(*frames, room=399) == frames[:3]
    assert worth(*frames, room=99) == []


def test_what_is_not_fetched_and_what_is_named_twice_takes_no_room() -> None:
    one, two = packed(0), packed(100)
    excluded, unmet = packed(200, namespace="triton"), packed(300, isa="avx512")
    assert worth(excluded, one, unmet, one, two, exclude=["triton"], room=200) == [one, two]


def test_a_frame_that_is_too_large_is_left_to_who_needs_it() -> None:
    large, after = packed(0, prefetch.FRAME_BYTES + 1), packed(prefetch.FRAME_BYTES + 1)
    largest = packed(0, prefetch.FRAME_BYTES)
    assert worth(large, after) == [after]
    assert worth(largest) == [largest]


# Ranges.


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(1, 1200 << 10), st.booleans()), max_size=30),
    st.booleans(),
)
def test_ranges_are_neighbours_of_one_pack_up_to_a_size(
    drawn: list[tuple[int, int, bool]], is_shuffled: bool
) -> None:
    ends = [0, 0, 0]
    frames: list[PackFrame] = []
    for number, length, leaves_gap in sorted(drawn, key=lambda item: item[0]):
        offset = ends[number] + leaves_gap
        frames.append(packed(offset, length, bytes([number]) * DIGEST_BYTES))
        ends[number] = offset + length
    if is_shuffled:
        random.Random(1).shuffle(frames)
    runs = list(ranges(frames))
    assert [each for run in runs for each in run] == frames
    for run in runs:
        assert len({each.place.pack for each in run}) == 1
        end = run[0].place.offset
        for each in run:
            assert each.place.offset == end
            end += each.place.length
        assert len(run) == 1 or end - run[0].place.offset <= prefetch.RANGE_BYTES


def cut(*frames: PackFrame) -> list[int]:
    """Return how many frames are in each range."""
    return [len(run) for run in ranges(frames)]


def test_neighbours_are_one_range_up_to_a_size() -> None:
    half = prefetch.RANGE_BYTES // 2
    assert cut(packed(0, half), packed(half, half)) == [2]
    assert cut(packed(0, half), packed(half, half + 1)) == [1, 1]
    assert cut(packed(7, half), packed(7 + half, half), packed(7 + 2 * half, half)) == [2, 1]


def test_a_frame_that_is_larger_is_a_range_of_its_own() -> None:
    size = prefetch.RANGE_BYTES + 1
    assert cut(packed(0, 1), packed(1, size), packed(1 + size, 1)) == [1, 1, 1]


def test_frames_that_do_not_follow_each_other_are_not_one_range() -> None:
    assert cut(packed(0, 10), packed(11, 10)) == [1, 1]
    assert cut(packed(10, 10), packed(0, 10)) == [1, 1]
    assert cut(packed(0, 10), packed(0, 10)) == [1, 1]


def test_packs_are_never_one_range() -> None:
    assert cut(packed(0, 10, b"1" * DIGEST_BYTES), packed(10, 10, b"2" * DIGEST_BYTES)) == [1, 1]


def test_of_no_frames_there_are_no_ranges() -> None:
    assert cut() == []


# Bringing.


async def test_neighbours_come_with_one_request(bucket: Bucket) -> None:
    made = bucket.add_pack(1, frames=4)
    cache, tier = bucket.new_machine()
    await bring(cache, made.frames[1:3], Progress())
    first, last = made.frames[1].place, made.frames[2].place
    expected = f"GET {names.pack_name(made.digest)} {first.offset}-{last.offset + last.length}"
    assert bucket.store.requests == [expected]
    assert in_tier(tier, made) == [[False, True, True, False]]


async def test_what_is_on_disk_is_not_asked_for(bucket: Bucket) -> None:
    made = bucket.add_pack(1, frames=4)
    cache, tier = bucket.new_machine()
    await bring(cache, made.frames[1:2], Progress())
    bucket.store.requests.clear()
    await bring(cache, made.frames, Progress())
    ends = [of.place.offset + of.place.length for of in made.frames]
    name = names.pack_name(made.digest)
    assert bucket.store.requests == [f"GET {name} 0-{ends[0]}", f"GET {name} {ends[1]}-{ends[3]}"]
    assert in_tier(tier, made) == [[True] * 4]
    bucket.store.requests.clear()
    await bring(cache, made.frames, Progress())
    assert bucket.store.requests == []


async def test_what_is_on_its_way_is_not_asked_for_again(bucket: Bucket) -> None:
    made = bucket.add_pack(1, frames=2)
    cache, tier = bucket.new_machine()
    gate = bucket.store.close_gate()
    async with anyio.create_task_group() as group:
        for _ in range(2):
            group.start_soon(bring, cache, made.frames, Progress())
        await anyio.wait_all_tasks_blocked()
        gate.set()
    assert len(bucket.store.requests) == 1
    assert in_tier(tier, made) == [[True] * 2]


async def test_a_look_up_waits_for_what_is_on_its_way(bucket: Bucket) -> None:
    made = bucket.add_pack(1, frames=2)
    cache, _ = bucket.new_machine()
    gate = bucket.store.close_gate()
    async with anyio.create_task_group() as group:
        group.start_soon(bring, cache, made.frames, Progress())
        await anyio.wait_all_tasks_blocked()
        group.start_soon(cache.fill, made.manifests[1], 0)
        await anyio.wait_all_tasks_blocked()
        assert len(bucket.store.requests) == 1
        gate.set()
    assert len(bucket.store.requests) == 1


async def test_progress_is_in_bytes(bucket: Bucket) -> None:
    packs = [bucket.add_pack(number, frames=2) for number in range(3)]
    size = sum(len(made.data) for made in packs)
    bucket.damage_pack(packs[1], lambda _: b"")
    cache, _ = bucket.new_machine()
    progress = Progress()
    await bring(cache, [of for made in packs for of in made.frames], progress)
    assert (progress.bytes, progress.of) == (size - len(packs[1].data), size)


async def test_a_pack_that_is_absent_is_skipped_and_the_others_arrive(bucket: Bucket) -> None:
    packs = [bucket.add_pack(number, frames=2) for number in range(3)]
    del bucket.objects[names.pack_name(packs[1].digest)]
    cache, tier = bucket.new_machine()
    await bring(cache, [of for made in packs for of in made.frames], Progress())
    assert in_tier(tier, *packs) == [[True, True], [False, False], [True, True]]


@pytest.mark.parametrize("missing", [1, 1000])
async def test_what_a_truncated_pack_still_has_and_the_other_packs_arrive(
    bucket: Bucket, missing: int
) -> None:
    packs = [bucket.add_pack(number, frames=2) for number in range(3)]
    bucket.damage_pack(packs[1], lambda data: data[:-missing])
    cache, tier = bucket.new_machine()
    await bring(cache, [of for made in packs for of in made.frames], Progress())
    assert in_tier(tier, *packs) == [[True, True], [True, False], [True, True]]


async def test_a_frame_with_another_digest_is_skipped_and_the_others_arrive(bucket: Bucket) -> None:
    packs = [bucket.add_pack(number) for number in range(3)]
    cache, tier = bucket.new_machine()
    frames = [made.frames[0] for made in packs]
    frames[1] = msgspec.structs.replace(frames[1], digest=b"d" * DIGEST_BYTES)
    await bring(cache, frames, Progress())
    assert in_tier(tier, *packs) == [[True], [False], [True]]


async def test_what_follows_a_frame_with_another_digest_in_one_range_arrives(bucket: Bucket) -> None:
    made = bucket.add_pack(1, frames=4)
    cache, tier = bucket.new_machine()
    frames = [*made.frames]
    frames[1] = msgspec.structs.replace(frames[1], digest=b"d" * DIGEST_BYTES)
    await bring(cache, frames, Progress())
    assert in_tier(tier, made) == [[True, False, True, True]]
    assert len(bucket.store.requests) == 1


async def test_a_damaged_frame_is_not_kept(bucket: Bucket) -> None:
    made = bucket.add_pack(1, frames=2)
    bucket.damage_pack(made, lambda data: data[:-1] + bytes([data[-1] ^ 1]))
    cache, tier = bucket.new_machine()
    await bring(cache, made.frames, Progress())
    assert in_tier(tier, made) == [[True, False]]
    assert tier.names() == [made.frames[0].place.name]


@pytest.mark.parametrize("error", [Unreachable("no"), Forbidden("no")], ids=lambda e: type(e).__name__)
async def test_a_range_that_fails_is_skipped_and_not_tried_again(bucket: Bucket, error: StoreError) -> None:
    packs = [bucket.add_pack(number) for number in range(3)]
    cache, tier = bucket.new_machine()
    bucket.faulty.fail("get", error)
    await bring(cache, [made.frames[0] for made in packs], Progress())
    assert in_tier(tier, *packs) == [[False], [True], [True]]
    assert len(bucket.store.requests) == 3


# How much at one time.


class Turn(NamedTuple):
    """A GET that waits for its answer."""

    answered: anyio.Event
    errors: list[StoreError]


class TurnsStore(WrapperStore):
    """Answers a GET when it is told to."""

    def __init__(self, inner: ObjectStore) -> None:
        super().__init__(inner)
        self.waiting: list[Turn] = []

    async def get(self, name: str, part: range | None = None) -> bytes:
        turn = Turn(anyio.Event(), [])
        self.waiting.append(turn)
        await turn.answered.wait()
        for error in turn.errors:
            raise error
        return await super().get(name, part)

    async def answer(self, *errors: StoreError) -> int:
        """Answer the GET that waits for longest, by an error if there is one; return how many wait then."""
        turn = self.waiting.pop(0)
        turn.errors.extend(errors)
        turn.answered.set()
        await anyio.wait_all_tasks_blocked()
        return len(self.waiting)


async def test_so_many_ranges_are_under_way_at_one_time(bucket: Bucket) -> None:
    packs = [bucket.add_pack(number) for number in range(prefetch.AT_ONCE + 3)]
    turns = TurnsStore(bucket.memory)
    cache, _ = bucket.new_machine(turns)
    async with anyio.create_task_group() as group:
        group.start_soon(bring, cache, [made.frames[0] for made in packs], Progress())
        await anyio.wait_all_tasks_blocked()
        assert len(turns.waiting) == prefetch.AT_ONCE
        left = [await turns.answer() for _ in range(5)]
        assert left == [*[prefetch.AT_ONCE] * 3, prefetch.AT_ONCE - 1, prefetch.AT_ONCE - 2]
        group.cancel_scope.cancel()


@pytest.mark.usefixtures("patient")
async def test_a_busy_bucket_is_asked_for_half_as_much_then_for_one_more_with_each_success(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "AT_ONCE", 8)
    packs = [bucket.add_pack(number) for number in range(40)]
    turns = TurnsStore(bucket.memory)
    cache, _ = bucket.new_machine(turns)
    async with anyio.create_task_group() as group:
        group.start_soon(bring, cache, [made.frames[0] for made in packs], Progress())
        await anyio.wait_all_tasks_blocked()
        # From 8 to 4: nothing new begins until there are fewer than may be, and those are one more each.
        assert await turns.answer(Busy("less")) == 7
        assert [await turns.answer() for _ in range(6)] == [6, 6, 7, 8, 8, 8]
        group.cancel_scope.cancel()


@pytest.mark.usefixtures("patient")
async def test_a_bucket_that_is_always_busy_is_asked_for_one_thing_at_a_time(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prefetch, "AT_ONCE", 4)
    packs = [bucket.add_pack(number) for number in range(12)]
    turns = TurnsStore(bucket.memory)
    cache, _ = bucket.new_machine(turns)
    async with anyio.create_task_group() as group:
        group.start_soon(bring, cache, [made.frames[0] for made in packs], Progress())
        await anyio.wait_all_tasks_blocked()
        assert [await turns.answer(Busy("less")) for _ in range(8)] == [3, 2, 1, 1, 1, 1, 1, 1]
        group.cancel_scope.cancel()


@pytest.mark.usefixtures("patient")
async def test_what_the_bucket_was_too_busy_for_waits_before_it_is_asked_for_again(bucket: Bucket) -> None:
    made = bucket.add_pack(1)
    turns = TurnsStore(bucket.memory)
    cache, _ = bucket.new_machine(turns)
    async with anyio.create_task_group() as group:
        group.start_soon(bring, cache, made.frames, Progress())
        await anyio.wait_all_tasks_blocked()
        assert await turns.answer(Busy("less")) == 0
        group.cancel_scope.cancel()


@pytest.mark.usefixtures("hasty")
async def test_what_the_bucket_was_too_busy_for_is_asked_for_until_it_comes(bucket: Bucket) -> None:
    packs = [bucket.add_pack(number, frames=2) for number in range(30)]
    cache, tier = bucket.new_machine()
    for _ in range(200):
        bucket.faulty.fail("get", Busy("less"))
    progress = Progress()
    await bring(cache, [of for made in packs for of in made.frames], progress)
    assert in_tier(tier, *packs) == [[True, True]] * 30
    assert len(bucket.store.requests) == 230
    assert progress.bytes == progress.of
