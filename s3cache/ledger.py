"""What a run cost and what it gained: the numbers of the report."""

from collections import defaultdict
from contextvars import ContextVar
from typing import Any

import msgspec


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
    HEAD: int = 0
    DELETE: int = 0


class Ledger:
    """Counts for one run of one job; its processes share it."""

    def __init__(self) -> None:
        self.namespaces: defaultdict[str, NamespaceCounts] = defaultdict(NamespaceCounts)
        self.requests = RequestCounts()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.quarantined = 0
        self.warnings: list[str] = []

    def request(self, kind: str) -> None:
        """Count one request of a kind: GET, PUT, LIST, HEAD or DELETE."""
        setattr(self.requests, kind, getattr(self.requests, kind) + 1)

    def as_dict(self) -> dict[str, Any]:
        """Return the counts as they stand in a report."""
        return {
            "namespaces": {name: msgspec.to_builtins(c) for name, c in sorted(self.namespaces.items())},
            "requests": msgspec.to_builtins(self.requests),
            "seconds": {name: round(value, 6) for name, value in sorted(self.seconds.items())},
            "quarantined": self.quarantined,
            "warnings": self.warnings,
        }


_charged: ContextVar[Ledger] = ContextVar("s3cache_ledger")
_NOBODYS = Ledger()


def current() -> Ledger:
    """Return the ledger of the run that the running task works for."""
    return _charged.get(_NOBODYS)


def charge(ledger: Ledger) -> None:
    """Let the running task, and those it starts, work for the run of `ledger`."""
    _charged.set(ledger)
