"""A breaker: a store that does not answer is left alone for a while, then tried again."""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from s3cache.errors import (
    BucketAbsent,
    Busy,
    CredentialsAbsent,
    Forbidden,
    ObjectAbsent,
    StoreError,
    Unreachable,
    WrongRegion,
)
from s3cache.stores.base import Listed, ObjectStore
from s3cache.stores.wrapper import WrapperStore

logger = logging.getLogger(__name__)

T = TypeVar("T")

_OPENING = (Unreachable, BucketAbsent, CredentialsAbsent, WrongRegion)
COOLDOWN_SECONDS = 30.0


class BreakerStore(WrapperStore):
    """Stops asking `inner` once it failed; half open, one request in `cooldown` seconds probes it.

    What failed says why for as long as the breaker is open. A refusal (Forbidden) opens it for
    reading, writing and deleting apart, so that a bucket one may only read is still read.
    """

    def __init__(
        self,
        inner: ObjectStore,
        cooldown: float = COOLDOWN_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(inner)
        self._cooldown = cooldown
        self._clock = clock
        self._failures: dict[str, tuple[StoreError, float]] = {}
        self._first_asked: float | None = None
        self._has_answered = False

    def failure(self, direction: str) -> StoreError | None:
        """Return what keeps the breaker open for "read" or "write", if it is."""
        failed = self._failures.get(direction)
        return failed[0] if failed else None

    def silence(self) -> float:
        """Return for how many seconds the store was asked without ever answering; 0 once it did."""
        if self._has_answered or self._first_asked is None:
            return 0.0
        return self._clock() - self._first_asked

    async def get(self, name: str, part: range | None = None) -> bytes:
        """Return an object, or a part of it. Raises what opened the breaker while it is open."""
        return await self._attempt("read", lambda: self.inner.get(name, part))

    async def create(self, name: str, data: bytes) -> bool:
        """Create an object. Raises what opened the breaker while it is open."""
        return await self._attempt("write", lambda: self.inner.create(name, data))

    async def list(self, prefix: str) -> AsyncIterator[Listed]:
        """Yield objects. Raises what opened the breaker while it is open."""

        async def collect() -> list[Listed]:
            return [listed async for listed in self.inner.list(prefix)]

        for listed in await self._attempt("read", collect):
            yield listed

    async def delete(self, name: str) -> None:
        """Delete an object. Raises what opened the breaker while it is open."""
        await self._attempt("delete", lambda: self.inner.delete(name))

    async def _attempt(self, direction: str, request: Callable[[], Awaitable[T]]) -> T:
        failed = self._failures.get(direction)
        if failed:
            error, retry_at = failed
            if self._clock() < retry_at:
                # Raised again and again: its traceback would grow, and keep what its frames hold.
                raise error.with_traceback(None)
            # Half open: this request probes, the others go on failing until it is back.
            self._failures[direction] = error, self._clock() + self._cooldown
        if self._first_asked is None:
            self._first_asked = self._clock()
        try:
            result = await request()
        except _OPENING as error:
            self._open(error, "read", "write", "delete")
            raise
        except Forbidden as error:
            self._open(error, direction)
            raise
        except (ObjectAbsent, Busy):
            self._has_answered = True
            self._failures.pop(direction, None)
            raise
        self._has_answered = True
        self._failures.pop(direction, None)
        return result

    def _open(self, error: StoreError, *directions: str) -> None:
        if any(direction not in self._failures for direction in directions):
            what = ", ".join(directions)
            logger.warning("no %s for %.0f s: %s", what, self._cooldown, error)
        until = self._clock() + self._cooldown
        self._failures |= dict.fromkeys(directions, (error, until))
