"""A job's profile in the agent: what makes the next segment, and what that says of this start."""

import random
from collections.abc import Collection
from pathlib import Path

import pytest

from s3cache import catalog, manifest, names, pack, profile
from s3cache.agent.job_profile import JobProfile
from s3cache.catalog import Catalog, Reference
from s3cache.digest import raw_digest_of
from s3cache.keyring import NO_KEYS
from s3cache.manifest import Manifest, Result
from s3cache.profile import Segment
from s3cache.tier import DiskTier

WRITER = {"package": "1"}
ON_DEMAND = frozenset(["a.ttir", "b.ttir"])


@pytest.fixture
def tier(tmp_path: Path) -> DiskTier:
    return DiskTier(tmp_path / "tier", 64 << 20)


@pytest.fixture
def job() -> JobProfile:
    return new_start()


def new_start(*segments: Segment) -> JobProfile:
    """Return the profile of a start that has read segments, the oldest first."""
    job = JobProfile("job", "linux-x86_64", NO_KEYS)
    job.learn({f"{job.prefix}{number:013d}-00000000": each for number, each in enumerate(segments)})
    return job


def store(tier: DiskTier, *keys: str, namespace: str = "ns", slot: int = 0) -> list[Manifest]:
    """Put small results, and no profile, on disk."""
    stored = []
    for key in keys:
        built = manifest.inline(Result(namespace, key, {"a": f"{key} {slot}".encode()}), {})
        assert built is not None
        tier.write(names.manifest_name(namespace, key, slot), manifest.encode(built, NO_KEYS))
        stored.append(built)
    return stored


def store_packed(tier: DiskTier, *results: Result) -> pack.Pack:
    """Put results of one pack on disk."""
    made = pack.build(results, {})
    for place in (packed.place for packed in made.frames):
        tier.write(place.name, made.data[place.offset : place.offset + place.length])
    for built in made.manifests:
        tier.write(names.manifest_name(built.namespace, built.key, 0), manifest.encode(built, NO_KEYS))
    return made


def large(number: int, namespace: str = "triton") -> Result:
    """Return a result of a member that a start reads and two that are on demand."""
    members = {"a.cubin": random.Random(number).randbytes(1000), "a.ttir": b"a", "b.ttir": b"b"}
    return Result(namespace, f"{number}", members, requires={"isa": "avx2"}, on_demand=ON_DEMAND)


def made(job: JobProfile, tier: DiskTier) -> Segment:
    """Return the next segment, as another machine reads it, once it is learned."""
    segment = job.next_segment(tier, WRITER)
    assert segment is not None
    data = profile.encode(segment, NO_KEYS)
    name = profile.new_segment_name(job.prefix, data)
    job.learn({name: segment})
    return profile.decode(name, data, NO_KEYS)


def references(segment: Segment) -> list[Reference]:
    return list(Catalog(segment.catalog, NO_KEYS).references())


def keys(segment: Segment) -> list[str]:
    return [reference.manifest.key for reference in references(segment)]


def digest(key: str, slot: int = 0) -> bytes:
    return catalog.short_digest(names.manifest_name("ns", key, slot))


# What is new.


def test_what_is_used_makes_a_segment_in_the_order_of_use(tier: DiskTier, job: JobProfile) -> None:
    stored = store(tier, "c", "a", "b")
    for key in "cab":
        job.add("ns", key, 0)
    segment = made(job, tier)
    assert references(segment) == [Reference(0, built) for built in stored]
    assert (segment.replaces, segment.unused, segment.writer) == ([], {}, WRITER)


def test_where_nothing_is_used_there_is_no_segment(tier: DiskTier, job: JobProfile) -> None:
    assert job.next_segment(tier, WRITER) is None


def test_what_is_learned_is_not_new(tier: DiskTier, job: JobProfile) -> None:
    store(tier, "a", "b")
    job.add("ns", "a", 0)
    later = new_start(made(job, tier))
    later.add("ns", "a", 0)
    assert later.next_segment(tier, WRITER) is None
    later.add("ns", "b", 0)
    assert keys(made(later, tier)) == ["b"]


def test_what_is_learned_after_it_was_used_is_not_new(tier: DiskTier, job: JobProfile) -> None:
    store(tier, "a", "b")
    job.add("ns", "a", 0)
    learned = made(job, tier)
    later = new_start()
    later.add("ns", "a", 0)
    later.add("ns", "b", 0)
    later.learn({"profiles/job/linux-x86_64/1": learned})
    assert keys(made(later, tier)) == ["b"]


def test_what_is_in_one_segment_of_a_start_is_not_in_its_next(tier: DiskTier, job: JobProfile) -> None:
    store(tier, "a", "b")
    job.add("ns", "a", 0)
    assert keys(made(job, tier)) == ["a"]
    job.add("ns", "a", 0)
    assert job.next_segment(tier, WRITER) is None
    job.add("ns", "b", 0)
    assert keys(made(job, tier)) == ["b"]


def test_a_segment_that_was_not_stored_is_made_again(tier: DiskTier, job: JobProfile) -> None:
    store(tier, "a")
    job.add("ns", "a", 0)
    assert job.next_segment(tier, WRITER) is not None
    assert keys(made(job, tier)) == ["a"]


def test_slots_of_a_key_are_each_new(tier: DiskTier, job: JobProfile) -> None:
    for slot in range(2):
        store(tier, "a", slot=slot)
        job.add("ns", "a", slot)
    assert [reference.slot for reference in references(made(job, tier))] == [0, 1]


def test_what_is_not_on_disk_any_more_is_left_out(tier: DiskTier, job: JobProfile) -> None:
    store(tier, "a", "b")
    for key in "ab":
        job.add("ns", key, 0)
    tier.remove("manifests/ns/a/0")
    assert keys(made(job, tier)) == ["b"]


def test_where_nothing_is_on_disk_any_more_there_is_no_segment(tier: DiskTier, job: JobProfile) -> None:
    job.add("ns", "a", 0)
    assert job.next_segment(tier, WRITER) is None


def test_what_is_no_manifest_is_left_out(tier: DiskTier, job: JobProfile) -> None:
    tier.write("manifests/ns/a/0", b"no manifest")
    job.add("ns", "a", 0)
    assert job.next_segment(tier, WRITER) is None


def test_a_use_of_a_key_is_of_all_its_slots_on_disk_and_in_the_profile(
    tier: DiskTier, job: JobProfile
) -> None:
    for slot in range(2):
        store(tier, "a", slot=slot)
        job.add("ns", "a", slot)
    first = made(job, tier)
    for slot in range(2):
        tier.remove(names.manifest_name("ns", "a", slot))
    store(tier, "a", slot=2)
    store(tier, "a", slot=4)
    later = new_start(first)
    later.use(tier, "ns", "a")
    segment = made(later, tier)
    assert [reference.slot for reference in references(segment)] == [2]
    assert segment.unused == {}


# What was not used.


def test_what_the_profile_has_and_a_start_does_not_use_is_unused(tier: DiskTier, job: JobProfile) -> None:
    store(tier, "a", "b", "c", "new")
    for key in "abc":
        job.add("ns", key, 0)
    later = new_start(made(job, tier))
    later.add("ns", "b", 0)
    later.add("ns", "new", 0)
    assert made(later, tier).unused == {digest("a"): 1, digest("c"): 1}


def test_what_several_segments_have_is_unused_once(tier: DiskTier, job: JobProfile) -> None:
    store(tier, "a", "new")
    job.add("ns", "a", 0)
    segment = made(job, tier)
    later = new_start(segment, segment)
    later.add("ns", "new", 0)
    assert made(later, tier).unused == {digest("a"): 1}


def test_a_start_says_once_what_it_had_no_use_for(tier: DiskTier, job: JobProfile) -> None:
    store(tier, "a", "b", "new", "newer")
    for key in "ab":
        job.add("ns", key, 0)
    later = new_start(made(job, tier))
    later.add("ns", "new", 0)
    assert made(later, tier).unused == {digest("a"): 1, digest("b"): 1}
    later.add("ns", "newer", 0)
    later.add("ns", "b", 0)
    assert made(later, tier).unused == {digest("a"): 0}


def test_so_many_results_are_in_the_profile(tier: DiskTier, job: JobProfile) -> None:
    assert len(job) == 0
    store(tier, "a", "b")
    for key in "ab":
        job.add("ns", key, 0)
    segment = made(job, tier)
    assert len(new_start(segment, segment)) == 2


# Members on demand.


def test_members_on_demand_that_were_opened_are_in_the_reference(tier: DiskTier, job: JobProfile) -> None:
    store_packed(tier, large(1))
    job.add("triton", "1", 0)
    job.add("triton", "1", 0, ["b.ttir"])
    job.add("triton", "1", 0, ["a.ttir", "b.ttir"])
    assert [reference.opened for reference in references(made(job, tier))] == [["a.ttir", "b.ttir"]]


@pytest.mark.parametrize(
    ("before", "now", "is_new"),
    [
        ([], [], False),
        (["a.ttir"], [], False),
        (["a.ttir"], ["a.ttir"], False),
        (["a.ttir", "b.ttir"], ["b.ttir"], False),
        ([], ["a.ttir"], True),
        (["a.ttir"], ["b.ttir"], True),
        (["a.ttir"], ["a.ttir", "b.ttir"], True),
    ],
)
def test_what_is_opened_for_the_first_time_is_new(
    tier: DiskTier, job: JobProfile, before: Collection[str], now: Collection[str], is_new: bool
) -> None:
    store_packed(tier, large(1))
    job.add("triton", "1", 0, before)
    first = made(job, tier)
    learned, learning = new_start(first), new_start()
    for later in learned, learning:
        later.add("triton", "1", 0, now)
    learning.learn({"profiles/job/linux-x86_64/1": first})
    for later in learned, learning:
        next_segment = later.next_segment(tier, WRITER)
        assert (next_segment is not None) == is_new
        assert next_segment is None or set(now) <= set(references(next_segment)[0].opened)


def test_starts_that_open_different_members_by_turns_soon_add_nothing(tier: DiskTier) -> None:
    store_packed(tier, large(1))
    segments: list[Segment] = []
    for opened in ["a.ttir", "b.ttir"] * 3:
        job = new_start(*segments)
        job.add("triton", "1", 0, [opened])
        if next_segment := job.next_segment(tier, WRITER):
            segments.append(next_segment)
    assert [references(segment)[0].opened for segment in segments] == [["a.ttir"], ["a.ttir", "b.ttir"]]


def test_what_is_opened_later_in_a_start_is_in_its_next_segment(tier: DiskTier, job: JobProfile) -> None:
    store_packed(tier, large(1))
    job.add("triton", "1", 0)
    assert references(made(job, tier))[0].opened == []
    job.add("triton", "1", 0, ["a.ttir"])
    assert references(made(job, tier))[0].opened == ["a.ttir"]


# Frames.


def test_a_segment_names_the_frames_that_a_start_reads(tier: DiskTier, job: JobProfile) -> None:
    stored = store_packed(tier, large(1))
    job.add("triton", "1", 0)
    assert made(job, tier).frames == stored.frames[:1]


def test_a_segment_names_the_frames_of_what_was_opened(tier: DiskTier, job: JobProfile) -> None:
    stored = store_packed(tier, large(1))
    job.add("triton", "1", 0, ["b.ttir"])
    assert made(job, tier).frames == stored.frames


def test_frames_come_pack_by_pack_in_the_order_of_use_and_each_pack_in_one_piece(
    tier: DiskTier, job: JobProfile
) -> None:
    one = store_packed(tier, large(1, "fx-graph"), large(2, "triton"))
    other = store_packed(tier, large(3, "fx-graph"), large(4, "triton"))
    for namespace, key in [("triton", "4"), ("triton", "2"), ("fx-graph", "3"), ("fx-graph", "1")]:
        job.add(namespace, key, 0)
    assert made(job, tier).frames == other.frames[:2] + one.frames[:2]


def test_a_frame_that_results_share_is_named_once(tier: DiskTier, job: JobProfile) -> None:
    stored = store_packed(tier, large(1), large(2), large(3))
    for key in "123":
        job.add("triton", key, 0)
    assert made(job, tier).frames == stored.frames[:1]


def test_a_frame_that_is_not_on_disk_any_more_is_not_named(tier: DiskTier, job: JobProfile) -> None:
    one, other = store_packed(tier, large(1)), store_packed(tier, large(2))
    tier.remove(one.frames[0].place.name)
    for key in "12":
        job.add("triton", key, 0)
    segment = made(job, tier)
    assert segment.frames == other.frames[:1]
    assert keys(segment) == ["1", "2"]


def test_a_frame_has_the_digest_of_its_bytes(tier: DiskTier, job: JobProfile) -> None:
    stored = store_packed(tier, large(1))
    job.add("triton", "1", 0)
    (packed,) = made(job, tier).frames
    assert packed.digest == raw_digest_of(stored.data[: packed.place.length])
    assert (packed.namespace, packed.requires) == ("triton", {"isa": "avx2"})


def test_small_results_have_no_frames(tier: DiskTier, job: JobProfile) -> None:
    store(tier, "a")
    job.add("ns", "a", 0)
    assert made(job, tier).frames == []


# What it has.


def test_what_is_learned_is_found_by_name(tier: DiskTier, job: JobProfile) -> None:
    (built,) = store(tier, "a")
    job.add("ns", "a", 0)
    assert job.find("manifests/ns/a/0") is None
    later = new_start(made(job, tier))
    assert later.find("manifests/ns/a/0") == Reference(0, built)
    assert later.find("manifests/ns/a/1") is None


def test_the_newest_segment_says_where_a_result_lies() -> None:
    def segment(content: bytes) -> Segment:
        built = manifest.inline(Result("ns", "a", {"a": content}), {})
        assert built is not None
        return Segment([], catalog.build([Reference(0, built)], NO_KEYS))

    old, new = segment(b"old"), segment(b"new")
    assert [new_start(old, new).find("manifests/ns/a/0")] == references(new)
    prefix = new_start().prefix
    assert new_start(old, new).segment_of("manifests/ns/a/0") == f"{prefix}{1:013d}-00000000"
    assert new_start(old, new).segment_of("manifests/ns/b/0") is None
    later = new_start(old)
    later.learn({f"{prefix}9999999999999-00000000": new})
    assert [later.find("manifests/ns/a/0")] == references(new)


def test_a_segment_that_another_stands_for_is_not_used(tier: DiskTier, job: JobProfile) -> None:
    (built, _) = store(tier, "a", "b")
    job.add("ns", "a", 0)
    job.add("ns", "b", 0)
    old = made(job, tier)
    later = new_start(old)
    (old_name,) = later.segments
    new_name = profile.name_of_compacted([old_name], b"")
    new = Segment([], catalog.build([Reference(0, built)], NO_KEYS), replaces=[old_name])
    later.learn({new_name: new})
    assert later.segments == {new_name: new}
    assert later.find("manifests/ns/a/0") == Reference(0, built)
    assert later.find("manifests/ns/b/0") is None


def test_segments_may_be_learned_in_any_order(tier: DiskTier) -> None:
    store(tier, "a", "b", "c")
    prefix = new_start().prefix
    segments = []
    for key in "abc":
        job = new_start()
        job.add("ns", key, 0)
        segments.append(made(job, tier))
    later = new_start()
    for number in 2, 0, 1:
        later.learn({f"{prefix}{number:013d}-00000000": segments[number]})
    assert [*later.segments.values()] == segments
    assert later.keys("ns") == [("ns", "a"), ("ns", "b"), ("ns", "c")]


def test_what_another_segment_stands_for_long_enough_is_told_once() -> None:
    replaced = Segment([], catalog.build([], NO_KEYS))
    job = new_start(replaced, replaced)
    names_replaced = [*job.segments]
    new = Segment(
        [], catalog.build([], NO_KEYS), replaces=[*names_replaced, f"{job.prefix}gone"], written=1000.0
    )
    job.learn({profile.name_of_compacted(names_replaced, b""): new})
    assert job.take_replaced(1000.0) == []
    assert job.take_replaced(1001.0) == names_replaced
    assert job.take_replaced(1001.0) == []


def test_keys_of_namespaces_come_in_the_order_of_use_each_once(tier: DiskTier, job: JobProfile) -> None:
    store(tier, "b", "a", namespace="artifact-x")
    store(tier, "c", namespace="triton")
    store(tier, "b", namespace="artifact-x", slot=1)
    store(tier, "d", namespace="artifact-y")
    job.add("artifact-x", "b", 0)
    job.add("triton", "c", 0)
    job.add("artifact-x", "a", 0)
    first = made(job, tier)
    job.add("artifact-y", "d", 0)
    job.add("artifact-x", "b", 1)
    later = new_start(first, made(job, tier))
    assert later.keys("artifact-") == [("artifact-x", "b"), ("artifact-x", "a"), ("artifact-y", "d")]
    assert later.keys("triton") == [("triton", "c")]
    assert later.keys("fx-graph") == []


def test_a_damaged_reference_is_found_nowhere_and_hides_nothing(tier: DiskTier, job: JobProfile) -> None:
    (built,) = store(tier, "a")
    job.add("ns", "a", 0)
    evil = Manifest("ns", "a", [manifest.Member("../up", b"", 0)])
    damaged = Segment([], catalog.build([Reference(0, evil)], NO_KEYS))
    assert new_start(damaged).find("manifests/ns/a/0") is None
    later = new_start(made(job, tier), damaged)
    assert later.find("manifests/ns/a/0") == Reference(0, built)
    assert later.keys("ns") == [("ns", "a")]


def test_what_was_forgotten_and_is_used_again_is_new(job: JobProfile) -> None:
    job.add("ns", "key", 0)
    job.forget({*job.new})
    assert not job.new
    job.add("ns", "key", 0)
    assert job.new == {names.manifest_name("ns", "key", 0)}
