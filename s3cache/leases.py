"""Leases: that a profile was used, said by who has nothing to add to it. A clean-up looks at them."""

import logging
import time
from collections.abc import Collection
from contextlib import suppress

import anyio

from s3cache import names, profile
from s3cache.errors import DiskTierError, Forbidden, S3CacheError
from s3cache.stores.base import ObjectStore
from s3cache.tier import DiskTier

logger = logging.getLogger(__name__)

DAY_SECONDS = 86_400
LEASE_SECONDS = 5.0
"""How long leaving one may take."""


async def leave(objects: ObjectStore, tier: DiskTier, prefix: str, segments: Collection[str]) -> None:
    """Leave today's lease of the profile of that prefix, unless this machine has tried to already.

    A profile that has a segment of today needs none, nor does one that has no segments.
    """
    now = time.time()
    name = names.lease_name(prefix, now)
    is_new = any(abs(now - profile.written_at(segment)) < DAY_SECONDS for segment in segments)
    if not segments or is_new or tier.has(name):
        return
    try:
        with anyio.fail_after(LEASE_SECONDS):
            await objects.create(name, b"")
    except Forbidden as error:
        logger.info("%s is not left: %s", name, error)
    except (S3CacheError, TimeoutError) as error:
        logger.info("%s is not left now: %s", name, error)
        return
    with suppress(DiskTierError):
        tier.write(name, b"")
