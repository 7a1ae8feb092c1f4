"""Prefetch: a profile's LIST, its segments, then all they name, side by side."""

import logging
from collections.abc import Collection

import anyio

from s3cache import profile
from s3cache.cache import Cache
from s3cache.errors import S3CacheError
from s3cache.profile import Reference, Segment
from s3cache.stores.base import ObjectStore

logger = logging.getLogger(__name__)

SEGMENTS = 128
"""The newest segments of a profile that are read."""
AT_ONCE = 32


async def read_profile(cache: Cache, objects: ObjectStore, prefix: str) -> list[Reference]:
    """Return what the profile's segments name, the newest first.

    Raises StoreError when the bucket cannot be read; a segment that cannot be used is skipped.
    """
    found = [name async for name in objects.list(prefix) if profile.is_segment_name(name, prefix)]
    segments: dict[str, Segment] = {}

    async def read(name: str) -> None:
        try:
            segments[name] = await cache.segment(name)
        except S3CacheError as error:
            logger.warning("segment %s is skipped: %s", name, error)

    async with anyio.create_task_group() as group:
        for name in found[-SEGMENTS:]:
            group.start_soon(read, name)
    return profile.merge(segments[name] for name in sorted(segments, reverse=True))


async def bring(cache: Cache, references: list[Reference], exclude: Collection[str]) -> int:
    """Bring what `references` name into the disk tier; return how many of them are there.

    What cannot be fetched is left to the look-up that needs it.
    """
    limiter = anyio.Semaphore(AT_ONCE)
    here = 0

    async def bring_one(reference: Reference) -> None:
        nonlocal here
        async with limiter:
            try:
                await cache.adopt(reference)
                await cache.fill(reference.namespace, reference.key, reference.slot)
                here += 1
            except S3CacheError as error:
                logger.info("%s is not prefetched: %s", reference.name, error)

    async with anyio.create_task_group() as group:
        for reference in references:
            if reference.namespace not in exclude:
                group.start_soon(bring_one, reference)
    return here
