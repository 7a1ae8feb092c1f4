"""A state machine: machines that start jobs, days that pass, clean-ups that may die at any request.

No manifest ever names what is gone, nor does a segment; what a job used within 30 days is there; in the end
all goes.
"""

import asyncio
import random
import shutil
from collections.abc import Awaitable
from pathlib import Path
from tempfile import mkdtemp
from typing import TypeVar
from unittest import mock

from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from s3cache import leases, manifest, names, profile
from s3cache.agent.jobs import Jobs
from s3cache.agent.segments import SegmentWriter
from s3cache.cache import Cache
from s3cache.catalog import Catalog
from s3cache.collection import Terms, collect
from s3cache.counts import HighestCounts
from s3cache.errors import Unreachable
from s3cache.keyring import NO_KEYS
from s3cache.machine import Machine
from s3cache.manifest import Result
from s3cache.prefetch import Progress, bring, open_profile, worth_fetching
from s3cache.stores.base import ObjectStore
from s3cache.tier import DiskTier
from tests.memory import MemoryStore
from tests.test_collection import Interrupted

T = TypeVar("T")

DAY = 86_400.0
TERMS = Terms(30 * DAY, DAY)
KEYS = ["large-1", "large-2", "large-3", "small"]
JOBS = ["one", "other"]

sets_of_keys = st.sets(st.sampled_from(KEYS), min_size=1)


class CollectionMachine(RuleBasedStateMachine):
    """What may happen to a bucket while it is cleaned."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(mkdtemp())
        self.loop = asyncio.Runner()
        self.now = 1e9
        self.bucket = MemoryStore(lambda: self.now)
        self.clock = mock.patch.multiple("time", time=self.tick, time_ns=lambda: int(self.tick() * 1e9))
        self.clock.start()
        # The model: when each job last used what.
        self.used: dict[str, dict[str, float]] = {job: {} for job in JOBS}

    def teardown(self) -> None:
        self.now += 40 * DAY
        for _ in range(4):
            self.clean(None)
            self.now += 2 * DAY
        self.clock.stop()
        self.loop.close()
        shutil.rmtree(self.folder)
        assert self.bucket.objects == {}

    def tick(self) -> float:
        self.now += 0.01
        return self.now

    def run_async(self, work: Awaitable[T]) -> T:
        async def run() -> T:
            return await work

        return self.loop.run(run())

    @rule(
        machine=st.integers(0, 1),
        job=st.sampled_from(JOBS),
        keys=sets_of_keys,
        variant=st.sampled_from("ab"),
    )
    def start(self, machine: int, job: str, keys: set[str], variant: str) -> None:
        """Start a job on a machine that may have been idle: it gets what is there, and puts the rest."""
        self.run_async(
            self._start(DiskTier(self.folder / str(machine), 1 << 30), job, sorted(keys), variant)
        )

    @rule(days=st.sampled_from([0.3, 1.1, 8.0, 29.0, 31.0]))
    def pass_days(self, days: float) -> None:
        """Let days pass."""
        self.now += days * DAY

    @rule(ends=st.none() | st.integers(1, 60))
    def clean(self, ends: int | None) -> None:
        """Clean up, until the end or a request."""

        async def end(number: int) -> None:
            if ends is not None and number >= ends:
                raise Unreachable("killed")

        store: ObjectStore = Interrupted(self.bucket, end)
        try:
            self.run_async(collect(store, TERMS, delete=True))
        except Unreachable:
            return
        for name in self.bucket.objects:
            if name.startswith("manifests/") and int(name.rpartition("/")[2]):
                below = f"{name.rpartition('/')[0]}/{int(name.rpartition('/')[2]) - 1}"
                assert below in self.bucket.objects

    @invariant()
    def manifests_and_segments_resolve(self) -> None:
        """Look that whatever names something names what is there."""
        for name, data in self.bucket.objects.items():
            if name.startswith("manifests/") and data:
                for place in manifest.decode(data, NO_KEYS).frames:
                    assert names.pack_name(place.pack) in self.bucket.objects, name
            if name.startswith("profiles/"):
                for reference in Catalog(profile.decode(name, data, NO_KEYS).catalog, NO_KEYS).references():
                    assert self.bucket.objects.get(reference.name), name
                    for place in reference.manifest.frames:
                        assert names.pack_name(place.pack) in self.bucket.objects, name

    @invariant()
    def what_was_used_is_there(self) -> None:
        """Look for what a job used within 30 days."""
        for job, used in self.used.items():
            prefix = names.profile_prefix(job, Jobs(NO_KEYS).profile(job).platform)
            there = {
                reference.manifest.key + reference.manifest.variant
                for name, data in self.bucket.objects.items()
                if name.startswith(prefix)
                for reference in Catalog(profile.decode(name, data, NO_KEYS).catalog, NO_KEYS).references()
            }
            if used and max(used.values()) > self.now - 30 * DAY:
                last = max(used.values())
                assert {key for key, when in used.items() if when == last} <= there

    async def _start(self, tier: DiskTier, name: str, keys: list[str], variant: str) -> None:
        cache = Cache(self.bucket, tier, Machine(), NO_KEYS)
        jobs = Jobs(NO_KEYS)
        job = jobs.profile(name)
        segments, _, prelude = await open_profile(cache, self.bucket, job.prefix)
        job.learn(segments)
        job.is_known = True
        cache.drop_catalogs(job.prefix, but=job.segments)
        if prelude and job.segments:
            job.prelude_bytes = 0
        frames = worth_fetching(job.segments.values(), Machine(), [], 1 << 30)
        await bring(cache, frames, Progress(), prelude.frames if prelude else None)
        for key in keys:
            content = {"a": random.Random(key + variant).randbytes(3000 if key.startswith("large") else 30)}
            found = [entry async for entry in cache.variants("ns", key) if entry.variant == variant]
            assert all(entry.members == content for entry in found)
            slot = (
                found[0].slot if found else (await cache.put_all([Result("ns", key, content, variant)]))[0]
            )
            assert slot is not None
            job.add("ns", key, slot)
        await SegmentWriter(
            cache, self.bucket, tier, jobs, HighestCounts(tier._objects.parent / "counts"), {}
        ).write()
        await leases.leave(self.bucket, tier, job.prefix, job.segments)
        if job.segments:
            here = [key + variant for key in keys if _is_in(job.segments, key, variant)]
            self.used[name] |= dict.fromkeys(here, self.now)


def _is_in(segments: dict[str, profile.Segment], key: str, variant: str) -> bool:
    return any(
        (reference.manifest.key, reference.manifest.variant) == (key, variant)
        for segment in segments.values()
        for reference in Catalog(segment.catalog, NO_KEYS).references()
    )


TestCollectionMachine = CollectionMachine.TestCase
TestCollectionMachine.settings = settings(
    max_examples=15,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
