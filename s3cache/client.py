"""The job's side: synchronous, without threads or an event loop, so forks and exits are safe.

A hit is read from the disk tier. What is not there is asked of the agent, with a bounded wait. A put
is a file in the spool. Nothing here raises into the job.
"""

import atexit
import functools
import logging
import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

import msgspec

from s3cache.agent import protocol
from s3cache.agent.address import RUN_VARIABLE, agent_directory
from s3cache.digest import digest_of
from s3cache.errors import DiskTierError, S3CacheError, SettingsError
from s3cache.local import read_entry, read_manifest
from s3cache.machine import Machine
from s3cache.manifest import Entry, Manifest
from s3cache.settings import Mode, Settings
from s3cache.spool import Put, Spool
from s3cache.tier import DiskTier

logger = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_SECONDS = 3.5
"""How long a process waits in all for an agent or a bucket that gives it nothing."""
COOLDOWN_SECONDS = 30.0
"""How long an agent that used up the patience is not asked; twice as long each time."""
PROBE_SECONDS = 0.5
"""How long it is then given to answer."""
MAX_SLOTS = 64
_POLL_SECONDS = 0.005
_STARTING_SECONDS = 3.0
_SAY_SECONDS = 0.5
_EXIT_SECONDS = 1.0
_TELLING_SECONDS = 0.2
_UNSAID_MESSAGES = 10_000

machine = Machine()
"""The facts that requirements are held against; hooks add what they know."""


class Client:
    """One process's cache. Made by `current()`; its methods never raise because of the cache."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._tier = DiskTier(settings.directory / "tier", settings.disk_limit)
        self._spool = Spool(settings.spool_directory, settings.disk_limit // 4)
        self._run = os.environ.setdefault(RUN_VARIABLE, os.urandom(8).hex())
        self._lock = threading.Lock()
        self._holder: int | None = None
        self._connection: socket.socket | None = None
        self._spawned_at = -_STARTING_SECONDS
        self._patience = PATIENCE_SECONDS
        self._cooldown = COOLDOWN_SECONDS
        self._probe_at = 0.0
        self._warned = False
        self._unsaid: deque[bytes] = deque(maxlen=_UNSAID_MESSAGES)
        self._alive: tuple[int, int] | None = None
        self._pid = os.getpid()
        self._puts: set[tuple[str, ...]] = set()

    def variants(self, namespace: str, key: str) -> Iterator[Entry]:
        """Yield every stored variant whose requirements this machine meets, in slot order."""
        if namespace in self.settings.exclude:
            return
        found = False
        for slot in range(MAX_SLOTS):
            started = time.perf_counter()
            manifest = read_manifest(self._tier, namespace, key, slot)
            if manifest is None:
                status = self._bring(namespace, key, slot)
                if status == "unusable":
                    continue
                manifest = read_manifest(self._tier, namespace, key, slot)
                if status != "ready" or manifest is None:
                    break
            entry = self._entry(manifest, slot) if machine.meets(manifest.requires) else None
            if entry is not None:
                found = True
                self._say(protocol.Hit(namespace, key, slot, time.perf_counter() - started))
                yield entry
        if not found:
            self._say(protocol.Miss(namespace))

    def get(self, namespace: str, key: str) -> Entry | None:
        """Return the first variant whose requirements this machine meets, or None."""
        return next(self.variants(namespace, key), None)

    def put(
        self,
        namespace: str,
        key: str,
        members: Mapping[str, bytes],
        *,
        variant: str = "",
        requires: Mapping[str, str] | None = None,
        cost_seconds: float = 0.0,
    ) -> None:
        """Spool a result; the agent, or the next start on this machine, stores it."""
        if self.settings.mode is not Mode.READ_WRITE or namespace in self.settings.exclude:
            return
        started = time.perf_counter()
        try:
            identity = (namespace, key, variant, *map(digest_of, members.values()))
            if identity in self._puts:
                return
            self._puts.add(identity)
            self._spool.add(
                Put(
                    namespace=namespace,
                    key=key,
                    members=dict(members),
                    variant=variant,
                    requires=dict(requires or {}),
                    cost_seconds=cost_seconds,
                    job=self.settings.job,
                    run=self._run,
                )
            )
        except S3CacheError as error:
            self._warn(f"a result was not kept: {error}")
            return
        self._say(protocol.Spooled())
        self.start()
        self.waited("spool", time.perf_counter() - started)

    def use(self, namespace: str, key: str) -> None:
        """Note that a result was used that PyTorch or Triton found by themselves."""
        if namespace not in self.settings.exclude:
            self._say(protocol.Use(namespace, key))

    def waited(self, what: str, seconds: float) -> None:
        """Note that the process spent time on something."""
        self._say(protocol.Waited(what, seconds))

    def profile(self, namespace_prefix: str) -> list[tuple[str, str]]:
        """Return namespace and key of what this job's profile has in namespaces that begin so."""
        reply = self._ask(protocol.ProfileOf(namespace_prefix))
        return reply.keys if isinstance(reply, protocol.Profile) else []

    def flush(self, seconds: float) -> protocol.Flushed | None:
        """Wait until all that was put is stored, at most `seconds`; None when no agent answers."""
        # An agent that is up and does not answer at once has kept the job waiting long enough.
        starting = max(self._spawned_at + _STARTING_SECONDS - time.monotonic(), 0.0)
        reply = self._request(protocol.Flush(0.0), starting + _EXIT_SECONDS)
        if reply is not None:
            reply = self._request(protocol.Flush(seconds), seconds + _EXIT_SECONDS)
        return reply if isinstance(reply, protocol.Flushed) else None

    def start(self) -> None:
        """Connect to the agent, or start one, without waiting for it."""
        if not self._lock.locked():
            self._alone(self._start)

    def _start(self) -> None:
        try:
            if not self._connect():
                self._spawn()
        except (OSError, RuntimeError) as error:
            self._warn(f"the agent cannot be started: {error}")

    def _entry(self, manifest: Manifest, slot: int) -> Entry | None:
        entry = read_entry(self._tier, manifest, slot)
        if entry is None and self._bring(manifest.namespace, manifest.key, slot) == "ready":
            return read_entry(self._tier, manifest, slot)
        return entry

    def _bring(self, namespace: str, key: str, slot: int) -> str:
        deadline = time.monotonic() + (self._patience or PROBE_SECONDS) - _TELLING_SECONDS
        reply = self._ask(protocol.Lookup(namespace, key, slot, deadline))
        return reply.status if isinstance(reply, protocol.Found) else "unavailable"

    def _ask(self, request: protocol.Request) -> protocol.Reply | None:
        """Return the agent's answer, or None; what got no answer eats into the patience."""
        started = time.monotonic()
        if self._patience == 0:
            if started < self._probe_at:
                return None
            self._patience = PROBE_SECONDS
        reply = self._request(request, self._patience)
        waited = time.monotonic() - started
        if reply is None or (isinstance(reply, protocol.Found) and reply.status == "unavailable"):
            self._patience = max(self._patience - waited, 0.0)
            if self._patience == 0:
                self._probe_at = time.monotonic() + self._cooldown
                self._cooldown *= 2
        else:
            self._patience = PATIENCE_SECONDS
            self._cooldown = COOLDOWN_SECONDS
        if reply is None:
            self._warn(
                "the cache did not answer in time and is left out; "
                f"{agent_directory(self.settings)}/log may say why"
            )
        self.waited("lookup", waited)
        return reply

    def _request(self, request: protocol.Request, seconds: float) -> protocol.Reply | None:
        deadline = time.monotonic() + seconds
        reply = self._alone(lambda: self._exchange(request, deadline) or self._exchange(request, deadline))
        if isinstance(reply, protocol.Found | protocol.Flushed) and reply.warning:
            self._warn(reply.warning)
        return reply

    def _exchange(self, request: protocol.Request, deadline: float) -> protocol.Reply | None:
        try:
            connection = self._await_connection(deadline)
            connection.settimeout(_left(deadline))
            connection.sendall(protocol.frame(request))
            (length,) = protocol.HEADER.unpack(self._receive(protocol.HEADER.size, deadline))
            return protocol.decode_reply(self._receive(length, deadline))
        except (OSError, RuntimeError, msgspec.DecodeError):
            self._disconnect()
            return None
        except BaseException:
            # A signal handler of the job raised: the answer that is under way is nobody's.
            self._disconnect()
            raise

    def _alone(self, action: Callable[[], T]) -> T | None:
        """Run what no other thread may do meanwhile; not at all in a signal handler that interrupted it."""
        if self._holder == threading.get_ident():
            return None
        # Only `with` leaves no moment in which a signal handler that raises could keep the lock.
        with self._lock:
            self._holder = threading.get_ident()
            try:
                return action()
            finally:
                self._holder = None

    def _receive(self, length: int, deadline: float) -> bytes:
        assert self._connection is not None
        data = bytearray()
        while len(data) < length:
            self._connection.settimeout(_left(deadline))
            part = self._connection.recv(length - len(data))
            if not part:
                raise ConnectionResetError
            data += part
        return bytes(data)

    def _say(self, message: protocol.Request) -> None:
        """Tell the agent something; if it is not up yet, or busy with us, with the next message."""
        self._unsaid.append(protocol.frame(message))
        if not self._lock.locked():
            self._alone(self._say_unsaid)

    def _say_unsaid(self) -> None:
        if self._connect():
            self._say_all()

    def _say_all(self) -> None:
        assert self._connection is not None
        frames = [self._unsaid.popleft() for _ in range(len(self._unsaid))]
        try:
            self._connection.settimeout(_SAY_SECONDS)
            self._connection.sendall(b"".join(frames))
        except OSError:
            self._disconnect()
        except BaseException:
            # A signal handler of the job raised: half a message may be sent.
            self._disconnect()
            raise

    def _await_connection(self, deadline: float) -> socket.socket:
        while not self._connect():
            self._spawn()
            time.sleep(min(_POLL_SECONDS, _left(deadline)))
        if self._unsaid:
            self._say_all()
        if self._connection is None:
            raise ConnectionResetError
        return self._connection

    def _connect(self) -> bool:
        if self._connection is not None:
            return True
        try:
            # The path of a Unix socket has 107 bytes at most; that of its folder may be longer.
            folder = os.open(agent_directory(self.settings), os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return False
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(_SAY_SECONDS)
            connection.connect(f"/proc/self/fd/{folder}/socket")
            report = os.fspath(self.settings.report) if self.settings.report else None
            connection.sendall(protocol.frame(protocol.Hello(self._run, self.settings.job, report)))
        except OSError:
            connection.close()
            return False
        finally:
            os.close(folder)
        self._connection = connection
        self._spawned_at = -_STARTING_SECONDS
        return True

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _spawn(self) -> None:
        # It takes a moment to listen; a new one is worth a try when that moment is long over.
        if time.monotonic() - self._spawned_at < _STARTING_SECONDS:
            return
        folder = agent_directory(self.settings)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._alive is None:
            # Its end of this pipe closes when this process and all its forks are gone.
            self._alive = os.pipe()
        self._spawned_at = time.monotonic()
        with (folder / "log").open("ab") as log:
            # The shell leaves at once, so that the job has no child that it does not know of.
            agent = [sys.executable, "-P", "-m", "s3cache.agent", str(folder), str(self._alive[0])]
            subprocess.run(
                ["/bin/sh", "-c", '"$@" &', "sh", *agent],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[self._alive[0]],
                start_new_session=True,
                check=False,
            )

    def _warn(self, text: str) -> None:
        if not self._warned:
            self._warned = True
            logger.warning("s3cache: %s", text)

    def _after_fork(self) -> None:
        self._lock = threading.Lock()
        self._holder = None
        self._unsaid.clear()
        self._disconnect()

    def _at_exit(self) -> None:
        # For the report, and for what the job is yet to be told.
        seconds = self._patience if self.settings.report else min(self._patience, _EXIT_SECONDS)
        if os.getpid() == self._pid and seconds and (self._connection or self.settings.report):
            self._spawned_at = math.inf  # What was spooled waits for the next start.
            self._request(protocol.Flush(0.0), seconds)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


@functools.cache
def current() -> Client | None:
    """Return this process's client; None when no bucket is set, or what is set cannot be used."""
    if not os.environ.get("S3CACHE_URL") or os.environ.get("S3CACHE_MODE") == Mode.OFF.value:
        return None
    try:
        settings = Settings.from_environment()
        # Children, and the agent, are of the same job and use the same folder, wherever they start.
        os.environ.setdefault("S3CACHE_JOB", settings.job)
        os.environ["S3CACHE_DIR"] = os.fspath(settings.directory)
        if settings.report:
            os.environ["S3CACHE_REPORT"] = os.fspath(settings.report)
        client = Client(settings)
    except (SettingsError, DiskTierError) as error:
        logger.warning("s3cache is off: %s", error)
        # Children need not find that out, and say it, for themselves.
        os.environ["S3CACHE_MODE"] = Mode.OFF.value
        return None
    os.register_at_fork(after_in_child=client._after_fork)
    atexit.register(client._at_exit)
    return client
