"""From the spool to the bucket: results first, then the segment that names them."""

import logging
from collections.abc import Callable
from pathlib import Path

import anyio

from s3cache import ledger, profile
from s3cache.agent.jobs import Jobs
from s3cache.cache import Cache
from s3cache.errors import DiskTierError, Forbidden, S3CacheError, StoreError
from s3cache.ledger import Ledger
from s3cache.spool import Spool
from s3cache.stores.breaker import BreakerStore
from s3cache.tier import DiskTier

logger = logging.getLogger(__name__)

AT_ONCE = 8
"""Results that are in memory, and under way, at one time."""
QUIET_SECONDS = 30.0
"""A segment is written when nothing was put for this long, and at the end."""
SILENCE_SECONDS = 3.0
"""A bucket that never answered anything for so long is not waited for."""
_POLL_SECONDS = 0.02


class Uploader:
    """Stores what the spool holds, and extends the profiles by what was used."""

    def __init__(
        self,
        spool: Spool,
        cache: Cache,
        objects: BreakerStore,
        tier: DiskTier,
        jobs: Jobs,
        writer: dict[str, str],
    ) -> None:
        self._spool = spool
        self._cache = cache
        self._objects = objects
        self._tier = tier
        self._jobs = jobs
        self._writer = writer
        self._wake = anyio.Event()
        self._segments = anyio.Lock()

    @property
    def pending(self) -> int:
        """How many results are yet to be stored."""
        return len(self._spool.pending())

    def wake(self) -> None:
        """Say that there is something new in the spool."""
        self._wake.set()

    async def run(self) -> None:
        """Empty the spool whenever there is something in it."""
        while True:
            self._wake = anyio.Event()
            await self._upload_all()
            with anyio.move_on_after(QUIET_SECONDS) as quiet:
                await self._wake.wait()
            if quiet.cancelled_caught:
                await self._write_segments()

    async def flush(self, is_abandoned: Callable[[], bool] = lambda: False) -> None:
        """Return when all is stored, the bucket refuses or says nothing, or it is abandoned."""
        while not is_abandoned():
            if self._objects.failure("write") or self._objects.silence() > SILENCE_SECONDS:
                return
            if not self._spool.pending():
                await self._write_segments()
                return
            self.wake()
            await anyio.sleep(_POLL_SECONDS)

    async def _upload_all(self) -> None:
        limiter = anyio.Semaphore(AT_ONCE)

        async def upload(path: Path) -> None:
            async with limiter:
                await self._upload(path)

        async with anyio.create_task_group() as group:
            for path in self._spool.pending():
                group.start_soon(upload, path)

    async def _upload(self, path: Path) -> None:
        put = self._spool.load(path)
        if put is None:
            return
        run = self._jobs.runs.get((put.run, put.job))
        ledger.charge(run.ledger if run else Ledger())
        try:
            slot = await self._cache.put(
                put.namespace,
                put.key,
                put.members,
                variant=put.variant,
                requires=put.requires,
                cost_seconds=put.cost_seconds,
            )
        except Forbidden as error:
            if run is None:
                # These credentials are not those of the job that made it.
                return
            run.warn(error)
            logger.warning("a result is dropped: %s", error)
        except StoreError as error:
            # It stays in the spool: the bucket may come back, or the next start finds it.
            if run:
                run.warn(error)
            return
        except S3CacheError as error:
            logger.warning("a result is dropped: %s", error)
        else:
            self._jobs.profile(put.job).add(put.namespace, put.key, slot)
        self._spool.discard(path)

    async def _write_segments(self) -> None:
        async with self._segments:
            for job in list(self._jobs.profiles.values()):
                made = job.next_segment(self._tier, self._writer)
                if made is None:
                    continue
                name, segment = made
                data = profile.encode(segment)
                ledger.charge(self._jobs.ledger_of(job))
                try:
                    await self._objects.create(name, data)
                    self._tier.write(name, data)
                except StoreError as error:
                    logger.warning("the profile of %s is not extended: %s", job.job, error)
                    continue
                except DiskTierError as error:
                    logger.info("a segment is not kept on disk: %s", error)
                job.learn(segment.references)
