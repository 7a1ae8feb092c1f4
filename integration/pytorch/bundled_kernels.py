"""Kernels that Inductor compiles: they travel in the bundle of their graph, and are not kept twice."""

from collections.abc import Callable
from types import ModuleType
from typing import Any

from s3cache.integration.hooks import wrap
from s3cache.integration.triton.switch import carried_by_a_graph


def install(module: ModuleType) -> None:
    """Hook `torch._inductor.runtime.triton_heuristics`. Raises HookMissing if it is not as expected."""
    wrap(module, "CachingAutotuner._precompile_config", _precompile_config)


def _precompile_config(wrapped: Callable[..., Any], _: Any, args: Any, kwargs: Any) -> Any:
    from torch._inductor import config

    if config.bundle_triton_into_fx_graph_cache is False:
        return wrapped(*args, **kwargs)
    with carried_by_a_graph():
        return wrapped(*args, **kwargs)
