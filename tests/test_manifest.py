"""Manifests: bytes in, results out; whatever the bytes are, nothing but Corrupt."""

import random
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3cache import envelope, frame, manifest, pack
from s3cache.digest import DIGEST_BYTES, raw_digest_of
from s3cache.errors import Corrupt, InvalidName, TooLarge
from s3cache.keyring import NO_KEYS
from s3cache.manifest import Manifest, Member, Place, Result

SMALL = {"a.json": b"{}", "dir/b.bin": b"\0" * 100}
PACK = b"p" * DIGEST_BYTES
HUGE = frame.MAX_CONTENT_BYTES + 1
GROWN = random.Random(1).randbytes(1000)
PLACE = Place(PACK, 0, 900, len(GROWN))

plain_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


def sealed(**changes: object) -> bytes:
    """Return the bytes of a manifest with some fields changed to what `build` would not make."""
    fields = {"namespace": "ns", "key": "key", "members": [], **changes}
    return in_envelope(msgspec.convert(fields, Manifest))


def in_envelope(body: object) -> bytes:
    return envelope.seal("manifest", msgspec.msgpack.encode(body), NO_KEYS)


def inline(result: Result) -> Manifest:
    """Return the manifest of a result that is small."""
    built = manifest.inline(result, {})
    assert built is not None
    return built


def in_frame(
    name: str = "a", start: int = 0, size: int = 0, number: int = 0, digest: bytes = PACK
) -> Member:
    """Return a member that does not lie in the manifest."""
    return Member(name, digest, size, frame=number, start=start)


def in_pack() -> Manifest:
    """Return a manifest with members in two frames; one is on demand."""
    places = [PLACE, Place(PACK, 900, 80, 100)]
    members = [
        in_frame("a.cubin", 0, 400, digest=raw_digest_of(GROWN[:400])),
        in_frame("b.cubin", 400, 600, digest=raw_digest_of(GROWN[400:])),
        Member("c.ttir", raw_digest_of(bytes(100)), 100, on_demand=True, frame=1),
    ]
    result = Result("ns", "key", {"a.cubin": b"", "b.cubin": b"", "c.ttir": b""}, requires={"isa": "avx2"})
    return manifest.build(result, members, places, {"w": "1"})


# What comes back.


@given(
    plain_names,
    st.text(),
    st.dictionaries(plain_names, st.binary(max_size=200), max_size=4),
    st.text(),
    st.dictionaries(st.text(), st.text(), max_size=3),
)
def test_a_result_comes_back_as_it_was_built(
    namespace: str, key: str, members: dict[str, bytes], variant: str, requires: dict[str, str]
) -> None:
    result = Result(namespace, key, members, variant, requires, 1.5, frozenset({"of no member!"}))
    built = manifest.inline(result, {"w": "1"})
    assert built is not None
    found = manifest.decode(manifest.encode(built, NO_KEYS), NO_KEYS)
    assert found == built
    assert (found.namespace, found.key, found.requires) == (namespace, key, requires)
    assert (found.cost_seconds, found.writer) == (1.5, {"w": "1"})
    assert {member.name: manifest.content_of(member, None) for member in found.members} == members


def test_a_manifest_of_members_in_a_pack_comes_back_as_it_was_built() -> None:
    assert manifest.decode(manifest.encode(in_pack(), NO_KEYS), NO_KEYS) == in_pack()


def test_a_member_is_its_part_of_what_its_frame_grows_to() -> None:
    first, second, _ = in_pack().members
    assert manifest.content_of(first, GROWN) == GROWN[:400]
    assert manifest.content_of(second, GROWN) == GROWN[400:]


# What is small.


def test_small_members_lie_in_the_manifest() -> None:
    built = inline(Result("ns", "key", SMALL))
    assert built.frames == []
    assert all(member.inline is not None for member in built.members)


def test_members_that_are_large_together_do_not_lie_in_the_manifest() -> None:
    def members(count: int) -> dict[str, bytes]:
        return {f"{number}": random.Random(number).randbytes(200) for number in range(count)}

    assert manifest.inline(Result("ns", "key", members(4)), {}) is not None
    assert manifest.inline(Result("ns", "key", members(5)), {}) is None


def test_what_has_members_on_demand_does_not_lie_in_the_manifest() -> None:
    result = Result("ns", "key", SMALL, on_demand=frozenset([*SMALL][:1]))
    assert manifest.inline(result, {}) is None


def test_what_compresses_well_is_small_up_to_a_size() -> None:
    half = manifest.INLINE_CONTENT_BYTES // 2
    assert manifest.inline(Result("ns", "key", {"a": bytes(half), "b": bytes(half)}), {}) is not None
    assert manifest.inline(Result("ns", "key", {"a": bytes(half), "b": bytes(half + 1)}), {}) is None


# Which members, and where they lie.


def test_members_on_demand_are_wanted_when_they_are_named() -> None:
    def wanted(members: list[str] | None) -> list[str]:
        return [member.name for member in in_pack().wanted(members)]

    assert wanted(None) == ["a.cubin", "b.cubin"]
    assert wanted(["c.ttir", "a.cubin", "unknown"]) == ["a.cubin", "c.ttir"]
    assert wanted([]) == []


def test_only_the_frames_of_what_is_wanted_are_read_and_each_once() -> None:
    first, second = in_pack().frames
    assert in_pack().places(None) == [first]
    assert in_pack().places(["c.ttir"]) == [second]
    assert in_pack().places(["c.ttir", "b.cubin"]) == [first, second]
    assert in_pack().places([]) == []


def test_what_lies_in_the_manifest_has_no_frame() -> None:
    assert inline(Result("ns", "key", SMALL)).places(None) == []


# Variants.


def test_where_the_first_counts_the_variant_is_the_one_given() -> None:
    assert manifest.variant_of(Result("fx-graph", "key", SMALL)) == ""
    assert manifest.variant_of(Result("fx-graph", "key", SMALL, "guards")) == "guards"


@pytest.mark.parametrize("namespace", ["autotune", "cpp-probe", "dynamo-pgo", "gemm-autotune"])
def test_where_all_values_count_the_variant_is_their_digest(namespace: str) -> None:
    def variant(members: dict[str, bytes]) -> str:
        return manifest.variant_of(Result(namespace, "key", members))

    assert variant(SMALL) == variant(dict(reversed(SMALL.items())))
    assert len({variant(SMALL), variant({"a.json": b"[]"}), variant({"b.json": b"{}"}), variant({})}) == 4
    assert manifest.variant_of(Result(namespace, "key", SMALL, "mine")) == "mine"


def test_a_manifest_is_of_the_variant_of_its_result() -> None:
    for result in Result("fx-graph", "key", SMALL, "guards"), Result("autotune", "key", SMALL):
        assert inline(result).variant == manifest.variant_of(result)


def test_the_same_variant_has_the_same_requirements() -> None:
    built = inline(Result("ns", "key", {}, "v", {"isa": "avx2"}))
    members = [member.name for member in built.members]
    assert built.stands_for("v", {"isa": "avx2"}, members)
    assert built.stands_for("v", {"isa": "avx2"}, [])
    assert not built.stands_for("v", {"isa": "avx2"}, [*members, "another"])
    assert not built.stands_for("w", {"isa": "avx2"}, members)
    assert not built.stands_for("v", {"isa": "avx512"}, members)
    assert not built.stands_for("v", {}, members)


# What may not be.


@pytest.mark.parametrize("result", [Result("../ns", "key", {}), Result("ns", "key", {"../up": b""})])
def test_names_that_may_not_be_are_not_built(result: Result) -> None:
    with pytest.raises(InvalidName):
        manifest.inline(result, {})
    with pytest.raises(InvalidName):
        manifest.build(result, [], [], {})
    with pytest.raises(InvalidName):
        manifest.check_result(result)


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a/../../b", "", "a\0b", "a" * 2000])
def test_a_member_that_would_leave_its_folder_is_corrupt(name: str) -> None:
    with pytest.raises(Corrupt, match="member"):
        manifest.decode(sealed(members=[in_frame(name)], frames=[PLACE]), NO_KEYS)


@pytest.mark.parametrize("length", [0, DIGEST_BYTES - 1, DIGEST_BYTES + 1, 64])
def test_a_digest_of_a_wrong_length_is_corrupt(length: int) -> None:
    with pytest.raises(Corrupt, match="digest"):
        manifest.decode(sealed(members=[in_frame(digest=b"d" * length)], frames=[PLACE]), NO_KEYS)


def test_a_namespace_that_may_not_be_is_corrupt() -> None:
    with pytest.raises(Corrupt, match="namespace"):
        manifest.decode(sealed(namespace="../ns"), NO_KEYS)


@dataclass(frozen=True)
class Lie:
    """What a member says of where it lies in a frame of 1000 bytes, the only one."""

    number: int = 0
    start: int = 0
    size: int = 0


@pytest.mark.parametrize("told", [Lie(size=1000), Lie(start=1000), Lie(start=400, size=600)], ids=str)
def test_a_member_may_reach_to_the_end_of_its_frame(told: Lie) -> None:
    manifest.decode(
        sealed(members=[in_frame("a", told.start, told.size, told.number)], frames=[PLACE]), NO_KEYS
    )


@pytest.mark.parametrize(
    "told",
    [
        Lie(number=1),
        Lie(number=-1),
        Lie(number=HUGE),
        Lie(start=-1),
        Lie(start=-1000, size=1000),
        Lie(start=1001),
        Lie(start=1, size=1000),
        Lie(start=999, size=2),
        Lie(size=1001),
        Lie(size=-1),
        Lie(start=HUGE, size=-HUGE),
    ],
    ids=str,
)
def test_a_member_that_leaves_its_frame_is_corrupt(told: Lie) -> None:
    with pytest.raises(Corrupt, match="member"):
        manifest.decode(
            sealed(members=[in_frame("a", told.start, told.size, told.number)], frames=[PLACE]), NO_KEYS
        )


def test_a_member_of_a_manifest_without_frames_lies_nowhere() -> None:
    with pytest.raises(Corrupt, match="no frame"):
        manifest.decode(sealed(members=[in_frame()]), NO_KEYS)


@pytest.mark.parametrize(
    "place",
    [
        Place(b"", 0, 900, 1000),
        Place(PACK[:-1], 0, 900, 1000),
        Place(PACK + b"p", 0, 900, 1000),
        Place(PACK, -1, 900, 1000),
        Place(PACK, 0, 0, 1000),
        Place(PACK, 0, -900, 1000),
        Place(PACK, 0, HUGE, 1000),
        Place(PACK, 0, 900, -1),
        Place(PACK, 0, 900, HUGE),
    ],
    ids=lambda place: f"{len(place.pack)}-{place.offset}-{place.length}-{place.size}",
)
def test_a_frame_that_cannot_be_is_corrupt(place: Place) -> None:
    with pytest.raises(Corrupt):
        manifest.decode(sealed(frames=[PLACE, place]), NO_KEYS)


@pytest.mark.parametrize("size", [-1, manifest.INLINE_CONTENT_BYTES + 1])
def test_an_inline_member_of_a_size_that_cannot_be_is_corrupt(size: int) -> None:
    member = Member("a", PACK, size, inline=frame.compress(b""))
    with pytest.raises(Corrupt, match="member"):
        manifest.decode(sealed(members=[member]), NO_KEYS)


def test_an_inline_member_that_does_not_match_its_digest_is_corrupt() -> None:
    member = Member("a", raw_digest_of(b"right"), 5, inline=frame.compress(b"wrong"))
    with pytest.raises(Corrupt, match="digest"):
        manifest.content_of(member, None)


def test_an_inline_member_may_not_grow_beyond_its_size() -> None:
    content = bytes(1 << 20)
    member = Member("a", raw_digest_of(content), 10, inline=frame.compress(content))
    with pytest.raises(Corrupt, match="at most 10"):
        manifest.content_of(member, None)


@pytest.mark.parametrize("grown", [b"", GROWN[:-1], GROWN[1:], GROWN[::-1]])
def test_a_frame_that_grows_to_something_else_is_corrupt(grown: bytes) -> None:
    with pytest.raises(Corrupt, match="digest"):
        manifest.content_of(in_pack().members[1], grown)


# What else the bytes may be.


def test_a_manifest_of_a_later_version_may_say_more() -> None:
    class Later(Manifest, frozen=True, kw_only=True):
        more: str

    later = Later(namespace="ns", key="key", members=[], more="new")
    assert manifest.decode(in_envelope(later), NO_KEYS).key == "key"


def test_members_and_frames_of_a_later_version_may_say_more() -> None:
    place = [PACK, 0, 900, 1000, "new"]
    member = ["a", PACK, 10, False, None, 0, 0, "new"]
    body = {"namespace": "ns", "key": "key", "members": [member], "frames": [place]}
    found = manifest.decode(in_envelope(body), NO_KEYS)
    assert (found.members, found.frames) == ([in_frame("a", size=10)], [PLACE])


@given(st.binary())
def test_any_bytes_are_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt):
        manifest.decode(data, NO_KEYS)


@given(st.integers(0))
def test_a_truncated_manifest_is_corrupt(length: int) -> None:
    for built in inline(Result("ns", "key", SMALL)), in_pack():
        data = manifest.encode(built, NO_KEYS)
        with pytest.raises(Corrupt):
            manifest.decode(data[: length % len(data)], NO_KEYS)


@given(st.integers(0), st.integers(0, 255))
def test_a_changed_byte_is_corrupt_or_yields_what_may_be(place: int, value: int) -> None:
    for built in inline(Result("ns", "key", SMALL, requires={"isa": "avx2"})), in_pack():
        data = bytearray(manifest.encode(built, NO_KEYS))
        data[place % len(data)] = value
        try:
            found = manifest.decode(bytes(data), NO_KEYS)
            for member in found.members:
                assert ".." not in member.name.split("/")
                if member.inline is not None:
                    manifest.content_of(member, None)
                else:
                    assert (
                        0 <= member.start <= member.start + member.size <= found.frames[member.frame].size
                    )
        except Corrupt:
            pass


@pytest.mark.parametrize("nesting", [b"\x91", b"\x81\xa1x"])
def test_deep_nesting_is_corrupt(nesting: bytes) -> None:
    with pytest.raises(Corrupt):
        manifest.decode(b"\x81\xa1x" + nesting * 100_000 + b"\xc0", NO_KEYS)


@pytest.mark.parametrize("nesting", [b"\x91", b"\x81\xa1x"])
def test_deep_nesting_in_the_body_is_corrupt(nesting: bytes) -> None:
    body = b"\x81\xa1x" + nesting * 100_000 + b"\xc0"
    with pytest.raises(Corrupt):
        manifest.decode(envelope.seal("manifest", body, NO_KEYS), NO_KEYS)


def test_what_no_reader_would_take_is_not_made() -> None:
    many = {f"{number}": b"" for number in range(manifest.MEMBERS + 1)}
    long = {"a" * 128 + f"/{number}": b"" for number in range(1800)}
    for result in Result("ns", "key", many), Result("ns", "key", long), Result("ns", "k" * (1 << 20), {}):
        with pytest.raises(TooLarge):
            manifest.check_result(result)


def test_the_largest_manifest_that_is_made_is_taken() -> None:
    members = {f"{number:0100}": b"" for number in range(1700)}
    made = pack.build([Result("ns", "key", members)], {})
    assert len(manifest.encode(made.manifests[0], NO_KEYS)) <= manifest.MANIFEST_BYTES


@given(st.integers(manifest.MEMBERS + 1, 2**32 - 1))
def test_a_manifest_of_more_members_is_refused_unread(count: int) -> None:
    body = b"\x83\xa9namespace\xa2ns\xa3key\xa3key\xa7members\xdd" + count.to_bytes(4)
    with pytest.raises(Corrupt):
        manifest.decode(envelope.seal("manifest", body + b"\x93" * 10, NO_KEYS), NO_KEYS)
