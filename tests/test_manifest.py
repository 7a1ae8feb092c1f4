"""Manifests: bytes in, results out; whatever the bytes are, nothing but Corrupt."""

import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3cache import envelope, frame, manifest
from s3cache.digest import digest_of
from s3cache.errors import Corrupt, InvalidName
from s3cache.manifest import Manifest, Member

SMALL = {"a.json": b"{}", "dir/b.bin": b"\0" * 100}
LARGE = {"a.so": random.Random(1).randbytes(100_000), "b.so": random.Random(2).randbytes(10)}

plain_names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)


def sealed(**changes: object) -> bytes:
    """Return the bytes of a manifest with some fields changed to what `build` would not make."""
    fields = {"namespace": "ns", "key": "key", "members": [], **changes}
    return envelope.seal(msgspec.convert(fields, Manifest))


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
    built, frames = manifest.build(
        namespace, key, members, variant=variant, requires=requires, cost_seconds=1.5, writer={"w": "1"}
    )
    assert frames == {}
    found = manifest.decode(manifest.encode(built))
    assert found == built
    assert (found.namespace, found.key, found.requires) == (namespace, key, requires)
    assert {member.name: manifest.open_inline(member) for member in found.members} == members


def test_small_members_lie_in_the_manifest() -> None:
    built, frames = manifest.build("ns", "key", SMALL)
    assert frames == {}
    assert all(member.inline is not None for member in built.members)


def test_large_members_are_blobs_named_by_the_digest_of_their_content() -> None:
    built, frames = manifest.build("ns", "key", LARGE)
    assert [member.inline for member in built.members] == [None, None]
    assert {member.name: member.size for member in built.members} == {"a.so": 100_000, "b.so": 10}
    assert {digest: frame.decompress(data) for digest, data in frames.items()} == {
        digest_of(content): content for content in LARGE.values()
    }


def test_what_compresses_well_is_small() -> None:
    assert manifest.build("ns", "key", {"zeros": bytes(10 << 20)})[1] == {}


def test_members_of_one_content_share_a_blob() -> None:
    same = LARGE["a.so"]
    built, frames = manifest.build("ns", "key", {"one": same, "two": same})
    assert len(frames) == 1
    assert manifest.entry_of(built, 0, {"one": same, "two": same}).members == {"one": same, "two": same}


def test_where_the_first_counts_the_variant_is_the_one_given() -> None:
    assert manifest.build("fx-graph", "key", SMALL)[0].variant == ""
    assert manifest.build("fx-graph", "key", SMALL, variant="guards")[0].variant == "guards"


@pytest.mark.parametrize("namespace", ["autotune", "cpp-probe", "dynamo-pgo", "gemm-autotune"])
def test_where_all_values_count_the_variant_is_their_digest(namespace: str) -> None:
    def variant(members: dict[str, bytes]) -> str:
        return manifest.build(namespace, "key", members)[0].variant

    assert variant(SMALL) == variant(dict(reversed(SMALL.items())))
    assert len({variant(SMALL), variant({"a.json": b"[]"}), variant({"b.json": b"{}"}), variant({})}) == 4
    assert manifest.build(namespace, "key", SMALL, variant="mine")[0].variant == "mine"


def test_the_same_variant_has_the_same_requirements() -> None:
    def build(variant: str, isa: str) -> Manifest:
        return manifest.build("ns", "key", {}, variant=variant, requires={"isa": isa})[0]

    assert build("v", "avx2").is_same_variant(build("v", "avx2"))
    assert not build("v", "avx2").is_same_variant(build("w", "avx2"))
    assert not build("v", "avx2").is_same_variant(build("v", "avx512"))


def test_names_that_may_not_be_are_not_built() -> None:
    with pytest.raises(InvalidName):
        manifest.build("../ns", "key", {})
    with pytest.raises(InvalidName):
        manifest.build("ns", "key", {"../up": b""})


@pytest.mark.parametrize("name", ["../up", "/etc/passwd", "a/../../b", "", "a\0b", "a" * 2000])
def test_a_member_that_would_leave_its_folder_is_corrupt(name: str) -> None:
    with pytest.raises(Corrupt, match="member"):
        manifest.decode(sealed(members=[Member(name, "0" * 64, 0)]))


def test_a_digest_that_is_none_is_corrupt() -> None:
    with pytest.raises(Corrupt, match="digest"):
        manifest.decode(sealed(members=[Member("a", "../../../etc/passwd", 0)]))


def test_a_namespace_that_may_not_be_is_corrupt() -> None:
    with pytest.raises(Corrupt, match="namespace"):
        manifest.decode(sealed(namespace="../ns"))


def test_an_inline_member_that_does_not_match_its_digest_is_corrupt() -> None:
    member = Member("a", digest_of(b"right"), 5, frame.compress(b"wrong"))
    with pytest.raises(Corrupt, match="digest"):
        manifest.open_inline(member)


def test_an_inline_member_may_not_grow_beyond_its_size() -> None:
    content = bytes(1 << 20)
    with pytest.raises(Corrupt, match="at most 10"):
        manifest.open_inline(Member("a", digest_of(content), 10, frame.compress(content)))


def test_a_manifest_of_a_later_version_may_say_more() -> None:
    class Later(Manifest, frozen=True, kw_only=True):
        more: str

    later = Later(namespace="ns", key="key", members=[], more="new")
    assert manifest.decode(envelope.seal(later)).key == "key"


def test_there_is_room_for_a_signature_and_for_key_components() -> None:
    body = msgspec.msgpack.encode(Manifest("ns", "key", [], components=["torch 2.13"]))
    signed = msgspec.msgpack.encode({"body": body, "signature": b"s" * 64})
    assert manifest.decode(signed).components == ["torch 2.13"]


@given(st.binary())
def test_any_bytes_are_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt):
        manifest.decode(data)


@given(st.integers(0))
def test_a_truncated_manifest_is_corrupt(length: int) -> None:
    data = manifest.encode(manifest.build("ns", "key", SMALL)[0])
    with pytest.raises(Corrupt):
        manifest.decode(data[: length % len(data)])


@given(st.integers(0), st.integers(0, 255))
def test_a_changed_byte_is_corrupt_or_yields_names_that_may_be(place: int, value: int) -> None:
    data = bytearray(manifest.encode(manifest.build("ns", "key", SMALL, requires={"isa": "avx2"})[0]))
    data[place % len(data)] = value
    try:
        found = manifest.decode(bytes(data))
        for member in found.members:
            assert ".." not in member.name.split("/")
            if member.inline is not None:
                manifest.open_inline(member)
    except Corrupt:
        pass


@pytest.mark.parametrize("nesting", [b"\x91", b"\x81\xa1x"])
def test_deep_nesting_is_corrupt(nesting: bytes) -> None:
    with pytest.raises(Corrupt):
        manifest.decode(b"\x81\xa1x" + nesting * 100_000 + b"\xc0")
