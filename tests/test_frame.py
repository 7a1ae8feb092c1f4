"""Frames: content comes back, and none may grow beyond what was agreed."""

import random
import struct
import tracemalloc
from contextlib import suppress

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from s3cache import frame
from s3cache.errors import Corrupt
from s3cache.frame import MAX_CONTENT_BYTES as MOST


def stating(size: int) -> bytes:
    """Return a frame of one empty block whose header states any size."""
    magic, single_segment_with_8_byte_size, last_raw_block = b"\x28\xb5\x2f\xfd", b"\xe0", b"\x01\x00\x00"
    return magic + single_segment_with_8_byte_size + struct.pack("<Q", size) + last_raw_block


@given(st.binary())
def test_content_comes_back(content: bytes) -> None:
    assert frame.decompress(frame.compress(content), MOST) == content
    assert frame.decompress(frame.compress(content), len(content)) == content


def test_large_content_comes_back() -> None:
    content = bytes(range(256)) * 40_000
    assert frame.decompress(frame.compress(content), MOST) == content


def test_content_above_the_limit_is_refused() -> None:
    with pytest.raises(Corrupt, match="at most 99"):
        frame.decompress(frame.compress(bytes(100)), 99)


def test_a_bomb_is_refused_before_it_takes_memory() -> None:
    bomb = frame.compress(bytes(200 << 20))
    assert len(bomb) < 100_000
    tracemalloc.start()
    try:
        with pytest.raises(Corrupt):
            frame.decompress(bomb, 1 << 20)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("size", [frame.MAX_CONTENT_BYTES + 1, 1 << 40, (1 << 64) - 3])
def test_no_limit_allows_more_than_a_frame_may_hold(size: int) -> None:
    for limit in frame.MAX_CONTENT_BYTES, size, 1 << 63:
        with pytest.raises(Corrupt):
            frame.decompress(stating(size), limit)


def test_a_bomb_of_unstated_size_is_refused() -> None:
    compressor = zstandard.ZstdCompressor(write_content_size=False)
    with pytest.raises(Corrupt):
        frame.decompress(compressor.compress(bytes(1 << 20)), MOST)


def test_a_frame_that_holds_less_than_it_states_is_refused() -> None:
    with pytest.raises(Corrupt):
        frame.decompress(stating(10), MOST)


def test_a_frame_that_holds_more_than_it_states_is_refused() -> None:
    honest = zstandard.ZstdCompressor(write_content_size=True).compress(bytes(1000))
    size = struct.pack("<H", 1000 - 256)
    assert honest.count(size) == 1
    with pytest.raises(Corrupt):
        frame.decompress(honest.replace(size, struct.pack("<H", 10)), MOST)


@given(st.binary())
def test_what_is_no_frame_is_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt):
        frame.decompress(data, MOST)


@given(st.integers(0, 10_000))
def test_a_truncated_frame_is_corrupt(length: int) -> None:
    data = frame.compress(bytes(range(256)) * 20)
    with pytest.raises(Corrupt):
        frame.decompress(data[: length % len(data)], MOST)


@given(st.binary(min_size=1, max_size=300), st.integers(0), st.integers(0, 7))
def test_a_flipped_bit_is_corrupt_or_stays_within_the_limit(content: bytes, place: int, bit: int) -> None:
    data = bytearray(frame.compress(content))
    data[place % len(data)] ^= 1 << bit
    with suppress(Corrupt):
        assert len(frame.decompress(bytes(data), 1000)) <= 1000


def test_a_frame_that_refers_further_back_than_any_of_ours_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=24)
    data = zstandard.ZstdCompressor(compression_params=parameters).compress(bytes(32 << 20))
    assert zstandard.get_frame_parameters(data).window_size > frame._WINDOW_BYTES
    # Only what does not come whole needs the window, and is corrupt in any case.
    with pytest.raises(Corrupt, match="memory"):
        frame.decompress(data[:-1], MOST)


def test_a_large_frame_of_ours_refers_no_further_back_than_is_taken() -> None:
    content = bytes(64 << 20)
    assert frame.decompress(frame.compress(content), MOST) == content
    stated = zstandard.get_frame_parameters(frame.compress(content)).window_size
    assert stated <= frame._WINDOW_BYTES


def test_a_bit_that_has_changed_anywhere_is_noticed() -> None:
    data = frame.compress(random.Random(1).randbytes(1000))
    for bit in range(0, 8 * len(data), 7):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(Corrupt):
            frame.decompress(bytes(damaged), MOST)
