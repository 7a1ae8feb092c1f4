"""A process's end of the conversation with its agent, and how that agent is started.

No thread is started here and nothing waits without a bound. A process that forks goes on in both
halves: the child's connection is its own.
"""

import math
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from s3cache import folders
from s3cache.agent import protocol
from s3cache.agent.address import RUN_VARIABLE, TRACE_VARIABLE, agent_directory
from s3cache.errors import S3CacheError
from s3cache.settings import Settings

T = TypeVar("T")

STARTING_SECONDS = 3.0
"""How long an agent may take until it listens; then another one is started."""
_POLL_SECONDS = 0.005
_SAY_SECONDS = 0.5
_SAY_AGAIN_SECONDS = 0.05
_UNSAID_MESSAGES = 10_000


class Connection:
    """Connects when it has to, starts an agent if there is none, and lets one thread speak at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._run = os.environ.setdefault(RUN_VARIABLE, os.urandom(8).hex())
        self._lock = threading.Lock()
        self._holder: int | None = None
        self._connection: socket.socket | None = None
        self._spawned_at = -STARTING_SECONDS
        self._unsaid: deque[bytes] = deque(maxlen=_UNSAID_MESSAGES)
        self._alive: tuple[int, int] | None = None
        self._said_at = 0.0

    @property
    def run(self) -> str:
        """The id of the run that this process belongs to."""
        return self._run

    @property
    def is_open(self) -> bool:
        """Whether an agent was reached and was not lost since."""
        return self._connection is not None

    @property
    def starting_seconds(self) -> float:
        """How long an agent that was just started may still take until it listens."""
        return max(self._spawned_at + STARTING_SECONDS - time.monotonic(), 0.0)

    def start(self) -> None:
        """Connect to the agent, or start one, without waiting for it.

        Raises OSError or RuntimeError when no process can be started, DiskTierError when others may write
        where its socket would lie.
        """
        if not self._lock.locked():
            self._alone(self._connect_or_spawn)

    def say(self, message: protocol.Request) -> None:
        """Tell the agent something: at once, or with the next message if that is soon or it is not up."""
        self._unsaid.append(protocol.frame(message))
        is_soon = time.monotonic() - self._said_at < _SAY_AGAIN_SECONDS
        if not is_soon and not self._lock.locked():
            self._alone(self._say_unsaid)

    def request(self, request: protocol.Request, seconds: float) -> protocol.Reply | None:
        """Return the agent's answer, or None when there is none within `seconds`."""
        deadline = time.monotonic() + seconds
        return self._alone(lambda: self._exchange(request, deadline) or self._exchange(request, deadline))

    def start_no_more(self) -> None:
        """Start no agent from now on: at exit no process can be started."""
        self._spawned_at = math.inf

    def after_fork(self) -> None:
        """Begin anew in a forked child."""
        self._lock = threading.Lock()
        self._holder = None
        self._unsaid.clear()
        self._disconnect()

    def _connect_or_spawn(self) -> None:
        if not self._connect():
            self._spawn()

    def _exchange(self, request: protocol.Request, deadline: float) -> protocol.Reply | None:
        if time.monotonic() >= deadline:
            # What another thread waited for, or the first try, has taken the time.
            return None
        try:
            connection = self._await_connection(deadline)
            connection.settimeout(_left(deadline))
            connection.sendall(protocol.frame(request), socket.MSG_NOSIGNAL)
            header = self._receive(protocol.HEADER.size, deadline)
            length = protocol.length_of(header, protocol.REPLY_BYTES)
            return protocol.decode_reply(self._receive(length, deadline))
        except (OSError, RuntimeError, S3CacheError):
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

    def _say_unsaid(self) -> None:
        self._said_at = time.monotonic()
        if self._connect():
            self._say_all()

    def _say_all(self) -> None:
        assert self._connection is not None
        frames = [self._unsaid.popleft() for _ in range(len(self._unsaid))]
        try:
            self._connection.settimeout(_SAY_SECONDS)
            self._connection.sendall(b"".join(frames), socket.MSG_NOSIGNAL)
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
            if not _is_closed(self._connection):
                return True
            self._disconnect()
        try:
            # The path of a Unix socket has 107 bytes at most; that of its folder may be longer.
            folder = os.open(agent_directory(self._settings), os.O_PATH | os.O_DIRECTORY)
        except OSError:
            return False
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(_SAY_SECONDS)
            connection.connect(f"/proc/self/fd/{folder}/socket")
            report = os.fspath(self._settings.report) if self._settings.report else None
            hello = protocol.Hello(self._run, self._settings.job, report, TRACE_VARIABLE in os.environ)
            connection.sendall(protocol.frame(hello), socket.MSG_NOSIGNAL)
        except OSError:
            connection.close()
            return False
        finally:
            os.close(folder)
        self._connection = connection
        self._spawned_at = -STARTING_SECONDS
        return True

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _spawn(self) -> None:
        # It takes a moment to listen; a new one is worth a try when that moment is long over.
        if time.monotonic() - self._spawned_at < STARTING_SECONDS:
            return
        folder = agent_directory(self._settings)
        folders.secure(folder.parent, self._settings.access)
        folders.secure(folder, folders.OWNER)
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


def _is_closed(connection: socket.socket) -> bool:
    """Return whether the other end is gone: nothing else makes a connection readable between requests."""
    connection.settimeout(0)
    try:
        return not connection.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left
