"""What the CPU can do: probed once for a kind of machine, and never mistaken for another's."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from s3cache.integration.pytorch import cpp_isa, cpp_refusals
from tests.integration.conftest import NewFleet
from tests.integration.jobs import CUBE
from tests.integration.starts import Fleet, Start

FUNCTIONS = """
    import torch

    functions = {
        "softmax": lambda x: x.softmax(-1),
        "spread": lambda x: (x - x.mean(-1, keepdim=True)).exp().sum(-1),
    }
    x = torch.linspace(-3.0, 3.0, 64 * 99).reshape(64, 99)
    for name in os.environ["FUNCTIONS"].split():
        name, _, threads = name.partition(":")
        torch.set_num_threads(int(threads or 1))
        torch._dynamo.reset()
        torch.testing.assert_close(torch.compile(functions[name])(x), functions[name](x))
    report()
"""


def test_a_job_never_seen_before_compiles_its_own_kernels_only(new_fleet: NewFleet) -> None:
    fleet = new_fleet()
    first = fleet.recorder().start(CUBE)
    assert any(_is_probe(command) for command in first.compiled)
    start = fleet.recorder().start(CUBE.replace("3", "5"))
    assert sum(".main.cpp" in command for command in start.compiled) == 1
    assert not any(_is_probe(command) for command in start.compiled)


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != "AVX512", reason="this CPU has no AVX-512")
def test_a_result_is_right_on_every_cpu(fleet: Fleet, recorded: Start) -> None:
    avx512, avx2 = {"ATEN_CPU_CAPABILITY": "avx512"}, {"ATEN_CPU_CAPABILITY": "avx2"}
    first = fleet.recorder().start(FUNCTIONS, FUNCTIONS="softmax", **avx512)
    # What AVX-512 recorded is not for AVX2, nor that of one thread for two …
    second = fleet.recorder().start(FUNCTIONS, FUNCTIONS="softmax spread", **avx2)
    third = fleet.recorder().start(FUNCTIONS, FUNCTIONS="softmax:2", **avx512)
    assert (_hits(first), _hits(second), _hits(third)) == (0, 0, 0)
    # … nor the other way round; each finds its own.
    fourth = fleet.recorder().start(FUNCTIONS, FUNCTIONS="softmax:2 spread", **avx512)
    assert _hits(fourth) == 1
    assert sum(".main.cpp" in command for command in fourth.compiled) == 1
    last = fleet.fresh().start(FUNCTIONS, FUNCTIONS="softmax spread", **avx2)
    assert _hits(last) == 2
    assert last.compiled == []


@pytest.mark.parametrize(
    ("error", "is_known"),
    [
        (None, True),
        ("probe.cpp:3: error: unrecognized command-line option", True),
        ("fatal error: cannot write to probe.o: no space left on device", False),
        ("timed out", False),
    ],
)
def test_a_probe_is_asked_again_unless_the_compiler_answered(
    error: str | None, is_known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = Known()
    monkeypatch.setattr(cpp_isa, "facts", lambda: known)

    def probe(code: str) -> bool:
        if error:
            cpp_refusals.note(RuntimeError(error))
        return error is None

    for _ in range(2):
        assert cpp_isa._check_build(probe, Isa("-mavx2"), ("int main() {}",), {}) is (error is None)
    assert list(known.values()) == ([error is None] if is_known else [])


def test_probes_of_other_code_or_flags_are_other_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    known = Known()
    monkeypatch.setattr(cpp_isa, "facts", lambda: known)
    for flags, code in ("-mavx2", "a"), ("-mavx2", "b"), ("-mavx512f", "a"), ("-mavx2", "a"):
        cpp_isa._check_build(lambda code: True, Isa(flags), (), {"code": code})
    assert len(known) == 3


def test_without_facts_the_compiler_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpp_isa, "facts", lambda: None)
    assert cpp_isa._check_build(lambda code: True, Isa("-mavx2"), ("int main() {}",), {})
    assert cpp_isa._valid_vec_isa_list(lambda: ["avx2"], None, (), {}) == ["avx2"]


class Known(dict[str, Any]):
    add = dict.__setitem__

    def __bool__(self) -> bool:
        return True


@dataclass
class Isa:
    flags: str

    def build_arch_flags(self) -> str:
        return self.flags


def _is_probe(command: str) -> bool:
    return "--version" in command or ("/inductor/" in command and ".main.cpp" not in command)


def _hits(start: Start) -> int:
    hits: int = start.facts["inductor"].get("fxgraph_cache_hit", 0)
    return hits
