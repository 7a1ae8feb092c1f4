"""The cache: read through the disk tier, one download for all who wait, every byte verified."""

import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import TypeVar

import anyio

from s3cache import frame, ledger, names, profile
from s3cache import manifest as manifests
from s3cache.digest import digest_of
from s3cache.errors import Corrupt, DiskTierError, ObjectAbsent, S3CacheError, SlotsExhausted
from s3cache.machine import Machine
from s3cache.manifest import Entry, Manifest, Member
from s3cache.profile import Reference, Segment
from s3cache.stores.base import ObjectStore
from s3cache.tier import DiskTier

logger = logging.getLogger(__name__)

T = TypeVar("T")

MEMBERS_AT_ONCE = 32


class Cache:
    """Compiler results under (namespace, key) in a bucket, behind the disk tier of this machine."""

    def __init__(
        self,
        objects: ObjectStore,
        tier: DiskTier,
        machine: Machine,
        writer: Mapping[str, str] | None = None,
    ) -> None:
        self._objects = objects
        self._tier = tier
        self._machine = machine
        self._writer = dict(writer or {})
        self._flights: dict[str, _Flight] = {}
        self._broken: set[str] = set()
        self.downloaded: dict[str, float] = {}
        """Names of manifests whose bytes came from the bucket, and when by the monotonic clock."""
        self.tier_failure: DiskTierError | None = None

    async def get(self, namespace: str, key: str) -> Entry | None:
        """Return the first variant whose requirements this machine meets, or None.

        Raises StoreError when the bucket is needed and cannot be asked, InvalidName for a bad name.
        """
        async for entry in self.variants(namespace, key):
            return entry
        return None

    async def variants(self, namespace: str, key: str) -> AsyncIterator[Entry]:
        """Yield every variant whose requirements this machine meets, in the order of the slots.

        Raises StoreError when the bucket is needed and cannot be asked, InvalidName for a bad name.
        """
        names.check_namespace(namespace)
        for slot in range(manifests.MAX_SLOTS):
            try:
                manifest = await self.manifest(namespace, key, slot)
                if self._machine.meets(manifest.requires):
                    yield await self.entry(manifest, slot)
            except ObjectAbsent:
                return
            except Corrupt as error:
                logger.warning("%s %s slot %d is skipped: %s", namespace, key, slot, error)

    async def manifest(self, namespace: str, key: str, slot: int) -> Manifest:
        """Return the manifest in a slot.

        Raises ObjectAbsent when the slot is empty, Corrupt when what it holds cannot be used.
        """
        name = names.manifest_name(namespace, key, slot)

        async def download() -> bytes:
            data = await self._objects.get(name)
            manifests.decode(data)
            self._count_down(namespace, data)
            self.downloaded[name] = time.monotonic()
            return data

        try:
            manifest = manifests.decode(await self._through_tier(name, download))
        except Corrupt:
            self._broken.add(name)
            raise
        if (manifest.namespace, manifest.key) != (namespace, key):
            self._broken.add(name)
            raise Corrupt(f"{name} holds the manifest of another key")
        return manifest

    async def segment(self, name: str) -> Segment:
        """Return a segment. Raises ObjectAbsent, or Corrupt when it cannot be used."""

        async def download() -> bytes:
            data = await self._objects.get(name)
            profile.decode(data)
            return data

        return profile.decode(await self._through_tier(name, download))

    async def adopt(self, reference: Reference) -> None:
        """Put the manifest that a reference carries, if any, into the disk tier.

        Raises Corrupt when it is not the manifest that the reference names.
        """
        if reference.manifest is None:
            return
        manifest = manifests.decode(reference.manifest)
        if (manifest.namespace, manifest.key) != (reference.namespace, reference.key):
            raise Corrupt(f"a segment carries another manifest as {reference.name}")
        if not self._tier.has(reference.name):
            self._keep(reference.name, reference.manifest)
            self.downloaded[reference.name] = time.monotonic()

    async def entry(self, manifest: Manifest, slot: int) -> Entry:
        """Return a manifest's entry. Raises Corrupt when a member is gone or does not match."""
        contents: dict[str, bytes] = {}

        async def load(member: Member) -> None:
            contents[member.name] = await self._content(manifest, member)

        try:
            await _for_each(manifest.members, load)
        except (ObjectAbsent, Corrupt) as error:
            self._broken.add(names.manifest_name(manifest.namespace, manifest.key, slot))
            raise Corrupt(f"a member is missing or damaged: {error}") from error
        return manifests.entry_of(manifest, slot, contents)

    async def fill(self, namespace: str, key: str, slot: int) -> None:
        """Bring a slot's manifest, and its blobs if this machine may use them, into the disk tier.

        Raises ObjectAbsent when the slot is empty, Corrupt when it cannot be used, DiskTierError when
        the tier takes nothing, another StoreError when the bucket cannot be asked.
        """
        manifest = await self.manifest(namespace, key, slot)
        if not self._machine.may_meet(manifest.requires):
            return

        async def load(member: Member) -> None:
            if member.inline is None and not self._tier.has(names.blob_name(member.digest)):
                await self._content(manifest, member)
                if self.tier_failure and not self._tier.has(names.blob_name(member.digest)):
                    raise self.tier_failure

        if self.tier_failure and not self._tier.has(names.manifest_name(namespace, key, slot)):
            raise self.tier_failure
        try:
            await _for_each(manifest.members, load)
        except (ObjectAbsent, Corrupt) as error:
            self._broken.add(names.manifest_name(namespace, key, slot))
            raise Corrupt(f"a member is missing or damaged: {error}") from error

    async def put(
        self,
        namespace: str,
        key: str,
        members: Mapping[str, bytes],
        *,
        variant: str = "",
        requires: Mapping[str, str] | None = None,
        cost_seconds: float = 0.0,
    ) -> int:
        """Store a result and return its slot: blobs first, then the manifest; nothing is overwritten.

        When the same variant is there already, that one stays.
        Raises StoreError when the bucket refuses, SlotsExhausted when the key has too many variants,
        InvalidName for a bad name.
        """
        manifest, frames = manifests.build(
            namespace,
            key,
            members,
            variant=variant,
            requires=requires,
            cost_seconds=cost_seconds,
            writer=self._writer,
        )
        data = manifests.encode(manifest)
        pending = dict(frames)
        suspicious = False
        for slot in range(manifests.MAX_SLOTS):
            name = names.manifest_name(namespace, key, slot)
            # Blobs are worth a look first: someone may have stored the same result meanwhile.
            present = await self._present(namespace, key, slot) if frames or self._tier.has(name) else None
            if present is None:
                await self._upload(namespace, pending, suspicious)
                if await self._objects.create(name, data):
                    self._count_up(namespace, data)
                    ledger.current().namespaces[namespace].puts += 1
                    self._keep(name, data)
                    for member in manifest.members:
                        if member.inline is None:
                            self._keep(names.blob_name(member.digest), members[member.name])
                    return slot
                present = await self._present(namespace, key, slot)
            if name in self._broken:
                suspicious = True
            elif present and present.is_same_variant(manifest):
                return slot
        raise SlotsExhausted(f"{namespace} {key} has {manifests.MAX_SLOTS} variants already")

    async def _present(self, namespace: str, key: str, slot: int) -> Manifest | None:
        try:
            return await self.manifest(namespace, key, slot)
        except (ObjectAbsent, Corrupt):
            return None

    async def _upload(self, namespace: str, frames: dict[str, bytes], suspicious: bool) -> None:
        async def upload(item: tuple[str, bytes]) -> None:
            digest, data = item
            name = names.blob_name(digest)
            created = await self._objects.create(name, data)
            if not created and (suspicious or name in self._broken) and not await self._is_right(digest):
                await self._objects.delete(name)
                created = await self._objects.create(name, data)
            self._broken.discard(name)
            if created:
                self._count_up(namespace, data)

        await _for_each(frames.items(), upload)
        frames.clear()

    async def _is_right(self, digest: str) -> bool:
        try:
            return digest_of(frame.decompress(await self._objects.get(names.blob_name(digest)))) == digest
        except (ObjectAbsent, Corrupt):
            return False

    async def _content(self, manifest: Manifest, member: Member) -> bytes:
        if member.inline is not None:
            return manifests.open_inline(member)
        name = names.blob_name(member.digest)

        async def download() -> bytes:
            data = await self._objects.get(name)
            self._count_down(manifest.namespace, data)
            try:
                content = frame.decompress(data, limit=member.size)
                if digest_of(content) != member.digest:
                    raise Corrupt(f"{name} does not match its digest")
            except Corrupt:
                self._broken.add(name)
                ledger.current().quarantined += 1
                raise
            return content

        return await self._through_tier(name, download)

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
            flight.content = await download()
            self._keep(name, flight.content)
            return flight.content
        except S3CacheError as error:
            flight.error = error
            raise
        finally:
            del self._flights[name]
            flight.landed.set()

    def _keep(self, name: str, content: bytes) -> None:
        try:
            self._tier.write(name, content)
        except DiskTierError as error:
            if self.tier_failure is None:
                logger.warning("the disk tier takes nothing more: %s", error)
            self.tier_failure = error

    @staticmethod
    def _count_down(namespace: str, data: bytes) -> None:
        ledger.current().namespaces[namespace].bytes_down += len(data)

    @staticmethod
    def _count_up(namespace: str, data: bytes) -> None:
        ledger.current().namespaces[namespace].bytes_up += len(data)


class _Flight:
    """One download that several may wait for. A leader that is cancelled leaves neither outcome."""

    def __init__(self) -> None:
        self.landed = anyio.Event()
        self.content: bytes | None = None
        self.error: S3CacheError | None = None


async def _for_each(items: Iterable[T], function: Callable[[T], Awaitable[None]]) -> None:
    """Run `function` on all items at once; the first error of ours cancels the rest and is raised."""
    failure: list[S3CacheError] = []
    limiter = anyio.Semaphore(MEMBERS_AT_ONCE)

    async def run(item: T) -> None:
        try:
            async with limiter:
                await function(item)
        except S3CacheError as error:
            failure.append(error)
            group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        for item in items:
            group.start_soon(run, item)
    if failure:
        raise failure[0]
