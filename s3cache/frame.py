"""Compressed bytes, with a bound on what they may grow to. Pure."""

import zstandard

from s3cache.errors import Corrupt

LEVEL = 9
"""Twice the time of level 3, and a quarter less to store: docs/measurements has the table."""
MAX_CONTENT_BYTES = 2 << 30
"""What a frame may grow to."""
_WINDOW_BYTES = 8 << 20
"""How far back a frame may refer: what LEVEL writes is less, and a decompressor may allocate it all."""


def compress(content: bytes) -> bytes:
    """Return `content` as one zstd frame that states its size and a checksum.

    Who reads one result of a frame holds no digests of the others in it.
    """
    return zstandard.ZstdCompressor(level=LEVEL, write_checksum=True).compress(content)


def decompress(data: bytes, limit: int) -> bytes:
    """Return the content of one zstd frame.

    Raises Corrupt when the frame is damaged, states no size, or states more than `limit` bytes or than
    any content may have.
    """
    limit = min(limit, MAX_CONTENT_BYTES)
    try:
        size = zstandard.frame_content_size(data)
        if not 0 <= size <= limit:
            raise Corrupt(f"a frame states {size} bytes, at most {limit} are taken")
        return zstandard.ZstdDecompressor(max_window_size=_WINDOW_BYTES).decompress(
            data, max_output_size=max(size, 1)
        )
    except zstandard.ZstdError as error:
        raise Corrupt(f"not a zstd frame: {error}") from error
