"""Kernels that Inductor compiles: those of a graph travel in its bundle, and are not kept twice.

No bundle has what is compiled once its graph is made: what a graph that was loaded still lacks, and
the configuration that coordinate descent ends at.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from s3cache.integration.hooks import guarded, require, wrap
from s3cache.integration.triton.switch import carried_by_a_graph


def install(module: ModuleType) -> None:
    """Hook `torch._inductor.runtime.triton_heuristics`. Raises HookMissing if it is not as expected."""
    require(module, "TritonBundler._entries")
    wrap(module, "CachingAutotuner._precompile_config", _precompile_config)
    wrap(module, "CachingAutotuner.precompile", _precompile)
    wrap(module, "CachingAutotuner.coordinate_descent_tuning", _descend)


def _precompile_config(wrapped: Callable[..., Any], _: Any, args: Any, kwargs: Any) -> Any:
    from torch._inductor.triton_bundler import TritonBundler

    if TritonBundler._entries is None:
        return wrapped(*args, **kwargs)
    with carried_by_a_graph():
        return wrapped(*args, **kwargs)


def _precompile(wrapped: Callable[..., Any], _: Any, args: Any, kwargs: Any) -> Any:
    from torch._inductor import config

    # So a worker is told to compile: the bundle is that of the process which asked it to.
    if not kwargs.get("warm_cache_only") or config.bundle_triton_into_fx_graph_cache is False:
        return wrapped(*args, **kwargs)
    with carried_by_a_graph():
        return wrapped(*args, **kwargs)


def _descend(wrapped: Callable[..., Any], autotuner: Any, args: Any, kwargs: Any) -> Any:
    # Of the dozens that it tries, one is launched again.
    with carried_by_a_graph():
        ended_at = wrapped(*args, **kwargs)
    _store(autotuner, ended_at, *args)
    return ended_at


@guarded
def _store(autotuner: Any, launcher: Any, started_at: Any, *_: Any) -> None:
    if launcher is started_at:
        return
    from torch._inductor.runtime.cache_dir_utils import triton_cache_dir

    from s3cache.integration.triton import kernels

    device = autotuner.triton_meta.get("device", 0)
    kernels.store_folder(Path(triton_cache_dir(device), launcher.cache_hash))
