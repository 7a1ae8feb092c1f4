"""Packages of `caching_precompile`: a fresh machine runs without tracing, never what was edited."""

import math
from types import ModuleType, SimpleNamespace

import pytest

from s3cache.integration.pytorch import precompile
from tests.integration.starts import Fleet, Start

TRAIN = """
    import torch
    import torch._dynamo.package
    from torch._dynamo.utils import counters

    torch._inductor.config.cpp.simdlen = int(os.environ.get("SIMDLEN", 0)) or None

    if "BROKEN" in os.environ:
        torch._dynamo.package.load_guards_state = None

    def act(x):
        return x.sin()

    def step(x, y):
        return act(x) @ y

    a, b = (torch.ones(8, 8, requires_grad=True) for _ in range(2))
    compiled = torch.compile(step)
    with torch.compiler.set_stance(os.environ.get("STANCE", "default")):
        compiled(a, b).sum().backward()
        hits, frames = counters["dynamo_cache"]["dynamo_cache_hit"], counters["frames"]["total"]
        for size in map(int, os.environ.get("SIZES", "").split()):
            compiled(torch.ones(size, size), torch.ones(size, size))
    more = counters["frames"]["total"] - frames
    report(hits=hits, frames=frames, more=more, grad=round(a.grad[0, 0].item(), 4))
"""
GRAD = 4.3224


def _start(fleet: Fleet, script: str = TRAIN, *, records: bool = False, **variables: str) -> Start:
    machine = fleet.recorder() if records else fleet.fresh()
    return machine.run(script, name="trains.py", TORCH_CACHING_PRECOMPILE="1", **variables)


@pytest.fixture(scope="module")
def recorded(fleet: Fleet) -> Start:
    """A start whose package is saved by no call of the script's."""
    return _start(fleet, records=True)


@pytest.fixture(scope="module")
def recorded_more(fleet: Fleet, recorded: Start) -> Start:
    """A start that went on from that package, with another size."""
    return _start(fleet, records=True, SIZES="4")


def test_a_fresh_machine_does_not_trace(recorded: Start, recorded_more: Start) -> None:
    assert (recorded.facts["hits"], recorded.facts["grad"]) == (0, GRAD)
    facts = recorded_more.facts
    assert (facts["hits"], facts["frames"], facts["grad"]) == (1, 0, GRAD)
    assert facts["more"] == 1


def test_the_package_that_knows_most_is_restored(fleet: Fleet, recorded_more: Start) -> None:
    facts = _start(fleet, SIZES="4", STANCE="fail_on_recompile").facts
    assert (facts["hits"], facts["frames"], facts["more"], facts["grad"]) == (1, 0, 0, GRAD)


def test_an_edited_function_is_traced_again(fleet: Fleet, recorded: Start) -> None:
    facts = _start(fleet, TRAIN.replace("x.sin()", "x.cos()"), STANCE="force_eager").facts
    assert (facts["hits"], facts["grad"]) == (0, -6.7318)


def test_another_job_does_not_get_it(fleet: Fleet, recorded: Start) -> None:
    assert _start(fleet, S3CACHE_JOB="another", STANCE="force_eager").facts["hits"] == 0


def test_another_vector_isa_does_not_get_it(fleet: Fleet, recorded: Start) -> None:
    assert _start(fleet, SIMDLEN="1", STANCE="force_eager").facts["hits"] == 0


def test_a_package_that_cannot_be_loaded_is_compiled_again(fleet: Fleet, recorded: Start) -> None:
    facts = _start(fleet, BROKEN="").facts
    assert (facts["hits"], facts["grad"]) == (1, GRAD)
    assert facts["frames"] > 0


def test_a_package_that_set_a_name_twice_before_it_failed_is_taken_out() -> None:
    from torch._dynamo.package import CompilePackage

    def fail() -> None:
        for _ in range(2):
            package._install_global(module, "__import_math", math)
            package._install_global(module, "__compiled_fn", fail)
        raise KeyError

    module = ModuleType("users")
    package = CompilePackage(lambda: None)
    with pytest.raises(RuntimeError, match="a package cannot be loaded: KeyError"):
        precompile._install_package(fail, package, (), {})
    assert "__compiled_fn" not in vars(module)
    # Another package may have set it, too.
    assert vars(module)["__import_math"] is math


def test_guards_that_cannot_be_read_again_are_not_stored() -> None:
    def refuse(guards_state: bytes) -> None:
        raise TypeError

    package = SimpleNamespace(load_guards_state=refuse)
    assert not precompile._can_be_loaded(package, [SimpleNamespace(guards_state=b"")])
    assert not precompile._can_be_loaded(package, [])
