"""Profiles: segments in, references out, in the order of use."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3cache import envelope, frame, manifest, profile
from s3cache.errors import Corrupt
from s3cache.profile import Reference, Segment

namespaces = st.sampled_from(["fx-graph", "triton"])
keys = st.sampled_from(["key", "", "../key"])
manifests = st.none() | st.binary(max_size=50)
references = st.builds(Reference, namespaces, keys, st.integers(0, 2), manifests)


@given(st.lists(references, max_size=5), st.dictionaries(st.text(), st.text(), max_size=2))
def test_a_segment_comes_back_as_it_was_encoded(uses: list[Reference], writer: dict[str, str]) -> None:
    assert profile.decode(profile.encode(Segment(uses, writer))) == Segment(uses, writer)


@given(st.lists(st.lists(references, max_size=5), max_size=4))
def test_merging_keeps_each_manifest_once_in_the_order_of_first_use(starts: list[list[Reference]]) -> None:
    merged = profile.merge(Segment(uses) for uses in starts)
    every_name = [use.name for uses in starts for use in uses]
    assert [use.name for use in merged] == list(dict.fromkeys(every_name))


def test_of_two_references_to_one_manifest_the_first_stays() -> None:
    bare, carrying = Reference("ns", "key", 0), Reference("ns", "key", 0, b"manifest")
    assert profile.merge([Segment([carrying]), Segment([bare])]) == [carrying]


def test_slots_of_a_key_are_different_references() -> None:
    uses = [Reference("ns", "key", slot) for slot in range(3)]
    assert profile.merge([Segment(uses)]) == uses


def test_a_reference_names_the_object_of_its_manifest() -> None:
    assert Reference("ns", "key", 3).name == "manifests/ns/key/3"


@pytest.mark.parametrize("namespace", ["../ns", "a/b", "", "/etc"])
def test_a_segment_that_names_what_it_may_not_is_corrupt(namespace: str) -> None:
    data = profile.encode(Segment([Reference("ns", "key", 0), Reference(namespace, "key", 0)]))
    with pytest.raises(Corrupt, match="namespace"):
        profile.decode(data)


def test_names_of_segments_sort_by_the_time_they_were_made_at() -> None:
    names = []
    for _ in range(5):
        names.append(profile.new_segment_name("job", "linux-x86_64"))
        time.sleep(0.002)
    assert names == sorted(names)
    assert all(name.startswith("profiles/job/linux-x86_64/") for name in names)


def test_two_machines_do_not_make_the_same_name() -> None:
    assert len({profile.new_segment_name("job", "linux-x86_64") for _ in range(100)}) == 100


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
    data = profile.encode(Segment([Reference("ns", "key", 0, random.Random(1).randbytes(100))]))
    with pytest.raises(Corrupt):
        profile.decode(data[: length % len(data)])


def test_a_manifest_is_no_segment() -> None:
    data = manifest.encode(manifest.build("ns", "key", {})[0])
    with pytest.raises(Corrupt):
        profile.decode(frame.compress(data))


def test_deep_nesting_is_corrupt() -> None:
    with pytest.raises(Corrupt):
        profile.decode(frame.compress(b"\x81\xa1x" + b"\x91" * 100_000 + b"\xc0"))


def test_there_is_room_for_a_signature() -> None:
    sealed = envelope.seal(Segment([]))
    signed = sealed.replace(b"\xa9signature\xc4\x00", b"\xa9signature\xc4\x02ok")
    assert signed != sealed
    assert profile.decode(frame.compress(signed)) == Segment([])


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
