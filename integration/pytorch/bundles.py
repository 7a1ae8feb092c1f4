"""The kernels that a graph brings along: those of choices that lost the tuning need not be written.

A graph that was tuned bundles hundreds of kernels, of which it launches a tenth, and PyTorch writes all.
"""

import ast
import re
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

from s3cache.integration.hooks import guarded, require, wrap
from s3cache.integration.pytorch.switch import active_client

_DEFINITION = re.compile(r"async_compile\.triton\('[^'\n]*', ('''.*?''')", re.DOTALL)
"""A kernel's name and its source, as Inductor writes them into a graph's code."""


def install(module: ModuleType) -> None:
    """Hook `torch._inductor.codecache`. Raises HookMissing if it is not as expected."""
    require(module, "CompiledFxGraph", "TritonBundler.read_and_emit")
    wrap(module, "FxGraphCache.cache_hit_post_compile", _post_compile)


def _post_compile(wrapped: Callable[..., Any], _: Any, args: Any, kwargs: Any) -> Any:
    _leave_out(*args, **kwargs)
    return wrapped(*args, **kwargs)


@guarded
def _leave_out(graph: Any, *_: Any, **__: Any) -> None:
    bundle = graph._triton_bundle
    if active_client() is None or not bundle or not bundle.static_autotuners:
        return
    from torch._inductor.async_compile import CompiledTritonKernels
    from torch._inductor.runtime.triton_heuristics import triton_hash_to_path_key

    defined = {
        CompiledTritonKernels.key(ast.literal_eval(source))
        for source in _DEFINITION.findall(graph.source_code)
    }
    launched = [each for each in bundle.static_autotuners if each.cache_key in defined]
    # What has no autotuner of its own here is compiled by Triton, which may find any of the others.
    if not defined or {each.cache_key for each in launched} != defined:
        return
    hashes = {
        triton_hash_to_path_key(result.kernel.hash)
        for each in launched
        for result in each.kernel.compile_results
    }
    graph._triton_bundle = replace(
        bundle,
        kernel_artifacts=[each for each in bundle.kernel_artifacts if each.kernel_hash in hashes],
        static_autotuners=launched,
    )
