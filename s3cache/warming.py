"""Fetching a job's profile into the disk tier, with no job."""

import time
from dataclasses import dataclass

import anyio

from s3cache import ledger
from s3cache.cache import Cache
from s3cache.ledger import Ledger
from s3cache.machine import Machine, platform_tag
from s3cache.names import profile_prefix
from s3cache.prefetch import bring, read_profile
from s3cache.settings import Settings
from s3cache.tier import DiskTier


@dataclass(frozen=True)
class Warmed:
    """What was fetched."""

    entries: int
    bytes_down: int
    seconds: float


def warm(settings: Settings) -> Warmed:
    """Fetch what the job of `settings` used on its last starts.

    Raises StoreError when the bucket cannot be read, DiskTierError when the disk tier cannot be used.
    """
    return anyio.run(_warm, settings)


async def _warm(settings: Settings) -> Warmed:
    from s3cache.bucket import Bucket

    started = time.monotonic()
    counts = Ledger()
    ledger.charge(counts)
    tier = DiskTier(settings.tier_directory, settings.disk_limit)
    async with Bucket(settings.url) as bucket:
        cache = Cache(bucket, tier, Machine())
        references = await read_profile(cache, bucket, profile_prefix(settings.job, platform_tag()))
        here = await bring(cache, references, settings.exclude)
    bytes_down = sum(namespace.bytes_down for namespace in counts.namespaces.values())
    return Warmed(here, bytes_down, time.monotonic() - started)
