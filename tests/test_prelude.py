"""Preludes: what fits goes in, in order; nothing is taken from one that is not what it should be."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3cache import prelude
from s3cache.digest import DIGEST_BYTES
from s3cache.errors import Corrupt
from s3cache.manifest import Place
from s3cache.pack import PackFrame
from s3cache.prelude import PRELUDE_BYTES, SEGMENTS, Prelude
from s3cache.profile import Segment

PREFIX = "profiles/job/linux-x86_64/"
SEGMENT = f"{PREFIX}0000000000001-{0:032x}"
PACK = b"p" * DIGEST_BYTES
MIB = 1 << 20


def names(count: int) -> list[str]:
    return [f"{PREFIX}{number:013d}-{0:032x}" for number in range(count)]


def frames(*lengths: int) -> list[PackFrame]:
    """Return frames of these lengths, of one pack."""
    return [
        PackFrame(Place(PACK, number, length, length), PACK, "ns", {})
        for number, length in enumerate(lengths)
    ]


def test_it_comes_back_as_it_was_encoded() -> None:
    made = Prelude({SEGMENT: b"segment"}, {"packs/a/0": b"one", "packs/a/3": b"two"})
    assert prelude.decode(prelude.encode(made), PREFIX) == made


def test_the_first_frames_that_fit_are_chosen() -> None:
    given = frames(MIB, 5 * MIB, 2 * MIB, 2 * MIB, 10)
    assert prelude.choose(given, PRELUDE_BYTES) == [given[0], given[2], given[4]]


def test_a_frame_that_is_named_twice_is_chosen_once() -> None:
    given = frames(10, 20)
    assert prelude.choose([*given, *given], PRELUDE_BYTES) == given


@given(sizes=st.lists(st.integers(1, 2 * MIB), max_size=300), segment=st.integers(0, 5 * MIB))
def test_what_is_chosen_fits(sizes: list[int], segment: int) -> None:
    segments = {SEGMENT: bytes(segment)}
    room = prelude.room_beside(segments)
    chosen = prelude.choose(frames(*sizes), room)
    if room:
        made = Prelude(segments, {each.place.name: bytes(each.place.length) for each in chosen})
        assert len(prelude.encode(made)) <= PRELUDE_BYTES
    else:
        assert chosen == []


def test_too_many_segments_leave_no_room() -> None:
    assert prelude.room_beside(dict.fromkeys(names(SEGMENTS), b"")) > 0
    assert prelude.room_beside(dict.fromkeys(names(SEGMENTS + 1), b"")) == 0


def test_of_use_is_what_the_profile_has_as_well() -> None:
    first, second = frames(10, 20)
    held = Prelude(
        {SEGMENT: bytes(7), names(3)[2]: bytes(100)},
        {first.place.name: bytes(10), "packs/other/0": bytes(1000)},
    )
    assert prelude.useful_bytes(held, {SEGMENT: Segment([first, second], b"")}) == 17
    assert prelude.useful_bytes(Prelude({}, {}), {SEGMENT: Segment([first, second], b"")}) == 0


@pytest.mark.parametrize(
    "segments",
    [
        dict.fromkeys(names(SEGMENTS + 1), b""),
        {f"profiles/other/linux-x86_64/0000000000001-{0:032x}": b""},
        {f"{PREFIX}../../../0000000000001-{0:032x}": b""},
        {f"{PREFIX}README": b""},
    ],
    ids=["too many", "of another job", "that climb out", "by no name of one"],
)
def test_segments_that_may_not_be_in_it_are_refused(segments: dict[str, bytes]) -> None:
    with pytest.raises(Corrupt, match="prelude"):
        prelude.decode(msgspec.msgpack.encode(Prelude(segments, {})), PREFIX)


@given(st.binary(max_size=200))
def test_any_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        prelude.decode(data, PREFIX)


def test_one_that_is_cut_off_is_refused() -> None:
    made = prelude.encode(Prelude({SEGMENT: b"segment"}, {"packs/a/0": b"one"}))
    for length in range(len(made)):
        with pytest.raises(Corrupt):
            prelude.decode(made[:length], PREFIX)


def test_other_structures_are_refused() -> None:
    class Other(msgspec.Struct):
        segments: list[int]

    with pytest.raises(Corrupt):
        prelude.decode(msgspec.msgpack.encode(Other([1])), PREFIX)
