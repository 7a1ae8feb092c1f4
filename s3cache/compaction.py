"""Compaction: what one segment says that stands for several, and what is worth packing anew. Pure.

A start pays a request for each pack that it reads; to pack anew costs to send the bytes again. So packs
of which a start reads less than SMALL_BYTES are packed together once there are FRAGMENTS of them, and
one that is mostly waste is packed anew by itself. docs/architecture.md has the arithmetic.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from s3cache import catalog, profile
from s3cache.catalog import Catalog, Reference
from s3cache.keyring import Keyring
from s3cache.manifest import Manifest, Member, Place
from s3cache.profile import Segment

SEGMENTS = 8
"""So many segments are worth one that stands for them: each is a request at every start."""
FRAGMENTS = 8
SMALL_BYTES = 1 << 20
START_SECONDS = 600.0
UNUSED_STARTS = 8
"""What so many starts that added something had no use for leaves the profile."""


class Plan(NamedTuple):
    """The references that stay, in the order of use; packs to pack anew; starts without use for each."""

    references: list[Reference]
    packs: set[bytes]
    unused: dict[bytes, int]


def plan(segments: Mapping[str, Segment], keyring: Keyring) -> Plan | None:
    """Return what stands for segments that hold, given the oldest first; None when they are too few.

    References that the keyring does not trust are left out.
    """
    if len(segments) < SEGMENTS:
        return None
    unused = _starts_without_use(segments)
    references: dict[str, Reference] = {}
    for segment in segments.values():
        for reference in Catalog(segment.catalog, keyring).references():
            name = reference.name
            if unused.get(catalog.short_digest(name), 0) < UNUSED_STARTS:
                earlier = references.get(name)
                opened = {*reference.opened, *(earlier.opened if earlier else ())}
                # The first use says where it stands, the last word where it lies.
                references[name] = Reference(reference.slot, reference.manifest, sorted(opened))
    digests = {catalog.short_digest(name) for name in references}
    return Plan(
        list(references.values()),
        _worth_packing(references.values()),
        {digest: starts for digest, starts in unused.items() if digest in digests},
    )


def moved(manifest: Manifest, anew: Manifest) -> Manifest:
    """Return a manifest whose members lie where `anew` says, as far as it has them."""
    frames = list(anew.frames)
    members: list[Member] = []
    for member in manifest.members:
        taken = next((other for other in anew.members if other.name == member.name), None)
        if taken is not None:
            place, start = anew.frames[taken.frame], taken.start
        elif member.inline is None:
            place, start = manifest.frames[member.frame], member.start
        else:
            members.append(member)
            continue
        if place not in frames:
            frames.append(place)
        members.append(msgspec.structs.replace(member, frame=frames.index(place), start=start, inline=None))
    return msgspec.structs.replace(manifest, members=members, frames=frames)


def _starts_without_use(segments: Mapping[str, Segment]) -> dict[bytes, int]:
    """Return for how many of the last starts in a row each reference was of no use.

    All machines of a fleet start at once: what they say within START_SECONDS is of one start.
    """
    starts: dict[bytes, int] = {}
    last = 0.0
    for name, segment in segments.items():
        written = profile.written_at(name)
        is_another = written - last >= START_SECONDS
        if is_another:
            last = written
        weight = 1 if is_another or segment.replaces else 0
        starts = {digest: starts.get(digest, 0) + weight * more for digest, more in segment.unused.items()}
    return starts


def _worth_packing(references: Iterable[Reference]) -> set[bytes]:
    places: dict[bytes, set[Place]] = defaultdict(set)
    used: dict[bytes, int] = defaultdict(int)
    for reference in references:
        read = set(reference.read)
        for member in reference.manifest.members:
            if member.inline is None and member.name in read:
                place = reference.manifest.frames[member.frame]
                places[place.pack].add(place)
                used[place.pack] += member.size
    small = {pack for pack, read in places.items() if sum(place.length for place in read) < SMALL_BYTES}
    wasteful = {pack for pack, read in places.items() if used[pack] < sum(place.size for place in read) / 2}
    return wasteful | (small if len(small) >= FRAGMENTS else set())
