"""What was found out about the C++ compiler on machines like this one, so that nobody asks again.

It belongs to the machine, not to a job: a job that was never seen before profits as well.
"""

import json
import os
import shutil
from functools import cache
from pathlib import Path

from s3cache.digest import digest_of
from s3cache.integration.hooks import guarded
from s3cache.integration.pytorch.requirements import build
from s3cache.integration.pytorch.switch import active_client
from s3cache.machine import cpu_flags, glibc

NAMESPACE = "cpp-probe"
MEMBER = "facts.json"
Fact = str | bool


class Facts:
    """Answers of the compiler, by question."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._answers: dict[str, Fact] = {}
        self._is_new = False
        self._read()

    def get(self, question: str) -> Fact | None:
        """Return the answer, or None when nobody asked yet."""
        return self._answers.get(question)

    def add(self, question: str, answer: Fact) -> None:
        """Note an answer of the compiler; `save` stores it."""
        self._answers[question] = answer
        self._is_new = True

    @guarded
    def save(self) -> None:
        """Store what is new."""
        cache = active_client()
        if cache is not None and self._is_new:
            self._is_new = False
            cache.put(NAMESPACE, self._key, {MEMBER: json.dumps(self._answers, sort_keys=True).encode()})

    @guarded
    def _read(self) -> None:
        cache = active_client()
        for entry in cache.variants(NAMESPACE, self._key) if cache else ():
            self._answers |= json.loads(entry.members[MEMBER])


@guarded
def facts() -> Facts:
    """Return the facts about the compilers that this process would find now; None on any failure."""
    from torch._inductor import config

    names = config.cpp.cxx if isinstance(config.cpp.cxx, list | tuple) else [config.cpp.cxx]
    wanted = sorted({name for name in (*names, "g++") if isinstance(name, str)})
    return _facts(" ".join(wanted), os.environ.get("PATH", os.defpath))


@cache
def _facts(names: str, path: str) -> Facts:
    compilers = [digest for name in names.split() for digest in compiler_digests(name, path)]
    return Facts(digest_of("\0".join([build(), cpu_flags(), glibc(), names, *compilers]).encode()))


def compiler_digests(name: str, path: str) -> list[str]:
    """Return the digest of each program of that name on `path`, in order.

    All of them, since the first is often a wrapper (ccache, distcc) that runs the next one.
    """
    found = {
        os.path.realpath(program): None
        for folder in path.split(os.pathsep)
        if (program := shutil.which(name, path=folder))
    }
    return [digest_of(Path(program).read_bytes()) for program in found]
