"""A kernel is stored if a launch would lack nothing of it, whatever wrote its folder."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

from s3cache import client
from s3cache.integration.triton import kernels

FILES = {"add.json": b'{"num_warps": 4}', "add.hsaco": b"binary", "add.ttir": b"text"}


@pytest.fixture
def puts(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """The names of the members of each kernel that was stored."""
    stored: list[set[str]] = []

    def put(namespace: str, key: str, members: dict[str, bytes], **_: object) -> None:
        stored.append(set(members))

    monkeypatch.setattr(client, "current", lambda: SimpleNamespace(put=put))
    return stored


def written(folder: Path, files: dict[str, bytes]) -> str:
    """Write a folder as Triton does; return its path."""
    group = {name: str(folder / name) for name in FILES}
    (folder / "__grp__add.json").write_text(json.dumps({"child_paths": group}))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return str(folder)


def test_a_whole_kernel_is_stored(tmp_path: Path, puts: list[set[str]]) -> None:
    kernels.store(written(tmp_path, FILES), "key", "add.json")
    assert puts == [{"json", "hsaco", "ttir"}]


def test_a_text_that_is_gone_is_no_matter(tmp_path: Path, puts: list[set[str]]) -> None:
    kernels.store(written(tmp_path, {k: v for k, v in FILES.items() if k != "add.ttir"}), "key", "add.json")
    assert puts == [{"json", "hsaco"}]


@pytest.mark.parametrize(
    "damage",
    [{"add.json": b'{"num_wa'}, {"add.json": b"[]"}, {"add.hsaco": b""}, {"add.hsaco": b"\x7fELF, cut"}],
)
def test_one_that_could_not_be_launched_is_not(
    tmp_path: Path, puts: list[set[str]], damage: dict[str, bytes]
) -> None:
    kernels.store(written(tmp_path, FILES | damage), "key", "add.json")
    assert puts == []
