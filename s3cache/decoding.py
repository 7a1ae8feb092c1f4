"""Bytes from outside, decoded or refused. Pure."""

from typing import TypeVar

import msgspec

from s3cache.errors import Corrupt

T = TypeVar("T")


def decode(data: bytes | memoryview, decoder: msgspec.msgpack.Decoder[T], what: str) -> T:
    """Return what `decoder` finds in `data`. Raises Corrupt, which says `what` was expected."""
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"not {what} of this version: {error}") from error
