"""The library's face: `open` for async code, `open_sync` for the rest."""

import os
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import partial

from anyio.from_thread import BlockingPortal, start_blocking_portal

from s3cache.cache import Cache
from s3cache.local import LocalEntries
from s3cache.machine import Machine, platform_tag
from s3cache.manifest import MAX_SLOTS, Entry
from s3cache.names import catalog_prefixes
from s3cache.settings import Settings
from s3cache.stores.base import ObjectStore
from s3cache.stores.breaker import BreakerStore
from s3cache.stores.read_only import ReadOnlyStore
from s3cache.tier import open_tier


@asynccontextmanager
async def open(url: str | None = None) -> AsyncIterator[Cache]:
    """Open the cache at `url`, S3CACHE_URL by default; the other settings come from the environment.

    Raises SettingsError when a setting cannot be used, DiskTierError when the disk tier cannot.
    """
    from s3cache.bucket import Bucket

    settings = _settings(url)
    async with Bucket(settings.url) as bucket:
        objects: ObjectStore = BreakerStore(bucket)
        if settings.refusal:
            objects = ReadOnlyStore(objects, settings.refusal)
        keyring = settings.keyring() if settings.refusal else settings.signing_keyring()
        yield Cache(objects, open_tier(settings), Machine(), keyring)


@contextmanager
def open_sync(url: str | None = None) -> Iterator["SyncCache"]:
    """Open the cache at `url` for synchronous code; one thread with an event loop serves it.

    Raises SettingsError when a setting cannot be used, DiskTierError when the disk tier cannot.
    """
    settings = _settings(url)
    prefixes = catalog_prefixes(settings.job, platform_tag())
    entries = LocalEntries(open_tier(settings), prefixes, settings.keyring())
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(open(url)) as cache:
        yield SyncCache(cache, portal, entries)


class SyncCache:
    """The synchronous face of a Cache. A hit on the disk tier does not enter the event loop."""

    def __init__(self, cache: Cache, portal: BlockingPortal, entries: LocalEntries) -> None:
        self._cache = cache
        self._portal = portal
        self._entries = entries
        self._machine = Machine()

    def get(self, namespace: str, key: str, members: Collection[str] | None = None) -> Entry | None:
        """Return the first variant whose requirements this machine meets, or None.

        Without `members`, it comes with those that are not on demand.
        Raises StoreError when the bucket is needed and cannot be asked, InvalidName for a bad name.
        """
        for slot in range(MAX_SLOTS):
            manifest = self._entries.manifest(namespace, key, slot)
            if manifest is None:
                break
            if self._machine.meets(manifest.requires):
                entry = self._entries.entry(manifest, slot, members)
                if entry is not None:
                    return entry
                break
        return self._portal.call(self._cache.get, namespace, key, members)

    def put(
        self,
        namespace: str,
        key: str,
        members: Mapping[str, bytes],
        *,
        variant: str = "",
        requires: Mapping[str, str] | None = None,
        cost_seconds: float = 0.0,
        on_demand: Collection[str] = (),
    ) -> int:
        """Store a result and return its slot; see Cache.put for what it raises."""
        return self._portal.call(
            partial(
                self._cache.put,
                namespace,
                key,
                members,
                variant=variant,
                requires=requires,
                cost_seconds=cost_seconds,
                on_demand=on_demand,
            )
        )


def _settings(url: str | None) -> Settings:
    return Settings.from_environment({**os.environ, "S3CACHE_URL": url} if url else None)
