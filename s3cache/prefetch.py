"""Prefetch: a profile's LIST beside its prelude, the other segments, the other frames by ranges."""

import logging
import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import anyio

from s3cache import profile
from s3cache.cache import Cache
from s3cache.errors import Busy, ObjectAbsent, S3CacheError
from s3cache.machine import Machine
from s3cache.pack import PackFrame
from s3cache.profile import Segment
from s3cache.stores.base import ObjectStore

logger = logging.getLogger(__name__)

T = TypeVar("T")

SEGMENTS = 128
"""The newest segments of a profile that are read."""
AT_ONCE = 16
"""Ranges that are under way at one time, while the bucket does not ask for fewer."""
RANGE_BYTES = 2 << 20
"""Frames that follow each other are one request up to this size."""
FRAME_BYTES = 256 << 20
"""A frame that is larger is left to the look-up that needs it."""
_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 10.0


@dataclass
class Progress:
    """How far a prefetch has come, in bytes; `of` is 0 until that is known."""

    bytes: int = 0
    of: int = 0
    is_over: bool = False


async def open_profile(cache: Cache, objects: ObjectStore, prefix: str) -> dict[str, Segment]:
    """Return what `read_profile` does, with its prelude beside the LIST; that brings frames as well.

    Raises StoreError when the bucket cannot be read.
    """
    failure: S3CacheError | None = None
    throttle = _Throttle()
    async with anyio.create_task_group() as group:
        group.start_soon(_open_prelude, cache, prefix)
        try:
            found = await throttle.make(lambda: _find(objects, prefix))
        except S3CacheError as error:
            failure = error
            group.cancel_scope.cancel()
    if failure:
        raise failure
    return await _read(cache, found, throttle)


async def read_profile(cache: Cache, objects: ObjectStore, prefix: str) -> dict[str, Segment]:
    """Return the segments of a profile by name, those that others stand for too.

    Raises StoreError when the bucket cannot be read; a segment that cannot be used is skipped.
    """
    throttle = _Throttle()
    return await _read(cache, await throttle.make(lambda: _find(objects, prefix)), throttle)


def worth_fetching(
    segments: Iterable[Segment], machine: Machine, exclude: Collection[str], room: int
) -> list[PackFrame]:
    """Return the frames, each once, that this machine may use, as long as there is room for them."""
    frames: dict[str, PackFrame] = {}
    for segment in segments:
        for packed in segment.frames:
            length = packed.place.length
            if packed.namespace in exclude or length > FRAME_BYTES or not machine.may_meet(packed.requires):
                continue
            if packed.place.name in frames:
                continue
            if length > room:
                logger.warning("the profile is larger than S3CACHE_DISK_LIMIT: its end is not prefetched")
                return list(frames.values())
            frames[packed.place.name] = packed
            room -= length
    return list(frames.values())


async def bring(cache: Cache, frames: Collection[PackFrame], progress: Progress) -> None:
    """Bring frames into the disk tier; what cannot be fetched is left to the look-up that needs it."""
    throttle = _Throttle()
    progress.of = sum(packed.place.length for packed in frames)

    async def fetch(run: list[PackFrame]) -> None:
        try:
            await throttle.make(lambda: cache.fetch(run))
            progress.bytes += sum(packed.place.length for packed in run)
        except S3CacheError as error:
            logger.info("%s is not prefetched: %s", run[0].place.name, error)

    async with anyio.create_task_group() as group:
        for run in ranges(frames):
            group.start_soon(fetch, run)


def ranges(frames: Iterable[PackFrame]) -> Iterator[list[PackFrame]]:
    """Yield runs of frames that follow each other in one pack, each of RANGE_BYTES at most or one frame."""
    run: list[PackFrame] = []
    for packed in frames:
        if run:
            first, last, place = run[0].place, run[-1].place, packed.place
            follows = place.pack == last.pack and place.offset == last.offset + last.length
            if not follows or place.offset + place.length - first.offset > RANGE_BYTES:
                yield run
                run = []
        run.append(packed)
    if run:
        yield run


async def _open_prelude(cache: Cache, prefix: str) -> None:
    try:
        await cache.open_prelude(prefix)
    except ObjectAbsent:
        pass
    except S3CacheError as error:
        logger.warning("the prelude of %s is skipped: %s", prefix, error)


async def _find(objects: ObjectStore, prefix: str) -> list[str]:
    return [name async for name in objects.list(prefix) if profile.is_segment_name(name, prefix)]


async def _read(cache: Cache, found: list[str], throttle: "_Throttle") -> dict[str, Segment]:
    segments: dict[str, Segment] = {}

    async def read(name: str) -> None:
        try:
            segments[name] = await throttle.make(lambda: cache.segment(name))
        except S3CacheError as error:
            logger.warning("segment %s is skipped: %s", name, error)

    async with anyio.create_task_group() as group:
        for name in sorted(found)[-SEGMENTS:]:
            group.start_soon(read, name)
    return segments


class _Throttle:
    """Lets requests through AT_ONCE at a time, and makes them again while the bucket asks for fewer.

    Then half as many are made at one time, and one more with each that succeeds.
    """

    def __init__(self) -> None:
        self._limiter = anyio.CapacityLimiter(AT_ONCE)

    async def make(self, request: Callable[[], Awaitable[T]]) -> T:
        """Return what a request returns. Waits as long as it has to: give it a deadline."""
        attempt = 0
        while True:
            async with self._limiter:
                try:
                    made = await request()
                    self._limiter.total_tokens = min(self._limiter.total_tokens + 1, AT_ONCE)
                    return made
                except Busy:
                    self._limiter.total_tokens = max(self._limiter.total_tokens // 2, 1)
            pause = min(_PAUSE_SECONDS * 2**attempt, _LONGEST_PAUSE_SECONDS)
            await anyio.sleep(random.uniform(pause / 2, pause))  # noqa: S311
            attempt += 1
