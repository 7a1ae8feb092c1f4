"""Machines: which requirements hold here."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from s3cache import machine as machines
from s3cache.machine import Machine


@pytest.fixture
def machine() -> Machine:
    """A machine of AVX2, glibc 2.36 and one fact of a hook."""
    machine = Machine()
    machine.learn("cpu_flags", lambda: "avx avx2 fma")
    machine.learn("glibc", lambda: "2.36")
    machine.learn("isa", lambda: "avx2")
    return machine


@pytest.fixture(autouse=True)
def _cpu_is_read_anew() -> Iterator[None]:
    machines.cpu_flags.cache_clear()
    yield
    machines.cpu_flags.cache_clear()


@pytest.mark.parametrize(
    ("requires", "holds"),
    [
        ({}, True),
        ({"cpu_flags": "avx2"}, True),
        ({"cpu_flags": "fma avx"}, True),
        ({"cpu_flags": ""}, True),
        ({"cpu_flags": "avx2 avx512f"}, False),
        ({"cpu_flags": "avx512f"}, False),
        ({"cpu_flags": "av"}, False),
        ({"glibc": "2.36"}, True),
        ({"glibc": "2.31"}, True),
        ({"glibc": "2.4"}, True),
        ({"glibc": "2.37"}, False),
        ({"glibc": "2.36.1"}, False),
        ({"glibc": "3.0"}, False),
        ({"glibc": "2"}, True),
        ({"isa": "avx2"}, True),
        ({"isa": "avx512"}, False),
        ({"isa": ""}, False),
        ({"isa": "avx2", "glibc": "2.99"}, False),
        ({"isa": "avx2", "cpu_flags": "avx", "glibc": "2.30"}, True),
    ],
)
def test_flags_include_glibc_is_as_new_and_the_rest_is_equal(
    machine: Machine, requires: dict[str, str], holds: bool
) -> None:
    assert machine.meets(requires) is holds
    assert machine.may_meet(requires) is holds


def test_what_nothing_is_known_of_is_not_met_but_may_be(machine: Machine) -> None:
    assert not machine.meets({"gpu": "sm_90"})
    assert machine.may_meet({"gpu": "sm_90"})
    assert not machine.may_meet({"gpu": "sm_90", "isa": "avx512"})


@pytest.mark.parametrize("version", ["", "two", "²", "2.x", "9" * 5000, "2..1", "-1", "2.36\n", "٢.١"])
def test_a_version_that_cannot_be_read_is_not_met(machine: Machine, version: str) -> None:
    assert not machine.meets({"glibc": version})


def test_a_machine_without_glibc_does_not_meet_one(machine: Machine) -> None:
    machine.learn("glibc", lambda: "")
    assert not machine.meets({"glibc": "2.17"})


def test_a_fact_is_asked_for_only_when_it_is_required(machine: Machine) -> None:
    asked = []

    def fact() -> str:
        asked.append(True)
        return "value"

    machine.learn("costly", fact)
    assert machine.meets({"isa": "avx2"})
    assert not asked
    assert machine.meets({"costly": "value"})
    assert asked


def test_a_fact_is_asked_for_again_since_it_may_change(machine: Machine) -> None:
    values = iter(["1", "2"])
    machine.learn("threads", lambda: next(values))
    assert machine.meets({"threads": "1"})
    assert machine.meets({"threads": "2"})


def cpuinfo(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)


def test_flags_are_instruction_sets_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    flags = "fpu vme sse sse4_1 ssse3 avx2 avx512f amx_tile sha_ni hypervisor md_clear ibrs retpoline aes"
    cpuinfo(monkeypatch, f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: spectre_v1\n")
    assert machines.cpu_flags() == "aes amx_tile avx2 avx512f sha_ni sse sse4_1 ssse3"


def test_flags_of_arm_are_all_its_features(monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo(monkeypatch, "processor\t: 0\nFeatures\t: sve fp asimd\n")
    assert machines.cpu_flags() == "asimd fp sve"


def test_an_unknown_cpu_has_no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo(monkeypatch, "processor\t: 0\n")
    assert machines.cpu_flags() == ""


def test_a_machine_without_cpuinfo_has_no_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", fail)
    assert machines.cpu_flags() == ""


def test_another_c_library_is_no_glibc(monkeypatch: pytest.MonkeyPatch) -> None:
    def unrecognized(name: str) -> str:
        raise ValueError("unrecognized configuration name")

    monkeypatch.setattr(os, "confstr", unrecognized)
    assert machines.glibc() == ""
    assert not Machine().meets({"glibc": "2.17"})


def test_this_machine_meets_what_it_is() -> None:
    assert Machine().meets({"cpu_flags": machines.cpu_flags(), "glibc": machines.glibc()})


def test_a_fingerprint_says_what_the_machine_is() -> None:
    fingerprint = machines.fingerprint()
    assert fingerprint["platform"] == machines.platform_tag()
    assert set(fingerprint) == {"platform", "glibc", "python", "kernel", "cpu_flags", "gpus"}
