"""PyTorch's remote caches, turned on by the user: the same store serves them, and holds nothing twice."""

import re

import pytest

from tests.integration.machines import Bucket

FLAGS = {
    "TORCHINDUCTOR_FX_GRAPH_REMOTE_CACHE": "1",
    "TORCHINDUCTOR_AUTOGRAD_REMOTE_CACHE": "1",
    "TORCH_DYNAMO_AUTOMATIC_DYNAMIC_REMOTE_PGO": "1",
}
COMPILE = """
    import os, torch
    from torch._dynamo.utils import counters
    from torch._inductor import remote_cache

    keys = []
    get = remote_cache.RemoteCacheBackend.get
    remote_cache.RemoteCacheBackend.get = lambda self, key: keys.append(key) or get(self, key)

    torch._inductor.config.cpp_cache_precompile_headers = False
    torch.compiler.config.job_id = "job"

    @torch.compile(backend=os.environ.get("BACKEND", "inductor"))
    def f(x):
        return x * 2

    for size in os.environ["SIZES"].split():
        f(torch.ones(2, int(size)))
    stats = {name: [s.put, s.hit, s.miss] for name, s in remote_cache.cache_stats._stats.items()}
    report(stats=stats, keys=keys, frames=counters["frames"]["total"])
"""
KEYS = {
    "RemoteFxGraphCache": r"pt2:fx-graph-v1::[0-9a-z]{52}:c[0-9]+",
    "RemoteAOTAutogradCache": r"pt2:autograd-experimental::[0-9a-z]{52}:c[0-9]+",
    "RemoteDynamoPGOCache": r"pt2:dynamo-pgo::job:None::c[0-9]+",
}
AUTOTUNE = """
    import os, torch, torch._inductor.codecache
    from torch._guards import CompileContext, CompileId, compile_context
    from torch._inductor.runtime import autotune_cache

    class Config:
        kwargs, num_warps, num_stages = {"XBLOCK": 64}, 4, 1

    meta = {
        "autotune_local_cache": True,
        "autotune_remote_cache": os.environ.get("REMOTE") == "1",
        "bundled_autotune_remote_cache": os.environ.get("BUNDLED") == "1",
        "backend_hash": "backend",
        "is_fbcode": False,
    }
    path = os.path.join(os.environ["TORCHINDUCTOR_CACHE_DIR"], "ke", "ckernel.py")
    with compile_context(CompileContext(CompileId(frame_id=0, frame_compile_id=0))):
        autotune_cache.AutotuneCacheBundler.begin_compile(meta, code="the wrapper")
        cache = autotune_cache.AutotuneCache.create(meta, path, "hash")
        found = cache.read_best(meta, [Config])
        if found is None:
            cache.save(Config, 1_000_000)
        autotune_cache.AutotuneCacheBundler.end_compile()
    report(found=found is not None)
"""


def test_each_is_put_once_and_found_by_every_fresh_machine(bucket: Bucket) -> None:
    starts = [bucket.new_machine().run(COMPILE, SIZES="3", **FLAGS) for _ in range(4)]
    for cache, key in KEYS.items():
        assert [start["stats"][cache] for start in starts] == [[1, 0, 1], *[[0, 1, 0]] * 3], cache
        for start in starts:
            assert any(re.fullmatch(key, asked) for asked in start["keys"])
    namespaces = [name.partition("/")[0] for name in bucket.manifests("")]
    assert {"aot-autograd", "dynamo-pgo", "fx-graph"} < set(namespaces)
    assert len(namespaces) == len(set(namespaces))


def test_dynamic_at_once(bucket: Bucket) -> None:
    assert bucket.new_machine().run(COMPILE, SIZES="3 4", BACKEND="eager", **FLAGS)["frames"] == 2
    assert bucket.new_machine().run(COMPILE, SIZES="5 6", BACKEND="eager", **FLAGS)["frames"] == 1


@pytest.mark.parametrize("flag", ["REMOTE", "BUNDLED"])
def test_autotune(bucket: Bucket, flag: str) -> None:
    assert bucket.new_machine().run(AUTOTUNE, **{flag: "1"}) == {"found": False}
    assert bucket.new_machine().run(AUTOTUNE, **{flag: "1"}) == {"found": True}
    assert len(bucket.manifests("autotune/")) == 1
    assert len(bucket.manifests("bundled-autotune/")) == (flag == "BUNDLED")
