"""Looking at what the bucket has under a key, with no job."""

from collections.abc import Sequence
from dataclasses import dataclass

import anyio

from s3cache import names
from s3cache.errors import Corrupt, ObjectAbsent, Removed
from s3cache.machine import Machine
from s3cache.manifest import MAX_SLOTS, Manifest
from s3cache.read_through import ReadThrough
from s3cache.settings import Settings
from s3cache.tier import open_tier


@dataclass(frozen=True)
class Shown:
    """What lies in a slot, whether this machine may use it, and the member that was asked for."""

    slot: int
    manifest: Manifest
    is_for_this_machine: bool
    content: bytes | None


def show(
    settings: Settings, namespace: str, key: str, member: str | None, slot: int | None
) -> Sequence[Shown]:
    """Return what lies in a slot of a key, or in all, with a member of each that has it.

    Raises StoreError when the bucket cannot be read, InvalidName for a bad name, Corrupt when all of it is
    damaged.
    """
    names.check_namespace(namespace)
    return anyio.run(_show, settings, namespace, key, member, slot)


async def _show(
    settings: Settings, namespace: str, key: str, member: str | None, only: int | None
) -> list[Shown]:
    from s3cache.bucket import Bucket

    machine = Machine()
    shown: list[Shown] = []
    damage: Corrupt | None = None
    async with Bucket(settings.url) as bucket:
        cache = ReadThrough(bucket, open_tier(settings), machine, settings.keyring())
        for slot in range(MAX_SLOTS) if only is None else [only]:
            content: bytes | None = None
            try:
                manifest = await cache.manifest(namespace, key, slot)
                if member is not None and manifest.wanted([member]):
                    content = (await cache.entry(manifest, slot, [member])).members[member]
            except ObjectAbsent:
                break
            except Removed:
                continue
            except Corrupt as error:
                damage = error
                continue
            shown.append(Shown(slot, manifest, machine.may_meet(manifest.requires), content))
    if not shown and damage:
        raise damage
    return shown
