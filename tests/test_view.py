"""Views: what they see, and that machines that differ have only what suits both in common."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3cache import names, view
from s3cache.catalog import Reference
from s3cache.errors import Corrupt
from s3cache.manifest import Manifest
from s3cache.view import View

HERE, THERE = "avx2 glibc 2.36", "avx512 glibc 2.41"


def reference(key: str, **requires: str) -> Reference:
    return Reference(0, Manifest("ns", key, [], requires=requires))


def sees(seen: View, key: str, likeness: str = HERE, slot: int = 0) -> bool:
    return seen.sees(names.manifest_name("ns", key, slot), likeness)


def test_a_view_sees_what_it_is_of_and_nothing_else() -> None:
    seen = View.of([reference("plain"), reference("picky", vec_isa="avx2")], HERE)
    assert sees(seen, "plain")
    assert sees(seen, "picky")
    assert not sees(seen, "absent")
    assert not sees(seen, "plain", slot=1)
    assert len(seen) == 2


def test_nothing_is_seen_in_an_empty_view() -> None:
    assert not sees(View(), "plain")


def test_machines_that_are_alike_see_what_both_have() -> None:
    ours = View.of([reference("both"), reference("picky", vec_isa="avx2"), reference("ours")], HERE)
    theirs = View.of([reference("both"), reference("picky", vec_isa="avx2"), reference("theirs")], HERE)
    common = ours & theirs
    assert {key for key in ("both", "picky", "ours", "theirs") if sees(common, key)} == {"both", "picky"}
    assert common == theirs & ours


def test_machines_that_differ_have_nothing_in_common_that_requires_something() -> None:
    """One would meet what is required, the other not, and both see the same."""
    references = [reference("plain"), reference("picky", vec_isa="avx2")]
    common = View.of(references, HERE) & View.of(references, THERE)
    for likeness in HERE, THERE:
        assert sees(common, "plain", likeness)
        assert not sees(common, "picky", likeness)


@given(st.frozensets(st.binary(min_size=8, max_size=8)))
def test_a_view_comes_back_as_it_was(marks: frozenset[bytes]) -> None:
    assert view.decode(view.encode(View(marks))) == View(marks)


def test_equal_views_are_equal_bytes() -> None:
    marks = [f"{number:08}".encode() for number in range(100)]
    assert view.encode(View(frozenset(marks))) == view.encode(View(frozenset(reversed(marks))))


@pytest.mark.parametrize("data", [b"\0", bytes(7), bytes(9)])
def test_what_is_no_view_is_refused(data: bytes) -> None:
    with pytest.raises(Corrupt):
        view.decode(data)
