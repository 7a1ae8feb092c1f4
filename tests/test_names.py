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


@pytest.mark.parametrize(
    "digest", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 64 + "\n", "../" + "0" * 61]
)
def test_what_is_not_64_hexadecimal_digits_is_no_digest(digest: str) -> None:
    with pytest.raises(InvalidName, match="digest"):
        names.check_digest(digest)


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


def test_a_blob_lies_below_the_first_two_digits_of_its_digest() -> None:
    assert names.blob_name("ab" * 32) == f"blobs/ab/{'ab' * 32}"
