"""Deleting in the order in which nothing is left that names what is gone."""

from contextlib import suppress

from s3cache.concurrency import for_each
from s3cache.errors import ObjectAbsent
from s3cache.inventory import Inventory, Slot
from s3cache.manifest import TOMBSTONE
from s3cache.names import Kind
from s3cache.stores.base import ObjectStore


async def remove(objects: ObjectStore, inventory: Inventory) -> None:
    """Delete what goes, whatever names something before that, and leave no slot empty below another.

    It may end at any moment; the next one goes on. Raises StoreError when the bucket refuses.
    """

    async def clear(slots: dict[int, Slot]) -> None:
        folder = slots[max(slots)].name.rpartition("/")[0]
        if any(slot.goes for slot in slots.values()):
            above = max(slots) + 1
            with suppress(ObjectAbsent):
                # A writer may have come since the listing.
                await objects.get(f"{folder}/{above}", range(1))
                slots[above] = Slot(f"{folder}/{above}", is_tombstone=False, goes=False)
        top = max((n for n, slot in slots.items() if not (slot.goes or slot.is_tombstone)), default=-1)
        for number in sorted(slots, reverse=True):
            if slots[number].goes or number > top:
                await objects.delete(slots[number].name)
            if slots[number].goes and number < top:
                await objects.create(slots[number].name, TOMBSTONE)
        for number in sorted(set(range(top)) - slots.keys()):
            await objects.create(f"{folder}/{number}", TOMBSTONE)

    for kind in Kind.PRELUDE, Kind.PROFILE:
        await for_each(inventory.going(kind), objects.delete)
    await for_each(inventory.slots(), clear)
    for kind in Kind.PACK, Kind.LEASE, Kind.CLAIM, Kind.CONDEMNED:
        await for_each(inventory.going(kind), objects.delete)
