"""Views: what they see, and what two have in common."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3cache import names, view
from s3cache.catalog import Reference
from s3cache.errors import Corrupt
from s3cache.manifest import Manifest
from s3cache.view import View


def reference(key: str, **requires: str) -> Reference:
    return Reference(0, Manifest("ns", key, [], requires=requires))


def sees(seen: View, key: str, slot: int = 0) -> bool:
    return seen.sees(names.manifest_name("ns", key, slot))


def test_a_view_sees_what_it_is_of_and_nothing_else() -> None:
    seen = View.of([reference("plain"), reference("picky", vec_isa="avx2")])
    assert sees(seen, "plain")
    assert sees(seen, "picky")
    assert not sees(seen, "absent")
    assert not sees(seen, "plain", slot=1)
    assert len(seen) == 2


def test_nothing_is_seen_in_an_empty_view() -> None:
    assert not sees(View(), "plain")


def test_what_both_see_is_what_both_have() -> None:
    ours = View.of([reference("both"), reference("ours")])
    theirs = View.of([reference("both"), reference("theirs")])
    common = ours & theirs
    assert {key for key in ("both", "ours", "theirs") if sees(common, key)} == {"both"}
    assert common == theirs & ours


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
