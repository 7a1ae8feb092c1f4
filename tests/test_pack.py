"""Packs: whatever results go in, each member comes out; what belongs together lies side by side."""

import random
from collections.abc import Iterator
from itertools import groupby
from posixpath import splitext
from typing import NamedTuple
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3cache import frame, manifest, pack
from s3cache.digest import raw_digest_of
from s3cache.errors import InvalidName
from s3cache.keyring import NO_KEYS
from s3cache.manifest import Manifest, Member, Place, Result
from s3cache.pack import Pack, PackFrame

ROOM = 100
"""What a frame grows to where results are drawn: small, so that many are cut."""
ON_DEMAND_ROOM = 200


@st.composite
def drawn_results(draw: st.DrawFn) -> list[Result]:
    member_names = st.sampled_from(["a.cubin", "b.cubin", "c.so", "dir/d.so", "plain", "other"])
    members = st.dictionaries(member_names, st.binary(max_size=30) | st.binary(max_size=400), max_size=4)
    result = st.builds(
        Result,
        namespace=st.sampled_from(["fx-graph", "triton", "cpp-library"]),
        key=st.text(max_size=3),
        members=members,
        variant=st.sampled_from(["", "guards"]),
        requires=st.dictionaries(st.sampled_from(["isa", "glibc"]), st.sampled_from(["1", "2"])),
        on_demand=st.frozensets(member_names),
    )
    return draw(st.lists(result, max_size=8))


class Laid(NamedTuple):
    """A member, and where it lies."""

    manifest: Manifest
    member: Member

    @property
    def place(self) -> Place:
        return self.manifest.frames[self.member.frame]


def built(results: list[Result]) -> Pack:
    with (
        mock.patch.object(pack, "READ_BYTES", ROOM),
        mock.patch.object(pack, "ON_DEMAND_BYTES", ON_DEMAND_ROOM),
    ):
        return pack.build(results, {})


def laid(made: Pack) -> list[Laid]:
    """Return all members in the order in which they lie."""
    members = [Laid(found, member) for found in made.manifests for member in found.members]
    return sorted(members, key=lambda item: (item.place.offset, item.member.start))


def by_frame(made: Pack) -> Iterator[tuple[PackFrame, list[Laid]]]:
    frames = {packed.place: packed for packed in made.frames}
    for place, members in groupby(laid(made), key=lambda item: item.place):
        yield frames[place], list(members)


def grown(made: Pack, place: Place) -> bytes:
    return frame.decompress(made.data[place.offset : place.offset + place.length], limit=place.size)


def cut(results: list[Result]) -> list[list[str]]:
    """Return the names of the members in each frame."""
    return [[item.member.name for item in members] for _, members in by_frame(pack.build(results, {}))]


# Whatever goes in.


@given(drawn_results())
def test_every_member_comes_back_from_its_frame(results: list[Result]) -> None:
    made = built(results)
    assert len(made.manifests) == len(results)
    for result, found in zip(results, made.manifests, strict=True):
        contents = {
            member.name: manifest.content_of(member, grown(made, found.frames[member.frame]))
            for member in found.members
        }
        assert contents == result.members
        assert {member.name for member in found.members if member.on_demand} == {
            name for name in result.members if name in result.on_demand
        }


@given(drawn_results())
def test_the_manifests_are_those_of_the_results(results: list[Result]) -> None:
    for result, found in zip(results, built(results).manifests, strict=True):
        assert (found.namespace, found.key, found.requires) == (
            result.namespace,
            result.key,
            result.requires,
        )
        assert found.stands_for(manifest.variant_of(result), result.requires, result.members)
        assert [member.name for member in found.members] == [*result.members]
        assert manifest.decode(manifest.encode(found, NO_KEYS), NO_KEYS) == found


@given(drawn_results())
def test_a_pack_is_its_frames_and_nothing_else(results: list[Result]) -> None:
    made = built(results)
    assert made.digest == raw_digest_of(made.data)
    end = 0
    for packed in made.frames:
        place = packed.place
        assert (place.pack, place.offset) == (made.digest, end)
        end += place.length
        assert packed.digest == raw_digest_of(made.data[place.offset : end])
        assert len(grown(made, place)) == place.size
    assert end == len(made.data)


@given(drawn_results())
def test_every_frame_is_named_by_a_manifest_and_the_other_way_round(results: list[Result]) -> None:
    made = built(results)
    named = {place for found in made.manifests for place in found.frames}
    assert named == {packed.place for packed in made.frames}
    for found in made.manifests:
        assert set(found.frames) == {found.frames[member.frame] for member in found.members}


@given(drawn_results())
def test_members_follow_each_other_and_fill_their_frame(results: list[Result]) -> None:
    for packed, members in by_frame(built(results)):
        spans = sorted((item.member.start, item.member.start + item.member.size) for item in members)
        assert [start for start, _ in spans] == [0, *(end for _, end in spans)][:-1]
        assert spans[-1][1] == packed.place.size


@given(drawn_results())
def test_what_a_start_reads_comes_before_what_is_on_demand(results: list[Result]) -> None:
    on_demand = [item.member.on_demand for item in laid(built(results))]
    assert on_demand == sorted(on_demand)
    for _, members in by_frame(built(results)):
        assert len({item.member.on_demand for item in members}) == 1


@given(drawn_results())
def test_a_frame_is_of_one_namespace_and_one_set_of_requirements(results: list[Result]) -> None:
    for packed, members in by_frame(built(results)):
        for found, _ in members:
            assert (found.namespace, found.requires) == (packed.namespace, packed.requires)


@given(drawn_results())
def test_what_belongs_to_one_namespace_and_its_requirements_lies_in_one_piece(
    results: list[Result],
) -> None:
    members = [(item.member.on_demand, item.manifest) for item in laid(built(results))]
    groups = [(late, of.namespace, tuple(sorted(of.requires.items()))) for late, of in members]
    assert len([*groupby(groups)]) == len(set(groups))


@given(drawn_results())
def test_members_of_one_kind_lie_side_by_side(results: list[Result]) -> None:
    for _, members in by_frame(built(results)):
        in_order = sorted(members, key=lambda item: item.member.start)
        kinds = [splitext(item.member.name)[1] or item.member.name for item in in_order if item.member.size]
        assert len([*groupby(kinds)]) == len(set(kinds))


@given(drawn_results())
def test_a_frame_grows_no_further_than_its_bound_unless_one_content_does(results: list[Result]) -> None:
    for packed, members in by_frame(built(results)):
        room = ON_DEMAND_ROOM if members[0].member.on_demand else ROOM
        sizes = [item.member.size for item in members]
        assert packed.place.size <= room or len(sizes) - sizes.count(0) == 1


@given(drawn_results())
def test_the_same_results_give_the_same_pack(results: list[Result]) -> None:
    assert built(results) == built(list(results))


# What is cut where.


@pytest.mark.parametrize(
    ("room", "on_demand"), [(pack.READ_BYTES, frozenset()), (pack.ON_DEMAND_BYTES, frozenset("abcd"))]
)
def test_a_frame_is_full_before_the_next_one_begins(room: int, on_demand: frozenset[str]) -> None:
    def cut_at(*sizes: int) -> list[list[str]]:
        members = {name: bytes(size) for name, size in zip("abcd", sizes, strict=False)}
        return cut([Result("ns", "key", members, on_demand=on_demand)])

    assert cut_at(room // 2, room // 2) == [["a", "b"]]
    assert cut_at(room // 2, room // 2 + 1) == [["a"], ["b"]]
    assert cut_at(room // 2, room // 2, 1, room - 1) == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize(
    ("room", "on_demand"), [(pack.READ_BYTES, frozenset()), (pack.ON_DEMAND_BYTES, frozenset("abc"))]
)
def test_a_larger_content_has_a_frame_of_its_own(room: int, on_demand: frozenset[str]) -> None:
    members = {"a": b"small", "b": random.Random(1).randbytes(room + 1), "c": b"small"}
    assert cut([Result("ns", "key", members, on_demand=on_demand)]) == [["a"], ["b"], ["c"]]


def test_results_share_frames() -> None:
    results = [Result("ns", f"{number}", {"a.so": bytes(100), "b.json": bytes(100)}) for number in range(3)]
    made = pack.build(results, {})
    assert len(made.frames) == 1
    assert [found.frames for found in made.manifests] == [[made.frames[0].place]] * 3


def test_what_resembles_each_other_is_stored_once() -> None:
    content = random.Random(1).randbytes(100_000)
    results = [Result("ns", f"{number}", {"a.so": content}) for number in range(5)]
    assert len(pack.build(results, {}).data) < 110_000


def test_what_a_start_reads_of_all_results_is_one_range() -> None:
    results = [
        Result(
            namespace,
            "key",
            {"a.cubin": random.Random(number).randbytes(pack.READ_BYTES), "a.ttir": b"on demand"},
            on_demand=frozenset(["a.ttir"]),
        )
        for number, namespace in enumerate(["triton", "fx-graph", "triton"])
    ]
    made = pack.build(results, {})
    read = sorted({place.offset for found in made.manifests for place in found.places(None)})
    assert read == [packed.place.offset for packed in made.frames[:3]]
    assert len(made.frames) == 5


def test_requirements_are_the_same_in_any_order() -> None:
    one = Result("ns", "one", {"a": b"1"}, requires={"isa": "avx2", "glibc": "2.31"})
    other = Result("ns", "other", {"a": b"2"}, requires={"glibc": "2.31", "isa": "avx2"})
    assert len(pack.build([one, other], {}).frames) == 1


def test_the_manifests_say_who_wrote_them_and_the_pack_does_not() -> None:
    results = [Result("ns", "key", {"a": b"content"})]
    one, other = pack.build(results, {"package": "1"}), pack.build(results, {"package": "2"})
    assert one.data == other.data
    assert [found.writer["package"] for found in one.manifests + other.manifests] == ["1", "2"]


def test_a_pack_of_nothing_is_empty() -> None:
    assert pack.build([], {}) == (b"", raw_digest_of(b""), [], [])


def test_a_result_without_members_has_no_frame() -> None:
    made = pack.build([Result("ns", "key", {}), Result("ns", "other", {"a": b"content"})], {})
    assert [len(found.frames) for found in made.manifests] == [0, 1]


@pytest.mark.parametrize(
    "result", [Result("../ns", "key", {"a": b""}), Result("ns", "key", {"../up": b""})]
)
def test_a_name_that_may_not_be_is_not_packed(result: Result) -> None:
    with pytest.raises(InvalidName):
        pack.build([result], {})
