"""Kernels of a graph whose best configuration was found: torch before 2.13 tunes some of them again.

Where coordinate descent ended it takes from what the graph brought and forgets how it was found, or does
not look for it where there was one configuration to begin with. And it halves the block of a reduction
that was found as it does with those that are yet to be tried, and tries both.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from s3cache.integration.hooks import guarded, require, wrap


def install(module: ModuleType) -> None:
    """Hook `torch._inductor.runtime.triton_heuristics`. Raises HookMissing if it is not as expected."""
    from torch._inductor.runtime import autotune_cache

    require(module, "CachingAutotuner._precompile_config", "Config", "triton_config_to_hashable")
    wrap(module, "CachingAutotuner.recheck_autotune_cache", _recheck_autotune_cache)
    wrap(module, "CachingAutotuner._dynamic_scale_rblock", _dynamic_scale_rblock)
    wrap(autotune_cache, "AutotuneCache.read_best", _read_best)


def _read_best(wrapped: Callable[..., Any], _: Any, args: Any, kwargs: Any) -> Any:
    best = wrapped(*args, **kwargs)
    _mark(best, *args, **kwargs)
    return best


def _recheck_autotune_cache(wrapped: Callable[..., Any], autotuner: Any, args: Any, kwargs: Any) -> Any:
    result = wrapped(*args, **kwargs)
    _take(autotuner, *args, **kwargs)
    return result


def _dynamic_scale_rblock(wrapped: Callable[..., Any], autotuner: Any, args: Any, kwargs: Any) -> Any:
    return None if _found(autotuner) else wrapped(*args, **kwargs)


@guarded
def _mark(best: Any, _: Any, configs: list[Any]) -> None:
    """Mark the configuration that coordinate descent ended at, if the graph brought it."""
    if getattr(best, "found_by_coordesc", False):
        for config in configs:
            if _launch(config) == _launch(best):
                config.found_by_coordesc = True


def _launch(config: Any) -> tuple[Any, ...]:
    return config.kwargs, config.num_warps, config.num_stages


@guarded
def _take(autotuner: Any, reload_kernel: Callable[[], Any]) -> None:
    """Take what coordinate descent ended at instead of the one configuration that the graph brought."""
    from torch._inductor.runtime import triton_heuristics

    best = _found(autotuner)
    (brought, *others) = autotuner.compile_results
    if best is None or others or triton_heuristics.triton_config_to_hashable(brought.config) == best:
        return
    launch = dict(best)
    config = triton_heuristics.Config(
        num_warps=launch.pop("num_warps"), num_stages=launch.pop("num_stages"), kwargs=launch
    )
    config.found_by_coordesc = True
    if autotuner.fn.fn is None:
        autotuner.fn = reload_kernel().fn
    autotuner.compile_results = [autotuner._precompile_config(config)]


@guarded
def _found(autotuner: Any) -> Any:
    """Return the configuration that was found for a kernel, as PyTorch hashes it; None if none was."""
    return (autotuner.autotune_cache_info or {}).get("best_config")
