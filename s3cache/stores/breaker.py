"""A breaker: a store that fails is left alone for a while, then tried again."""

import logging
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal, TypeVar

import anyio

from s3cache.errors import Corrupt, ObjectAbsent, StoreError, Unreachable
from s3cache.stores.base import Listed, ObjectStore

logger = logging.getLogger(__name__)

T = TypeVar("T")

Direction = Literal["read", "list", "write", "delete"]

IN_A_ROW = 3
RECENT = 20
"""So many failures one after another, or in half of so many requests, open it."""
COOLDOWN_SECONDS = 1.0
"""How long it is open at first; twice as long after each probe that fails."""
LONGEST_COOLDOWN_SECONDS = 30.0
_JITTER = 0.25


class BreakerStore(ObjectStore):
    """Stops asking `inner` when it fails again and again; half open, one request at a time probes it.

    Those that come meanwhile wait for what becomes of the probe. What failed says why for as long as the
    breaker is open. It opens for reading, listing, writing and deleting apart, so that a bucket one may
    only read is still read.
    """

    def __init__(self, inner: ObjectStore, clock: Callable[[], float] = time.monotonic) -> None:
        self._inner = inner
        self._clock = clock
        self._circuits: dict[Direction, _Circuit] = {
            "read": _Circuit("read"),
            "list": _Circuit("list"),
            "write": _Circuit("write"),
            "delete": _Circuit("delete"),
        }
        self._under_way = 0
        self._unanswered_since: float | None = None

    def failure(self, direction: Direction) -> StoreError | None:
        """Return what keeps the breaker open, if it is."""
        return self._circuits[direction].failure

    def silence(self) -> float:
        """Return for how many seconds the store has answered nothing; 0 while it is not asked."""
        if not self._under_way or self._unanswered_since is None:
            return 0.0
        return self._clock() - self._unanswered_since

    async def get(self, name: str, part: range | None = None) -> bytes:
        """Return an object, or a part of it. Raises what opened the breaker while it is open."""
        return await self._attempt("read", lambda: self._inner.get(name, part))

    async def create(self, name: str, data: bytes) -> bool:
        """Create an object. Raises what opened the breaker while it is open."""
        return await self._attempt("write", lambda: self._inner.create(name, data))

    async def list(self, prefix: str) -> AsyncIterator[Listed]:
        """Yield objects. Raises what opened the breaker while it is open."""

        async def collect() -> list[Listed]:
            return [listed async for listed in self._inner.list(prefix)]

        for listed in await self._attempt("list", collect):
            yield listed

    async def delete(self, name: str) -> None:
        """Delete an object. Raises what opened the breaker while it is open."""
        await self._attempt("delete", lambda: self._inner.delete(name))

    async def _attempt(self, direction: Direction, request: Callable[[], Awaitable[T]]) -> T:
        circuit = self._circuits[direction]
        is_probe = await circuit.admit(self._clock)
        self._under_way += 1
        if self._unanswered_since is None:
            self._unanswered_since = self._clock()
        try:
            result = await request()
        except (ObjectAbsent, Corrupt):
            self._unanswered_since = None
            circuit.close()
            raise
        except StoreError as error:
            if not isinstance(error, Unreachable):
                self._unanswered_since = None
            circuit.fail(error, self._clock(), is_probe=is_probe)
            raise
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._unanswered_since = None
            if is_probe:
                circuit.end_probe()
        self._unanswered_since = None
        circuit.close()
        return result


class _Circuit:
    """Whether requests of one direction are let through."""

    def __init__(self, direction: Direction) -> None:
        self.failure: StoreError | None = None
        self._probe: anyio.Event | None = None
        """Set once the probe that is under way has ended."""
        self._direction = direction
        self._recent: deque[bool] = deque(maxlen=RECENT)
        """Which of the last requests failed."""
        self._cooldown = COOLDOWN_SECONDS
        self._retry_at = 0.0

    async def admit(self, clock: Callable[[], float]) -> bool:
        """Return whether a request that is let through is a probe. Raises what keeps it open."""
        while self.failure is not None:
            if clock() < self._retry_at:
                # Raised again and again: its traceback would grow, and keep what its frames hold.
                raise self.failure.with_traceback(None)
            if self._probe is None:
                self._probe = anyio.Event()
                return True
            # Of many requests that are made together, one that failed at once would cancel the probe.
            await self._probe.wait()
        return False

    def end_probe(self) -> None:
        """Let those who wait for the probe see what became of it."""
        if self._probe is not None:
            self._probe.set()
            self._probe = None

    def close(self) -> None:
        """Note that the store answered."""
        self._recent.append(False)
        if self.failure is not None:
            self.failure = None
            self._recent.clear()
            self._cooldown = COOLDOWN_SECONDS

    def fail(self, error: StoreError, now: float, *, is_probe: bool) -> None:
        """Note that the store did not do what it was asked."""
        self._recent.append(True)
        if is_probe:
            self._cooldown = min(self._cooldown * 2, LONGEST_COOLDOWN_SECONDS)
        elif self.failure is not None or not self._is_ill():
            return
        else:
            logger.warning("no %s for a while: %s", self._direction, error)
        self.failure = error
        self._retry_at = now + self._cooldown * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311

    def _is_ill(self) -> bool:
        recent = list(self._recent)
        in_a_row = len(recent) >= IN_A_ROW and all(recent[-IN_A_ROW:])
        return in_a_row or (len(recent) == RECENT and 2 * sum(recent) >= RECENT)
