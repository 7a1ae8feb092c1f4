"""Preludes: what a start reads first of a profile, in one object that is found without a LIST. Pure.

A prelude is a copy: of segments, and of the first frames that they name. Nothing relies on it, and
nobody signs it. It may lack what came since, a segment in it is signed as elsewhere, and what it holds of
a frame must match the digest that its segment states.
"""

from collections.abc import Iterable, Mapping
from typing import Annotated

import msgspec

from s3cache import profile
from s3cache.decoding import decode as decode_body
from s3cache.errors import Corrupt
from s3cache.pack import PackFrame
from s3cache.profile import Segment

PRELUDE_BYTES = 4 << 20
"""What a prelude may be. At 100 MB/s a connection carries it in 42 ms: less than a round trip more."""
SEGMENTS = 16
"""So many segments may lie in one. Compaction leaves fewer."""
FRAMES = 8192
"""So many frames may."""
_FRAMING_BYTES = 256
"""What a name and its bytes take beside the bytes: more than any does."""


class Prelude(msgspec.Struct, frozen=True):
    """Segments as they lie in the bucket, by name, and the bytes of frames, by name."""

    segments: dict[str, bytes]
    frames: Annotated[dict[str, bytes], msgspec.Meta(max_length=FRAMES)]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Prelude)


def choose(frames: Iterable[PackFrame], room: int) -> list[PackFrame]:
    """Return the first of the frames, as many as there is room for."""
    chosen: dict[str, PackFrame] = {}
    for packed in frames:
        size = packed.place.length + _FRAMING_BYTES
        if packed.place.name not in chosen and size <= room and len(chosen) < FRAMES:
            chosen[packed.place.name] = packed
            room -= size
    return list(chosen.values())


def room_beside(segments: Mapping[str, bytes]) -> int:
    """Return how many bytes are left for frames, 0 where segments cannot lie in a prelude."""
    if len(segments) > SEGMENTS:
        return 0
    return max(PRELUDE_BYTES - sum(len(data) + _FRAMING_BYTES for data in segments.values()), 0)


def useful_bytes(prelude: Prelude, segments: Mapping[str, Segment]) -> int:
    """Return how much of a prelude is of use to who reads these segments."""
    frames = {packed.place.name for segment in segments.values() for packed in segment.frames}
    return sum(len(data) for name, data in prelude.segments.items() if name in segments) + sum(
        len(data) for name, data in prelude.frames.items() if name in frames
    )


def encode(prelude: Prelude) -> bytes:
    """Return the bytes of a prelude."""
    return _encoder.encode(prelude)


def decode(data: bytes, prefix: str) -> Prelude:
    """Return the prelude in `data`. Raises Corrupt when it is damaged or is not that of `prefix`."""
    prelude = decode_body(data, _decoder, "a prelude")
    if len(prelude.segments) > SEGMENTS:
        raise Corrupt(f"a prelude of {len(prelude.segments)} segments, at most {SEGMENTS} are taken")
    for name in prelude.segments:
        if not profile.is_segment_name(name, prefix):
            raise Corrupt(f"a prelude of {prefix} holds {name!r}")
    return prelude
