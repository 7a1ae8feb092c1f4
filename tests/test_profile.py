"""Profiles: segments in, segments out; which of them hold."""

import random
import struct
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3cache import catalog, envelope, frame, manifest, profile
from s3cache.catalog import Catalog, Reference
from s3cache.digest import DIGEST_BYTES
from s3cache.errors import Corrupt, TooLarge
from s3cache.keyring import NO_KEYS
from s3cache.manifest import Place, Result
from s3cache.pack import PackFrame
from s3cache.profile import Segment

PREFIX = "profiles/job/linux-x86_64/"
PACK = b"p" * DIGEST_BYTES
PLACE = Place(PACK, 0, 100, 1000)

places = st.builds(
    Place,
    st.binary(min_size=DIGEST_BYTES, max_size=DIGEST_BYTES),
    st.integers(0, 1 << 50),
    st.integers(1, frame.MAX_CONTENT_BYTES),
    st.integers(0, frame.MAX_CONTENT_BYTES),
)
texts = st.dictionaries(st.text(), st.text(), max_size=2)
segments = st.builds(
    Segment,
    st.lists(st.builds(PackFrame, places, st.just(PACK), st.text(), texts), max_size=3),
    st.lists(st.integers(0, 9), max_size=3, unique=True).map(
        lambda slots: catalog.build(references(*slots), NO_KEYS)
    ),
    st.lists(st.text(), max_size=2),
    st.dictionaries(st.binary(min_size=16, max_size=16), st.integers(0, 9), max_size=2),
    texts,
    st.floats(0, 1e12),
    st.just(PREFIX),
    st.integers(0, 1 << 40),
)


def decode(data: bytes) -> Segment:
    """Return the segment in `data`, by the name that it has in the bucket."""
    return profile.decode(profile.segment_name(PREFIX, 1, data), data, NO_KEYS)


def in_envelope(body: bytes) -> bytes:
    """Return a segment object that has this body."""
    return envelope.seal("segment", frame.compress(body), NO_KEYS)


def references(*slots: int) -> list[Reference]:
    """Return references to manifests in slots of one key."""
    built = manifest.inline(Result("ns", "key", {"a": random.Random(1).randbytes(100)}), {})
    assert built is not None
    return [Reference(slot, built) for slot in slots]


def segment(place: Place = PLACE, digest: bytes = PACK, replaces: tuple[str, ...] = ()) -> Segment:
    """Return a segment of one frame and one reference."""
    frames = [PackFrame(place, digest, "ns", {"isa": "avx2"})]
    return Segment(frames, catalog.build(references(0), NO_KEYS), list(replaces), profile=PREFIX)


@given(segments)
def test_a_segment_comes_back_as_it_was_encoded(given: Segment) -> None:
    assert decode(profile.encode(given, NO_KEYS)) == given


def test_the_references_of_a_segment_come_back_in_the_order_of_use() -> None:
    uses = references(2, 0, 1)
    found = decode(profile.encode(Segment([], catalog.build(uses, NO_KEYS), profile=PREFIX), NO_KEYS))
    assert list(Catalog(found.catalog, NO_KEYS).references()) == uses


# Which segments hold.


def test_the_segments_that_hold_are_given_the_oldest_first() -> None:
    made = {name: segment() for name in ("3", "1", "2")}
    assert list(profile.live(made)) == ["1", "2", "3"]


def test_a_segment_that_another_stands_for_does_not_hold() -> None:
    made = {"1": segment(), "2": segment(), "3": segment(replaces=("1", "2", "gone"))}
    assert profile.live(made) == {"3": made["3"]}


def test_what_a_replaced_segment_stands_for_does_not_hold_either() -> None:
    made = {"1": segment(), "2": segment(replaces=("1",)), "3": segment(replaces=("2",)), "4": segment()}
    assert list(profile.live(made)) == ["3", "4"]


# What may not be.


@pytest.mark.parametrize(
    "place",
    [
        Place(PACK[1:], 0, 100, 1000),
        Place(PACK + b"p", 0, 100, 1000),
        Place(PACK, -1, 100, 1000),
        Place(PACK, 0, 0, 1000),
        Place(PACK, 0, -1, 1000),
        Place(PACK, 0, frame.MAX_CONTENT_BYTES + 1, 1000),
        Place(PACK, 0, 100, -1),
        Place(PACK, 0, 100, frame.MAX_CONTENT_BYTES + 1),
    ],
    ids=lambda place: f"{len(place.pack)}-{place.offset}-{place.length}-{place.size}",
)
def test_a_frame_that_cannot_be_is_corrupt(place: Place) -> None:
    with pytest.raises(Corrupt):
        decode(profile.encode(segment(place), NO_KEYS))


@pytest.mark.parametrize("digest", [b"", PACK[1:], PACK + b"p"])
def test_a_frame_without_a_digest_is_corrupt(digest: bytes) -> None:
    with pytest.raises(Corrupt, match="digest"):
        decode(profile.encode(segment(digest=digest), NO_KEYS))


@pytest.mark.parametrize("damaged", [b"", b"short", b"\1" + bytes(7), b"\xff" * 100])
def test_a_segment_whose_catalog_is_none_is_corrupt(damaged: bytes) -> None:
    with pytest.raises(Corrupt, match="envelope"):
        decode(profile.encode(Segment([], damaged, profile=PREFIX), NO_KEYS))


def test_a_bomb_is_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "SEGMENT_BYTES", 1000)
    with pytest.raises(Corrupt, match="at most 1000"):
        decode(in_envelope(bytes(1 << 20)))


@given(st.binary())
def test_any_bytes_are_corrupt(data: bytes) -> None:
    for damaged in data, in_envelope(data):
        with pytest.raises(Corrupt):
            decode(damaged)


@given(st.integers(0))
def test_a_truncated_segment_is_corrupt(length: int) -> None:
    data = profile.encode(segment(), NO_KEYS)
    with pytest.raises(Corrupt):
        decode(data[: length % len(data)])


@given(st.integers(0), st.integers(0, 255))
def test_a_changed_byte_is_corrupt_or_yields_frames_that_may_be(place: int, value: int) -> None:
    data = bytearray(msgspec.msgpack.encode(segment()))
    data[place % len(data)] = value
    try:
        found = decode(in_envelope(bytes(data)))
    except Corrupt:
        return
    for packed in found.frames:
        manifest.check_place(packed.place)
        assert len(packed.digest) == DIGEST_BYTES


def test_a_manifest_is_no_segment() -> None:
    data = manifest.encode(references(0)[0].manifest, NO_KEYS)
    with pytest.raises(Corrupt):
        decode(data)


def test_deep_nesting_is_corrupt() -> None:
    with pytest.raises(Corrupt):
        decode(in_envelope(b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0"))


def test_a_segment_of_a_later_version_may_say_more() -> None:
    class Later(Segment, frozen=True, kw_only=True):
        more: str

    later = Later(**msgspec.structs.asdict(segment()), more="new")
    assert decode(in_envelope(msgspec.msgpack.encode(later))) == segment()


# Names.


def test_names_of_segments_sort_by_the_time_they_were_made_at() -> None:
    names = []
    for number in range(5):
        names.append(profile.new_segment_name(PREFIX, bytes(number)))
        time.sleep(0.002)
    assert names == sorted(names)
    assert all(name.startswith(PREFIX) for name in names)


def test_segments_of_other_bytes_have_other_names() -> None:
    assert len({profile.segment_name(PREFIX, 1, bytes(size)) for size in range(100)}) == 100


def test_a_segment_is_refused_under_the_name_of_another_one() -> None:
    data = profile.encode(segment(), NO_KEYS)
    name = profile.segment_name(PREFIX, 1, data)
    assert profile.decode(name, data, NO_KEYS) == segment()
    for other in (profile.segment_name(PREFIX, 1, b"other"), PREFIX, ""):
        with pytest.raises(Corrupt, match="digest"):
            profile.decode(other, data, NO_KEYS)


def test_a_segment_that_no_reader_takes_is_not_made() -> None:
    with pytest.raises(TooLarge):
        profile.encode(Segment([], bytes(profile.SEGMENT_BYTES)), NO_KEYS)


@pytest.mark.parametrize("starts", [-1, 256, -(2**63)])
def test_starts_without_use_are_few(starts: int) -> None:
    data = profile.encode(Segment([], catalog.build([], NO_KEYS), unused={b"digest": starts}), NO_KEYS)
    with pytest.raises(Corrupt):
        decode(data)


def test_references_are_not_more_than_their_bytes() -> None:
    row = struct.pack("<8sII", bytes(8), 8 + 16 * 1000, 90_000)
    body = struct.pack("<Q", 1000) + row * 1000 + bytes(100_000)
    forged = Segment([], envelope.seal("catalog", body, NO_KEYS), profile=PREFIX)
    data = profile.encode(forged, NO_KEYS)
    with pytest.raises(Corrupt, match="states more"):
        decode(data)


def test_a_name_says_when_its_segment_was_written() -> None:
    before = time.time() - 0.001
    assert before <= profile.written_at(profile.new_segment_name(PREFIX, b"data")) <= time.time()


def test_what_stands_for_segments_is_newer_than_they_are() -> None:
    replaced = [profile.segment_name(PREFIX, stamp, b"") for stamp in (1795446925851, 1795446925852)]
    name = profile.name_of_compacted(replaced, b"data")
    assert name == profile.name_of_compacted(replaced[::-1], b"data")
    assert profile.is_segment_name(name, PREFIX)
    assert name > max(replaced)


@pytest.mark.parametrize(
    "name",
    [
        "profiles/job/linux-x86_64/../../../../../pwned",
        "profiles/job/linux-x86_64/1795446925852-e0b5ac09e0b5ac09e0b5ac09e0b5ac09/more",
        "profiles/job/linux-x86_64/" + "1" * 300,
        "profiles/other/linux-x86_64/1795446925852-e0b5ac09e0b5ac09e0b5ac09e0b5ac09",
    ],
)
def test_what_else_lies_among_the_segments_is_no_segment(name: str) -> None:
    assert profile.is_segment_name(profile.new_segment_name(PREFIX, b"data"), PREFIX)
    assert not profile.is_segment_name(name, PREFIX)
