"""Reading a bucket through: what in it is wrong, missing, or of no use to anybody."""

import time
from collections import Counter
from collections.abc import Callable
from enum import Enum
from functools import partial
from typing import NamedTuple, TypeVar

from s3cache import condemned, frame, manifest, names, prelude, profile
from s3cache.catalog import Catalog
from s3cache.concurrency import for_each
from s3cache.digest import raw_digest_of
from s3cache.errors import Corrupt, ObjectAbsent, Untrusted
from s3cache.inventory import Inventory, read
from s3cache.keyring import Keyring
from s3cache.manifest import Manifest, Member, Place
from s3cache.names import Kind
from s3cache.removal import remove
from s3cache.stores.base import ObjectStore

T = TypeVar("T")

PACKS_AT_ONCE = 4
"""Packs that are in memory at one time."""
YOUNG_SECONDS = 86_400.0
"""The manifests of a pack that is younger may be on their way."""


class Verdict(Enum):
    """What is said of an object."""

    WRONG = "wrong"
    """It is damaged, or of another key, or does not match what names it."""
    UNTRUSTED = "unsigned or untrusted"
    """Nobody whom this machine trusts has signed it."""
    MISSING = "missing"
    """It is not there, or what it names is not."""
    UNREFERENCED = "unreferenced"
    """Nothing names it: a clean-up takes it, unless it is not of our making."""


class Finding(NamedTuple):
    """What is said of the object of that name, and why."""

    verdict: Verdict
    name: str
    why: str


async def verify(
    objects: ObjectStore,
    keyring: Keyring,
    report: Callable[[Finding], None],
    *,
    sample: int | None = None,
    repair: bool = False,
    clock: Callable[[], float] = time.time,
) -> Counter[Verdict]:
    """Read all, or so many manifests by chance and the packs that they name, and report what is found.

    With `repair`, which reads all, what is wrong and what names what is missing is deleted: writers store
    it anew. Costs a LIST for each thousand objects, a GET for each that is read, and one more for each
    that arrives damaged or untrusted.
    Raises StoreError when the bucket refuses.
    """
    found: Counter[Verdict] = Counter()

    def note(finding: Finding) -> None:
        found[finding.verdict] += 1
        report(finding)

    with Inventory() as inventory:
        await inventory.take(objects.list(""))
        reader = _Reader(objects, keyring, inventory, note)
        await for_each(inventory.sample_of_manifests(sample), reader.read_manifest)
        for prefix, _ in inventory.profiles():
            await reader.read_profile(prefix)
        packs = inventory.named_packs(None if sample is None else Kind.MANIFEST)
        await for_each(packs, reader.read_pack, PACKS_AT_ONCE)
        await for_each(inventory.of_kind(Kind.PROFILE), reader.look_for_what_is_named)
        await for_each(inventory.of_kind(Kind.PRELUDE), reader.read_prelude, PACKS_AT_ONCE)
        await for_each(inventory.of_kind(Kind.CONDEMNED), reader.read_list)
        for name in inventory.empty_slots():
            note(Finding(Verdict.MISSING, name, "a slot is empty, and those above it are not found"))
        if sample is None:
            for name in inventory.unnamed_packs(clock() - YOUNG_SECONDS):
                note(Finding(Verdict.UNREFERENCED, name, "no manifest and no profile names it"))
        for name in inventory.foreign():
            note(Finding(Verdict.UNREFERENCED, name, "nothing of ours has such a name"))
        if repair:
            await remove(objects, inventory)
    return found


class _Reader:
    def __init__(
        self,
        objects: ObjectStore,
        keyring: Keyring,
        inventory: Inventory,
        note: Callable[[Finding], None],
    ) -> None:
        self._objects = objects
        self._keyring = keyring
        self._inventory = inventory
        self._note = note

    async def read_manifest(self, name: str) -> None:
        """Look at a manifest, and at what lies in it."""
        found = await self._read(name, partial(_whole_manifest, name, self._keyring))
        if found and found[0].frames:
            self._inventory.note_named(name, map(_pack_of, found[0].frames))
            self._inventory.keep_body(name, found[1])

    async def read_pack(self, name: str) -> None:
        """Look at a pack, and at what manifests and segments say lies in it."""
        try:
            data = await read(self._objects, name, partial(_whole_pack, name))
        except ObjectAbsent:
            for by, body in self._inventory.bodies_in(name):
                if await self._is_still(by, body):
                    self._say(Verdict.MISSING, by, f"{name} is not there")
            return
        except Corrupt as error:
            self._refuse(name, error)
            self._inventory.let_go(by for by, _ in self._inventory.bodies_in(name))
            return
        self._check_members(name, data)
        self._check_frames(name, data)

    async def read_profile(self, prefix: str) -> None:
        """Look at the segments of a profile, and note what those name that no other one stands for."""
        replaced: set[str] = set()
        for name in self._inventory.segments(prefix):
            segment = await self._read(name, partial(profile.decode, name, keyring=self._keyring))
            if segment is None:
                continue
            replaced.update(segment.replaces)
            # What stands for others is newer than they; they may name what is gone.
            if name in replaced:
                continue
            for reference in Catalog(segment.catalog, self._keyring).references():
                packs = map(_pack_of, reference.manifest.frames)
                self._inventory.note_named(name, [reference.name, *packs])
            self._inventory.note_named(name, (_pack_of(packed.place) for packed in segment.frames))
            self._inventory.keep_frames(name, segment.frames)

    async def look_for_what_is_named(self, segment: str) -> None:
        """Look whether what a segment names is there and stays."""
        missing = [name for name in self._inventory.named_by(segment) if not await self._is_there(name)]
        if missing and self._inventory.stays(segment):
            self._say(
                Verdict.MISSING,
                segment,
                f"{missing[0]} is wrong or not there: one of {len(missing)} it names",
            )

    async def read_prelude(self, name: str) -> None:
        """Look at a prelude, and at the copies in it."""
        await self._read(name, partial(_check_prelude, name, self._keyring))

    async def read_list(self, name: str) -> None:
        """Look at a list of what is condemned."""
        await self._read(name, partial(condemned.decode, name))

    async def _read(self, name: str, decode: Callable[[bytes], T]) -> T | None:
        """Return what `decode` makes of an object; None when it is gone, or is refused."""
        try:
            return await read(self._objects, name, decode)
        except ObjectAbsent:
            return None
        except Corrupt as error:
            self._refuse(name, error)
            return None

    def _check_members(self, name: str, data: bytes) -> None:
        digest = bytes.fromhex(name.rpartition("/")[2])
        held: list[tuple[Place, str, Member]] = []
        for by, body in self._inventory.bodies_in(name):
            of = manifest.decode(body, self._keyring)
            for member in of.members:
                if member.inline is None and of.frames[member.frame].pack == digest:
                    held.append((of.frames[member.frame], by, member))
        held.sort(key=lambda each: (each[0].offset, each[0].length, each[0].size))
        grown: tuple[Place, bytes | Corrupt] | None = None
        wrong: set[str] = set()
        for place, by, member in held:
            if grown is None or grown[0] != place:
                grown = place, _grow(data, place)
            try:
                if isinstance(grown[1], Corrupt):
                    raise grown[1]
                manifest.content_of(member, grown[1])
            except Corrupt as error:
                if by not in wrong:
                    wrong.add(by)
                    self._refuse(by, error)

    def _check_frames(self, name: str, data: bytes) -> None:
        for segment, part, digest in self._inventory.frames_in(name):
            if raw_digest_of(data[part.start : part.stop]) != digest and self._inventory.stays(segment):
                self._say(Verdict.WRONG, segment, f"its digest of a frame of {name} does not match")

    async def _is_there(self, name: str) -> bool:
        """Return whether an object is there that stays; what is not listed may have come since."""
        if self._inventory.stays(name):
            return True
        if self._inventory.has(name):
            return False
        try:
            return bool(await self._objects.get(name, range(1)))
        except ObjectAbsent:
            return False

    async def _is_still(self, name: str, data: bytes) -> bool:
        """Return whether an object is there as it was: a clean-up may run."""
        try:
            return await self._objects.get(name) == data
        except (ObjectAbsent, Corrupt):
            return False

    def _refuse(self, name: str, error: Corrupt) -> None:
        verdict = Verdict.UNTRUSTED if isinstance(error, Untrusted) else Verdict.WRONG
        self._say(verdict, name, str(error))

    def _say(self, verdict: Verdict, name: str, why: str) -> None:
        """Report an object that is not to stay, and let it go with what was copied from it."""
        self._note(Finding(verdict, name, why))
        self._inventory.let_go([name])
        if names.kind_of(name) is Kind.PROFILE:
            self._inventory.let_go([names.prelude_name(name.rpartition("/")[0])])


def _whole_manifest(name: str, keyring: Keyring, data: bytes) -> tuple[Manifest, bytes]:
    """Return the manifest in `data`, and `data`.

    Raises Corrupt when it belongs under another name, or what lies in it is damaged.
    """
    found = manifest.decode(data, keyring)
    if names.manifest_name(found.namespace, found.key, int(name.rpartition("/")[2])) != name:
        raise Corrupt(f"it is of {found.namespace} {found.key}")
    for member in found.members:
        if member.inline is not None:
            manifest.content_of(member, None)
    return found, data


def _whole_pack(name: str, data: bytes) -> bytes:
    """Return `data`. Raises Corrupt when it is not the pack of that name."""
    if names.pack_name(raw_digest_of(data)) != name:
        raise Corrupt(f"its {len(data)} bytes do not match its digest")
    return data


def _check_prelude(name: str, keyring: Keyring, data: bytes) -> None:
    """Raise Corrupt when `data` is not the prelude of that name, or a copy in it is wrong."""
    found = prelude.decode(data, f"{name.replace('preludes/', 'profiles/', 1)}/")
    segments = [profile.decode(of, copy, keyring) for of, copy in found.segments.items()]
    digests = {packed.place.name: packed.digest for each in segments for packed in each.frames}
    if any(raw_digest_of(copy) != digests.get(of) for of, copy in found.frames.items()):
        raise Corrupt("a frame in it does not match its digest")


def _pack_of(place: Place) -> str:
    return names.pack_name(place.pack)


def _grow(data: bytes, place: Place) -> bytes | Corrupt:
    try:
        return frame.decompress(data[place.offset : place.offset + place.length], limit=place.size)
    except Corrupt as error:
        return error
