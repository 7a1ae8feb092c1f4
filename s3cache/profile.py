"""Profiles: what a job used on its last starts, in order. Pure."""

import os
import re
import time
from collections.abc import Iterable

import msgspec

from s3cache import envelope, frame, names
from s3cache.errors import Corrupt, InvalidName

SEGMENT_BYTES = 256 << 20
CARRIED_BYTES = 4 << 10
"""A manifest up to this size rides in the segment, which saves the request for it."""


class Reference(msgspec.Struct, frozen=True, omit_defaults=True):
    """One manifest that a start used, with its bytes when they are few."""

    namespace: str
    key: str
    slot: int
    manifest: bytes | None = None

    @property
    def name(self) -> str:
        """The name of the manifest's object."""
        return names.manifest_name(self.namespace, self.key, self.slot)


class Segment(msgspec.Struct, frozen=True):
    """What one start added to a profile, in the order of use."""

    references: list[Reference]
    writer: dict[str, str] = {}


_SEGMENT = re.compile(r"[0-9]{13}-[0-9a-f]{8}\Z")
_decoder = msgspec.msgpack.Decoder(Segment)


def encode(segment: Segment) -> bytes:
    """Return the bytes of a segment object."""
    return frame.compress(envelope.seal(segment))


def decode(data: bytes) -> Segment:
    """Return the segment in `data`. Raises Corrupt when it is damaged or names what it may not."""
    segment = envelope.unseal(frame.decompress(data, SEGMENT_BYTES), _decoder)
    try:
        for reference in segment.references:
            names.check_namespace(reference.namespace)
    except InvalidName as error:
        raise Corrupt(str(error)) from error
    return segment


def new_segment_name(job: str, platform: str) -> str:
    """Return a name for a new segment; names sort by the time they were made at."""
    stamp = f"{time.time_ns() // 1_000_000:013d}-{os.urandom(4).hex()}"
    return f"{names.profile_prefix(job, platform)}{stamp}"


def is_segment_name(name: str, prefix: str) -> bool:
    """Return whether `name` is one that `new_segment_name` makes under `prefix`."""
    return name.startswith(prefix) and bool(_SEGMENT.match(name[len(prefix) :]))


def merge(segments: Iterable[Segment]) -> list[Reference]:
    """Return each reference once, in the order of first use."""
    merged: dict[str, Reference] = {}
    for segment in segments:
        for reference in segment.references:
            merged.setdefault(reference.name, reference)
    return list(merged.values())
