"""Writing a job's profile: the segment that a start adds, and the one that stands for many."""

import logging
import time

import anyio

from s3cache import catalog, compaction, ledger, names, prelude, profile
from s3cache.agent.job_profile import JobProfile
from s3cache.agent.jobs import Jobs
from s3cache.cache import Cache
from s3cache.catalog import Reference
from s3cache.compaction import Plan
from s3cache.counts import HighestCounts
from s3cache.errors import Forbidden, S3CacheError
from s3cache.local import LocalEntries
from s3cache.manifest import Result
from s3cache.pack import PackFrame
from s3cache.prefetch import read_profile
from s3cache.prelude import Prelude
from s3cache.profile import Segment
from s3cache.stores.base import ObjectStore
from s3cache.tier import DiskTier

logger = logging.getLogger(__name__)

GRACE_SECONDS = 3600.0
"""How long segments stay that another one stands for: a start may be about to read them."""
READ_SECONDS = 30.0
"""How long reading a profile again may take before it is extended."""
REPLACING_SECONDS = 10.0
PACKED_ANEW_BYTES = 32 << 20
"""What is packed anew at one time; the rest waits for the next compaction."""


class SegmentWriter:
    """Extends the profiles of an agent's jobs by what their starts used, and keeps them short."""

    def __init__(
        self,
        cache: Cache,
        objects: ObjectStore,
        tier: DiskTier,
        jobs: Jobs,
        counts: HighestCounts,
        writer: dict[str, str],
    ) -> None:
        self._cache = cache
        self._objects = objects
        self._tier = tier
        self._jobs = jobs
        self._counts = counts
        self._writer = writer

    async def write(self) -> None:
        """Write what is new. What the bucket refuses is new again the next time."""
        for job in list(self._jobs.profiles.values()):
            ledger.charge(self._jobs.ledger_of(job), "upload")
            try:
                if await self._extend(job):
                    await self._compact(job)
                await self._renew_prelude(job)
                await self._remove_replaced(job)
            except S3CacheError as error:
                logger.warning("the profile of %s is left as it is: %s", job.job, error)
            except TimeoutError:
                logger.warning("the profile of %s is left as it is: it could not be read in time", job.job)

    async def _extend(self, job: JobProfile) -> bool:
        if job.new and not (job.is_known and job.new <= self._cache.created):
            # Others have made, or used, the same: they may have written it down meanwhile.
            with anyio.fail_after(READ_SECONDS):
                job.learn(await read_profile(self._cache, self._objects, job.prefix))
            job.is_known = True
        job.forget(await self._cache.gone([name for name in job.new if job.find(name) is None]))
        segment = job.next_segment(self._tier, self._writer)
        if segment is None:
            return False
        if not job.segments:
            job.prelude_bytes = 0
        data = profile.encode(segment, job.keyring)
        await self._store(job, profile.new_segment_name(job.prefix, data), data)
        return True

    async def _compact(self, job: JobProfile) -> None:
        # What is learned meanwhile is not what this plan is of.
        segments = dict(job.segments)
        plan = compaction.plan(segments, job.keyring)
        if plan is None:
            return
        references, packed = await self._pack_anew(job, plan)
        digests = {
            frame.place.name: frame.digest for segment in segments.values() for frame in segment.frames
        } | {frame.place.name: frame.digest for frame in packed}
        data = profile.encode(
            Segment(
                profile=job.prefix,
                frames=profile.frames_of(references, lambda place: digests.get(place.name)),
                catalog=catalog.build(references, job.keyring),
                replaces=sorted(
                    {*segments, *(name for segment in segments.values() for name in segment.replaces)}
                ),
                unused=plan.unused,
                writer=self._writer,
                written=time.time(),
                count=job.highest_count + 1,
            ),
            job.keyring,
        )
        logger.info("%d segments of %s become one", len(segments), job.job)
        await self._store(job, profile.name_of_compacted(segments, data), data)
        job.prelude_bytes = 0

    async def _pack_anew(self, job: JobProfile, plan: Plan) -> tuple[list[Reference], list[PackFrame]]:
        """Return the plan's references, and the frames of a pack that was stored, in which some lie."""
        entries = LocalEntries(self._tier, names.catalog_prefixes(job.job, job.platform), job.keyring)
        results: dict[int, Result] = {}
        size = 0
        for number, reference in enumerate(plan.references):
            manifest = reference.manifest
            if size > PACKED_ANEW_BYTES or not any(place.pack in plan.packs for place in reference.places):
                continue
            packed = [m.name for m in manifest.members if m.name in reference.read and m.inline is None]
            entry = entries.entry(manifest, reference.slot, packed)
            # What is not here is for other machines, or went for want of room: it stays where it is.
            if entry is not None:
                size += sum(map(len, entry.members.values()))
                results[number] = Result(
                    manifest.namespace, manifest.key, entry.members, manifest.variant, manifest.requires
                )
        if not results:
            return plan.references, []
        pack = await self._cache.pack(list(results.values()))
        anew = dict(zip(results, pack.manifests, strict=True))
        references = [
            Reference(reference.slot, compaction.moved(reference.manifest, anew[number]), reference.opened)
            if number in anew
            else reference
            for number, reference in enumerate(plan.references)
        ]
        return references, pack.frames

    async def _store(self, job: JobProfile, name: str, data: bytes) -> None:
        # One of that name has the same bytes: the reply to an earlier try was lost.
        await self._objects.create(name, data)
        job.learn({name: self._cache.take_segment(name, data)})
        self._counts.note(job.prefix, job.highest_count)

    async def _renew_prelude(self, job: JobProfile) -> None:
        """Write the prelude, if the one in the bucket has at most half of what this one would have."""
        if job.prelude_bytes is None or job.weighed == job.segments.keys():
            return
        segments = {name: await self._cache.segment_data(name) for name in job.segments}
        chosen = prelude.choose(
            (packed for segment in job.segments.values() for packed in segment.frames),
            prelude.room_beside(segments),
        )
        frames = {packed.place.name: self._tier.read(packed.place.name) for packed in chosen}
        made = Prelude(segments, {name: data for name, data in frames.items() if data is not None})
        useful = prelude.useful_bytes(made, job.segments)
        if chosen and useful >= 2 * job.prelude_bytes:
            await self._replace(names.prelude_name(job.prefix), prelude.encode(made))
            job.prelude_bytes = useful
        if len(made.frames) == len(chosen):
            job.weighed = frozenset(segments)

    async def _replace(self, name: str, data: bytes) -> None:
        # Who is cancelled in between leaves none: a start that finds none writes one.
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + REPLACING_SECONDS):
            try:
                if not await self._objects.create(name, data):
                    await self._objects.delete(name)
                    await self._objects.create(name, data)
            except Forbidden as error:
                logger.info("%s stays as it is: %s", name, error)

    async def _remove_replaced(self, job: JobProfile) -> None:
        for name in job.take_replaced(time.time() - GRACE_SECONDS):
            try:
                await self._objects.delete(name)
            except Forbidden as error:
                logger.info("segments that another one stands for stay: %s", error)
                return
