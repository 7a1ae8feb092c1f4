"""Prefetch: a profile's LIST beside its prelude, the other segments, the other frames by ranges."""

import logging
import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple, TypeVar

import anyio

from s3cache import profile
from s3cache.errors import Busy, Corrupt, ObjectAbsent, S3CacheError, Untrusted
from s3cache.machine import Machine
from s3cache.pack import PackFrame
from s3cache.prelude import Prelude
from s3cache.profile import Segment
from s3cache.read_through import ReadThrough
from s3cache.stores.base import Listed, ObjectStore

logger = logging.getLogger(__name__)

T = TypeVar("T")

SEGMENTS = 128
"""The newest segments of a profile that are read."""
PROFILE_BYTES = 128 << 20
"""What they may have in all, and what their catalogs may: every process of the job holds these."""
AT_ONCE = 16
"""Ranges that are under way at one time, while the bucket does not ask for fewer."""
RANGE_BYTES = 2 << 20
"""Frames that follow each other are one request up to this size."""
FRAME_BYTES = 256 << 20
"""A frame that is larger is left to the look-up that needs it."""
PRELUDE_SECONDS = 1.0
"""How long the prelude may take longer than the LIST: then the profile is read without it."""
_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 10.0


@dataclass
class Progress:
    """How far a prefetch has come, in bytes; `of` is 0 until that is known."""

    bytes: int = 0
    of: int = 0
    is_over: bool = False


class Opened(NamedTuple):
    """The segments of a profile, whether there was an answer for each of them, and the prelude."""

    segments: dict[str, Segment]
    is_whole: bool
    prelude: Prelude | None


async def open_profile(cache: ReadThrough, objects: ObjectStore, prefix: str) -> Opened:
    """Return what `read_profile` does, and the prelude, which comes beside the LIST.

    The prelude is empty when the bucket has none that can be used, and None when it was not asked for,
    since something of the profile is on disk, or did not come soon enough.
    Raises StoreError when the bucket cannot be read, Untrusted when nobody who is trusted has signed any
    segment that can be read.
    """
    throttle = _Throttle()
    failure: S3CacheError | None = None
    prelude: Prelude | None = None
    is_over = anyio.Event()

    async def fetch() -> None:
        nonlocal prelude
        try:
            prelude = await cache.prelude(prefix)
        except ObjectAbsent:
            prelude = Prelude({}, {})
        except Corrupt as error:
            logger.warning("the prelude of %s is skipped: %s", prefix, error)
            prelude = Prelude({}, {})
        except S3CacheError as error:
            logger.info("the prelude of %s is skipped: %s", prefix, error)
        is_over.set()

    async with anyio.create_task_group() as group:
        if cache.has_profile(prefix):
            is_over.set()
        else:
            group.start_soon(fetch)
        try:
            found = await throttle.make(lambda: _find(objects, prefix))
            with anyio.move_on_after(PRELUDE_SECONDS):
                await is_over.wait()
        except S3CacheError as error:
            failure = error
        group.cancel_scope.cancel()
    if failure:
        raise failure
    segments, refusals = await _read(cache, found, throttle, prelude.segments if prelude else {})
    untrusted = [error for error in refusals if isinstance(error, Untrusted)]
    if untrusted and not segments:
        raise Untrusted(
            f"{prefix} is not used: {untrusted[0]}; S3CACHE_TRUSTED_KEYS says whose results are"
        )
    is_whole = all(isinstance(error, Corrupt | ObjectAbsent) for error in refusals)
    return Opened(segments, is_whole, prelude)


async def read_profile(cache: ReadThrough, objects: ObjectStore, prefix: str) -> dict[str, Segment]:
    """Return the segments of a profile by name, those that others stand for too.

    Raises StoreError when the bucket cannot be read; a segment that cannot be used is skipped.
    """
    throttle = _Throttle()
    found = await throttle.make(lambda: _find(objects, prefix))
    return (await _read(cache, found, throttle, {}))[0]


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


async def bring(
    cache: ReadThrough,
    frames: Collection[PackFrame],
    progress: Progress,
    copies: Mapping[str, bytes] | None = None,
) -> None:
    """Bring frames into the disk tier, by their names from `copies` if they are right there.

    What cannot be fetched is left to the look-up that needs it.
    """
    throttle = _Throttle()
    progress.of = sum(packed.place.length for packed in frames)
    missing: list[PackFrame] = []
    for packed in frames:
        try:
            cache.take_frame(packed, (copies or {})[packed.place.name])
            progress.bytes += packed.place.length
        except KeyError:
            missing.append(packed)
        except Corrupt as error:
            logger.warning("the prelude has other bytes: %s", error)
            missing.append(packed)

    async def fetch(run: list[PackFrame]) -> None:
        try:
            await throttle.make(lambda: cache.fetch(run))
            progress.bytes += sum(packed.place.length for packed in run)
        except S3CacheError as error:
            logger.info("%s is not prefetched: %s", run[0].place.name, error)

    async with anyio.create_task_group() as group:
        for run in ranges(missing):
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


async def _find(objects: ObjectStore, prefix: str) -> list[Listed]:
    found = [each async for each in objects.list(prefix) if profile.is_segment_name(each.name, prefix)]
    return sorted(found, reverse=True)


def _newest(found: Sequence[Listed]) -> list[str]:
    """Return the newest segments, as many as may be read; those found are the newest first."""
    sizes = accumulate(each.size for each in found[:SEGMENTS])
    return [each.name for each, size in zip(found, sizes, strict=False) if size <= PROFILE_BYTES]


async def _read(
    cache: ReadThrough, found: Sequence[Listed], throttle: "_Throttle", copies: Mapping[str, bytes]
) -> tuple[dict[str, Segment], list[S3CacheError]]:
    segments: dict[str, Segment] = {}
    refusals: list[S3CacheError] = []

    async def read(name: str) -> None:
        try:
            if name in copies:
                with suppress(Corrupt):
                    segments[name] = cache.take_copy(name, copies[name])
                    return
            segments[name] = await throttle.make(lambda: cache.segment(name))
        except S3CacheError as error:
            logger.warning("segment %s is skipped: %s", name, error)
            refusals.append(error)

    async with anyio.create_task_group() as group:
        for name in _newest(found):
            group.start_soon(read, name)
    room = PROFILE_BYTES
    for name in sorted(segments, reverse=True):
        room -= len(segments[name].catalog)
        if room < 0:
            logger.warning("segment %s is skipped: the profile has more than %d bytes", name, PROFILE_BYTES)
            del segments[name]
    return segments, refusals


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
