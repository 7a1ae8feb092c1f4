"""Names from outside: what they may be, and that none leads out of where it belongs."""

from pathlib import PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s3cache import names
from s3cache.errors import InvalidName

EVIL = [
    "",
    ".",
    "..",
    "../up",
    "a/../b",
    "a/..",
    "/absolute",
    "//a",
    "a//b",
    "a/",
    "./a",
    ".hidden",
    "-option",
    "~root",
    "a\\b",
    "C:\\a",
    "a\0b",
    "a\nb",
    "a\n",
    "a b",
    "ä",
    "٣",
    "a/\u202eb",
    "a" * 129,
    "/".join(["a"] * 600),
]


@pytest.mark.parametrize("name", EVIL)
def test_a_member_that_is_no_relative_path_of_plain_parts_is_refused(name: str) -> None:
    with pytest.raises(InvalidName, match="member"):
        names.check_member(name)


@pytest.mark.parametrize("name", ["a", "result.json", "sub/dir/kernel_0.cubin", "A-b_c.d", "a" * 128])
def test_a_member_that_is_a_relative_path_is_taken(name: str) -> None:
    assert names.check_member(name) == name


@pytest.mark.parametrize("namespace", [*EVIL, "a/b"])
def test_a_namespace_that_is_not_plain_is_refused(namespace: str) -> None:
    with pytest.raises(InvalidName, match="namespace"):
        names.check_namespace(namespace)


def test_a_plain_namespace_is_taken() -> None:
    assert names.check_namespace("artifact-My_type.2") == "artifact-My_type.2"


@given(st.text())
def test_any_text_becomes_one_plain_part(text: str) -> None:
    part = names.component(text)
    assert 0 < len(part) <= 128
    assert "/" not in part
    assert "\0" not in part
    assert part not in (".", "..")
    assert part.isascii()
    assert part.isprintable()
    assert " " not in part


@given(st.text(), st.text())
def test_different_texts_become_different_parts(one: str, other: str) -> None:
    assert (names.component(one) == names.component(other)) == (one == other)


@pytest.mark.parametrize("text", ["plain", *EVIL])
def test_a_part_is_no_other_text_s_part(text: str) -> None:
    assert names.component(names.component(text)) != names.component(text) or text == "plain"


@given(st.text(), st.integers(0, 1000))
def test_a_manifest_lies_below_its_namespace_whatever_its_key(key: str, slot: int) -> None:
    path = PurePosixPath(names.manifest_name("fx-graph", key, slot))
    assert path.parts[:2] == ("manifests", "fx-graph")
    assert len(path.parts) == 4
    assert path.name == str(slot)


@given(st.text())
def test_a_profile_lies_below_profiles_whatever_its_job(job: str) -> None:
    prefix = names.profile_prefix(job, "linux-x86_64")
    assert PurePosixPath(prefix).parts[0] == "profiles"
    assert prefix.count("/") == 3
    assert prefix.endswith("/linux-x86_64/")


def test_a_pack_is_named_by_its_digest() -> None:
    assert names.pack_name(b"\xab" * 32) == f"packs/{'ab' * 32}"


def test_frames_of_all_packs_have_names_of_their_own_below_their_packs() -> None:
    places = [(bytes([pack]) * 32, offset) for pack in range(3) for offset in (0, 1, 11, 1 << 40)]
    found = {names.frame_name(*place) for place in places}
    assert len(found) == len(places)
    assert all(names.frame_name(*place).startswith(f"{names.pack_name(place[0])}/") for place in places)


@given(st.text())
def test_the_catalog_of_a_segment_lies_among_the_catalogs_of_its_job(job: str) -> None:
    segment = f"{names.profile_prefix(job, 'linux-x86_64')}1795446925852-e0b5ac09"
    prefix, *_ = names.catalog_prefixes(job, "linux-x86_64")
    assert names.catalog_name(segment) == f"{prefix}1795446925852-e0b5ac09"
    assert PurePosixPath(prefix).parts[0] == "catalogs"
    assert prefix.count("/") == 3


def test_a_job_that_is_called_profiles_keeps_its_name_among_the_catalogs() -> None:
    assert names.catalog_name("profiles/profiles/linux-x86_64/1") == "catalogs/profiles/linux-x86_64/1"


@given(st.text())
def test_what_is_printed_steers_no_terminal(text: str) -> None:
    assert names.printable(text).isprintable()
    assert names.printable("Python 3.11, triton 3.6") == "Python 3.11, triton 3.6"
    assert "\x1b" not in names.printable("\x1b[2J")
