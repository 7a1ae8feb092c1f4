"""Clean-up: what no profile used for a long time is condemned, and deleted a while later.

docs/architecture.md says why this is safe beside writers and readers.
"""

import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

from s3cache import condemned, manifest, names, profile
from s3cache.catalog import Catalog
from s3cache.concurrency import for_each
from s3cache.errors import Busy, Corrupt, ObjectAbsent
from s3cache.inventory import Inventory, Total, read
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
    """What a clean-up came to."""

    unused: list[UnusedProfile]
    condemned: list[Total]
    waiting: list[Total]
    """How much an earlier one condemned, which is not due."""
    going: list[Total]
    absent: list[str]
    """The jobs that were to be kept and have no profile."""


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
        return Collected(
            unused,
            inventory.totals_condemned(),
            inventory.totals_waiting(),
            inventory.totals_going(),
            list(collector.absent.values()),
        )


class _Collector:
    def __init__(self, objects: ObjectStore, inventory: Inventory, terms: Terms, now: float) -> None:
        self._objects = objects
        self._inventory = inventory
        self._now = now
        self._kept = {names.component(job): job for job in terms.keep}
        self.absent = dict(self._kept)
        self.unused_since = now - terms.unused_seconds
        self.due_since = now - terms.grace_seconds

    async def read_lists(self) -> None:
        """Read what was condemned earlier."""
        for listed in self._inventory.lists():
            try:
                found = await read(self._objects, listed.name, partial(condemned.decode, listed.name))
            except (ObjectAbsent, Corrupt):
                continue
            self._inventory.condemn(found, is_due=listed.created < self.due_since)

    async def read_manifests(self, found: Iterator[str]) -> None:
        """Learn which packs manifests name."""

        async def learn(name: str) -> None:
            try:
                of = await read(self._objects, name, partial(manifest.decode, keyring=NO_KEYS))
            except ObjectAbsent:
                return
            except Corrupt:
                # No reader can use it: it names nothing.
                self._inventory.note_damaged(name)
                return
            self._inventory.note_named(name, {names.pack_name(place.pack) for place in of.frames})

        await for_each(found, learn)

    async def read_profiles(self) -> list[UnusedProfile]:
        """Mark what profiles in use name; return the others."""
        for kind in Kind.PROFILE, Kind.LEASE:
            await self._inventory.take(self._objects.list(f"{kind.value}/"))
        unused: list[UnusedProfile] = []

        async def look(found: tuple[str, float]) -> None:
            prefix, last_used = found
            _, job, platform, _ = prefix.split("/")
            self.absent.pop(job, None)
            if last_used >= self.unused_since or job in self._kept:
                await self._mark(prefix)
            else:
                unused.append(await self._measure(prefix, UnusedProfile(job, platform, last_used, 0, 0)))

        await for_each(self._inventory.profiles(), look, PROFILES_AT_ONCE)
        return sorted(unused, key=lambda profile: (profile.job, profile.platform))

    async def condemn(self) -> None:
        """Write down what is condemned."""
        found = self._inventory.condemned()
        while some := list(islice(found, condemned.NAMES)):
            data = condemned.encode(some)
            await self._objects.create(condemned.name_of(data, self._now), data)

    async def _mark(self, prefix: str) -> None:
        self._inventory.use([names.prelude_name(prefix)])
        # One that another stands for is in use, too: whoever can write may have written the other.
        async for name, segment in self._segments(prefix):
            self._inventory.use([name])
            for reference in Catalog(segment.catalog, NO_KEYS).references():
                packs = {names.pack_name(place.pack) for place in reference.manifest.frames}
                self._inventory.use([reference.name, *packs])

    async def _measure(self, prefix: str, unused: UnusedProfile) -> UnusedProfile:
        entries = size = 0
        replaced: set[str] = set()
        try:
            async for name, segment in self._segments(prefix):
                # What stands for others is newer than they.
                replaced.update(segment.replaces)
                if name in replaced:
                    continue
                entries += len(Catalog(segment.catalog, NO_KEYS))
                size += sum(packed.place.length for packed in segment.frames)
        except Corrupt:
            # What cannot be read is no reason to keep it.
            pass
        return UnusedProfile(unused.job, unused.platform, unused.last_used, entries, size)

    async def _segments(self, prefix: str) -> AsyncIterator[tuple[str, Segment]]:
        """Yield the segments of a profile, the newest first."""
        done: set[str] = set()
        for _ in range(_READINGS):
            found = [listed.name async for listed in self._objects.list(prefix)]
            for name in sorted(found, reverse=True):
                if name in done or not profile.is_segment_name(name, prefix):
                    continue
                try:
                    segment = await read(
                        self._objects, name, partial(profile.decode, name, keyring=NO_KEYS)
                    )
                except ObjectAbsent:
                    # A newer one stands for it.
                    break
                except Corrupt as error:
                    raise Corrupt(
                        f"{name} cannot be read, so nobody knows what it uses: {error}; "
                        "`s3cache verify --repair` removes it"
                    ) from error
                done.add(name)
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
