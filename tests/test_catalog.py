"""Catalogs: references found by name, in the order of use; whatever the bytes are, nothing but Corrupt."""

import struct
from collections.abc import Sequence
from contextlib import suppress
from unittest import mock

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3cache import catalog, envelope, manifest, names
from s3cache.catalog import Catalog, Reference
from s3cache.digest import DIGEST_BYTES
from s3cache.errors import Corrupt
from s3cache.keyring import NO_KEYS
from s3cache.manifest import Manifest, Member, Place, Result

PLACES = [Place(b"p" * DIGEST_BYTES, offset, 100, 1000) for offset in (0, 100, 200)]
ROW = struct.Struct("<8sII")


def built(references: Sequence[Reference]) -> bytes:
    """Return the body of a catalog."""
    return envelope.unseal("catalog", catalog.build(references, NO_KEYS), NO_KEYS).body


def opened(body: bytes) -> Catalog:
    """Return the catalog that has this body."""
    return Catalog(envelope.seal("catalog", body, NO_KEYS), NO_KEYS)


def reference(
    namespace: str = "ns", key: str = "key", slot: int = 0, opened: tuple[str, ...] = ()
) -> Reference:
    """Return a reference to the manifest of a small result."""
    built = manifest.inline(Result("ns", key, {"a": key.encode()}), {})
    assert built is not None
    return Reference(slot, msgspec.structs.replace(built, namespace=namespace), list(opened))


def in_frames(*, opened: tuple[str, ...] = ()) -> Reference:
    """Return a reference to a manifest of three frames; what lies in the last two is on demand."""
    members = [
        Member("a.cubin", b"d" * DIGEST_BYTES, 10, frame=0),
        Member("b.ttir", b"d" * DIGEST_BYTES, 10, on_demand=True, frame=1),
        Member("c.ptx", b"d" * DIGEST_BYTES, 10, on_demand=True, frame=2),
    ]
    return Reference(0, Manifest("ns", "key", members, PLACES), list(opened))


references = st.lists(
    st.builds(
        reference,
        st.sampled_from(["fx-graph", "triton"]),
        st.sampled_from(["", "../key"]) | st.text(max_size=3),
        st.integers(0, 2),
        st.lists(st.sampled_from(["a", "b"]), unique=True).map(tuple),
    ),
    unique_by=lambda item: item.name,
    max_size=12,
)


def look_at_all(data: bytes, name: str) -> None:
    """Do all that can be done with a catalog."""
    found = opened(data)
    assert len(list(found)) == len(found)
    sought = found.find(name)
    assert sought is None or sought.name == name
    for each in found.references():
        names.check_namespace(each.manifest.namespace)
        assert set(each.places) <= set(each.manifest.frames)


# What comes back.


@given(references)
def test_every_reference_is_found_by_its_name(uses: list[Reference]) -> None:
    found = opened(built(uses))
    for use in uses:
        assert found.find(use.name) == use


@given(references, references)
def test_what_is_absent_is_not_found(uses: list[Reference], others: list[Reference]) -> None:
    found = opened(built(uses))
    for absent in {other.name for other in others} - {use.name for use in uses}:
        assert found.find(absent) is None


@given(references)
def test_references_come_in_the_order_of_use(uses: list[Reference]) -> None:
    assert list(opened(built(uses)).references()) == uses


@given(references)
def test_as_a_sequence_it_is_the_sorted_short_digests_of_all_names(uses: list[Reference]) -> None:
    found = opened(built(uses))
    assert list(found) == sorted(catalog.short_digest(use.name) for use in uses)
    assert len(found) == len(uses)


def test_an_empty_catalog_finds_nothing() -> None:
    found = opened(built([]))
    assert (len(found), list(found), list(found.references())) == (0, [], [])
    assert found.find("manifests/ns/key/0") is None


def test_slots_of_a_key_are_different_references() -> None:
    uses = [reference(slot=slot) for slot in range(3)]
    found = opened(built(uses))
    assert [found.find(f"manifests/ns/key/{slot}") for slot in range(4)] == [*uses, None]


def test_a_reference_names_the_object_of_its_manifest() -> None:
    assert reference("triton", "key", 3).name == "manifests/triton/key/3"


def test_the_frames_of_a_reference_are_those_that_a_start_reads() -> None:
    assert in_frames().places == PLACES[:1]
    assert in_frames(opened=("c.ptx",)).places == [PLACES[0], PLACES[2]]
    assert in_frames(opened=("c.ptx", "b.ttir", "unknown")).places == PLACES


def test_a_look_up_decodes_no_other_reference() -> None:
    uses = [reference(key=f"{number}") for number in range(1000)]
    found = opened(built(uses))
    with mock.patch.object(manifest, "check", wraps=manifest.check) as check:
        assert found.find(uses[500].name) == uses[500]
        assert found.find("manifests/ns/absent/0") is None
    assert check.call_count == 1


# Damage.


@pytest.mark.parametrize("namespace", ["../ns", "a/b", "", "/etc"])
def test_a_reference_of_a_namespace_that_may_not_be_is_corrupt(namespace: str) -> None:
    evil = reference(namespace)
    found = opened(built([reference(), evil]))
    with pytest.raises(Corrupt, match="namespace"):
        found.find(evil.name)
    assert list(found.references()) == [reference()]
    assert found.find(reference().name) == reference()


@pytest.mark.parametrize(
    ("members", "places"),
    [
        ([Member("../up", b"d" * DIGEST_BYTES, 0)], PLACES),
        ([Member("a", b"short", 0)], PLACES),
        ([Member("a", b"d" * DIGEST_BYTES, 0, frame=3)], PLACES),
        ([Member("a", b"d" * DIGEST_BYTES, 1001)], PLACES),
        ([], [Place(b"short", 0, 100, 1000)]),
        ([], [Place(b"p" * DIGEST_BYTES, -1, 100, 1000)]),
    ],
    ids=["path", "digest", "frame", "size", "pack", "offset"],
)
def test_a_reference_that_names_what_it_may_not_is_corrupt(
    members: list[Member], places: list[Place]
) -> None:
    evil = Reference(0, Manifest("ns", "key", members, places))
    found = opened(built([evil]))
    with pytest.raises(Corrupt):
        found.find(evil.name)
    assert list(found.references()) == []


def test_a_row_that_leads_to_the_reference_of_another_name_finds_nothing() -> None:
    data = built([reference(key="other")])
    digest, start, length = ROW.unpack_from(data, 8)
    forged = data.replace(digest, catalog.short_digest("manifests/ns/key/0"), 1)
    assert ROW.unpack_from(forged, 8)[1:] == (start, length)
    assert opened(forged).find("manifests/ns/key/0") is None


@pytest.mark.parametrize(
    ("start", "length"), [(0, 0), (0, 8), (32, 1), (1 << 31, 100), (0xFFFFFFFF, 0xFFFFFFFF)]
)
def test_a_row_that_leads_elsewhere_is_corrupt(start: int, length: int) -> None:
    name = reference().name
    data = bytearray(built([reference()]))
    ROW.pack_into(data, 8, catalog.short_digest(name), start, length)
    with pytest.raises(Corrupt):
        opened(bytes(data)).find(name)


@pytest.mark.parametrize("nesting", [b"\x91", b"\x81\xa1x"])
def test_deep_nesting_is_corrupt(nesting: bytes) -> None:
    body = b"\x81\xa1x" + nesting * 100_000 + b"\xc0"
    row = ROW.pack(catalog.short_digest("name"), 8 + ROW.size, len(body))
    with pytest.raises(Corrupt):
        opened(struct.pack("<Q", 1) + row + body).find("name")


@pytest.mark.parametrize("rows", [1, 2, 1 << 32, (1 << 64) - 1])
def test_a_catalog_of_fewer_rows_than_it_states_is_corrupt(rows: int) -> None:
    data = built([])
    with pytest.raises(Corrupt, match="rows"):
        opened(struct.pack("<Q", rows) + data[8:] + bytes(ROW.size - 1))


@given(st.binary())
def test_any_bytes_are_corrupt_or_an_empty_catalog(data: bytes) -> None:
    with suppress(Corrupt):
        assert len(opened(data)) * ROW.size <= len(data) - 8
        look_at_all(data, "name")


@given(
    st.lists(st.tuples(st.binary(min_size=8, max_size=8), st.integers(0, 400), st.integers(0, 400))),
    st.binary(),
)
def test_of_any_rows_and_bytes_come_references_that_may_be_or_none(
    rows: list[tuple[bytes, int, int]], bodies: bytes
) -> None:
    digest = catalog.short_digest("name")
    data = struct.pack("<Q", len(rows) + 1) + ROW.pack(digest, 8, 400)
    data += b"".join(ROW.pack(*row) for row in rows) + bodies
    with suppress(Corrupt):
        look_at_all(data, "name")


@given(st.integers(0))
def test_a_truncated_catalog_is_corrupt_or_has_fewer_references(length: int) -> None:
    data = built([reference(), in_frames(opened=("c.ptx",))])
    with suppress(Corrupt):
        found = opened(data[: length % len(data)])
        assert list(found.references()) in ([], [reference()])


@given(st.integers(0), st.integers(0, 255))
def test_a_changed_byte_is_corrupt_or_yields_what_may_be(place: int, value: int) -> None:
    uses = [reference(key="other"), in_frames(opened=("c.ptx",))]
    data = bytearray(built(uses))
    data[place % len(data)] = value
    with suppress(Corrupt):
        look_at_all(bytes(data), uses[1].name)
