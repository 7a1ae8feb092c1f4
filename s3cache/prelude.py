"""Preludes: what a start reads first of a profile, in one object that is found without a LIST. Pure.

A prelude is a copy: of segments, and of the first frames that they name. Nothing relies on it. It may
lack what came since, and what it holds of a frame must match the digest that its segment states.
"""

from collections.abc import Iterable, Mapping

import msgspec

from s3cache import envelope, profile
from s3cache.errors import Corrupt

PRELUDE_BYTES = 4 << 20
"""What a prelude may be. At 100 MB/s a connection carries it in 42 ms: less than a round trip more."""
SEGMENTS = 16
"""So many segments may lie in one. Compaction leaves fewer."""


class Prelude(msgspec.Struct, frozen=True):
    """Segments as they lie in the bucket, by name, and the bytes of frames, by name."""

    segments: dict[str, bytes]
    frames: dict[str, bytes]


_decoder = msgspec.msgpack.Decoder(Prelude)


def build(segments: Mapping[str, bytes], frames: Iterable[tuple[str, bytes]]) -> bytes | None:
    """Return a prelude of all segments and the first of the frames; None when the segments are too many."""
    size = len(envelope.seal(Prelude(dict(segments), {})))
    if size > PRELUDE_BYTES or len(segments) > SEGMENTS:
        return None
    held: dict[str, bytes] = {}
    for name, data in frames:
        size += len(envelope.seal(Prelude({}, {name: data})))
        if size > PRELUDE_BYTES:
            break
        held[name] = data
    return envelope.seal(Prelude(dict(segments), held))


def decode(data: bytes, prefix: str) -> Prelude:
    """Return the prelude in `data`. Raises Corrupt when it is damaged or is not that of `prefix`."""
    prelude = envelope.unseal(data, _decoder)
    if len(prelude.segments) > SEGMENTS:
        raise Corrupt(f"a prelude of {len(prelude.segments)} segments, at most {SEGMENTS} are taken")
    for name in prelude.segments:
        if not profile.is_segment_name(name, prefix):
            raise Corrupt(f"a prelude of {prefix} holds {name!r}")
    return prelude
