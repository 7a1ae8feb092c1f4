"""How a manifest or a segment is written: its body, and room for a signature of the body. Pure."""

from typing import TypeVar

import msgspec

from s3cache.errors import Corrupt

T = TypeVar("T")


class _Envelope(msgspec.Struct, frozen=True):
    body: bytes
    signature: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_opener = msgspec.msgpack.Decoder(_Envelope)


def seal(value: msgspec.Struct) -> bytes:
    """Return `value` in an envelope."""
    return _encoder.encode(_Envelope(body=_encoder.encode(value)))


def unseal(data: bytes, decoder: msgspec.msgpack.Decoder[T]) -> T:
    """Return the value in an envelope. Raises Corrupt when either cannot be decoded."""
    try:
        return decoder.decode(_opener.decode(data).body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"not an envelope of this version: {error}") from error
