"""Preludes: what fits goes in, in order; nothing is taken from one that is not what it should be."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3cache import envelope, prelude
from s3cache.errors import Corrupt
from s3cache.prelude import PRELUDE_BYTES, SEGMENTS, Prelude

PREFIX = "profiles/job/linux-x86_64/"
SEGMENT = f"{PREFIX}0000000000001-00000000"
MIB = 1 << 20


def names(count: int) -> list[str]:
    return [f"{PREFIX}{number:013d}-00000000" for number in range(count)]


def test_it_comes_back_as_it_was_built() -> None:
    built = prelude.build({SEGMENT: b"segment"}, [("packs/a/0", b"one"), ("packs/a/3", b"two")])
    assert built is not None
    assert prelude.decode(built, PREFIX) == Prelude(
        {SEGMENT: b"segment"}, {"packs/a/0": b"one", "packs/a/3": b"two"}
    )


def test_the_first_frames_that_fit_are_in_it() -> None:
    frames = [(f"packs/a/{number}", bytes(MIB)) for number in range(6)]
    built = prelude.build({SEGMENT: b"segment"}, frames)
    assert built is not None
    assert len(built) <= PRELUDE_BYTES
    assert list(prelude.decode(built, PREFIX).frames) == ["packs/a/0", "packs/a/1", "packs/a/2"]


@given(sizes=st.lists(st.integers(0, 2 * MIB), max_size=300), segment=st.integers(0, 5 * MIB))
def test_it_is_never_larger_than_what_is_read_of_it(sizes: list[int], segment: int) -> None:
    frames = [(f"packs/a/{number}", bytes(size)) for number, size in enumerate(sizes)]
    built = prelude.build({SEGMENT: bytes(segment)}, frames)
    assert built is None or len(built) <= PRELUDE_BYTES


def test_there_is_none_of_segments_that_are_too_large() -> None:
    assert prelude.build({SEGMENT: bytes(PRELUDE_BYTES)}, []) is None


def test_there_is_none_of_too_many_segments() -> None:
    assert prelude.build(dict.fromkeys(names(SEGMENTS), b""), []) is not None
    assert prelude.build(dict.fromkeys(names(SEGMENTS + 1), b""), []) is None


@pytest.mark.parametrize(
    "segments",
    [
        dict.fromkeys(names(SEGMENTS + 1), b""),
        {"profiles/other/linux-x86_64/0000000000001-00000000": b""},
        {f"{PREFIX}../../../0000000000001-00000000": b""},
        {f"{PREFIX}README": b""},
    ],
    ids=["too many", "of another job", "that climb out", "by no name of one"],
)
def test_segments_that_may_not_be_in_it_are_refused(segments: dict[str, bytes]) -> None:
    with pytest.raises(Corrupt, match="prelude"):
        prelude.decode(envelope.seal(Prelude(segments, {})), PREFIX)


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        prelude.decode(data, PREFIX)


def test_one_that_is_cut_off_is_refused() -> None:
    built = prelude.build({SEGMENT: b"segment"}, [("packs/a/0", b"one")])
    assert built is not None
    for length in range(len(built)):
        with pytest.raises(Corrupt):
            prelude.decode(built[:length], PREFIX)


def test_other_structures_are_refused() -> None:
    class Other(msgspec.Struct):
        segments: list[int]

    with pytest.raises(Corrupt):
        prelude.decode(envelope.seal(Other([1])), PREFIX)
