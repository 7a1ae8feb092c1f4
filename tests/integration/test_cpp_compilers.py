"""What compilers answer: asked once for a kind of machine and compiler."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from s3cache.integration.pytorch import cpp_compilers, cpp_facts
from s3cache.manifest import Entry

QUESTION = cpp_compilers._remembered("get_compiler_version_info")


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> "Stored":
    client = Stored()
    monkeypatch.setattr(cpp_facts, "active_client", lambda: client)
    return client


@pytest.fixture
def compilers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH."""
    _write_compiler(tmp_path / "g++", "version 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    cpp_facts._facts.cache_clear()
    return tmp_path


def test_a_compiler_is_asked_once(client: "Stored", compilers: Path) -> None:
    asked: list[str] = []

    def ask(compiler: str) -> str:
        asked.append(compiler)
        return "12.2"

    assert [QUESTION(ask, None, ("g++",), {}) for _ in range(2)] == ["12.2", "12.2"]
    facts().save()
    facts().save()
    assert len(client.entries) == 1
    cpp_facts._facts.cache_clear()
    assert QUESTION(ask, None, ("g++",), {}) == "12.2"
    assert asked == ["g++"]
    assert QUESTION(ask, None, ("clang++",), {}) == "12.2"
    assert asked == ["g++", "clang++"]


def test_what_two_machines_found_out_is_united(client: "Stored", compilers: Path) -> None:
    for answer in "one", "two":
        cpp_facts._facts.cache_clear()
        client.entries, seen = [], client.entries
        facts().add(answer, answer)
        facts().save()
        client.entries += seen
    cpp_facts._facts.cache_clear()
    assert (facts().get("one"), facts().get("two")) == ("one", "two")


def test_no_answer_is_not_kept(client: "Stored", compilers: Path) -> None:
    assert QUESTION(lambda compiler: "", None, ("g++",), {}) == ""
    with pytest.raises(FileNotFoundError):
        QUESTION(_raise, None, ("g++",), {})
    facts().save()
    assert client.entries == []


def test_another_compiler_is_asked_anew(client: "Stored", compilers: Path) -> None:
    facts().add("question", "answer of version 1")
    facts().save()
    cpp_facts._facts.cache_clear()
    _write_compiler(compilers / "g++", "version 2")
    assert facts().get("question") is None


def test_every_compiler_of_a_name_counts(compilers: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    wrapper, link = tmp_path_factory.mktemp("ccache"), tmp_path_factory.mktemp("link")
    _write_compiler(wrapper / "g++", "ccache")
    (link / "g++").symlink_to(compilers / "g++")
    path = os.pathsep.join(map(str, (wrapper, compilers, link)))
    both = cpp_facts.compiler_digests("g++", path)
    assert len(both) == 2
    assert both[1:] == cpp_facts.compiler_digests("g++", str(compilers))
    assert cpp_facts.compiler_digests("clang++", path) == []


def test_a_compiler_that_cannot_be_read_is_asked(
    client: "Stored", compilers: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpp_facts, "compiler_digests", _raise)
    assert [QUESTION(lambda compiler: "12.2", None, ("g++",), {}) for _ in range(2)] == ["12.2", "12.2"]
    assert "facts failed" in caplog.text
    assert client.entries == []


class Stored:
    """A client of a bucket that holds one key."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def put(self, namespace: str, key: str, members: dict[str, bytes]) -> None:
        json.loads(members[cpp_facts.MEMBER])
        self.entries.append(Entry(namespace, key, len(self.entries), "", {}, members))

    def variants(self, namespace: str, key: str) -> Iterator[Entry]:
        return (entry for entry in self.entries if (entry.namespace, entry.key) == (namespace, key))


def facts() -> cpp_facts.Facts:
    found = cpp_facts.facts()
    assert found is not None
    return found


def _write_compiler(path: Path, version: str) -> None:
    path.write_text(f"#!/bin/sh\necho {version}\n")
    path.chmod(0o755)


def _raise(*args: Any) -> Any:
    raise FileNotFoundError
