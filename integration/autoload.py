"""What `import torch` calls, in every process: it only registers what to do when modules load.

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
    "saved_graphs": "torch.compiler._cache",
    "graphs": "torch._inductor.codecache",
    "aot_autograd": "torch._functorch._aot_autograd.autograd_cache",
    "cpp_libraries": "torch._inductor.codecache",
    "cpp_compilers": "torch._inductor.cpp_builder",
    "cpp_isa": "torch._inductor.cpu_vec_isa",
    "autotune": "torch._inductor.runtime.autotune_cache",
    "static_autotuners": "torch._inductor.triton_bundler",
    "gemm_timings": "torch._inductor.codecache",
    "remote_caches": "torch._inductor.remote_cache",
    "pgo": "torch._dynamo.pgo",
    "precompile": "torch._dynamo.package",
    "custom_artifacts": "torch.compiler._cache",
}
"""Each mechanism, one module in s3cache.integration.pytorch, and the module of PyTorch it hooks."""


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
        install: Callable[[ModuleType], None] = import_module(
            f"s3cache.integration.pytorch.{adapter}"
        ).install
        install(module)
    except HookMissing as error:
        logger.warning(
            "%s is not in torch %s: %s stays off, the job goes on without it",
            error,
            version("torch"),
            adapter,
        )
    except Exception as error:
        logger.warning("%s stays off, the job goes on without it: %r", adapter, error)
