"""Clean-up: what no profile used for a long time is condemned, and deleted a while later.

docs/architecture.md says why this is safe beside writers and readers.
"""

import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import islice

from s3cache import condemned, manifest, names, profile
from s3cache.catalog import Catalog
from s3cache.concurrency import for_each
from s3cache.errors import Busy, Corrupt, ObjectAbsent
from s3cache.inventory import Inventory, Total
from s3cache.keyring import NO_KEYS
from s3cache.names import Kind
from s3cache.profile import Segment
from s3cache.removal import remove
from s3cache.stores.base import ObjectStore

CLAIM_SECONDS = 86_400.0
"""A claim that is older was left by a machine that died."""
PROFILES_AT_ONCE = 8
_READINGS = 5


@dataclass(frozen=True)
class Terms:
    """What is unused for how long, how long it is condemned then, and the jobs whose profiles are kept."""

    unused_seconds: float
    grace_seconds: float
    keep: Collection[str] = ()


@dataclass(frozen=True)
class UnusedProfile:
    """A profile that no start said that it used: when one last did, its entries and their bytes."""

    job: str
    platform: str
    last_used: float
    entries: int
    bytes: int


@dataclass(frozen=True)
class Collected:
    """The profiles that are not used, and how much of each kind is condemned, and how much goes."""

    unused: list[UnusedProfile]
    condemned: list[Total]
    going: list[Total]


async def collect(
    objects: ObjectStore, terms: Terms, *, delete: bool, clock: Callable[[], float] = time.time
) -> Collected:
    """Condemn what is not used, and delete what was condemned and is still not used.

    Without `delete`, only say what that would be. It may end at any moment; the next one goes on.
    Costs a LIST for each thousand objects, a GET for each manifest that stays and each segment, a LIST for
    each profile; with `delete`, a DELETE for each object that goes, a GET for each key that loses a result
    and a PUT for each tombstone. What anybody says that he uses counts, whoever signed it.
    Raises Corrupt when a segment that is in use cannot be read, StoreError when the bucket refuses.
    """
    now = await _time_of(objects) if delete else clock()
    with Inventory() as inventory:
        await inventory.take(objects.list(""))
        collector = _Collector(objects, inventory, terms, now)
        await collector.read_lists()
        await collector.read_manifests(inventory.certain_to_stay(collector.unused_since))
        # As late as can be: what is in use now is what counts.
        unused = await collector.read_profiles()
        await collector.read_manifests(inventory.in_use_after_all(collector.unused_since))
        inventory.decide(collector.unused_since, collector.due_since, now - CLAIM_SECONDS)
        if delete:
            await collector.condemn()
            await remove(objects, inventory)
        return Collected(unused, inventory.totals_condemned(), inventory.totals_going())


class _Collector:
    def __init__(self, objects: ObjectStore, inventory: Inventory, terms: Terms, now: float) -> None:
        self._objects = objects
        self._inventory = inventory
        self._now = now
        self._kept = {names.component(job) for job in terms.keep}
        self.unused_since = now - terms.unused_seconds
        self.due_since = now - terms.grace_seconds

    async def read_lists(self) -> None:
        """Read what was condemned earlier."""
        for listed in self._inventory.lists():
            try:
                found = condemned.decode(listed.name, await self._objects.get(listed.name))
            except (ObjectAbsent, Corrupt):
                continue
            self._inventory.condemn(found, is_due=listed.created < self.due_since)

    async def read_manifests(self, found: Iterator[str]) -> None:
        """Learn which packs manifests name."""

        async def read(name: str) -> None:
            try:
                read = manifest.decode(await self._objects.get(name), NO_KEYS)
            except (ObjectAbsent, Corrupt):
                return
            self._inventory.name_packs(name, {names.pack_name(place.pack) for place in read.frames})

        await for_each(found, read)

    async def read_profiles(self) -> list[UnusedProfile]:
        """Mark what profiles in use name; return the others."""
        for kind in Kind.PROFILE, Kind.LEASE:
            await self._inventory.take(self._objects.list(f"{kind.value}/"))
        unused: list[UnusedProfile] = []

        async def read(found: tuple[str, float]) -> None:
            prefix, last_used = found
            _, job, platform, _ = prefix.split("/")
            if last_used >= self.unused_since or job in self._kept:
                await self._mark(prefix)
            else:
                unused.append(await self._measure(prefix, UnusedProfile(job, platform, last_used, 0, 0)))

        await for_each(self._inventory.profiles(), read, PROFILES_AT_ONCE)
        return sorted(unused, key=lambda profile: (profile.job, profile.platform))

    async def condemn(self) -> None:
        """Write down what is condemned."""
        found = self._inventory.condemned()
        while some := list(islice(found, condemned.NAMES)):
            data = condemned.encode(some)
            await self._objects.create(condemned.name_of(data, self._now), data)

    async def _mark(self, prefix: str) -> None:
        self._inventory.use([names.prelude_name(prefix)])
        async for name, segment in self._segments(prefix):
            self._inventory.use([name])
            for reference in Catalog(segment.catalog, NO_KEYS).references():
                packs = {names.pack_name(place.pack) for place in reference.manifest.frames}
                self._inventory.use([reference.name, *packs])

    async def _measure(self, prefix: str, unused: UnusedProfile) -> UnusedProfile:
        entries = size = 0
        try:
            async for _, segment in self._segments(prefix):
                entries += len(Catalog(segment.catalog, NO_KEYS))
                size += sum(packed.place.length for packed in segment.frames)
        except Corrupt:
            # What cannot be read is no reason to keep it.
            pass
        return UnusedProfile(unused.job, unused.platform, unused.last_used, entries, size)

    async def _segments(self, prefix: str) -> AsyncIterator[tuple[str, Segment]]:
        """Yield the segments of a profile that no other one stands for, the newest first."""
        # One that stands for others is newer than they. What is gone by now was replaced by a newer one.
        replaced: set[str] = set()
        for _ in range(_READINGS):
            found = [listed.name async for listed in self._objects.list(prefix)]
            for name in sorted(found, reverse=True):
                if name in replaced or not profile.is_segment_name(name, prefix):
                    continue
                try:
                    segment = profile.decode(name, await self._objects.get(name), NO_KEYS)
                except ObjectAbsent:
                    break
                except Corrupt as error:
                    raise Corrupt(
                        f"{name} cannot be read, so nobody knows what it uses: {error}; "
                        "`s3cache verify --repair` removes it"
                    ) from error
                replaced.update(segment.replaces)
                yield name, segment
            else:
                return
        raise Busy(f"{prefix} changed while it was read; try again later")


async def _time_of(objects: ObjectStore) -> float:
    """Return what the store says that the time is: it says when objects were created, too."""
    token = secrets.token_hex(8)
    name = names.claim_name("gc", token)
    await objects.create(name, b"")
    created = [listed.created async for listed in objects.list(name)]
    await objects.delete(name)
    return created[0]
