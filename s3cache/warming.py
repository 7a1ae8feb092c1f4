"""Fetching a job's profile into the disk tier, with no job."""

import time
from dataclasses import dataclass

import anyio

from s3cache import leases, ledger, names
from s3cache.catalog import Catalog
from s3cache.errors import Unreachable
from s3cache.ledger import Ledger
from s3cache.machine import Machine, platform_tag
from s3cache.prefetch import Progress, bring, open_profile, worth_fetching
from s3cache.profile import Segment, live
from s3cache.read_through import ReadThrough
from s3cache.settings import Settings
from s3cache.tier import open_tier


@dataclass(frozen=True)
class Warmed:
    """What was fetched."""

    entries: int
    bytes_down: int
    seconds: float


def warm(settings: Settings, progress: Progress) -> Warmed:
    """Fetch what the job of `settings` used on its last starts; `progress` says meanwhile how far it is.

    Raises StoreError when the bucket cannot be read, DiskTierError when the disk tier cannot be used.
    """
    return anyio.run(_warm, settings, progress)


async def _warm(settings: Settings, progress: Progress) -> Warmed:
    from s3cache.bucket import Bucket

    started = time.monotonic()
    counts = Ledger()
    ledger.charge(counts, "prefetch")
    keyring = settings.keyring()
    tier = open_tier(settings)
    machine = Machine()
    async with Bucket(settings.url) as bucket:
        cache = ReadThrough(bucket, tier, machine, keyring)
        prefix = names.profile_prefix(settings.job, platform_tag())
        segments: dict[str, Segment] | None = None
        with anyio.move_on_after(settings.deadline_seconds):
            opened = await open_profile(cache, bucket, prefix)
            segments = live(opened.segments)
            cache.drop_catalogs(prefix, but=segments)
            frames = worth_fetching(segments.values(), machine, settings.exclude, settings.disk_limit)
            await bring(cache, frames, progress, opened.prelude.frames if opened.prelude else None)
            progress.is_over = True
            await leases.leave(bucket, tier, prefix, segments)
    if segments is None:
        raise Unreachable(
            f"{settings.url}: the profile of {settings.job} did not come within S3CACHE_DEADLINE, "
            f"{settings.deadline_seconds:g} s"
        )
    entries = {digest for segment in segments.values() for digest in Catalog(segment.catalog, keyring)}
    return Warmed(len(entries), counts.bytes_down, time.monotonic() - started)
