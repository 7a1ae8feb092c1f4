"""The agent: prefetches, answers look-ups, and lives until the last job's results are stored."""

import logging
import math
import os
import signal
import socket
import struct
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
from anyio.abc import SocketAttribute, SocketStream, TaskGroup
from anyio.streams.buffered import BufferedByteReceiveStream

from s3cache import leases, ledger, names, profile, view
from s3cache.agent import protocol, views
from s3cache.agent.job_profile import JobProfile
from s3cache.agent.jobs import Jobs, Run, versions
from s3cache.agent.look_ups import LookUps
from s3cache.agent.segments import SegmentWriter
from s3cache.agent.uploader import Uploader
from s3cache.cache import Cache
from s3cache.counts import HighestCounts
from s3cache.errors import (
    Corrupt,
    DiskTierError,
    S3CacheError,
    SettingsError,
    Untrusted,
)
from s3cache.ledger import Event
from s3cache.machine import Machine, gpus
from s3cache.prefetch import Opened, bring, open_profile, worth_fetching
from s3cache.prelude import useful_bytes
from s3cache.settings import Settings
from s3cache.spool import Spool
from s3cache.stores.breaker import BreakerStore
from s3cache.tier import open_tier

if TYPE_CHECKING:
    from s3cache.bucket import Bucket

logger = logging.getLogger(__name__)

LINGER_SECONDS = 0.5
"""How long the agent stays when no job is left, since the next one may be about to start."""
TERMINATION_SECONDS = 10.0
"""How long it goes on storing results after a SIGTERM."""
NICENESS = 19
"""A job that computes comes before uploads; until there are any, what it waits for is not held up."""
VIEW_SECONDS = 1.0
"""How long an answer may wait for a view that is still to be decided."""
CREDENTIALS_SECONDS = 2.5
"""How long, from the begin of a run on, an answer that is no look-up's may wait for credentials."""
FLUSH_CREDENTIALS_SECONDS = 4.0
"""How long a flush may: what it does not store is lost where a container ends with the job."""
LEASE_AFTER_SECONDS = 60.0
"""How often a job that goes on has its profile's lease looked after."""
GIVE_UP_SECONDS = 60.0
"""How long it does so when no job is left; the rest waits for the next start on this machine."""
_POLL_SECONDS = 0.02
_PEER = struct.Struct("3i")


async def serve(settings: Settings, first: protocol.Hello, alive: int) -> None:
    """Serve the jobs of this machine until none is left and the spool is empty.

    `first` is of the process that started the agent, and `alive` a pipe whose other end closes when
    that process is gone.
    """
    from s3cache.bucket import Bucket

    with anyio.open_signal_receiver(signal.SIGTERM) as signals:
        async with (
            await anyio.create_unix_listener("socket", mode=0o600) as listener,
            anyio.create_task_group() as group,
        ):
            agent = Agent(settings, Bucket(settings.url), group)
            group.start_soon(listener.serve, agent.converse)
            group.start_soon(agent.watch, alive)
            group.start_soon(agent.terminate_on, signals)
            group.start_soon(agent.use_bucket)
            await agent.welcome(first)
            await agent.until_idle()
            group.cancel_scope.cancel()
    for run in agent.jobs.runs.values():
        # What nobody told this agent, another one was told, and has written.
        if run.has_spoken:
            run.write_report()


class Agent:
    """What the conversations with the processes of all jobs share."""

    def __init__(self, settings: Settings, bucket: "Bucket", group: TaskGroup) -> None:
        self._settings = settings
        self._group = group
        self._tier = open_tier(settings)
        self._bucket = bucket
        self._objects = BreakerStore(bucket)
        writer = {"package": versions().get("torch-s3cache", "")}
        self._machine = Machine()
        self._keyring = settings.keyring()
        # What other keys had counted, these need not know.
        counts = settings.tier_directory / "counts" / self._keyring.trusted_id
        self._counts = HighestCounts(counts, settings.access)
        self._cache = Cache(self._objects, self._tier, self._machine, self._keyring, writer)
        self._has_credentials = anyio.Event()
        self._look_ups = LookUps(settings.url, self._cache, self._has_credentials, group)
        self.jobs = Jobs(self._keyring)
        self._signing_failure: SettingsError | None = None
        self._knows_whether_it_signs = anyio.Event()
        self.uploader: Uploader | None = None
        if settings.refusal is None:
            spool = Spool(settings.spool_directory, settings.disk_limit // 4, settings.access)
            segments = SegmentWriter(
                self._cache, self._objects, self._tier, self.jobs, self._counts, _toolchain()
            )
            self.uploader = Uploader(spool, self._cache, self._objects, self.jobs, segments, _step_back)
        # The process that started the agent is one, though it may not have connected yet.
        self._processes = 1
        self._changed = anyio.Event()
        self._terminating = anyio.Event()
        self._starting, self._started = anyio.create_memory_object_stream[Run](math.inf)

    async def converse(self, stream: SocketStream) -> None:
        """Serve one process until it is gone."""
        self._processes += 1
        run: Run | None = None
        try:
            async with stream:
                received = BufferedByteReceiveStream(stream)
                while True:
                    request = await _receive(received)
                    if isinstance(request, protocol.Hello):
                        run = await self.welcome(request)
                        pid = _peer(stream)
                        run.enter(pid)
                        now = time.monotonic()
                        run.ledger.keep(Event("process", f"{pid} connects", now, now))
                    elif run is not None:
                        reply = await self._answer(request, run)
                        if reply is not None:
                            await stream.send(protocol.frame(reply))
        except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
            pass
        except Corrupt as error:
            logger.warning("a process sent what is no message: %s", error)
        finally:
            self._leave()
            if run is not None:
                run.write_report()

    async def welcome(self, hello: protocol.Hello) -> Run:
        """Return the run of a process, and begin to prefetch if nobody did for its job of late."""
        run = self.jobs.run(hello)
        ledger.charge(run.ledger)
        if hello.is_traced and run.ledger.events is None:
            run.ledger.events = []
        if not run.prefetch.is_begun:
            run.prefetch.is_begun = True
            await self._starting.send(run)
        return run

    async def watch(self, alive: int) -> None:
        """Wait until the process that started the agent, and its forks, are gone."""
        await anyio.wait_readable(alive)
        os.close(alive)
        self._leave()

    async def use_bucket(self) -> None:
        """Prefetch and upload once there are credentials: who asks meanwhile is answered."""
        async with self._bucket, anyio.create_task_group() as group:
            self._has_credentials.set()
            group.start_soon(self.prefetch)
            group.start_soon(self.upload)
            group.start_soon(self.leave_leases)

    async def prefetch(self) -> None:
        """Bring into the disk tier what each job used on its last starts."""
        async with anyio.create_task_group() as group:
            async for run in self._started:
                group.start_soon(self._prefetch, run)

    async def upload(self) -> None:
        """Empty the spool, once the key is there that signs what goes to the bucket."""
        if self.uploader is None:
            self._knows_whether_it_signs.set()
            return
        try:
            signing = await anyio.to_thread.run_sync(self._settings.signing_keyring)
        except SettingsError as error:
            # What is in the spool waits for a start that can sign it.
            self._signing_failure = error
            self.uploader = None
            return
        finally:
            self._knows_whether_it_signs.set()
        if signing.signing:
            self._keyring.sign_with(signing.signing)
        await self.uploader.run()

    async def leave_leases(self) -> None:
        """Say once a day of each profile that it is in use: a clean-up looks at that."""
        while True:
            await anyio.sleep(LEASE_AFTER_SECONDS)
            await self._leave_leases()
            if not self.uploader or not self.uploader.pending:
                self.jobs.forget_ended()

    async def terminate_on(self, signals: AsyncIterator[signal.Signals]) -> None:
        """Leave, within a deadline, once a signal arrives."""
        async for _ in signals:
            self._terminating.set()
            self._changed.set()
            return

    async def until_idle(self) -> None:
        """Return when no process is left and all is stored, or enough time was spent on that."""
        while not self._terminating.is_set():
            while self._processes and not self._terminating.is_set():
                self._changed = anyio.Event()
                await self._changed.wait()
            with anyio.move_on_after(LINGER_SECONDS):
                while not self._processes and not self._terminating.is_set():
                    self._changed = anyio.Event()
                    await self._changed.wait()
            if self._terminating.is_set() or self._processes:
                continue
            with anyio.move_on_after(GIVE_UP_SECONDS):
                await self._flush(lambda: self._terminating.is_set() or self._processes > 0)
            if not self._processes:
                return
        with anyio.move_on_after(TERMINATION_SECONDS):
            await self._flush(lambda: False)

    async def _answer(self, request: protocol.Request, run: Run) -> protocol.Reply | None:
        match request:
            case protocol.Lookup(namespace, key, slot):
                with run.ledger.timed("look-up", f"{namespace} {key} {slot}") as event:
                    event.outcome = found = await self._look_ups.answer(run, request)
                return protocol.Found(found, self._warning(run))
            case protocol.Hit(namespace, key, slot, opened, seconds):
                counts = run.ledger.namespaces[namespace]
                if self._was_downloaded(run, names.manifest_name(namespace, key, slot)):
                    counts.bucket_hits += 1
                else:
                    counts.disk_hits += 1
                run.ledger.seconds["read"] += seconds
                now = time.monotonic()
                run.ledger.keep(Event("hit", f"{namespace} {key} {slot}", now - seconds, now))
                run.profile.add(namespace, key, slot, opened)
            case protocol.Use(namespace, key):
                run.profile.use(self._tier, namespace, key)
            case protocol.Miss(namespace):
                run.ledger.namespaces[namespace].misses += 1
            case protocol.Quarantined(count):
                run.ledger.quarantined += count
            case protocol.Waited(what, seconds):
                run.ledger.seconds[what] += seconds
            case protocol.Spooled():
                if self.uploader:
                    self.uploader.wake()
            case protocol.ProfileOf(prefix):
                if await self._have_credentials_come(run):
                    await run.until_profile_is_read(run.started)
                return protocol.Profile(run.profile.keys(prefix))
            case protocol.ViewOf():
                if run.decided is None:
                    run.decided = anyio.Event()
                    self._group.start_soon(self._decide, run, run.decided)
                with anyio.move_on_after(VIEW_SECONDS):
                    await run.decided.wait()
                return protocol.ViewIs(run.view, self._warning(run))
            case protocol.Agreed(agreed):
                run.pinned = len(view.decode(agreed))
                self._write_down(run, names.agreed_view_name(agreed), agreed)
                return protocol.ViewIs(agreed, self._warning(run))
            case protocol.ProgressOf():
                progress = run.prefetch.progress
                return protocol.ProgressIs(progress.bytes, progress.of, progress.is_over)
            case protocol.TraceOf():
                return protocol.Events(run.ledger.events or [], run.ledger.events_left_out)
            case protocol.Flush(seconds):
                if seconds:
                    with anyio.move_on_after(seconds):
                        if await self._have_credentials_come(run, FLUSH_CREDENTIALS_SECONDS):
                            await self._flush(lambda: False)
                pending = self.uploader.pending if self.uploader else 0
                report = run.write_report()
                return protocol.Flushed(pending, report, self._warning(run))
        return None

    def _was_downloaded(self, run: Run, name: str) -> bool:
        """Return whether what a manifest stands for came from the bucket in this run."""
        reference = run.profile.find(name)
        came = [place.name for place in reference.places] if reference else []
        came = came or [run.profile.segment_of(name) or name]
        return any(self._cache.downloaded.get(held, 0.0) > run.started for held in [name, *came])

    def _warning(self, run: Run) -> str | None:
        if self._cache.tier_failure:
            run.warn(self._cache.tier_failure)
        if self._signing_failure:
            run.warn(self._signing_failure)
        return run.take_warning()

    async def _prefetch(self, run: Run) -> None:
        ledger.charge(run.ledger, "prefetch")
        started = time.monotonic()
        had = run.ledger.bytes_down
        job = run.profile
        copies: dict[str, bytes] = {}
        with anyio.move_on_after(self._settings.deadline_seconds) as deadline:
            try:
                seen = self._counts.of(job.prefix)
                with run.ledger.timed("prefetch", "profile"):
                    opened = await open_profile(self._cache, self._objects, job.prefix)
                    job.learn(opened.segments)
                    job.is_known = True
                    self._cache.drop_catalogs(job.prefix, but=job.segments)
                    if opened.prelude and job.segments:
                        job.prelude_bytes = useful_bytes(opened.prelude, job.segments)
                        copies = opened.prelude.frames
                    self._compare_counts(run, opened, seen)
            except S3CacheError as error:
                run.warn(error)
            finally:
                run.prefetch.read.set()
            room = self._settings.disk_limit
            frames = worth_fetching(job.segments.values(), self._machine, self._settings.exclude, room)
            with run.ledger.timed("prefetch", "frames"):
                await bring(self._cache, frames, run.prefetch.progress, copies)
        run.prefetch.end()
        run.ledger.prefetched_bytes = run.ledger.bytes_down - had
        run.ledger.seconds["prefetch"] = time.monotonic() - started
        logger.info(
            "%d entries of %s; %d of %d bytes are here after %.2f s%s",
            len(job),
            job.job,
            run.prefetch.progress.bytes,
            run.prefetch.progress.of,
            run.ledger.seconds["prefetch"],
            "; S3CACHE_DEADLINE is over" if deadline.cancelled_caught else "",
        )
        # At the end, a container is gone before its agent.
        await self._leave_lease(job)

    def _compare_counts(self, run: Run, opened: Opened, seen: int) -> None:
        """Say so when a profile has counted further before: what came since was taken away."""
        job = run.profile
        if not self._keyring.trusted:
            # Anybody can count.
            return
        count = profile.highest_count(opened.segments.values())
        if opened.is_whole and opened.segments and count < seen:
            run.warn(
                Untrusted(
                    f"{self._settings.url}: the profile of {job.job} counts {count}, {seen} "
                    "was seen: it was removed and recorded anew, or somebody put an older one back. It is "
                    "used, since it is signed. If it was removed, remove "
                    f"{self._counts.path(job.prefix)}; if not, see who may write the bucket"
                )
            )
        job.highest_count = max(job.highest_count, seen)
        self._counts.note(job.prefix, job.highest_count)

    async def _decide(self, run: Run, decided: anyio.Event) -> None:
        """Decide what a pinned run sees on this machine, unless that was decided already."""
        if await self._have_credentials_come(run):
            await run.prefetch.over.wait()
        elif run.late:
            run.warn(run.late)
        job = run.profile
        seen = await anyio.to_thread.run_sync(views.here, self._tier, job, self._machine)
        run.view = self._write_down(run, names.view_name(job.job, run.id), view.encode(seen))
        run.pinned = len(view.decode(run.view))
        decided.set()

    async def _have_credentials_come(self, run: Run, seconds: float = CREDENTIALS_SECONDS) -> bool:
        """Return whether there are credentials in time; until they come, that is what is late."""
        late = None
        if not self._has_credentials.is_set() and run.late is None:
            run.late = late = self._look_ups.late()
        with anyio.move_on_after(run.started + seconds - time.monotonic()):
            await self._has_credentials.wait()
            if run.late is late:
                run.late = None
        return self._has_credentials.is_set()

    def _write_down(self, run: Run, name: str, data: bytes) -> bytes:
        try:
            return self._tier.write_first(name, data)
        except DiskTierError as error:
            run.warn(error)
            return data

    async def _flush(self, is_abandoned: Callable[[], bool]) -> None:
        while not self._knows_whether_it_signs.is_set():
            if is_abandoned():
                return
            with anyio.move_on_after(_POLL_SECONDS):
                await self._knows_whether_it_signs.wait()
        if self.uploader:
            await self.uploader.flush(is_abandoned)
        await self._leave_leases()

    async def _leave_leases(self) -> None:
        for job in list(self.jobs.profiles.values()):
            await self._leave_lease(job)

    async def _leave_lease(self, job: JobProfile) -> None:
        # Who may not leave one may still be allowed to write all else: the breaker does not see it.
        if job.is_known and not self._objects.failure("read"):
            await leases.leave(self._bucket, self._tier, job.prefix, job.segments)

    def _leave(self) -> None:
        self._processes -= 1
        self._changed.set()


def _peer(stream: SocketStream) -> int:
    """Return the id of the process at the other end."""
    peer = stream.extra(SocketAttribute.raw_socket)  # noqa: S610
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size)
    pid: int = _PEER.unpack(credentials)[0]
    return pid


def _toolchain() -> dict[str, str]:
    """Return what a profile says of the machines that wrote it."""
    found = versions()
    return {
        "package": found.get("torch-s3cache", ""),
        **{name: found[name] for name in ("python", "torch", "triton") if name in found},
        "gpus": str(gpus() or ""),
    }


def _step_back() -> None:
    """Let the job have the processor: uploads wait for nobody."""
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, int(thread.name), NICENESS)
    # Where each session has its share of the processor, that share is what counts.
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICENESS))


async def _receive(stream: BufferedByteReceiveStream) -> protocol.Request:
    header = await stream.receive_exactly(protocol.HEADER.size)
    length = protocol.length_of(header, protocol.REQUEST_BYTES)
    return protocol.decode_request(await stream.receive_exactly(length))
