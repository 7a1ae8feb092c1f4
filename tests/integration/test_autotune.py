"""The best launch configuration of a Triton kernel, found on one machine, is used by the next."""

import pytest

from tests.integration.conftest import NewFleet
from tests.integration.starts import Fleet, Start

TUNE = """
    from dataclasses import dataclass

    import torch
    import torch._inductor.codecache
    from torch._guards import CompileContext, CompileId, compile_context
    from torch._inductor.runtime import autotune_cache

    @dataclass
    class Config:
        kwargs: dict
        num_warps: int = 4
        num_stages: int = 1
        found_by_coordesc: bool = False

    # Without Triton there is no class to make what coordinate descent found of.
    autotune_cache.Config = Config
    settings = {
        "autotune_local_cache": True,
        "autotune_remote_cache": None,
        "bundled_autotune_remote_cache": None,
        "backend_hash": "backend",
        "coordinate_descent_tuning": "DESCENT" in os.environ,
        "is_fbcode": False,
    }
    configs = [Config({"XBLOCK": 64}), Config({"XBLOCK": 128})]
    remote = "autotune_remote_cache"
    bundled = "bundled_autotune_remote_cache"

    def kernel(name, **flags):
        path = os.path.join(os.environ["TORCHINDUCTOR_CACHE_DIR"], name[:2], f"{name}.py")
        return autotune_cache.AutotuneCache.create(settings | flags, path, "hash")

    def best(kernel):
        found = kernel.read_best(settings, configs)
        return found and [found.kwargs["XBLOCK"], found.found_by_coordesc]

    found = {name: best(kernel(name)) for name in ("one", "two", "three")}
    # Since torch 2.13 the heuristic's choice is marked like what descent finds, which follows.
    marks = {"found_by_coordesc": True, "triton_cache_hash": "hash"}
    for name in "one", "two":
        kernel(name).save(configs[1], 5_000_000, **marks)
    kernel("one").save(Config({"XBLOCK": 256}), 4_000_000, found_by_coordesc=True)

    for flag in remote, bundled:
        with compile_context(CompileContext(CompileId(frame_id=0, frame_compile_id=0))):
            autotune_cache.AutotuneCacheBundler.begin_compile(settings | {flag: True}, code=flag)
            tuned = kernel(flag, **{flag: True})
            found[flag] = best(tuned)
            if found[flag] is None:
                tuned.save(configs[0], 1_000_000)
            autotune_cache.AutotuneCacheBundler.end_compile()
    report(found=found)
"""


@pytest.fixture(scope="module")
def fleet(new_fleet: NewFleet) -> Fleet:
    """A fleet of its own, so that what is stored can be counted."""
    return new_fleet()


@pytest.fixture(scope="module")
def tuned(fleet: Fleet) -> Start:
    """A start that tuned what nobody had tuned."""
    return fleet.recorder().run(TUNE)


@pytest.fixture(scope="module")
def tuned_again(fleet: Fleet, tuned: Start) -> Start:
    """A start that found what there was, and tuned the same once more."""
    return fleet.fresh().run(TUNE, DESCENT="")


def test_nothing_is_found_that_nobody_tuned(tuned: Start) -> None:
    assert not any(tuned.facts["found"].values())


def test_coordinate_descent_outranks_the_heuristic(tuned_again: Start) -> None:
    found = tuned_again.facts["found"]
    assert (found["one"], found["two"], found["three"]) == ([256, True], [128, True], None)


@pytest.mark.parametrize("flag", ["autotune_remote_cache", "bundled_autotune_remote_cache"])
def test_pytorchs_remote_caches_are_served(tuned_again: Start, flag: str) -> None:
    assert tuned_again.facts["found"][flag] == [64, False]


def test_one_of_each_kind_is_kept(fleet: Fleet, tuned_again: Start) -> None:
    assert len(fleet.objects("manifests/autotune/")) == 3 + 2
    assert len(fleet.objects("manifests/bundled-autotune/")) == 1
