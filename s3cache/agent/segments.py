"""Writing a job's profile: the segment that a start adds, and the one that stands for many."""

import logging
import time

from s3cache import catalog, compaction, ledger, names, prelude, profile
from s3cache import pack as packs
from s3cache.agent.job_profile import JobProfile
from s3cache.agent.jobs import Jobs
from s3cache.cache import Cache
from s3cache.catalog import Reference
from s3cache.compaction import Plan
from s3cache.errors import Forbidden, S3CacheError
from s3cache.local import LocalEntries
from s3cache.manifest import Result
from s3cache.prefetch import read_profile
from s3cache.profile import Segment
from s3cache.stores.base import ObjectStore
from s3cache.tier import DiskTier

logger = logging.getLogger(__name__)

GRACE_SECONDS = 3600.0
"""How long segments stay that another one stands for: a start may be about to read them."""
PACKED_ANEW_BYTES = 32 << 20
"""What is packed anew at one time; the rest waits for the next compaction."""


class SegmentWriter:
    """Extends the profiles of an agent's jobs by what their starts used, and keeps them short."""

    def __init__(
        self, cache: Cache, objects: ObjectStore, tier: DiskTier, jobs: Jobs, writer: dict[str, str]
    ) -> None:
        self._cache = cache
        self._objects = objects
        self._tier = tier
        self._jobs = jobs
        self._writer = writer

    async def write(self) -> None:
        """Write what is new. What the bucket refuses is new again the next time."""
        for job in list(self._jobs.profiles.values()):
            ledger.charge(self._jobs.ledger_of(job), "upload")
            try:
                if await self._extend(job) and (await self._compact(job) or job.has_doubled):
                    await self._write_prelude(job)
                await self._remove_replaced(job)
            except S3CacheError as error:
                logger.warning("the profile of %s is left as it is: %s", job.job, error)

    async def _extend(self, job: JobProfile) -> bool:
        if not job.new <= self._cache.created:
            # Others have made, or used, the same: they may have written it down meanwhile.
            job.learn(await read_profile(self._cache, self._objects, job.prefix))
            job.note_size()
        made = job.next_segment(self._tier, self._writer)
        if made is not None:
            await self._store(job, *made)
        return made is not None

    async def _compact(self, job: JobProfile) -> bool:
        plan = compaction.plan(job.segments)
        if plan is None:
            return False
        digests = {
            packed.place.name: packed.digest
            for segment in job.segments.values()
            for packed in segment.frames
        }
        references = await self._pack_anew(job, plan, digests)
        segment = Segment(
            frames=profile.frames_of(references, lambda place: digests.get(place.name)),
            catalog=catalog.build(references),
            replaces=sorted(
                {*job.segments, *(name for segment in job.segments.values() for name in segment.replaces)}
            ),
            unused=plan.unused,
            writer=self._writer,
            written=time.time(),
        )
        logger.info("%d segments of %s become one", len(job.segments), job.job)
        await self._store(job, profile.name_of_compacted(job.segments), segment)
        return True

    async def _pack_anew(self, job: JobProfile, plan: Plan, digests: dict[str, bytes]) -> list[Reference]:
        """Return the plan's references, of which some lie in a pack that was stored; learn its digests."""
        entries = LocalEntries(self._tier, names.catalog_prefix(job.job, job.platform))
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
            return plan.references
        pack = packs.build(list(results.values()), self._writer)
        await self._cache.upload(pack)
        digests |= {packed.place.name: packed.digest for packed in pack.frames}
        anew = dict(zip(results, pack.manifests, strict=True))
        return [
            Reference(reference.slot, compaction.moved(reference.manifest, anew[number]), reference.opened)
            if number in anew
            else reference
            for number, reference in enumerate(plan.references)
        ]

    async def _store(self, job: JobProfile, name: str, segment: Segment) -> None:
        data = profile.encode(segment)
        if await self._objects.create(name, data):
            self._cache.keep_segment(name, data, segment)
            job.learn({name: segment})

    async def _write_prelude(self, job: JobProfile) -> None:
        segments = {name: self._tier.read(name) for name in job.segments}
        places = (packed.place.name for segment in job.segments.values() for packed in segment.frames)
        data = prelude.build(
            {name: content for name, content in segments.items() if content is not None},
            ((name, content) for name in places if (content := self._tier.read(name)) is not None),
        )
        if data is None:
            return
        name = names.prelude_name(job.prefix)
        try:
            if not await self._objects.create(name, data):
                # It has fallen behind. Who finds none meanwhile needs two round trips more.
                await self._objects.delete(name)
                await self._objects.create(name, data)
        except Forbidden as error:
            logger.info("the prelude of %s stays as it is: %s", job.job, error)
        job.note_size()

    async def _remove_replaced(self, job: JobProfile) -> None:
        for name in job.take_replaced(time.time() - GRACE_SECONDS):
            try:
                await self._objects.delete(name)
            except Forbidden as error:
                logger.info("segments that another one stands for stay: %s", error)
                return
