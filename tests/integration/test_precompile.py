"""Packages of `caching_precompile`: a fresh machine runs without tracing, never what was edited."""

from types import SimpleNamespace

import pytest

from s3cache.integration.pytorch import precompile
from tests.integration.conftest import NewBucket
from tests.integration.machines import Bucket

PRECOMPILE = {"TORCH_CACHING_PRECOMPILE": "1"}
TRAIN = """
    import os
    import torch, torch._dynamo.package
    from torch._dynamo.utils import counters

    torch._inductor.config.cpp_cache_precompile_headers = False
    torch._inductor.config.cpp.simdlen = int(os.environ.get("SIMDLEN", 0)) or None

    if os.environ.get("BROKEN"):
        torch._dynamo.package.load_guards_state = None

    def act(x):
        return x.sin()

    def step(x, y):
        return act(x) @ y

    a, b = (torch.ones(8, 8, requires_grad=True) for _ in range(2))
    compiled = torch.compile(step)
    with torch.compiler.set_stance(os.environ.get("STANCE", "default")):
        compiled(a, b).sum().backward()
        size = int(os.environ.get("SIZE", 8))
        compiled(torch.ones(size, size), torch.ones(size, size))
    hits = counters["dynamo_cache"]["dynamo_cache_hit"]
    report(hit=hits, frames=counters["frames"]["total"], grad=round(a.grad[0, 0].item(), 4))
"""


@pytest.fixture(scope="module")
def recorded(new_bucket: NewBucket) -> Bucket:
    """A bucket with the package of one function, saved by no call of the script's."""
    bucket = new_bucket()
    facts = bucket.new_machine().run(TRAIN, **PRECOMPILE)
    assert (facts["hit"], facts["grad"]) == (0, 4.3224)
    return bucket


def test_a_fresh_machine_does_not_trace(recorded: Bucket) -> None:
    facts = recorded.new_machine().run(TRAIN, STANCE="fail_on_recompile", **PRECOMPILE)
    assert facts == {"hit": 1, "frames": 0, "grad": 4.3224}


def test_an_edited_function_is_traced_again(recorded: Bucket) -> None:
    edited = TRAIN.replace("x.sin()", "x.cos()")
    facts = recorded.new_machine().run(edited, STANCE="force_eager", **PRECOMPILE)
    assert facts == {"hit": 0, "frames": 0, "grad": -6.7318}


def test_another_job_does_not_get_it(recorded: Bucket) -> None:
    another = {"S3CACHE_JOB": "another", "STANCE": "force_eager"}
    assert recorded.new_machine().run(TRAIN, **another, **PRECOMPILE)["hit"] == 0


def test_another_vector_isa_does_not_get_it(recorded: Bucket) -> None:
    another = {"SIMDLEN": "256", "STANCE": "force_eager"}
    assert recorded.new_machine().run(TRAIN, **another, **PRECOMPILE)["hit"] == 0


def test_the_package_that_knows_most_is_restored(recorded: Bucket) -> None:
    more = recorded.new_machine().run(TRAIN, SIZE="4", **PRECOMPILE)
    assert (more["hit"], more["frames"]) == (1, 1)
    facts = recorded.new_machine().run(TRAIN, SIZE="4", STANCE="fail_on_recompile", **PRECOMPILE)
    assert (facts["hit"], facts["frames"]) == (1, 0)


def test_a_package_that_cannot_be_loaded_is_compiled_again(recorded: Bucket) -> None:
    facts = recorded.new_machine().run(TRAIN, BROKEN="1", **PRECOMPILE)
    assert (facts["hit"], facts["grad"]) == (1, 4.3224)
    assert facts["frames"] > 0


def test_guards_that_cannot_be_read_again_are_not_stored() -> None:
    def refuse(guards_state: bytes) -> None:
        raise TypeError

    package = SimpleNamespace(load_guards_state=refuse)
    assert not precompile._can_be_loaded(package, [SimpleNamespace(guards_state=b"")])
    assert not precompile._can_be_loaded(package, [])
