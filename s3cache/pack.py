"""Packs: the members of many results in one object, what belongs together side by side. Pure.

A pack is solid zstd frames. What a start reads comes first, so that it is one range. The last frame is one
that zstd skips: its salt makes a pack the only one of its name, whoever stores the same again.
A frame is of one namespace and one set of requirements, so that what is of no use on a machine is not
fetched there; in it, members of one kind follow each other, because they resemble each other.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from posixpath import splitext
from typing import NamedTuple

import msgspec

from s3cache import frame, manifest
from s3cache.digest import raw_digest_of
from s3cache.manifest import Manifest, Member, Place, Result

READ_BYTES = 1 << 20
"""What a frame of members that a start reads grows to: a look-up decompresses all of it."""
ON_DEMAND_BYTES = 8 << 20
"""What a frame of members on demand grows to."""

_SKIPPED = struct.Struct("<II")
_SKIPPED_MAGIC = 0x184D2A50
"""Of a frame without content, by the zstd format (RFC 8878, 3.1.2)."""


class PackFrame(msgspec.Struct, frozen=True, array_like=True):
    """A frame: where it lies, the digest of its bytes there, and for what and whom it is."""

    place: Place
    digest: bytes
    namespace: str
    requires: dict[str, str]


class Pack(NamedTuple):
    """A pack's bytes, its frames, and the manifests of what lies in it, in the order of the results."""

    data: bytes
    digest: bytes
    frames: list[PackFrame]
    manifests: list[Manifest]


class _Item(NamedTuple):
    result: int
    name: str
    content: bytes
    on_demand: bool
    namespace: str
    requires: tuple[tuple[str, str], ...]
    kind: str

    @property
    def belongs_to(self) -> tuple[bool, str, tuple[tuple[str, str], ...]]:
        return self.on_demand, self.namespace, self.requires


def build(results: Sequence[Result], writer: Mapping[str, str], salt: bytes = b"") -> Pack:
    """Return the pack of results, with their manifests.

    Raises InvalidName when a namespace or a member's name cannot be used.
    """
    cut = [(items, frame.compress(b"".join(item.content for item in items))) for items in _cut(results)]
    data = b"".join(compressed for _, compressed in cut)
    if salt:
        data += _SKIPPED.pack(_SKIPPED_MAGIC, len(salt)) + salt
    digest = raw_digest_of(data)
    frames: list[PackFrame] = []
    places: list[list[Place]] = [[] for _ in results]
    members: list[dict[str, Member]] = [{} for _ in results]
    offset = 0
    for items, compressed in cut:
        place = Place(digest, offset, len(compressed), sum(len(item.content) for item in items))
        first = items[0]
        frames.append(PackFrame(place, raw_digest_of(compressed), first.namespace, dict(first.requires)))
        offset += len(compressed)
        start = 0
        for item in items:
            if place not in places[item.result]:
                places[item.result].append(place)
            members[item.result][item.name] = Member(
                item.name,
                raw_digest_of(item.content),
                len(item.content),
                item.on_demand,
                frame=len(places[item.result]) - 1,
                start=start,
            )
            start += len(item.content)
    manifests = [
        manifest.build(result, [members[number][name] for name in result.members], places[number], writer)
        for number, result in enumerate(results)
    ]
    return Pack(data, digest, frames, manifests)


def _cut(results: Sequence[Result]) -> Iterator[list[_Item]]:
    """Yield what goes into each frame."""
    items = [
        _Item(
            number,
            name,
            content,
            name in result.on_demand,
            result.namespace,
            tuple(sorted(result.requires.items())),
            splitext(name)[1] or name,
        )
        for number, result in enumerate(results)
        for name, content in result.members.items()
    ]
    items.sort(key=lambda item: (item.belongs_to, item.kind))
    for (on_demand, *_), group in groupby(items, key=lambda item: item.belongs_to):
        room = ON_DEMAND_BYTES if on_demand else READ_BYTES
        held: list[_Item] = []
        size = 0
        for item in group:
            if held and size + len(item.content) > room:
                yield held
                held, size = [], 0
            held.append(item)
            size += len(item.content)
        yield held
