"""A job's profile over many starts: nothing in use is lost, nothing is written twice, it stays short."""

import random
from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest

from s3cache import prelude, profile
from s3cache.agent import segments
from s3cache.agent.job_profile import JobProfile
from s3cache.agent.jobs import Jobs
from s3cache.agent.segments import SegmentWriter
from s3cache.cache import Cache
from s3cache.catalog import Catalog
from s3cache.compaction import FRAGMENTS, SEGMENTS, UNUSED_STARTS
from s3cache.counts import HighestCounts
from s3cache.errors import Busy, Forbidden, Unreachable
from s3cache.keyring import NO_KEYS
from s3cache.local import LocalEntries
from s3cache.machine import Machine
from s3cache.manifest import Result
from s3cache.names import catalog_prefixes, pack_name, prelude_name
from s3cache.prefetch import Progress, bring, open_profile, read_profile, worth_fetching
from s3cache.prelude import PRELUDE_BYTES, useful_bytes
from s3cache.tier import DiskTier
from tests.wrappers import RecordingStore, WatchedBucket

pytestmark = pytest.mark.anyio

ROOM = 1 << 30
NOISE = random.Random(1)
KERNELS = {f"kernel-{number:02}": NOISE.randbytes(10_000) for number in range(40)}


class Bucket(WatchedBucket):
    """A bucket, and machines that start one job there."""

    def new_machine(self) -> "Start":
        return Start(self.store, self.new_tier(ROOM))

    def segments(self) -> list[str]:
        return [name for name in sorted(self.memory.objects) if name.startswith("profiles/")]

    def packs(self) -> set[str]:
        return {name for name in self.memory.objects if name.startswith("packs/")}


class Start:
    """One start of the job on a machine that has nothing yet."""

    def __init__(self, store: RecordingStore, tier: DiskTier) -> None:
        self.tier = tier
        self.cache = Cache(store, tier, Machine(), NO_KEYS)
        self._store = store
        jobs = Jobs(NO_KEYS)
        self.job: JobProfile = jobs.profile("job")
        self.writer = SegmentWriter(
            self.cache, store, tier, jobs, HighestCounts(tier._objects.parent / "counts"), {}
        )

    async def warm(self) -> None:
        """Fetch what the profile names."""
        segments, _, prelude = await open_profile(self.cache, self._store, self.job.prefix)
        self.job.learn(segments)
        self.job.is_known = True
        if prelude and self.job.segments:
            self.job.prelude_bytes = useful_bytes(prelude, self.job.segments)
        frames = worth_fetching(self.job.segments.values(), Machine(), [], ROOM)
        await bring(self.cache, frames, Progress(), prelude.frames if prelude else None)

    async def use(self, *keys: str) -> None:
        """Use kernels: those that are not in the bucket are compiled and stored."""
        results = [Result("triton", key, {"binary": KERNELS[key]}) for key in keys]
        for key, slot in zip(keys, await self.cache.put_all(results), strict=True):
            assert slot is not None
            self.job.add("triton", key, slot)

    async def end(self) -> None:
        await self.writer.write()

    @property
    def prelude(self) -> str:
        return prelude_name(self.job.prefix)

    async def end_without_compaction(self) -> None:
        segment = self.job.next_segment(self.tier, {})
        assert segment is not None
        data = profile.encode(segment, NO_KEYS)
        assert await self._store.create(profile.new_segment_name(self.job.prefix, data), data)

    def here(self) -> dict[str, bytes]:
        """Return the kernels that are on disk."""
        entries = LocalEntries(self.tier, catalog_prefixes("job", self.job.platform), NO_KEYS)
        found: dict[str, bytes] = {}
        for key in KERNELS:
            manifest = entries.manifest("triton", key, 0)
            entry = entries.entry(manifest, 0) if manifest else None
            if entry:
                found[key] = entry.members["binary"]
        return found


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    # The clock of segments' names: each start is a day after the one before.
    days = iter(range(1, 10_000))
    monkeypatch.setattr("s3cache.profile.time.time_ns", lambda: next(days) * 86_400 * 10**9)
    return Bucket(tmp_path)


async def start(bucket: Bucket, *keys: str) -> Start:
    """Start the job once, on a fresh machine, and let it use kernels."""
    machine = bucket.new_machine()
    await machine.warm()
    await machine.use(*keys)
    await machine.end()
    return machine


def kernels(keys: Mapping[str, bytes] | list[str]) -> dict[str, bytes]:
    return {key: KERNELS[key] for key in keys}


async def test_a_start_that_uses_nothing_writes_nothing(bucket: Bucket) -> None:
    await start(bucket)
    assert bucket.memory.objects == {}


async def test_a_start_that_adds_nothing_writes_nothing(bucket: Bucket) -> None:
    await start(bucket, "kernel-00", "kernel-01")
    before = dict(bucket.memory.objects)
    await start(bucket, "kernel-01")
    await start(bucket, "kernel-00", "kernel-01")
    assert bucket.memory.objects == before
    assert bucket.store.asked("PUT") == []


async def test_another_start_adds_what_it_used_and_nothing_else_is_sent(bucket: Bucket) -> None:
    await start(bucket, "kernel-00", "kernel-01")
    await start(bucket, "kernel-00", "kernel-02")
    (pack, manifest, segment) = bucket.store.asked("PUT")
    assert pack.startswith("packs/")
    assert manifest == "manifests/triton/kernel-02/0"
    assert segment.startswith("profiles/")
    machine = bucket.new_machine()
    await machine.warm()
    assert machine.here() == kernels(["kernel-00", "kernel-01", "kernel-02"])


async def test_nothing_is_lost_when_two_finish_at_once(bucket: Bucket) -> None:
    one, other = bucket.new_machine(), bucket.new_machine()
    await one.warm()
    await other.warm()
    await one.use("kernel-00", "kernel-01")
    await other.use("kernel-01", "kernel-02")
    await one.end()
    await other.end()
    machine = bucket.new_machine()
    await machine.warm()
    assert machine.here() == kernels(["kernel-00", "kernel-01", "kernel-02"])


async def test_what_another_machine_wrote_down_meanwhile_is_not_written_again(bucket: Bucket) -> None:
    one, other = bucket.new_machine(), bucket.new_machine()
    await one.use("kernel-00", "kernel-01")
    await other.use("kernel-00", "kernel-01")
    await one.end()
    before = dict(bucket.memory.objects)
    await other.end()
    assert bucket.memory.objects == before


async def test_what_the_bucket_refused_is_written_the_next_time(bucket: Bucket) -> None:
    machine = bucket.new_machine()
    await machine.use("kernel-00")
    bucket.faulty.fail("create", Unreachable("why"))
    await machine.end()
    assert bucket.segments() == []
    await machine.end()
    assert len(bucket.segments()) == 1


async def test_many_segments_become_one_and_their_packs_too(bucket: Bucket) -> None:
    keys = list(KERNELS)[: max(SEGMENTS, FRAGMENTS)]
    for number in range(len(keys)):
        await start(bucket, *keys[: number + 1])
    machine = bucket.new_machine()
    await machine.warm()
    assert machine.here() == kernels(keys)
    assert len(machine.job.segments) == 1
    # The prelude has the new segment and all frames; the others are still there.
    assert len(bucket.store.asked("GET")) == 1 + len(keys)
    (compacted,) = machine.job.segments.values()
    assert len({packed.place.pack for packed in compacted.frames}) == 1


async def test_a_profile_stays_short_however_many_starts_add_to_it(bucket: Bucket) -> None:
    keys = list(KERNELS)
    for number in range(len(keys)):
        await start(bucket, *keys[: number + 1])
    machine = bucket.new_machine()
    await machine.warm()
    assert machine.here() == kernels(keys)
    assert len(machine.job.segments) < SEGMENTS
    packs = {packed.place.pack for made in machine.job.segments.values() for packed in made.frames}
    assert len(packs) <= SEGMENTS + FRAGMENTS


async def test_a_start_needs_the_list_and_the_prelude_beside_it_and_nothing_else(bucket: Bucket) -> None:
    await start(bucket, *KERNELS)
    machine = bucket.new_machine()
    await machine.warm()
    assert machine.here() == KERNELS
    assert sorted(bucket.store.requests) == [
        f"GET {machine.prelude} 0-{PRELUDE_BYTES}",
        f"LIST {machine.job.prefix}",
    ]


async def test_a_fresh_machine_renews_a_prelude_that_has_half_of_what_it_might(bucket: Bucket) -> None:
    keys = list(KERNELS)
    first = await start(bucket, *keys[:4])
    written = bucket.memory.objects[first.prelude]
    await start(bucket, *keys[:7])
    await start(bucket, *keys[:7])
    assert bucket.memory.objects[first.prelude] == written
    await start(bucket, *keys[:14])
    await start(bucket, *keys[:14])
    assert bucket.memory.objects[first.prelude] != written
    machine = bucket.new_machine()
    await machine.warm()
    assert machine.here() == kernels(keys[:14])
    assert bucket.store.asked("GET") == [machine.prelude]


async def test_a_prelude_is_thought_of_once_while_nothing_is_new(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = list(KERNELS)
    await start(bucket, *keys[:4])
    machine = bucket.new_machine()
    await machine.warm()
    await machine.end()
    monkeypatch.delattr(prelude, "choose")
    await machine.end()
    await machine.use(*keys[:5])
    with pytest.raises(AttributeError):
        await machine.end()


async def test_a_prelude_of_a_part_is_thought_of_again_once_all_is_there(bucket: Bucket) -> None:
    keys = list(KERNELS)
    first = await start(bucket, *keys)
    whole = bucket.memory.objects.pop(first.prelude)
    machine = bucket.new_machine()
    opened = await open_profile(machine.cache, machine._store, machine.job.prefix)
    machine.job.learn(opened.segments)
    machine.job.prelude_bytes = 0
    await machine.end()
    assert len(bucket.memory.objects.get(first.prelude, b"")) < len(whole)
    await machine.warm()
    machine.job.prelude_bytes = 0
    await machine.end()
    assert bucket.memory.objects[first.prelude] == whole


async def test_a_fresh_machine_writes_a_prelude_that_is_absent(bucket: Bucket) -> None:
    first = await start(bucket, *KERNELS)
    written = bucket.memory.objects.pop(first.prelude)
    await start(bucket)
    assert bucket.memory.objects[first.prelude] == written


async def test_a_prelude_whose_writer_was_cancelled_is_whole_or_renewed(bucket: Bucket) -> None:
    machine = bucket.new_machine()
    await machine.warm()
    await machine.use(*KERNELS)
    gate = bucket.store.close_put_gate("preludes/")
    async with anyio.create_task_group() as group:
        group.start_soon(machine.end)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
        gate.set()
    await start(bucket)
    fresh = bucket.new_machine()
    await fresh.warm()
    assert bucket.store.asked("GET") == [fresh.prelude]


async def test_a_start_that_could_not_read_the_profile_leaves_the_prelude(bucket: Bucket) -> None:
    first = await start(bucket, *list(KERNELS)[:30])
    before = bucket.memory.objects[first.prelude]
    machine = bucket.new_machine()
    await machine.use("kernel-30")
    await machine.end()
    assert bucket.memory.objects[first.prelude] == before
    assert len(bucket.segments()) == 2


async def test_a_profile_that_cannot_be_read_again_is_not_extended_now(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = bucket.new_machine()
    await machine.use("kernel-00")
    for _ in range(100):
        bucket.faulty.fail("list", Busy("slow down"))
    with monkeypatch.context() as hurried:
        hurried.setattr(segments, "READ_SECONDS", 0.1)
        await machine.end()
    assert bucket.segments() == []
    bucket.faulty.forgive()
    await machine.end()
    assert len(bucket.segments()) == 1


async def test_what_is_learned_amid_a_compaction_is_not_replaced_by_it(bucket: Bucket) -> None:
    for key in list(KERNELS)[: SEGMENTS - 1]:
        await start(bucket, key)
    machine, other = bucket.new_machine(), bucket.new_machine()
    await machine.warm()
    await machine.use("kernel-30")
    await other.warm()
    await other.use("kernel-31")
    gate = bucket.store.close_put_gate("packs/")
    async with anyio.create_task_group() as group:
        group.start_soon(machine.end)
        await anyio.wait_all_tasks_blocked()
        await other.end_without_compaction()
        machine.job.learn(await read_profile(machine.cache, bucket.store, machine.job.prefix))
        gate.set()
    fresh = bucket.new_machine()
    await fresh.warm()
    assert "kernel-31" in fresh.here()
    assert "kernel-30" in fresh.here()


async def test_who_may_not_replace_the_prelude_goes_on(bucket: Bucket) -> None:
    first = await start(bucket, "kernel-00")
    before = bucket.memory.objects[first.prelude]
    bucket.faulty.fail("delete", Forbidden("why"))
    await start(bucket, *KERNELS)
    assert bucket.memory.objects[first.prelude] == before
    machine = bucket.new_machine()
    await machine.warm()
    assert machine.here() == KERNELS


async def test_a_machine_that_has_something_of_the_profile_does_not_ask_for_the_prelude(
    bucket: Bucket,
) -> None:
    await start(bucket, "kernel-00")
    machine = bucket.new_machine()
    await machine.warm()
    bucket.store.requests.clear()
    await machine.warm()
    assert bucket.store.requests == [f"LIST {machine.job.prefix}"]


async def test_two_that_compact_at_once_write_one_segment(bucket: Bucket) -> None:
    for key in list(KERNELS)[: SEGMENTS - 1]:
        await start(bucket, key)
    machines = [bucket.new_machine() for _ in range(2)]
    for machine in machines:
        await machine.warm()
    await machines[0].use("kernel-30")
    await machines[1].use("kernel-31")
    for machine in machines:
        await machine.end()
    fresh = bucket.new_machine()
    await fresh.warm()
    assert fresh.here().keys() == {*list(KERNELS)[: SEGMENTS - 1], "kernel-30", "kernel-31"}


async def test_segments_that_another_stands_for_go_after_a_grace(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key in list(KERNELS)[:SEGMENTS]:
        await start(bucket, key)
    assert len(bucket.segments()) == SEGMENTS + 1
    await start(bucket)
    assert len(bucket.segments()) == SEGMENTS + 1
    monkeypatch.setattr(segments, "GRACE_SECONDS", -1.0)
    machine = await start(bucket)
    assert len(bucket.segments()) == 1
    assert machine.here() == kernels(list(KERNELS)[:SEGMENTS])


async def test_who_may_not_delete_goes_on(bucket: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in list(KERNELS)[:SEGMENTS]:
        await start(bucket, key)
    monkeypatch.setattr(segments, "GRACE_SECONDS", -1.0)
    bucket.faulty.fail("delete", Forbidden("why"))
    await start(bucket, "kernel-30")
    machine = bucket.new_machine()
    await machine.warm()
    assert "kernel-30" in machine.here()


async def test_kernels_that_are_no_longer_used_leave_the_profile(bucket: Bucket) -> None:
    keys = list(KERNELS)
    await start(bucket, *keys[:5])
    for number in range(5, 5 + UNUSED_STARTS + SEGMENTS):
        await start(bucket, keys[0], *keys[number : number + 2])
    machine = bucket.new_machine()
    await machine.warm()
    here = machine.here()
    assert keys[0] in here
    assert not set(keys[1:5]) & set(here)
    # They are still in the bucket.
    assert await machine.cache.get("triton", keys[1]) is not None


# What a clean-up has taken


async def test_a_segment_names_nothing_that_the_bucket_has_no_more(bucket: Bucket) -> None:
    """The disk of a machine has it still: it is used there, and nobody else is sent for it."""
    first = await start(bucket, "kernel-00", "kernel-01")
    bucket.memory.objects.clear()
    again = Start(bucket.store, first.tier)
    await again.use("kernel-02")
    again.job.add("triton", "kernel-00", 0)
    again.job.add("triton", "kernel-01", 0)
    await again.end()
    (segment,) = bucket.segments()
    named = Catalog(
        profile.decode(segment, bucket.memory.objects[segment], NO_KEYS).catalog, NO_KEYS
    ).references()
    assert [reference.manifest.key for reference in named] == ["kernel-02"]


async def test_a_segment_names_what_the_bucket_has_by_now(bucket: Bucket) -> None:
    """It was collected, and stored anew by another machine, in another pack."""
    first = await start(bucket, "kernel-00")
    bucket.memory.objects.clear()
    await start(bucket, "kernel-00")
    (pack,) = bucket.packs()
    for name in bucket.segments():
        del bucket.memory.objects[name]
    again = Start(bucket.store, first.tier)
    again.cache.drop_catalogs(again.job.prefix, but=[])
    again.job.add("triton", "kernel-00", 0)
    await again.end()
    (segment,) = bucket.segments()
    (named,) = Catalog(
        profile.decode(segment, bucket.memory.objects[segment], NO_KEYS).catalog, NO_KEYS
    ).references()
    assert [pack_name(place.pack) for place in named.places] == [pack]


async def test_what_came_from_the_bucket_is_not_asked_for_again(bucket: Bucket) -> None:
    await start(bucket, "kernel-00")
    for name in bucket.segments():
        del bucket.memory.objects[name]
    other = bucket.new_machine()
    assert await other.cache.get("triton", "kernel-00")
    other.job.add("triton", "kernel-00", 0)
    bucket.store.requests.clear()
    await other.end()
    assert bucket.segments()
    assert not any(request.startswith("GET manifests/") for request in bucket.store.requests)


async def test_of_many_a_sample_is_asked_for(bucket: Bucket) -> None:
    keys = list(KERNELS)
    first = await start(bucket, *keys)
    for name in bucket.segments():
        del bucket.memory.objects[name]
    again = Start(bucket.store, first.tier)
    for key in keys:
        again.job.add("triton", key, 0)
    bucket.store.requests.clear()
    await again.end()
    asked = [request for request in bucket.store.requests if request.startswith("GET manifests/")]
    assert 0 < len(asked) < len(keys)
    assert bucket.segments()
