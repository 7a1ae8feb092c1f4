"""The best launch configuration of a Triton kernel, found on one machine, is used by the next."""

import pytest

from tests.integration.conftest import NewBucket
from tests.integration.machines import Bucket

KERNEL = """
    import os
    from dataclasses import dataclass

    import torch
    from torch._inductor.runtime import autotune_cache

    @dataclass
    class Config:
        kwargs: dict
        num_warps: int = 4
        num_stages: int = 1
        found_by_coordesc: bool = False

    # Without Triton there is no class to make what coordinate descent found of.
    autotune_cache.Config = Config
    meta = {
        "autotune_local_cache": True,
        "autotune_remote_cache": None,
        "backend_hash": "backend",
        "coordinate_descent_tuning": "descent" in os.environ.get("TUNE", ""),
        "is_fbcode": False,
    }
    configs = [Config({"XBLOCK": 64}), Config({"XBLOCK": 128})]

    def kernel(name):
        folder = os.path.join(os.environ["TORCHINDUCTOR_CACHE_DIR"], name[:2])
        return autotune_cache.AutotuneCache.create(meta, os.path.join(folder, f"{name}.py"), "hash")

    def best(name):
        found = kernel(name).read_best(meta, configs)
        return found and [found.kwargs["XBLOCK"], found.found_by_coordesc]
"""
SAVE = """
    for name in "one", "two":
        kernel(name).save(configs[1], 5_000_000)
    kernel("one").save(Config({"XBLOCK": 256}), 4_000_000, found_by_coordesc=True)
    report()
"""
READ = """
    report(**{name: best(name) for name in ("one", "two", "three")})
"""


@pytest.fixture(scope="module")
def tuned(new_bucket: NewBucket) -> Bucket:
    """A bucket into which two machines recorded that tuned the same kernels."""
    bucket = new_bucket()
    for _ in range(2):
        bucket.new_machine().run(KERNEL + SAVE)
    return bucket


def test_coordinate_descent_outranks_the_heuristic(tuned: Bucket) -> None:
    found = tuned.new_machine().run(KERNEL + READ, TUNE="descent")
    assert found == {"one": [256, True], "two": [128, False], "three": None}


def test_one_of_each_kind_is_kept(tuned: Bucket) -> None:
    assert len(tuned.manifests("autotune/")) == 3
