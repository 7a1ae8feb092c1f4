"""Deleting in the order in which nothing is left that names what is gone."""

from functools import partial

from s3cache import manifest
from s3cache.concurrency import for_each
from s3cache.errors import Corrupt, ObjectAbsent
from s3cache.inventory import Inventory, Slot, read, top_of
from s3cache.keyring import NO_KEYS
from s3cache.manifest import MAX_SLOTS, TOMBSTONE
from s3cache.names import Kind
from s3cache.stores.base import ObjectStore


async def remove(objects: ObjectStore, inventory: Inventory) -> None:
    """Delete what goes, whatever names something before that, and leave no slot empty below one of use.

    It may end at any moment; the next one goes on. Raises StoreError when the bucket refuses.
    """

    async def clear(slots: dict[int, Slot]) -> None:
        folder = slots[max(slots)].name.rpartition("/")[0]
        top = top_of(slots)
        going = [n for n, slot in slots.items() if slot.goes or (slot.is_tombstone and n > top)]
        free = next((number for number in range(MAX_SLOTS) if number not in slots), -1)
        # A writer may have come since the listing.
        if going and free > top and await _is_of_use(objects, f"{folder}/{free}"):
            top = free
        for number in sorted(going, reverse=True):
            await objects.delete(slots[number].name)
            if number < top:
                await objects.create(slots[number].name, TOMBSTONE)
        for number in sorted(set(range(top)) - slots.keys()):
            await objects.create(f"{folder}/{number}", TOMBSTONE)

    for kind in Kind.PRELUDE, Kind.PROFILE:
        await for_each(inventory.going(kind), objects.delete)
    await for_each(inventory.slots(), clear)
    for kind in Kind.PACK, Kind.LEASE, Kind.CLAIM, Kind.CONDEMNED:
        await for_each(inventory.going(kind), objects.delete)


async def _is_of_use(objects: ObjectStore, name: str) -> bool:
    try:
        await read(objects, name, partial(manifest.decode, keyring=NO_KEYS))
    except (ObjectAbsent, Corrupt):
        return False
    return True
