"""Kernels of which it is known where coordinate descent ended: PyTorch tunes some of them again.

Before torch 2.13 it does not look for that where a graph brought one kernel, and forgets it where the
graph brought that very one. It halves the block of a reduction, and tries the half too: before 2.13 even
if the whole is what was found, later if the graph was compiled when it had been found already. Since 2.13
it takes what the heuristic chose for what descent ended at, if descent was to follow and did not end.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from s3cache.integration.hooks import guarded, require, wrap
from s3cache.integration.pytorch import best_configs


def install(module: ModuleType) -> None:
    """Hook `torch._inductor.runtime.triton_heuristics`, and the `autotune_cache` that it reads.

    Raises HookMissing if they are not as expected.
    """
    from torch._inductor.runtime import autotune_cache

    recheck = "CachingAutotuner.recheck_autotune_cache"
    halve = "CachingAutotuner._dynamic_scale_rblock"
    require(module, recheck, halve, "CachingAutotuner._precompile_config")
    wrap(autotune_cache, "_load_cached_autotuning", _load_cached_autotuning)
    wrap(module, recheck, _recheck_autotune_cache)
    wrap(module, halve, _dynamic_scale_rblock)


def _load_cached_autotuning(wrapped: Callable[..., Any], _: Any, args: Any, kwargs: Any) -> Any:
    # PyTorch takes out of what it read what tells descent from the heuristic.
    is_by_descent = _is_filed_by_descent(*args, **kwargs)
    best = wrapped(*args, **kwargs)
    _mark(best, is_by_descent, *args, **kwargs)
    return best


def _recheck_autotune_cache(wrapped: Callable[..., Any], autotuner: Any, args: Any, kwargs: Any) -> Any:
    result = wrapped(*args, **kwargs)
    _take(autotuner, *args, **kwargs)
    return result


def _dynamic_scale_rblock(wrapped: Callable[..., Any], autotuner: Any, args: Any, kwargs: Any) -> Any:
    return None if _is_found(autotuner) else wrapped(*args, **kwargs)


@guarded
def _is_filed_by_descent(best_config: Any, *_: Any, **__: Any) -> bool:
    return best_configs.is_by_descent(best_config)


@guarded
def _mark(
    best: Any,
    is_by_descent: bool | None,
    best_config: Any,
    configs_hash: Any,
    configs: list[Any],
    inductor_meta: Any,
) -> None:
    """Mark the one of the configurations that coordinate descent ended at, and no other."""
    if best is None:
        return
    is_found = bool(is_by_descent) and _is_by_descent(best)
    for config in (best, *configs):
        if _hashable(config) == _hashable(best):
            config.found_by_coordesc = is_found


@guarded
def _take(autotuner: Any, reload_kernel_from_src: Callable[[], Any]) -> None:
    """Take the kernel that coordinate descent ended at instead of the one that the graph brought."""
    found = _found(autotuner)
    (brought, *others) = autotuner.compile_results
    if found is None or others or _hashable(brought.config) == found:
        return
    launch = dict(found)
    config = type(brought.config)(
        num_warps=launch.pop("num_warps"), num_stages=launch.pop("num_stages"), kwargs=launch
    )
    config.found_by_coordesc = True
    if autotuner.fn.fn is None:
        autotuner.fn = reload_kernel_from_src().fn
    autotuner.compile_results = [autotuner._precompile_config(config)]


@guarded
def _is_found(autotuner: Any) -> bool:
    """Return whether all that the autotuner has is the configuration that was found."""
    (config, *others) = (result.config for result in autotuner.compile_results)
    return not others and (_is_by_descent(config) or _hashable(config) == _found(autotuner))


def _is_by_descent(config: Any) -> bool:
    return bool(getattr(config, "found_by_coordesc", False))


def _found(autotuner: Any) -> Any:
    """Return the configuration that was found for a kernel, as PyTorch hashes it; None if none was."""
    return (autotuner.autotune_cache_info or {}).get("best_config")


def _hashable(config: Any) -> Any:
    from torch._inductor.runtime.runtime_utils import triton_config_to_hashable

    return triton_config_to_hashable(config)
