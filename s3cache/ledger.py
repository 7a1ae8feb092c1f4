"""What a run cost and what it gained: the numbers of the report, and the events of a trace."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

import msgspec

from s3cache.errors import S3CacheError

MAX_EVENTS = 20_000
"""Events of one run that are kept; the others are counted."""

Cause = Literal["look-up", "prefetch", "upload"]


class NamespaceCounts(msgspec.Struct):
    """Look-ups and transfers of one namespace."""

    bucket_hits: int = 0
    disk_hits: int = 0
    misses: int = 0
    puts: int = 0
    bytes_down: int = 0
    bytes_up: int = 0


class RequestCounts(msgspec.Struct):
    """Requests sent to the bucket."""

    GET: int = 0
    PUT: int = 0
    LIST: int = 0
    DELETE: int = 0


class Event(msgspec.Struct, array_like=True):
    """What happened from `start` to `end`, by the monotonic clock that all processes of a machine share.

    `kind` is that of a request, "look-up", "hit", "prefetch" or "process".
    """

    kind: str
    name: str
    start: float
    end: float
    cause: Cause | None = None
    bytes: int = 0
    outcome: str = ""

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.end - self.start


class Ledger:
    """Counts for one run of one job; its processes share it. Events are kept once `events` is a list."""

    def __init__(self) -> None:
        self.namespaces: defaultdict[str, NamespaceCounts] = defaultdict(NamespaceCounts)
        self.requests = RequestCounts()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.faults: defaultdict[str, int] = defaultdict(int)
        self.quarantined = 0
        self.prefetched_bytes = 0
        self.warnings: list[str] = []
        self.events: list[Event] | None = None
        self.events_left_out = 0

    @property
    def bytes_down(self) -> int:
        """Bytes that came from the bucket, of all namespaces."""
        return sum(counts.bytes_down for counts in self.namespaces.values())

    @contextmanager
    def request(self, kind: str, name: str) -> Iterator[Event]:
        """Count one request of a kind: GET, PUT, LIST or DELETE. Its event is as for `timed`."""
        setattr(self.requests, kind, getattr(self.requests, kind) + 1)
        with self.timed(kind, name) as event:
            try:
                yield event
            except S3CacheError as error:
                self.note(error)
                raise

    def note(self, error: S3CacheError) -> None:
        """Count what went wrong, by its kind."""
        if error.fault:
            self.faults[error.fault] += 1

    @contextmanager
    def timed(self, kind: str, name: str) -> Iterator[Event]:
        """Keep what is done in this context as an event, whose bytes and outcome may be set meanwhile."""
        event = Event(kind, name, time.monotonic(), 0.0, _cause.get())
        try:
            yield event
        except BaseException as error:
            event.outcome = type(error).__name__.lstrip("_")
            raise
        finally:
            event.end = time.monotonic()
            self.keep(event)

    def keep(self, event: Event) -> None:
        """Keep an event, if events are kept and there are not too many."""
        if self.events is not None:
            if len(self.events) < MAX_EVENTS:
                self.events.append(event)
            else:
                self.events_left_out += 1

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as they stand in a report."""
        return {
            "namespaces": {name: msgspec.to_builtins(c) for name, c in sorted(self.namespaces.items())},
            "requests": msgspec.to_builtins(self.requests),
            "seconds": {name: round(value, 6) for name, value in sorted(self.seconds.items())},
            "faults": dict(sorted(self.faults.items())),
            "prefetched_bytes": self.prefetched_bytes,
            "quarantined": self.quarantined,
            "warnings": self.warnings,
        }


_charged: ContextVar[Ledger] = ContextVar("s3cache_ledger")
_cause: ContextVar[Cause] = ContextVar("s3cache_cause", default="look-up")
_NOBODYS = Ledger()


def current() -> Ledger:
    """Return the ledger of the run that the running task works for."""
    return _charged.get(_NOBODYS)


def charge(ledger: Ledger, cause: Cause = "look-up") -> None:
    """Let the running task, and those it starts, work for the run of `ledger`, because of `cause`."""
    _charged.set(ledger)
    _cause.set(cause)
