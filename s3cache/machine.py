"""What a result may require of a machine, and what this machine is."""

import functools
import os
import platform
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

_VERSION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})*\Z")

# What -march=native looks at; the other flags name bugs, mitigations and the hypervisor.
_INSTRUCTION_SETS = [
    "3dnow",
    "abm",
    "adx",
    "aes",
    "amx",
    "avx",
    "bmi",
    "cldemote",
    "clflushopt",
    "clwb",
    "cx16",
    "f16c",
    "fma",
    "fsgsbase",
    "gfni",
    "kl",
    "lahf_lm",
    "lzcnt",
    "movbe",
    "movdir",
    "pclmulqdq",
    "pku",
    "popcnt",
    "prefetchw",
    "ptwrite",
    "rdpid",
    "rdrand",
    "rdseed",
    "serialize",
    "sha",
    "sm3",
    "sm4",
    "sse",
    "ssse3",
    "tbm",
    "uintr",
    "vaes",
    "vpclmulqdq",
    "waitpkg",
    "widekl",
    "xop",
    "xsave",
]


@functools.cache
def cpu_flags() -> str:
    """Return the instruction sets of this CPU, sorted, separated by spaces; empty if unknown."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return " ".join(sorted(f for f in set(value.split()) if f.startswith(tuple(_INSTRUCTION_SETS))))
        if name.strip() == "Features":
            return " ".join(sorted(set(value.split())))
    return ""


def glibc() -> str:
    """Return the version of the C library, as "2.36"; empty where it is not glibc."""
    try:
        return (os.confstr("CS_GNU_LIBC_VERSION") or "").removeprefix("glibc ")
    except (OSError, ValueError):
        return ""


def gpus() -> int:
    """Return how many GPUs of NVIDIA this machine, or this container, has."""
    return sum(1 for _ in Path("/dev").glob("nvidia[0-9]*"))


def platform_tag() -> str:
    """Return what the profiles of this kind of machine are filed under."""
    return f"{sys.platform}-{platform.machine()}"


def _includes(required: str, present: str) -> bool:
    return set(required.split()) <= set(present.split())


def _at_least(required: str, present: str) -> bool:
    def version(text: str) -> list[int]:
        return [int(part) for part in text.split(".")]

    if not _VERSION.match(required) or not _VERSION.match(present):
        return False
    return version(required) <= version(present)


def _equals(required: str, present: str) -> bool:
    return required == present


_COMPARISONS: dict[str, Callable[[str, str], bool]] = {"cpu_flags": _includes, "glibc": _at_least}


class Machine:
    """The facts of this machine that requirements are held against.

    Most are equal or not; `cpu_flags` must include what is required and `glibc` be at least as new.
    """

    def __init__(self) -> None:
        self._facts: dict[str, Callable[[], str]] = {"cpu_flags": cpu_flags, "glibc": glibc}

    def learn(self, name: str, fact: Callable[[], str]) -> None:
        """Add a fact, asked for only when a result requires it."""
        self._facts[name] = fact

    def meets(self, requires: Mapping[str, str]) -> bool:
        """Return whether all requirements hold here; one that nothing is known of does not."""
        return all(name in self._facts and self._holds(name, value) for name, value in requires.items())

    def may_meet(self, requires: Mapping[str, str]) -> bool:
        """Return whether no requirement is known to fail here."""
        return all(name not in self._facts or self._holds(name, value) for name, value in requires.items())

    def _holds(self, name: str, required: str) -> bool:
        return _COMPARISONS.get(name, _equals)(required, self._facts[name]())


def fingerprint() -> dict[str, str]:
    """Return what a report says of this machine."""
    return {
        "platform": platform_tag(),
        "glibc": glibc(),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "cpu_flags": cpu_flags(),
        "gpus": str(gpus()),
    }
