"""Profiles: segments in, segments out; which of them hold."""

import random
import time

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3cache import catalog, envelope, frame, manifest, profile
from s3cache.catalog import Catalog, Reference
from s3cache.digest import DIGEST_BYTES
from s3cache.errors import Corrupt
from s3cache.manifest import Place, Result
from s3cache.pack import PackFrame
from s3cache.profile import Segment

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
        lambda slots: catalog.build(references(*slots))
    ),
    st.lists(st.text(), max_size=2),
    st.dictionaries(st.binary(min_size=16, max_size=16), st.integers(0, 9), max_size=2),
    texts,
    st.floats(0, 1e12),
)


def references(*slots: int) -> list[Reference]:
    """Return references to manifests in slots of one key."""
    built = manifest.inline(Result("ns", "key", {"a": random.Random(1).randbytes(100)}), {})
    assert built is not None
    return [Reference(slot, built) for slot in slots]


def segment(place: Place = PLACE, digest: bytes = PACK, replaces: tuple[str, ...] = ()) -> Segment:
    """Return a segment of one frame and one reference."""
    frames = [PackFrame(place, digest, "ns", {"isa": "avx2"})]
    return Segment(frames, catalog.build(references(0)), list(replaces))


@given(segments)
def test_a_segment_comes_back_as_it_was_encoded(given: Segment) -> None:
    assert profile.decode(profile.encode(given)) == given


def test_the_references_of_a_segment_come_back_in_the_order_of_use() -> None:
    uses = references(2, 0, 1)
    found = profile.decode(profile.encode(Segment([], catalog.build(uses))))
    assert list(Catalog(found.catalog).references()) == uses


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
        profile.decode(profile.encode(segment(place)))


@pytest.mark.parametrize("digest", [b"", PACK[1:], PACK + b"p"])
def test_a_frame_without_a_digest_is_corrupt(digest: bytes) -> None:
    with pytest.raises(Corrupt, match="digest"):
        profile.decode(profile.encode(segment(digest=digest)))


@pytest.mark.parametrize("damaged", [b"", b"short", b"\1" + bytes(7), b"\xff" * 100])
def test_a_segment_whose_catalog_is_none_is_corrupt(damaged: bytes) -> None:
    with pytest.raises(Corrupt, match="catalog"):
        profile.decode(profile.encode(Segment([], damaged)))


def test_a_bomb_is_corrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profile, "SEGMENT_BYTES", 1000)
    with pytest.raises(Corrupt, match="at most 1000"):
        profile.decode(frame.compress(bytes(1 << 20)))


@given(st.binary())
def test_any_bytes_are_corrupt(data: bytes) -> None:
    for damaged in data, frame.compress(data):
        with pytest.raises(Corrupt):
            profile.decode(damaged)


@given(st.integers(0))
def test_a_truncated_segment_is_corrupt(length: int) -> None:
    data = profile.encode(segment())
    with pytest.raises(Corrupt):
        profile.decode(data[: length % len(data)])


@given(st.integers(0), st.integers(0, 255))
def test_a_changed_byte_is_corrupt_or_yields_frames_that_may_be(place: int, value: int) -> None:
    data = bytearray(envelope.seal(segment()))
    data[place % len(data)] = value
    try:
        found = profile.decode(frame.compress(bytes(data)))
    except Corrupt:
        return
    for packed in found.frames:
        manifest.check_place(packed.place)
        assert len(packed.digest) == DIGEST_BYTES


def test_a_manifest_is_no_segment() -> None:
    data = manifest.encode(references(0)[0].manifest)
    with pytest.raises(Corrupt):
        profile.decode(frame.compress(data))


def test_deep_nesting_is_corrupt() -> None:
    with pytest.raises(Corrupt):
        profile.decode(frame.compress(b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0"))


def test_there_is_room_for_a_signature() -> None:
    sealed = envelope.seal(segment())
    signed = sealed.replace(b"\xa9signature\xc4\x00", b"\xa9signature\xc4\x02ok")
    assert signed != sealed
    assert profile.decode(frame.compress(signed)) == segment()


def test_a_segment_of_a_later_version_may_say_more() -> None:
    class Later(Segment, frozen=True, kw_only=True):
        more: str

    later = Later(**msgspec.structs.asdict(segment()), more="new")
    assert profile.decode(frame.compress(envelope.seal(later))) == segment()


# Names.


def test_names_of_segments_sort_by_the_time_they_were_made_at() -> None:
    names = []
    for _ in range(5):
        names.append(profile.new_segment_name("job", "linux-x86_64"))
        time.sleep(0.002)
    assert names == sorted(names)
    assert all(name.startswith("profiles/job/linux-x86_64/") for name in names)


def test_two_machines_do_not_make_the_same_name() -> None:
    assert len({profile.new_segment_name("job", "linux-x86_64") for _ in range(100)}) == 100


def test_a_name_says_when_its_segment_was_written() -> None:
    before = time.time() - 0.001
    assert before <= profile.written_at(profile.new_segment_name("job", "linux-x86_64")) <= time.time()


def test_whoever_compacts_segments_names_the_outcome_alike_and_newer_than_they_are() -> None:
    prefix = "profiles/job/linux-x86_64/"
    replaced = [f"{prefix}{stamp:013d}-0000000{stamp % 10}" for stamp in (1795446925851, 1795446925852)]
    name = profile.name_of_compacted(replaced)
    assert name == profile.name_of_compacted(replaced[::-1])
    assert name != profile.name_of_compacted(replaced[1:])
    assert profile.is_segment_name(name, prefix)
    assert name > max(replaced)


@pytest.mark.parametrize(
    "name",
    [
        "profiles/job/linux-x86_64/../../../../../pwned",
        "profiles/job/linux-x86_64/1795446925852-e0b5ac09/more",
        "profiles/job/linux-x86_64/" + "1" * 300,
        "profiles/other/linux-x86_64/1795446925852-e0b5ac09",
    ],
)
def test_what_else_lies_among_the_segments_is_no_segment(name: str) -> None:
    prefix = "profiles/job/linux-x86_64/"
    assert profile.is_segment_name(profile.new_segment_name("job", "linux-x86_64"), prefix)
    assert not profile.is_segment_name(name, prefix)
