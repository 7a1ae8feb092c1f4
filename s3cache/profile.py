"""Profiles: what a job used on its last starts, in order, and where that lies. Pure."""

import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Annotated

import msgspec

from s3cache import envelope, frame, manifest, names
from s3cache.catalog import Catalog, Reference
from s3cache.decoding import decode as decode_body
from s3cache.digest import DIGEST_BYTES, digest_of
from s3cache.errors import Corrupt, TooLarge, Untrusted
from s3cache.keyring import Keyring
from s3cache.manifest import Place
from s3cache.pack import PackFrame

SEGMENT_BYTES = 64 << 20
"""What a segment may grow to: a hundred thousand references and more."""


_ROWS = 1 << 17
"""Frames, replaced segments and unused references that a segment may name, each."""
_Text = Annotated[str, msgspec.Meta(max_length=256)]


class Segment(msgspec.Struct, frozen=True):
    """What one start added to a profile, and the frames that a start reads, in the order of use.

    `profile` is the prefix that the names of its segments have, and `count` one more than the highest
    that its writer knew of: an older profile that is put back counts less than what was seen.
    `unused` says of manifests that the profile had, by short digest, how many starts in a row had no use
    for them. `replaces` are the names of segments that this one stands for since it was `written`, in
    seconds since 1970.
    """

    frames: Annotated[list[PackFrame], msgspec.Meta(max_length=_ROWS)]
    catalog: bytes
    replaces: Annotated[list[str], msgspec.Meta(max_length=_ROWS)] = []
    unused: Annotated[
        dict[bytes, Annotated[int, msgspec.Meta(ge=0, le=255)]], msgspec.Meta(max_length=_ROWS)
    ] = {}
    writer: dict[_Text, _Text] = {}
    written: float = 0.0
    profile: str = ""
    count: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)] = 0


_encoder = msgspec.msgpack.Encoder()
_SEGMENT = re.compile(rf"{names.STAMPED}\Z")
_decoder = msgspec.msgpack.Decoder(Segment)


def encode(segment: Segment, keyring: Keyring) -> bytes:
    """Return the bytes of a segment object, signed if the keyring signs.

    Raises TooLarge when it is one that no reader takes.
    """
    body = _encoder.encode(segment)
    if len(body) > SEGMENT_BYTES:
        raise TooLarge(f"a segment of {len(body)} bytes, at most {SEGMENT_BYTES} are taken")
    return envelope.seal("segment", frame.compress(body), keyring)


def decode(name: str, data: bytes, keyring: Keyring) -> Segment:
    """Return the segment of that name in `data`.

    Raises Untrusted when nobody whom the keyring trusts has signed it, or its catalog, or for another
    profile; Corrupt when the name is of other bytes, or they are no segment or name what they may not.
    """
    if not name.endswith(f"-{_digits(data)}"):
        raise Corrupt(f"{name} does not match its digest")
    opened = envelope.unseal("segment", data, keyring)
    segment = decode_body(frame.decompress(opened.body, SEGMENT_BYTES), _decoder, "a segment")
    if segment.profile != name[: name.rfind("/") + 1]:
        raise Untrusted(f"{name} is a segment of {segment.profile!r}")
    for packed in segment.frames:
        manifest.check_place(packed.place)
        if len(packed.digest) != DIGEST_BYTES:
            raise Corrupt("a frame has no digest")
    Catalog(segment.catalog, keyring)
    return segment


def highest_count(segments: Iterable[Segment]) -> int:
    """Return how far segments have counted."""
    return max((segment.count for segment in segments), default=0)


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


def segment_name(prefix: str, stamp: int, data: bytes) -> str:
    """Return the name of a segment made at `stamp`, in milliseconds: they sort by that."""
    return f"{prefix}{stamp:013d}-{_digits(data)}"


def new_segment_name(prefix: str, data: bytes) -> str:
    """Return the name of a segment that is made now."""
    return segment_name(prefix, time.time_ns() // 1_000_000, data)


def name_of_compacted(replaces: Collection[str], data: bytes) -> str:
    """Return the name of the segment that stands for others: newer than they."""
    folder, _, newest = max(replaces).rpartition("/")
    return segment_name(f"{folder}/", int(newest.partition("-")[0]) + 1, data)


def is_segment_name(name: str, prefix: str) -> bool:
    """Return whether `name` is that of a segment under `prefix`."""
    return name.startswith(prefix) and bool(_SEGMENT.match(name[len(prefix) :]))


def live(segments: Mapping[str, Segment]) -> dict[str, Segment]:
    """Return the segments, by name, that no other one stands for, the oldest first."""
    replaced = {name for segment in segments.values() for name in segment.replaces}
    return {name: segments[name] for name in sorted(segments) if name not in replaced}


def _digits(data: bytes) -> str:
    return digest_of(data)[:32]
