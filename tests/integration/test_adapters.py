"""An adapter whose hook is gone says which one, before it changed anything."""

from importlib import import_module
from types import ModuleType

import pytest

from s3cache.integration.hooks import HookMissing

NEEDED = {
    "autotune": "AutotuneCache.read_best",
    "custom_artifacts": "CacheArtifactFactory._artifact_types",
    "gemm_timings": "CacheBase.get_local_cache_path",
    "pgo": "code_state_path",
    "precompile": "CompilePackage.source_id_from_fn",
    "remote_caches": "RemoteCacheBackend",
}


@pytest.mark.parametrize("adapter", NEEDED)
def test_a_missing_hook_is_named(adapter: str) -> None:
    module = ModuleType("torch._changed")
    with pytest.raises(HookMissing, match=f"torch._changed.{NEEDED[adapter]}"):
        import_module(f"s3cache.integration.pytorch.{adapter}").install(module)


def test_a_lookup_with_other_parameters_is_left_alone() -> None:
    class Cache:
        def get_local_cache_path(self) -> None: ...

        def get_local_cache(self) -> None: ...

        def update_local_cache(self) -> None: ...

        def lookup(self, choices: object, op: object, inputs: object) -> None: ...

        def set_value(self) -> None: ...

    module = ModuleType("torch._changed")
    module.__dict__.update(CacheBase=Cache, PersistentCache=Cache, LocalCache=Cache)
    adapter = import_module("s3cache.integration.pytorch.gemm_timings")
    with pytest.raises(HookMissing, match=r"PersistentCache.lookup\(benchmark, hint_override\)"):
        adapter.install(module)
    assert not hasattr(Cache.lookup, "__wrapped__")
