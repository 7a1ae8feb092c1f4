"""The cache: what is read through the disk tier, and how results are stored that others can read."""

import os
import secrets
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress

import anyio

from s3cache import ledger, names
from s3cache import manifest as manifests
from s3cache import pack as packs
from s3cache.concurrency import for_each
from s3cache.digest import raw_digest_of
from s3cache.errors import Claimed, Corrupt, ObjectAbsent, SlotsExhausted, StoreError
from s3cache.keyring import Keyring
from s3cache.machine import Machine
from s3cache.manifest import Manifest, Result
from s3cache.pack import Pack
from s3cache.read_through import ReadThrough
from s3cache.stores.base import ObjectStore
from s3cache.tier import DiskTier

CLAIMED_BYTES = 128 << 10
"""Less than this is stored without asking who else is storing it: that costs a request."""
_WITHDRAWAL_SECONDS = 5.0
_MARK_BYTES = 16
_SALT_BYTES = 16
SAMPLE = 16
"""Of so many results that are to be stored, and not of all, it is asked whether they are there."""
_NOT_THERE = "the bucket says that {} is there, and does not have it"


class Cache(ReadThrough):
    """Results that are read, and results that are stored: the pack first, then the manifests."""

    def __init__(
        self,
        objects: ObjectStore,
        tier: DiskTier,
        machine: Machine,
        keyring: Keyring,
        writer: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(objects, tier, machine, keyring)
        self._writer = dict(writer or {})
        self.created: set[str] = set()
        """Names of manifests that were not there before they were put here."""

    async def put(
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
        """Store a result and return its slot; nothing is overwritten.

        When the same variant is there already, that one stays.
        Raises StoreError when the bucket refuses, SlotsExhausted when the key has too many variants,
        InvalidName for a bad name.
        """
        result = Result(
            namespace,
            key,
            dict(members),
            variant,
            dict(requires or {}),
            cost_seconds,
            frozenset(on_demand),
        )
        (slot,) = await self.put_all([result])
        if slot is None:
            raise SlotsExhausted(f"{namespace} {key} has {manifests.MAX_SLOTS} variants already")
        return slot

    async def put_all(self, results: Sequence[Result], *, heed_claims: bool = False) -> list[int | None]:
        """Store results, the large ones in one pack: the pack first, then the manifests.

        Returns the slot of each, None where the key has too many variants already.
        Raises StoreError when the bucket refuses, InvalidName for a bad name, and with `heed_claims`
        Claimed when another machine is about to store the same.
        """
        for result in results:
            manifests.check_result(result)
        slots: list[int | None] = [None] * len(results)
        from_slot = [0] * len(results)
        inline = await self._inline(results)
        large = [number for number, manifest in enumerate(inline) if manifest is None]

        async def look(number: int) -> None:
            slots[number], from_slot[number] = await self._find(results[number])

        # Someone may have stored the same meanwhile: then not one result, but most of them.
        sample = large[:: max(len(large) // SAMPLE, 1)]
        await for_each(sample, look)
        if any(slots[number] is not None for number in sample):
            await for_each([number for number in large if number not in sample], look)
        missing = [
            number for number in large if slots[number] is None and from_slot[number] < manifests.MAX_SLOTS
        ]
        async with self._claim([results[number] for number in missing], heed_claims) as missed:
            built = await self.pack(missed)
            stored = [(number, manifest) for number, manifest in enumerate(inline) if manifest is not None]
            stored += zip(missing, built.manifests, strict=True)

            async def take(item: tuple[int, Manifest]) -> None:
                number, manifest = item
                slots[number] = await self._take_slot(manifest, from_slot[number])

            await for_each(stored, take)
        return slots

    async def keep_all(self, results: Sequence[Result]) -> None:
        """Lay results down on this machine alone, for the bucket does not take them now.

        Raises InvalidName for a bad name.
        """
        inline = await self._inline(results)
        large = [result for result, manifest in zip(results, inline, strict=True) if manifest is None]
        pack = await anyio.to_thread.run_sync(packs.build, large, self._writer)
        self._keep_frames(pack)
        for manifest in [*filter(None, inline), *pack.manifests]:
            for slot in range(manifests.MAX_SLOTS):
                name = names.manifest_name(manifest.namespace, manifest.key, slot)
                if not (self._tier.has(name) or self._tier.has(names.unsent_name(name))):
                    self._keep(names.unsent_name(name), manifests.encode(manifest, self._keyring))
                    break

    async def _inline(self, results: Sequence[Result]) -> list[Manifest | None]:
        """Return the manifests of those results that lie in them."""
        return await anyio.to_thread.run_sync(
            lambda: [manifests.inline(result, self._writer) for result in results]
        )

    async def gone(self, manifests_named: Collection[str]) -> set[str]:
        """Return which of these manifests, by name, the disk has and the bucket has no more.

        What came from there, or was put there, since this cache was made is taken to be there; of the
        others a sample is asked for, and all when the sample lacks one. Raises StoreError.
        """
        gone: set[str] = set()

        async def ask(name: str) -> None:
            try:
                data = await self._objects.get(name)
                manifests.decode(data, self._keyring)
                self._keep_anew(name, data)
            except (ObjectAbsent, Corrupt):
                gone.add(name)

        old = [name for name in manifests_named if name not in self.created | self.downloaded.keys()]
        sample = old[:: max(len(old) // SAMPLE, 1)]
        await for_each(sample, ask)
        if gone:
            await for_each([name for name in old if name not in sample], ask)
        return gone

    @asynccontextmanager
    async def _claim(self, results: list[Result], heed_claims: bool) -> AsyncIterator[list[Result]]:
        """Say that these are being stored: machines that made the same begin with the same result."""
        size = sum(len(content) for result in results for content in result.members.values())
        if not heed_claims or size < CLAIMED_BYTES:
            yield results
            return
        name = names.claim_name(results[0].namespace, results[0].key)
        mark = os.urandom(_MARK_BYTES)
        is_ours = True
        try:
            # When the reply to our own write was lost, what is there bears our mark.
            is_ours = await self._objects.create(name, mark) or await self._mark_of(name) == mark
            if not is_ours:
                raise Claimed(f"another machine is storing {len(results)} results")
            yield results
        finally:
            with anyio.CancelScope(shield=True, deadline=anyio.current_time() + _WITHDRAWAL_SECONDS):
                with suppress(StoreError):
                    if is_ours:
                        await self._objects.delete(name)

    async def _mark_of(self, claim: str) -> bytes:
        try:
            return await self._objects.get(claim, range(_MARK_BYTES))
        except (ObjectAbsent, Corrupt):
            return b""

    async def _find(self, result: Result) -> tuple[int | None, int]:
        """Return the slot that holds a result already, or None, and the first slot that may be free."""
        variant = manifests.variant_of(result)
        for slot in range(manifests.MAX_SLOTS):
            try:
                present = await self.stored(result.namespace, result.key, slot)
            except ObjectAbsent:
                return None, slot
            except Corrupt:
                continue
            if present.stands_for(variant, result.requires, result.members) and self._is_whole(
                present, slot
            ):
                return slot, slot
        return None, manifests.MAX_SLOTS

    async def _take_slot(self, manifest: Manifest, from_slot: int) -> int | None:
        data = manifests.encode(manifest, self._keyring)
        slot = from_slot
        was_absent = False
        while slot < manifests.MAX_SLOTS:
            name = names.manifest_name(manifest.namespace, manifest.key, slot)
            present = await self._present(manifest, slot) if self._tier.has(name) else None
            # A slot must not stay empty: what lies behind it would not be found.
            if present is None and await self._objects.create(name, data):
                counts = ledger.current().namespaces[manifest.namespace]
                counts.bytes_up += len(data)
                counts.puts += 1
                self.created.add(name)
                self._keep_anew(name, data)
                return slot
            try:
                present = present or await self.manifest(manifest.namespace, manifest.key, slot)
            except Corrupt:
                present = None
            except ObjectAbsent as error:
                # It went meanwhile, or never was there: the slot is tried again.
                if was_absent:
                    raise StoreError(_NOT_THERE.format(name)) from error
                was_absent = True
                continue
            if (
                present
                and present.stands_for(
                    manifest.variant, manifest.requires, (m.name for m in manifest.members)
                )
                and self._is_whole(present, slot)
            ):
                return slot
            slot += 1
        return None

    async def _present(self, manifest: Manifest, slot: int) -> Manifest | None:
        try:
            return await self.stored(manifest.namespace, manifest.key, slot)
        except (ObjectAbsent, Corrupt):
            return None

    async def pack(self, results: Sequence[Result]) -> Pack:
        """Store the pack of results, if there are any, and keep in the disk tier what a start reads of it.

        Raises StoreError when the bucket refuses.
        """
        pack = await anyio.to_thread.run_sync(packs.build, results, self._writer, _new_salt())
        if results:
            await self._upload(pack)
        return pack

    async def _upload(self, pack: Pack) -> None:
        name = names.pack_name(pack.digest)
        created = await self._objects.create(name, pack.data)
        # A writer that died in the middle of it may have left a part.
        if not created and not await self._is_right(pack):
            await self._objects.delete(name)
            created = await self._objects.create(name, pack.data)
            if not created and not await self._is_right(pack):
                raise StoreError(_NOT_THERE.format(name))
        if created:
            for packed in pack.frames:
                ledger.current().namespaces[packed.namespace].bytes_up += packed.place.length
        self._keep_frames(pack)

    def _keep_frames(self, pack: Pack) -> None:
        places = (place for manifest in pack.manifests for place in manifest.places(None))
        for place in dict.fromkeys(places):
            self._keep(place.name, pack.data[place.offset : place.offset + place.length])

    async def _is_right(self, pack: Pack) -> bool:
        try:
            return raw_digest_of(await self._objects.get(names.pack_name(pack.digest))) == pack.digest
        except (ObjectAbsent, Corrupt):
            # Another writer is replacing it, or it is larger than any pack.
            return False


def _new_salt() -> bytes:
    """Return what makes a pack's name one of its own: an old pack that nothing names, nothing will name."""
    return secrets.token_bytes(_SALT_BYTES)
