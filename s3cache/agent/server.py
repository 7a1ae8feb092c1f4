"""The agent: prefetches, answers look-ups, uploads the spool, writes the report."""

import functools
import json
import logging
import os
import platform
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import anyio
from anyio.abc import SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from s3cache import ledger, profile
from s3cache.agent import protocol
from s3cache.agent.job_profile import JobProfile
from s3cache.cache import Cache
from s3cache.errors import (
    Corrupt,
    DiskTierError,
    Forbidden,
    ObjectAbsent,
    S3CacheError,
    StoreError,
)
from s3cache.ledger import Ledger
from s3cache.machine import Machine, fingerprint, platform_tag
from s3cache.prefetch import bring, read_profile
from s3cache.settings import Mode, Settings
from s3cache.spool import Spool
from s3cache.stores.base import ObjectStore
from s3cache.stores.breaker import BreakerStore
from s3cache.stores.read_only import ReadOnlyStore
from s3cache.tier import DiskTier

logger = logging.getLogger(__name__)

UPLOADS_AT_ONCE = 8
LINGER_SECONDS = 0.5
QUIET_SECONDS = 30.0
TERMINATION_SECONDS = 10.0
"""How long the spool may still be emptied after a SIGTERM."""
GIVE_UP_SECONDS = 60.0
"""How long the agent tries to empty the spool when no job is left; the rest waits for the next start."""
_POLL_SECONDS = 0.02
_PACKAGES = ("torch-s3cache", "torch", "triton", "aioboto3")


async def serve(settings: Settings, alive: int) -> None:
    """Serve the jobs of this machine until none is left and the spool is empty."""
    from s3cache.bucket import Bucket

    async with (
        await anyio.create_unix_listener("socket", mode=0o600) as listener,
        Bucket(settings.url) as bucket,
        anyio.create_task_group() as group,
    ):
        agent = Agent(settings, bucket)
        group.start_soon(listener.serve, agent.converse)
        group.start_soon(agent.watch, alive)
        group.start_soon(agent.upload)
        group.start_soon(agent.prefetch_new_jobs)
        with anyio.open_signal_receiver(signal.SIGTERM) as signals:
            group.start_soon(agent.terminate_on, signals)
            await agent.until_idle()
        group.cancel_scope.cancel()
    agent.write_reports()


class Run:
    """One run of a job: its processes, and what they cost and gained."""

    def __init__(self, job: JobProfile) -> None:
        self.profile = job
        self.ledger = Ledger()
        self.started = time.monotonic()
        self.report: Path | None = None
        self.warned = False


class Agent:
    """What the connections, the prefetch and the upload share."""

    def __init__(self, settings: Settings, bucket: ObjectStore) -> None:
        self._settings = settings
        self._tier = DiskTier(settings.directory / "tier", settings.disk_limit)
        self._spool = Spool(settings.spool_directory, settings.disk_limit // 4)
        self._writable = settings.mode is Mode.READ_WRITE
        self._breaker = BreakerStore(bucket if self._writable else ReadOnlyStore(bucket))
        self._writer = {"package": _versions().get("torch-s3cache", "")}
        self._cache = Cache(self._breaker, self._tier, Machine(), self._writer)
        self._profiles: dict[str, JobProfile] = {}
        self._runs: dict[str, Run] = {}
        self._unread_send, self._unread = anyio.create_memory_object_stream[Run](1000)
        self._clients = 1
        self._changed = anyio.Event()
        self._spooled = anyio.Event()
        self._segments = anyio.Lock()
        self._terminating = False

    # The parts that run side by side.

    async def converse(self, stream: SocketStream) -> None:
        """Serve one process until it is gone."""
        self._clients += 1
        run: Run | None = None
        try:
            async with stream:
                received = BufferedByteReceiveStream(stream)
                while True:
                    request = await _receive(received)
                    if isinstance(request, protocol.Hello):
                        run = self._run(request)
                        ledger.charge(run.ledger)
                    elif run is not None:
                        reply = await self._answer(request, run)
                        if reply is not None:
                            await stream.send(protocol.frame(reply))
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
            pass
        finally:
            self._clients -= 1
            self._touch()
            if run is not None:
                self._write_report(run)

    async def watch(self, alive: int) -> None:
        """Count the process that started this agent, and its forks, as one until they are gone."""
        await anyio.wait_readable(alive)
        os.close(alive)
        self._clients -= 1
        self._touch()

    async def prefetch_new_jobs(self) -> None:
        """Bring into the disk tier what each job used on its last starts."""
        async with anyio.create_task_group() as group:
            async for run in self._unread:
                group.start_soon(self._prefetch, run)

    async def upload(self) -> None:
        """Empty the spool, again and again."""
        while True:
            self._spooled = anyio.Event()
            if self._writable:
                await self._upload_all()
            with anyio.move_on_after(QUIET_SECONDS if self._clients else 1.0) as quiet:
                await self._spooled.wait()
            if quiet.cancelled_caught:
                await self._write_segments()

    async def terminate_on(self, signals: AsyncIterator[signal.Signals]) -> None:
        """Leave within a deadline once a signal arrives."""
        async for _ in signals:
            self._terminating = True
            self._touch()
            return

    async def until_idle(self) -> None:
        """Return when no process is left and all is uploaded, or enough time was spent on it."""
        while True:
            while self._clients and not self._terminating:
                await self._changed.wait()
            if not self._terminating:
                with anyio.move_on_after(LINGER_SECONDS):
                    await self._changed.wait()
                if self._clients:
                    continue
            with anyio.move_on_after(TERMINATION_SECONDS if self._terminating else GIVE_UP_SECONDS):
                await self._flush(lambda: bool(self._clients) and not self._terminating)
            if self._terminating or not self._clients:
                return

    def write_reports(self) -> None:
        """Write the report of every run that wants one."""
        for run in self._runs.values():
            self._write_report(run)

    # What a process may ask.

    async def _answer(self, request: protocol.Request, run: Run) -> protocol.Reply | None:
        counts = run.ledger.namespaces
        match request:
            case protocol.Lookup(namespace, key, slot):
                return await self._look_up(run, namespace, key, slot)
            case protocol.Hit(namespace, key, slot, seconds):
                name = profile.Reference(namespace, key, slot).name
                if self._cache.downloaded.get(name, 0.0) > run.started:
                    counts[namespace].bucket_hits += 1
                else:
                    counts[namespace].disk_hits += 1
                run.ledger.seconds["read"] += seconds
                run.profile.add(namespace, key, slot)
            case protocol.Use(namespace, key):
                run.profile.use(self._tier, namespace, key)
            case protocol.Miss(namespace):
                counts[namespace].misses += 1
            case protocol.Waited(what, seconds):
                run.ledger.seconds[what] += seconds
            case protocol.Spooled():
                self._spooled.set()
            case protocol.ProfileOf(prefix):
                await run.profile.read.wait()
                return protocol.Profile(
                    [(r.namespace, r.key) for r in run.profile.references if r.namespace.startswith(prefix)]
                )
            case protocol.Flush(seconds):
                with anyio.move_on_after(seconds):
                    await self._flush(lambda: False)
                report = self._write_report(run)
                return protocol.Flushed(len(self._spool.pending()), report)
        return None

    async def _look_up(self, run: Run, namespace: str, key: str, slot: int) -> protocol.Found:
        try:
            await self._cache.fill(namespace, key, slot)
        except ObjectAbsent:
            return protocol.Found("absent")
        except Corrupt as error:
            logger.warning("%s %s slot %d is skipped: %s", namespace, key, slot, error)
            return protocol.Found("unusable")
        except (StoreError, DiskTierError) as error:
            return protocol.Found("unavailable", self._warning(run, error))
        return protocol.Found("ready")

    def _warning(self, run: Run, error: S3CacheError) -> str | None:
        if run.warned:
            return None
        run.warned = True
        logger.warning("%s", error)
        run.ledger.warnings.append(str(error))
        return str(error)

    def _run(self, hello: protocol.Hello) -> Run:
        run = self._runs.get(hello.run)
        if run is None:
            job = self._profiles.get(hello.job)
            is_new = job is None
            if job is None:
                job = self._profiles[hello.job] = JobProfile(hello.job, platform_tag())
            run = self._runs[hello.run] = Run(job)
            if is_new:
                self._unread_send.send_nowait(run)
        if hello.report:
            run.report = Path(hello.report)
        return run

    # Prefetch.

    async def _prefetch(self, run: Run) -> None:
        ledger.charge(run.ledger)
        started = time.monotonic()
        try:
            run.profile.learn(await read_profile(self._cache, self._breaker, run.profile.prefix))
        except S3CacheError as error:
            logger.warning("the profile of %s cannot be read: %s", run.profile.job, error)
        finally:
            run.profile.read.set()
        here = await bring(self._cache, run.profile.references, self._settings.exclude)
        seconds = time.monotonic() - started
        logger.info("%d entries of %s are here after %.2f s", here, run.profile.job, seconds)

    # Upload.

    async def _upload_all(self) -> None:
        limiter = anyio.Semaphore(UPLOADS_AT_ONCE)

        async def upload(path: Path) -> None:
            async with limiter:
                await self._upload_one(path)

        async with anyio.create_task_group() as group:
            for path in self._spool.pending():
                group.start_soon(upload, path)

    async def _upload_one(self, path: Path) -> None:
        put = self._spool.load(path)
        if put is None:
            return
        run = self._runs.get(put.run)
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
            if run:
                self._warning(run, error)
            logger.warning("a result is dropped: %s", error)
        except StoreError as error:
            # It stays in the spool: the bucket may come back, or the next start finds it.
            if run:
                self._warning(run, error)
            return
        except S3CacheError as error:
            logger.warning("a result is dropped: %s", error)
        else:
            job = self._profiles.setdefault(put.job, JobProfile(put.job, platform_tag()))
            job.add(put.namespace, put.key, slot)
        self._spool.discard(path)

    async def _write_segments(self) -> None:
        async with self._segments:
            for job in list(self._profiles.values()) if self._writable else ():
                made = job.next_segment(self._tier, self._writer)
                if made is None:
                    continue
                name, segment = made
                data = profile.encode(segment)
                ledger.charge(self._ledger_of(job))
                try:
                    await self._breaker.create(name, data)
                    self._tier.write(name, data)
                except StoreError as error:
                    logger.warning("the profile of %s is not extended: %s", job.job, error)
                    continue
                except DiskTierError as error:
                    logger.info("a segment is not kept on disk: %s", error)
                job.learn(segment.references)

    def _ledger_of(self, job: JobProfile) -> Ledger:
        runs = [run for run in self._runs.values() if run.profile is job]
        return runs[-1].ledger if runs else Ledger()

    async def _flush(self, is_abandoned: Callable[[], bool]) -> None:
        """Wait until the spool is empty, the bucket refuses, or it is abandoned; then end the segment."""
        while self._writable and self._spool.pending() and not is_abandoned():
            if self._breaker.failure("write"):
                return
            self._spooled.set()
            await anyio.sleep(_POLL_SECONDS)
        if not is_abandoned():
            await self._write_segments()

    # Report.

    def _write_report(self, run: Run) -> bytes:
        report = {
            "job": run.profile.job,
            **run.ledger.as_dict(),
            "versions": _versions(),
            "machine": fingerprint(),
        }
        data = json.dumps(report, indent=2).encode() + b"\n"
        if run.report is not None:
            unfinished = run.report.with_name(f".{run.report.name}.{os.getpid()}")
            try:
                unfinished.write_bytes(data)
                unfinished.rename(run.report)
            except OSError as error:
                logger.warning("the report cannot be written: %s", error)
        return data

    def _touch(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()


async def _receive(stream: BufferedByteReceiveStream) -> protocol.Request:
    (length,) = protocol.HEADER.unpack(await stream.receive_exactly(protocol.HEADER.size))
    return protocol.decode_request(await stream.receive_exactly(length))


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
