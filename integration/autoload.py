"""What `import torch` calls, in every process: it registers what to do when modules load.

PyTorch finds `register` through the entry-point group `torch.backends`.
"""

import logging
import os
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version
from types import ModuleType

logger = logging.getLogger(__name__)

_ADAPTERS = {
    "pytorch.saved_graphs": "torch.compiler._cache",
    "pytorch.graphs": "torch._inductor.codecache",
    "pytorch.aot_autograd": "torch._functorch._aot_autograd.autograd_cache",
    "pytorch.cpp_libraries": "torch._inductor.codecache",
    "pytorch.cpp_compilers": "torch._inductor.cpp_builder",
    "pytorch.cpp_isa": "torch._inductor.cpu_vec_isa",
    "pytorch.autotune": "torch._inductor.runtime.autotune_cache",
    "pytorch.static_autotuners": "torch._inductor.triton_bundler",
    "pytorch.gemm_timings": "torch._inductor.codecache",
    "pytorch.remote_caches": "torch._inductor.remote_cache",
    "pytorch.pgo": "torch._dynamo.pgo",
    "pytorch.ranks": "torch.distributed.distributed_c10d",
    "pytorch.precompile": "torch._dynamo.package",
    "pytorch.custom_artifacts": "torch.compiler._cache",
    "pytorch.driver_kernels": "torch.cuda",
    "pytorch.bundled_kernels": "torch._inductor.runtime.triton_heuristics",
    "pytorch.retuning": "torch._inductor.runtime.triton_heuristics",
    "triton.selection": "triton.runtime.cache",
    "triton.platforms": "triton.runtime.build",
    "triton.configs": "triton.runtime.autotuner",
    "triton.texts": "triton.compiler.compiler",
}
"""Each mechanism, one module in s3cache.integration, and the module of PyTorch or Triton it hooks."""


def register() -> None:
    """Arrange for the hooks of each mechanism, and begin to fetch. Does nothing without S3CACHE_URL.

    Never raises: what goes wrong is a warning, and the job runs without the cache.
    """
    if not os.environ.get("S3CACHE_URL") or os.environ.get("S3CACHE_MODE") == "off":
        return
    try:
        _register()
    except Exception as error:
        logger.warning("s3cache is off: %r", error)


def _register() -> None:
    started = time.perf_counter()
    from wrapt import register_post_import_hook

    from s3cache import client

    cache = client.current()
    if cache is None:
        return
    cache.start()
    for adapter, module in _ADAPTERS.items():
        register_post_import_hook(partial(_install, adapter), module)
    cache.waited("start", time.perf_counter() - started)


def _install(adapter: str, module: ModuleType) -> None:
    from s3cache.integration.hooks import HookMissing

    try:
        install: Callable[[ModuleType], None] = import_module(f"s3cache.integration.{adapter}").install
        install(module)
    except HookMissing as error:
        logger.warning(
            "%s is not in %s %s: %s stays off, the job goes on without it",
            error,
            adapter.partition(".")[0].replace("pytorch", "torch"),
            version(module.__name__.partition(".")[0]),
            adapter,
        )
    except Exception as error:
        logger.warning("%s stays off, the job goes on without it: %r", adapter, error)
