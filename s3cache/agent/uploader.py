"""From the spool to the bucket: a pack at a time, then the segment that names what lies there."""

import logging
import random
import time
from collections.abc import Callable
from pathlib import Path

import anyio

from s3cache import ledger, manifest
from s3cache.agent.jobs import Jobs
from s3cache.agent.segments import SegmentWriter
from s3cache.cache import Cache
from s3cache.errors import Claimed, Forbidden, InvalidName, StoreError, TooLarge
from s3cache.ledger import Ledger
from s3cache.spool import Put, Spool
from s3cache.stores.breaker import BreakerStore

logger = logging.getLogger(__name__)

BATCH_BYTES = 32 << 20
"""Results of about this size are in memory at one time, and go into one pack."""
HOLD_BACK_SECONDS = 10.0
"""While the job runs, results wait for up to this long, by chance: for others that share their pack, and
for another machine that made the same ones at the same moment and may be first."""
CLAIM_SECONDS = 1.0
GIVE_WAY_TIMES = 3
"""So often another machine is left to store the same first; it may have died."""
QUIET_SECONDS = 30.0
"""A segment is written when nothing was put for this long, and at the end."""
SILENCE_SECONDS = 3.0
"""A bucket that has answered nothing for so long is not waited for."""
ANSWER_SECONDS = 1.0
"""It has this long to answer once more."""
_POLL_SECONDS = 0.02


class Uploader:
    """Stores what the spool holds, and extends the profiles by what was used."""

    def __init__(
        self,
        spool: Spool,
        cache: Cache,
        objects: BreakerStore,
        jobs: Jobs,
        segments: SegmentWriter,
        before_first: Callable[[], object],
    ) -> None:
        """`before_first` is called once, before the first result is stored."""
        self._spool = spool
        self._cache = cache
        self._objects = objects
        self._jobs = jobs
        self._segments = segments
        self._wake = anyio.Event()
        self._hurry = anyio.Event()
        self._writing = anyio.Lock()
        self._given_way = 0
        self._has_failed = False
        self._kept: set[Path] = set()
        """Files of the spool whose results were laid down on this machine meanwhile."""
        self._before_first = before_first

    @property
    def pending(self) -> int:
        """How many results are yet to be stored."""
        return len(self._spool.pending())

    def wake(self) -> None:
        """Say that there is something new in the spool."""
        self._wake.set()

    async def run(self) -> None:
        """Empty the spool some time after there is something in it."""
        # The first goes at once: it shows whether the bucket takes anything.
        hold_back = 0.0
        is_first = True
        while True:
            self._wake = anyio.Event()
            if self._spool.pending():
                await self._pause(hold_back)
                if is_first:
                    self._before_first()
                    is_first = False
                await self._upload_all()
                hold_back = random.uniform(0, HOLD_BACK_SECONDS)  # noqa: S311
            if self._given_way:
                # Who has claimed them is soon done, or is gone.
                await anyio.sleep(CLAIM_SECONDS)
                continue
            with anyio.move_on_after(QUIET_SECONDS) as quiet:
                await self._wake.wait()
            if quiet.cancelled_caught:
                # All machines of a fleet are quiet at the same moment.
                await self._pause(random.uniform(0, HOLD_BACK_SECONDS))  # noqa: S311
                await self._write_segments()

    async def flush(self, is_abandoned: Callable[[], bool] = lambda: False) -> None:
        """Return when all is stored, the bucket refuses or says nothing, or it is abandoned."""
        self._has_failed = False
        asked = time.monotonic()
        try:
            while not is_abandoned():
                is_refused = self._has_failed or self._objects.failure("write")
                had_its_time = time.monotonic() - asked > ANSWER_SECONDS
                if is_refused or (had_its_time and self._objects.silence() > SILENCE_SECONDS):
                    return
                if not self._spool.pending():
                    await self._write_segments()
                    return
                # Another flush, which ends, would end the hurry of this one.
                self._hurry.set()
                self.wake()
                await anyio.sleep(_POLL_SECONDS)
        finally:
            self._hurry = anyio.Event()

    async def _pause(self, seconds: float) -> None:
        with anyio.move_on_after(seconds):
            await self._hurry.wait()

    async def _upload_all(self) -> None:
        batch: list[tuple[Path, Put]] = []
        size = 0
        for path in self._spool.pending():
            put = self._spool.load(path)
            if put is None:
                continue
            try:
                manifest.check_result(put.result)
            except (InvalidName, TooLarge) as error:
                logger.warning("a result is dropped: %s", error)
                self._spool.discard(path)
                continue
            if batch and (size > BATCH_BYTES or (put.job, put.run) != (batch[0][1].job, batch[0][1].run)):
                await self._upload(batch)
                batch, size = [], 0
            batch.append((path, put))
            size += sum(map(len, put.result.members.values()))
        if batch:
            await self._upload(batch)

    async def _upload(self, batch: list[tuple[Path, Put]]) -> None:
        """Store results of one run of one job."""
        job = batch[0][1].job
        run = self._jobs.runs.get((batch[0][1].run, job))
        ledger.charge(run.ledger if run else Ledger(), "upload")
        try:
            heed_claims = self._given_way < GIVE_WAY_TIMES
            slots = await self._cache.put_all([put.result for _, put in batch], heed_claims=heed_claims)
            self._given_way = 0
        except Claimed as error:
            self._given_way += 1
            logger.info("%s", error)
            return
        except Forbidden as error:
            await self._keep(batch)
            if run:
                run.warn(error)
            if run is None or self._cache.created:
                # These credentials are not those of the job that made it, or could write a moment ago.
                self._has_failed = True
                return
            logger.warning("%d results are dropped: %s", len(batch), error)
        except StoreError as error:
            # They stay in the spool: the bucket may come back, or the next start finds them.
            logger.warning("%d results wait in the spool: %s", len(batch), error)
            if run:
                run.warn(error)
            await self._keep(batch)
            self._has_failed = True
            return
        else:
            for (_, put), slot in zip(batch, slots, strict=True):
                if slot is None:
                    logger.warning("a result is dropped: %s has too many variants", put.result.namespace)
                else:
                    self._jobs.profile(job).add(put.result.namespace, put.result.key, slot)
        for path, _ in batch:
            self._spool.discard(path)

    async def _keep(self, batch: list[tuple[Path, Put]]) -> None:
        """Let this machine have what the bucket does not take."""
        missing = [(path, put.result) for path, put in batch if path not in self._kept]
        self._kept |= {path for path, _ in missing}
        await self._cache.keep_all([result for _, result in missing])

    async def _write_segments(self) -> None:
        async with self._writing:
            await self._segments.write()
