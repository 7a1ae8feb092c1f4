"""Profiles: what a job used on its last starts, in order, and where that lies. Pure."""

import os
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping

import msgspec

from s3cache import envelope, frame, manifest, names
from s3cache.catalog import Catalog, Reference
from s3cache.digest import DIGEST_BYTES, digest_of
from s3cache.errors import Corrupt
from s3cache.manifest import Place
from s3cache.pack import PackFrame

SEGMENT_BYTES = 64 << 20
"""What a segment may grow to: a hundred thousand references and more."""


class Segment(msgspec.Struct, frozen=True):
    """What one start added to a profile, and the frames that a start reads, in the order of use.

    `unused` says of manifests that the profile had, by short digest, how many starts in a row had no use
    for them. `replaces` are the names of segments that this one stands for since it was `written`, in
    seconds since 1970.
    """

    frames: list[PackFrame]
    catalog: bytes
    replaces: list[str] = []
    unused: dict[bytes, int] = {}
    writer: dict[str, str] = {}
    written: float = 0.0


_SEGMENT = re.compile(r"[0-9]{13}-[0-9a-f]{8}\Z")
_decoder = msgspec.msgpack.Decoder(Segment)


def encode(segment: Segment) -> bytes:
    """Return the bytes of a segment object."""
    return frame.compress(envelope.seal(segment))


def decode(data: bytes) -> Segment:
    """Return the segment in `data`. Raises Corrupt when it is damaged or names what it may not."""
    segment = envelope.unseal(frame.decompress(data, SEGMENT_BYTES), _decoder)
    for packed in segment.frames:
        manifest.check_place(packed.place)
        if len(packed.digest) != DIGEST_BYTES:
            raise Corrupt("a frame has no digest")
    Catalog(segment.catalog)
    return segment


def frames_of(references: Iterable[Reference], digest: Callable[[Place], bytes | None]) -> list[PackFrame]:
    """Return the frames that a start reads: pack by pack in the order of use, each pack in one piece.

    Those whose digest is not known are left out.
    """
    frames: dict[bytes, dict[int, PackFrame]] = {}
    for reference in references:
        for place in reference.places:
            known = digest(place)
            if known is not None:
                manifest = reference.manifest
                of_pack = frames.setdefault(place.pack, {})
                of_pack[place.offset] = PackFrame(place, known, manifest.namespace, manifest.requires)
    return [of_pack[offset] for of_pack in frames.values() for offset in sorted(of_pack)]


def written_at(name: str) -> float:
    """Return when a segment was written, by the clock of its writer, in seconds since 1970."""
    return int(name.rpartition("/")[2].partition("-")[0]) / 1000


def name_of_compacted(replaces: Collection[str]) -> str:
    """Return the name of the segment that stands for others: the same whoever makes it, newer than they."""
    folder, _, newest = max(replaces).rpartition("/")
    after = int(newest.partition("-")[0]) + 1
    return f"{folder}/{after:013d}-{digest_of(' '.join(sorted(replaces)).encode())[:8]}"


def new_segment_name(job: str, platform: str) -> str:
    """Return a name for a new segment; names sort by the time they were made at."""
    stamp = f"{time.time_ns() // 1_000_000:013d}-{os.urandom(4).hex()}"
    return f"{names.profile_prefix(job, platform)}{stamp}"


def is_segment_name(name: str, prefix: str) -> bool:
    """Return whether `name` is one that `new_segment_name` makes under `prefix`."""
    return name.startswith(prefix) and bool(_SEGMENT.match(name[len(prefix) :]))


def live(segments: Mapping[str, Segment]) -> dict[str, Segment]:
    """Return the segments, by name, that no other one stands for, the oldest first."""
    replaced = {name for segment in segments.values() for name in segment.replaces}
    return {name: segments[name] for name in sorted(segments) if name not in replaced}
