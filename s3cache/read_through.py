"""Reading through the disk tier: one download for all who wait, every byte verified."""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import groupby

import anyio

from s3cache import frame, ledger, names, profile
from s3cache import manifest as manifests
from s3cache import prelude as preludes
from s3cache.concurrency import for_each
from s3cache.digest import raw_digest_of
from s3cache.errors import (
    Corrupt,
    DiskTierError,
    ObjectAbsent,
    Removed,
    S3CacheError,
    StoreError,
    Unreadable,
    Untrusted,
)
from s3cache.keyring import Keyring
from s3cache.machine import Machine
from s3cache.manifest import Entry, Manifest, Place
from s3cache.pack import PackFrame
from s3cache.prelude import Prelude
from s3cache.profile import Segment
from s3cache.stores.base import ObjectStore
from s3cache.stores.retries import Retries
from s3cache.tier import DiskTier

logger = logging.getLogger(__name__)


class ReadThrough:
    """Compiler results under (namespace, key) in a bucket, behind the disk tier of this machine.

    What the keyring does not trust is as if it were damaged, on disk too.
    """

    def __init__(self, objects: ObjectStore, tier: DiskTier, machine: Machine, keyring: Keyring) -> None:
        self._objects = objects
        self._tier = tier
        self._machine = machine
        self._keyring = keyring
        self._retries = Retries()
        self._flights: dict[str, _Flight] = {}
        self._broken: dict[str, Manifest] = {}
        self.downloaded: dict[str, float] = {}
        """Names in the disk tier of what came from the bucket, and when by the monotonic clock."""
        self.tier_failure: DiskTierError | None = None

    async def get(self, namespace: str, key: str, members: Collection[str] | None = None) -> Entry | None:
        """Return the first variant whose requirements this machine meets, or None.

        Without `members`, it comes with those that are not on demand.
        Raises StoreError when the bucket is needed and cannot be asked, InvalidName for a bad name.
        """
        async for entry in self.variants(namespace, key, members):
            return entry
        return None

    async def variants(
        self, namespace: str, key: str, members: Collection[str] | None = None
    ) -> AsyncIterator[Entry]:
        """Yield every variant whose requirements this machine meets, in the order of the slots.

        Raises StoreError when the bucket is needed and cannot be asked, InvalidName for a bad name.
        """
        names.check_namespace(namespace)
        for slot in range(manifests.MAX_SLOTS):
            try:
                manifest = await self.manifest(namespace, key, slot)
                if self._machine.meets(manifest.requires):
                    yield await self.entry(manifest, slot, members)
            except ObjectAbsent:
                return
            except Removed:
                continue
            except Corrupt as error:
                logger.warning("%s %s slot %d is skipped: %s", namespace, key, slot, error)

    async def manifest(self, namespace: str, key: str, slot: int) -> Manifest:
        """Return the manifest in a slot.

        Raises ObjectAbsent when the slot is empty, Removed when what it held was removed, Corrupt when what
        it holds cannot be used.
        """
        name = names.manifest_name(namespace, key, slot)
        try:
            data = await self._through_tier(name, lambda: self._download(namespace, name))
            return manifests.of_key(data, namespace, key, self._keyring)
        except Corrupt:
            self._forget(name)
            raise

    async def stored(self, namespace: str, key: str, slot: int) -> Manifest:
        """Return what the bucket has in a slot: what the disk has of it may have been removed there.

        Raises as `manifest` does.
        """
        name = names.manifest_name(namespace, key, slot)
        data = await self._download(namespace, name)
        manifest = manifests.of_key(data, namespace, key, self._keyring)
        self._keep_anew(name, data)
        return manifest

    async def _download(self, namespace: str, name: str) -> bytes:
        """Return a manifest object. Raises Corrupt when it, or what lies in it, is damaged."""
        data = await self._objects.get(name)
        for member in manifests.decode(data, self._keyring).members:
            if member.inline is not None:
                manifests.content_of(member, None)
        _count_down(namespace, data)
        return data

    def has_profile(self, prefix: str) -> bool:
        """Return whether anything of the profile of that prefix is on disk."""
        return bool(self._tier.names(names.catalog_name(prefix)))

    async def prelude(self, prefix: str) -> Prelude:
        """Return the prelude of the profile of that prefix.

        Raises ObjectAbsent, Corrupt when it cannot be used, another StoreError.
        """
        data = await self._objects.get(names.prelude_name(prefix), range(preludes.PRELUDE_BYTES))
        return preludes.decode(data, prefix)

    async def segment(self, name: str) -> Segment:
        """Return a segment, and lay its catalog down for those who look on the disk.

        Raises ObjectAbsent, or Corrupt when it cannot be used.
        """
        return self.take_segment(name, await self.segment_data(name))

    async def segment_data(self, name: str) -> bytes:
        """Return a segment as it lies in the bucket. Raises as `segment` does."""

        async def download() -> bytes:
            data = await self._objects.get(name)
            profile.decode(name, data, self._keyring)
            return data

        return await self._through_tier(name, download)

    def take_segment(self, name: str, data: bytes) -> Segment:
        """Return the segment of that name, and lay it down with its catalog.

        Raises Corrupt when the bytes are not those of that name.
        """
        try:
            segment = profile.decode(name, data, self._keyring)
        except Corrupt:
            self._forget(name)
            raise
        self._keep(name, data)
        self._keep(names.catalog_name(name), segment.catalog)
        return segment

    def take_copy(self, name: str, data: bytes) -> Segment:
        """Return the segment of that name as `segment` does, from a copy of it. Raises Corrupt."""
        segment = self.take_segment(name, data)
        self.downloaded[name] = time.monotonic()
        return segment

    def drop_catalogs(self, prefix: str, but: Collection[str]) -> None:
        """Take the catalogs of a profile off the disk, but for those of some segments."""
        kept = {names.catalog_name(segment) for segment in but}
        for name in self._tier.names(names.catalog_name(prefix)):
            if name not in kept:
                self._forget(name)

    async def entry(self, manifest: Manifest, slot: int, members: Collection[str] | None = None) -> Entry:
        """Return a manifest's entry. Raises Corrupt when a member is gone or does not match."""
        frames: dict[str, bytes] = {}

        async def load(place: Place) -> None:
            frames[place.name] = frame.decompress(await self._frame(manifest, place), limit=place.size)

        contents: dict[str, bytes] = {}
        with self._noting_damage(manifest, slot):
            await for_each(manifest.places(members), load)
            for member in manifest.wanted(members):
                grown = None if member.inline is not None else frames[manifest.frames[member.frame].name]
                contents[member.name] = manifests.content_of(member, grown)
        return manifests.entry_of(manifest, slot, contents)

    async def fill(self, manifest: Manifest, slot: int, members: Collection[str] | None = None) -> None:
        """Bring the frames of what lies in a slot, if this machine may use it, into the disk tier.

        Raises Corrupt when they cannot be used, DiskTierError when the tier takes nothing, another
        StoreError when the bucket cannot be asked.
        """
        with self._noting_damage(manifest, slot):
            await self.bring(manifest, members)

    async def bring(self, manifest: Manifest, members: Collection[str] | None = None) -> None:
        """Bring the frames of a manifest's members, if this machine may use them, into the disk tier.

        Raises ObjectAbsent when a pack is gone, Corrupt when it has other bytes, DiskTierError when the
        tier takes nothing, another StoreError when the bucket cannot be asked.
        """
        if not self._machine.may_meet(manifest.requires):
            return

        async def load(place: Place) -> None:
            if not self._tier.has(place.name):
                await self._frame(manifest, place)
                if self.tier_failure and not self._tier.has(place.name):
                    raise self.tier_failure

        await for_each(manifest.places(members), load)

    async def fetch(self, frames: Sequence[PackFrame]) -> None:
        """Bring frames that follow each other in one pack into the disk tier, with one request.

        Those that are there, or on their way, are left out.
        Raises Corrupt when the pack has other bytes, another StoreError when the bucket cannot be asked.
        """
        damage: Corrupt | None = None
        for run in _runs(frames, self._is_needed):
            damage = await self._fetch_run(run) or damage
        if damage:
            raise damage

    def take_frame(self, packed: PackFrame, data: bytes) -> None:
        """Lay a frame down in the disk tier as if it had been fetched. Raises Corrupt for another one."""
        if self._is_needed(packed):
            self._land(packed, data)

    @contextmanager
    def _noting_damage(self, manifest: Manifest, slot: int) -> Iterator[None]:
        try:
            yield
        except (ObjectAbsent, Corrupt) as error:
            name = names.manifest_name(manifest.namespace, manifest.key, slot)
            self._broken[name] = manifest
            if isinstance(error, ObjectAbsent):
                # It was removed: what the bucket has there by now is another one.
                self._forget(name)
            raise Corrupt(f"a member is missing or damaged: {error}") from error

    def _is_whole(self, manifest: Manifest, slot: int) -> bool:
        return self._broken.get(names.manifest_name(manifest.namespace, manifest.key, slot)) != manifest

    async def _frame(self, manifest: Manifest, place: Place) -> bytes:
        """Return the bytes that a frame has in its pack, once what the manifest says of it holds."""

        async def download() -> bytes:
            data = await self._part(place.pack, range(place.offset, place.offset + place.length))
            _count_down(manifest.namespace, data)
            grown = frame.decompress(data, limit=place.size)
            for member in manifest.members:
                if member.inline is None and manifest.frames[member.frame] == place:
                    manifests.content_of(member, grown)
            return data

        return await self._through_tier(place.name, download)

    async def _part(self, pack: bytes, part: range) -> bytes:
        return await self._objects.get(names.pack_name(pack), part)

    async def _fetch_run(self, run: list[PackFrame]) -> Corrupt | None:
        """Bring frames with one request; return what is wrong with one of them."""
        flights = {packed.place.name: _Flight() for packed in run}
        self._flights |= flights
        first, last = run[0].place, run[-1].place
        damage: Corrupt | None = None
        try:
            data = await self._part(first.pack, range(first.offset, last.offset + last.length))
            for packed in run:
                start = packed.place.offset - first.offset
                flight = flights[packed.place.name]
                try:
                    flight.content = self._land(packed, data[start : start + packed.place.length])
                except Corrupt as error:
                    flight.error = damage = error
        except StoreError as error:
            for flight in flights.values():
                flight.error = error
            raise
        finally:
            for name, flight in flights.items():
                del self._flights[name]
                flight.landed.set()
        return damage

    def _is_needed(self, packed: PackFrame) -> bool:
        name = packed.place.name
        return name not in self._flights and not self._tier.has(name)

    def _land(self, packed: PackFrame, data: bytes) -> bytes:
        _count_down(packed.namespace, data)
        if raw_digest_of(data) != packed.digest:
            error = Corrupt(f"{packed.place.name} does not match its digest")
            ledger.current().note(error)
            raise error
        self._keep(packed.place.name, data)
        self.downloaded[packed.place.name] = time.monotonic()
        return data

    async def _through_tier(self, name: str, download: Callable[[], Awaitable[bytes]]) -> bytes:
        content = self._tier.read(name)
        ledger.current().quarantined += self._tier.take_quarantined()
        if content is not None:
            return content
        while flight := self._flights.get(name):
            await flight.landed.wait()
            if flight.error:
                raise flight.error
            if flight.content is not None:
                return flight.content
        flight = self._flights[name] = _Flight()
        try:
            flight.content = await self._twice(download)
            self._keep(name, flight.content)
            self.downloaded[name] = time.monotonic()
            return flight.content
        except S3CacheError as error:
            flight.error = error
            raise
        finally:
            del self._flights[name]
            flight.landed.set()

    async def _twice(self, download: Callable[[], Awaitable[bytes]]) -> bytes:
        """Download something, and once more when it was damaged: that may have happened on its way."""
        self._retries.earn()
        try:
            return await download()
        except (Removed, Unreadable, Untrusted) as error:
            ledger.current().note(error)
            raise
        except Corrupt as error:
            ledger.current().note(error)
            if not self._retries.take():
                raise
        try:
            return await download()
        except Corrupt as error:
            ledger.current().note(error)
            raise

    def _keep_anew(self, name: str, content: bytes) -> None:
        if self._tier.digest(name) not in (None, raw_digest_of(content)):
            self._forget(name)
        self._keep(name, content)

    def _forget(self, name: str) -> None:
        """Take off the disk what cannot be used: the bucket may have had it replaced."""
        with suppress(DiskTierError):
            self._tier.remove(name)

    def _keep(self, name: str, content: bytes) -> None:
        try:
            self._tier.write(name, content)
        except DiskTierError as error:
            if self.tier_failure is None:
                logger.warning("the disk tier takes nothing more: %s", error)
            self.tier_failure = error


class _Flight:
    """One download that several may wait for. A leader that is cancelled leaves neither outcome."""

    def __init__(self) -> None:
        self.landed = anyio.Event()
        self.content: bytes | None = None
        self.error: S3CacheError | None = None


def _count_down(namespace: str, data: bytes) -> None:
    ledger.current().namespaces[namespace].bytes_down += len(data)


def _runs(frames: Sequence[PackFrame], is_needed: Callable[[PackFrame], bool]) -> Iterator[list[PackFrame]]:
    """Yield the longest runs of frames that are needed."""
    for needed, run in groupby(frames, key=is_needed):
        if needed:
            yield list(run)
